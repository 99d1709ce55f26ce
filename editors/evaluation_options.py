"""Options of `unwrap eval --edit`."""

from __future__ import annotations

from dataclasses import dataclass

from neural_fields.config.flags import EditsFlag


@dataclass(frozen=True)
class EditEvalOptions:
    """Sets how edits are measured; the fields are flags of `unwrap eval`.

    Example:
        >>> EditEvalOptions(edits=("painted",)).clip_model is None
        True
    """

    edits: EditsFlag = ()
    """Edits to measure, by name or number: changes outside of the edit, and steadiness."""
    prompt: str | None = None
    """Prompt of the edit; with --clip-model, measures how well the frames match it."""
    clip_model: str | None = None
    """A CLIP model, a folder of transformers or a name on the hub: consistency of frames, and match with the prompt."""
    pickscore_model: str | None = None
    """A PickScore model (CLIP fine-tuned on human preferences), a folder or a name on the hub; with --prompt."""
