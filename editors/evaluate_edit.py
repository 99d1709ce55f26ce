"""`unwrap eval --edit`: computes all metrics of an edit that its run and the given networks allow."""

from __future__ import annotations

from typing import Any

from editors.evaluation_options import EditEvalOptions
from neural_fields.core.errors import bad_input
from neural_fields.evaluation.edit_quality import measure_edit, render_edited_frames
from neural_fields.open_runs.opening import RunLike, open_run, require_planar


def measure_edits(run: RunLike, options: EditEvalOptions) -> dict[str, Any]:
    """Measures the effect of edits on the video of a run.

    Args:
        run: the run, or the path of its folder.
        options: the edits (without names, all active ones), their prompt, and the networks that measure it; without a
            network, its metrics are left out.

    Returns:
        Plain values for JSON, by metric.

    Raises:
        UserError: an unknown edit, a damaged run, a prompt without a network that reads it, or an unusable network.
    """
    run = open_run(run)
    edits, prompt = options.edits, options.prompt
    clip_model, pickscore_model = options.clip_model, options.pickscore_model
    if prompt is not None and clip_model is None and pickscore_model is None:
        raise bad_input(
            "--prompt without a network that reads it",
            why="a CLIP says how well a picture shows a text; none is part of Unwrap",
            fix=f"unwrap eval {run.path} --edit {edits[0] if edits else 'NAME'} --prompt TEXT --clip-model FOLDER",
        )
    if pickscore_model is not None and prompt is None:
        raise bad_input("--pickscore-model needs a prompt", fix=f"--prompt TEXT --pickscore-model {pickscore_model}")
    run = require_planar(run, "--edit")
    found: dict[str, Any] = {"run": str(run.path), "edits": list(edits), **measure_edit(run, edits)}
    if clip_model is not None:
        from editors.diffusion.backend.clip_model import load_clip
        from editors.diffusion.backend.weights import WeightsSource
        from editors.diffusion.common.clip_metrics import measure_with_clip

        # CLIP's measures of the edited video, and the consistency of the source beside them.
        clip = load_clip(WeightsSource(clip_model))
        found |= measure_with_clip((frame.edited for frame in render_edited_frames(run, edits)), clip, prompt)
        source = measure_with_clip(run.iterate_frames(), clip, prompt)
        found |= {f"source_{name}": value for name, value in source.items()}
    if pickscore_model is not None and prompt is not None:
        from editors.diffusion.backend.clip_model import load_clip
        from editors.diffusion.backend.weights import WeightsSource
        from editors.diffusion.common.clip_metrics import compute_pick_score

        edited = (frame.edited for frame in render_edited_frames(run, edits))
        found["pick_score"] = compute_pick_score(edited, load_clip(WeightsSource(pickscore_model)), prompt)
    return found
