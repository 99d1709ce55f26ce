"""What a fit works from: frames with their flow and masks, and the record that keeps a continued run the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from neural_fields import config as settings
from neural_fields.config import Config, GridMapping
from neural_fields.data.clip import Clip
from neural_fields.data.facts import Video
from neural_fields.data.flow import compute_flow
from neural_fields.data.masks import LayerMasks, auto_masks, load_masks
from neural_fields.errors import bad_input
from neural_fields.fit_options import FitOptions, Progress, Reporter
from neural_fields.fit_record import read_fit_record
from neural_fields.run import Run, read_run_yaml


def make_clip(
    run: Run, source: Video, options: FitOptions, config: Config, report: Reporter = lambda progress: None
) -> tuple[Clip, list[str]]:
    """Frames, masks and flow at the size of the fit, and what the user should know about them."""
    frames = source.frames
    size = (frames.shape[2], frames.shape[1])
    notes: list[str] = []
    if len(frames) == 1:
        notes.append("the clip has one frame: it is fitted as a still, without motion")
    flow = None
    needs_flow = isinstance(config.mapping, GridMapping) or config.terms.use_flow
    if len(frames) > 1 and (needs_flow or options.masks == ("auto",)):
        flow_size = _flow_size(config, size)
        flow = compute_flow(
            frames, run.cache, options.flow, flow_size, lambda done, all_: report(Progress("flow", done, all_))
        )
    masks = _masks(source, options, flow, size, notes, report)
    return Clip(frames, masks, flow), notes


def _flow_size(config: Config, size: tuple[int, int]) -> tuple[int, int]:
    """Geometry needs no more than a small flow; the loss terms of the papers use the flow of the fit's size."""
    if not isinstance(config.mapping, GridMapping):
        return size
    shrink = min(1.0, config.mapping.flow_size / max(size))
    return (round(size[0] * shrink), round(size[1] * shrink))


def _masks(
    source: Video,
    options: FitOptions,
    flow: Any,
    size: tuple[int, int],
    notes: list[str],
    report: Reporter,
) -> LayerMasks:
    """The masks that were asked for."""
    nothing = LayerMasks((), np.zeros((0, *source.frames.shape[:3]), bool))
    if options.masks in ((), ("none",)):
        return nothing
    if "auto" in options.masks or "none" in options.masks:
        if len(options.masks) > 1:
            raise bad_input(
                f"--masks {' '.join(options.masks)}: 'auto' and 'none' stand alone",
                why="either the program finds the moving object, or every layer has a mask of yours",
                fix="--masks PATH for each front layer, front first",
            )
        if flow is None:
            return nothing
        report(Progress("masks", 0, 1))
        found = auto_masks(source.frames, flow, lambda done, all_: report(Progress("masks", done, all_)))
        if not found.names:
            notes.append("no object moves clearly on its own: the clip is fitted as one layer (--masks PATH adds more)")
        return found
    report(Progress("masks", 0, 1))
    chosen = range(*source.frame_range)
    facts = source.facts
    return load_masks(options.masks, facts.frame_count, size, chosen, (facts.width, facts.height))


def record_of(options: FitOptions, config: Config, source: Video) -> dict[str, Any]:
    """What run.yaml keeps: enough to repeat the run."""
    start, stop, step = source.frame_range
    facts = source.facts
    return {
        "video": str(Path(facts.path).resolve()),
        "sha256": facts.sha256,
        "frames": f"{start}:{stop}:{step}",
        "size": [source.frames.shape[2], source.frames.shape[1]],
        "preset": options.config,
        "quality": options.quality,
        "masks": [_resolved(spec) for spec in options.masks],
        "flow": options.flow if options.flow in ("auto", "dis", "raft", "raft-large") else _resolved(options.flow),
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "config": settings.config_to_mapping(config),
    }


def _resolved(spec: str) -> str:
    """A mask spec with its path made absolute."""
    if spec in ("auto", "none"):
        return spec
    name, _, path = spec.rpartition("=")
    return f"{name}={Path(path).resolve()}" if name else str(Path(path).resolve())


def check_same(run: Run, record: dict[str, Any]) -> None:
    """Refuses to continue a run with other settings than it began with."""
    if not run.run_yaml.is_file():
        return
    read_fit_record(run)  # a damaged record is not one of other settings
    before = read_run_yaml(run)
    free = ("quality", "threads", "video")  # a fit may go on longer, elsewhere, from a moved file with the same content
    changed = [key for key in record if key not in free and before.get(key) != record[key]]
    if isinstance(before.get("config"), dict) and "config" in changed:
        old, new = before["config"], record["config"]
        parts = [key for key in new if old.get(key) != new[key]]
        # The number of steps and how often to save may change on the way.
        if parts == ["training"]:
            changed.remove("config")
        else:
            changed[changed.index("config")] = "config." + ", config.".join(parts)
    if changed:
        raise bad_input(
            f"{run.path} was begun with other settings: {', '.join(changed).replace('sha256', 'another video')}",
            where=str(run.run_yaml),
            why="a run has one video, size, frame range, set of masks and config from beginning to end",
            fix=f"another folder: --out {run.path}-2",
        )
