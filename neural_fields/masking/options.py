"""Options of `unwrap mask`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neural_fields.config.flags import NotAFlag, Repeated
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.progress import StageWeights
from neural_fields.masking.hints import AnyHint, BoxHint, MainHint, MaskHint

# Shares of the time of a usual command; on a terminal they make one bar of all stages.
STAGE_WEIGHTS: StageWeights = {"reading": 0.1, "flow": 0.25, "objects": 0.5, "writing": 0.15}


@dataclass(frozen=True)
class MaskOptions:
    """Sets how masks are made from hints; the fields are the flags of `unwrap mask`.

    Raises:
        UserError: hints beside `undo` or `redo`, or two boxes or masks of an object in one frame (exit 2 or 3).

    Example:
        >>> MaskOptions(hints=(BoxHint("person", 12, 100, 60, 80, 120),)).frames is None
        True
        >>> MaskOptions(undo=True, redo=True)
        Traceback (most recent call last):
        ...
        neural_fields.core.errors.UserError: error: --undo and --redo at once
          try   unwrap mask VIDEO --undo
    """

    out: Path | None = None
    """The folder of the masks (default: NAME-masks, where NAME is the name of the video; of a run, RUN/masks)."""
    hints: NotAFlag[tuple[AnyHint, ...]] = ()
    """Hints to add; on the command line each is a flag."""
    frames: str | None = None
    """In and out points: A:B, from frame A to before frame B (default: as last time; at first the whole video)."""
    order: Repeated = ()
    """Name of an object, once for each, front first (default: as last time; at first who covers whom is guessed)."""
    size: str | None = None
    """Size at which objects are followed: Np, WxH or source; mattes have the source's size (default: as last time, at
    first 240p)."""
    edges: Literal["soft", "hard"] | None = None
    """soft: hair and blur as in a matte. hard: only enlarged from the size at which objects are followed (default: as
    last time, at first soft)."""
    model: str | None = None
    """A network that follows objects (SAM 2.1, EdgeTAM, SAM 3): a folder, a name on the hub, or none: colors and motion
    (default: as last time, at first none)."""
    text_model: str | None = None
    """A network for --text (Grounding DINO, SAM 3): a folder, or a name on the hub."""
    main_model: str | None = None
    """A network for --main (BiRefNet as ONNX): a folder, or a name on the hub."""
    matte_model: str | None = None
    """A network for soft edges (ViTMatte): a folder, a name on the hub, or none (default: as last time, at first
    none)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that networks run on."""
    undo: bool = False
    """Take back the hints of the last command."""
    redo: bool = False
    """Restore the hints that were taken back last."""

    def __post_init__(self) -> None:
        """Refuses contradictions.

        Raises:
            UserError: see the class.
        """
        object.__setattr__(self, "order", tuple(self.order))
        given = {"--undo": self.undo, "--redo": self.redo, self.hints[0].words if self.hints else "": bool(self.hints)}
        at_once = [name for name, is_given in given.items() if is_given]
        if len(at_once) > 1:
            raise UserError(ExitCode.USAGE, " and ".join(at_once) + " at once", fix=f"unwrap mask VIDEO {at_once[0]}")
        whole = Counter(
            (type(h), h.object, h.frame) for h in self.hints if isinstance(h, BoxHint | MaskHint | MainHint)
        )
        for (kind, name, frame), count in whole.items():
            if count > 1:
                raise bad_input(
                    f"{count} hints --{kind.kind} of {name} in frame {frame}",
                    why="an object has one in a frame; a later command replaces it",
                    fix=f"--{kind.kind} once, or an --object for each",
                )
        if len(set(self.order)) < len(self.order):
            raise bad_input(
                f"--order {' --order '.join(self.order)}", why="an object has one place", fix="--order NAME"
            )
