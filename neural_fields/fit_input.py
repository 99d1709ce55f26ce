"""What a fit works from: frames with their flow and masks, and the record that keeps a continued run the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neural_fields import config as settings
from neural_fields.config import Config, GridMapping, PixelOpacity, SplineMapping, WindowOpacity
from neural_fields.data.clip import Clip
from neural_fields.data.facts import Video
from neural_fields.data.flow import FlowField, compute_flow
from neural_fields.data.masks import LayerMasks, auto_masks, load_masks, mask_iou
from neural_fields.data.memory import LARGE, one_by_one
from neural_fields.data.refine import refine_masks
from neural_fields.errors import bad_input
from neural_fields.files import atomic_write, require_room
from neural_fields.fit_options import FitOptions, Progress, Reporter
from neural_fields.fit_record import read_fit_record
from neural_fields.fit_region import region_of, with_region
from neural_fields.planar.window_opacity import segment_masks
from neural_fields.run import Run, read_run_yaml

SURE_MASKS = 0.97  # IoU with what mending makes of them, above which masks are left as they are
LONG_CLIP = 80  # frames from which masks are first looked at in samples
SAMPLE = 16  # frames
LEAST_FRAMES = 8  # to mend masks
LEAST_SIDE = 160  # pixels, to mend masks


def make_clip(
    run: Run, source: Video, options: FitOptions, config: Config, report: Reporter = lambda progress: None
) -> tuple[Clip, list[str]]:
    """Frames, masks and flow at the size of the fit, and what the user should know about them."""
    frames = source.frames
    size = (frames.shape[2], frames.shape[1])
    notes: list[str] = []
    region = region_of(options, config, source)
    if region and options.masks == ("auto",):
        options = replace(options, masks=("none",))  # the region is the object
    if len(frames) == 1:
        notes.append("the clip has one frame: it is fitted as a still, without motion")
    flow = None
    segments = _segments(config, options, len(frames), size)
    needs_flow = isinstance(config.mapping, GridMapping | SplineMapping) or config.terms.use_flow
    if len(frames) > 1 and (needs_flow or (segments is None and options.masks == ("auto",))):
        flow_size = _flow_size(config, size)
        flow = compute_flow(
            frames, run.cache, options.flow, flow_size, lambda done, all_: report(Progress("flow", done, all_))
        )
    masks = segments or _masks(source, options, flow, size, notes, report)
    masks = _on_disk(masks, run.cache)
    if flow is not None and _mends_masks(config, options, frames):
        masks = _mended(run.cache, frames, flow, masks, report)
    clip = Clip(frames, masks, flow)
    if region:
        clip, more = with_region(clip, region, source, report)
        notes += more
    return clip, notes


def _on_disk(masks: LayerMasks, cache: Path) -> LayerMasks:
    """The same masks, mapped from a file where they are so many that they would fill memory."""
    if masks.masks.nbytes < LARGE or isinstance(masks.masks, np.memmap):
        return masks
    return _stored(masks, cache / f"masks-{_digest(masks)}.npy")


def _stored(masks: LayerMasks, path: Path) -> LayerMasks:
    """The masks as the file `path` has them; it is written if it is not there."""
    if not path.is_file():
        require_room(path.parent, masks.masks.nbytes)
        with atomic_write(path) as part:
            np.save(part, masks.masks, allow_pickle=False)
    return LayerMasks(masks.names, np.load(path, mmap_mode="r", allow_pickle=False))


def _digest(masks: LayerMasks) -> str:
    """The content of masks, in short."""
    digest = hashlib.blake2b(str(masks.masks.shape).encode(), digest_size=16)
    for layer in masks.masks:
        for mask in one_by_one(layer):
            digest.update(np.ascontiguousarray(mask).tobytes())
    return digest.hexdigest()


def _mended(cache: Path, frames: np.ndarray, flow: FlowField, masks: LayerMasks, report: Reporter) -> LayerMasks:
    """Masks without what they have by mistake; those that seem right to a few percent stay as they are."""
    path = cache / f"mended-{_digest(masks)}.npy"
    if path.is_file():
        return _stored(masks, path)
    if len(frames) > LONG_CLIP and _seem_sure(frames, flow, masks):
        return masks
    better = refine_masks(frames, flow, masks, lambda done, all_: report(Progress("masks", done, all_)))
    agreement = [mask_iou(a, b) for a, b in zip(masks.masks, better.masks, strict=True)]
    kept = [a if same > SURE_MASKS else b for a, b, same in zip(masks.masks, better.masks, agreement, strict=True)]
    return _stored(LayerMasks(masks.names, np.stack(kept)), path)


def _seem_sure(frames: np.ndarray, flow: FlowField, masks: LayerMasks) -> bool:
    """Whether mending changes little in samples of the clip: then it need not be done for all of a long one."""
    for middle in (len(frames) // 4, 3 * len(frames) // 4):
        part = slice(middle - SAMPLE // 2, middle + SAMPLE // 2)
        pairs = slice(part.start, part.stop - 1)
        near = FlowField(flow.forward[pairs], flow.backward[pairs], flow.forward_ok[pairs], flow.backward_ok[pairs])
        given = LayerMasks(masks.names, masks.masks[:, part])
        better = refine_masks(frames[part], near, given)
        if min(mask_iou(a, b) for a, b in zip(given.masks, better.masks, strict=True)) < SURE_MASKS:
            return False
    return True


def _flow_size(config: Config, size: tuple[int, int]) -> tuple[int, int]:
    """Geometry needs no more than a small flow; the loss terms of the papers use the flow of the fit's size."""
    if not isinstance(config.mapping, GridMapping | SplineMapping):
        return size
    shrink = min(1.0, config.mapping.flow_size / max(size))
    return (round(size[0] * shrink), round(size[1] * shrink))


def _mends_masks(config: Config, options: FitOptions, frames: np.ndarray) -> bool:
    """Whether the user's masks are mended before the fit: in our own preset; the papers' take them as they are.

    Short and very small clips say too little about what a mask has by mistake.
    """
    given = bool(options.masks) and not {"auto", "none"} & set(options.masks)
    enough = len(frames) >= LEAST_FRAMES and max(frames.shape[1:3]) >= LEAST_SIDE
    return given and enough and isinstance(config.mapping, GridMapping) and isinstance(config.opacity, PixelOpacity)


def _segments(config: Config, options: FitOptions, frame_count: int, size: tuple[int, int]) -> LayerMasks | None:
    """The layers of a clip that is cut into segments; None where layers come from masks."""
    if not isinstance(config.opacity, WindowOpacity):
        return None
    if options.masks not in ((), ("auto",), ("none",)):
        raise bad_input(
            f"--masks {' '.join(options.masks)} with --config {options.config}",
            why="its layers are segments of the clip, one after the other: a mask has no place in it",
            fix=f"leave --masks out, or take a preset with objects: --config atlas --masks {' '.join(options.masks)}",
        )
    return segment_masks(config.opacity, frame_count, size)


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
        "roi": _roi(options, config, source),
        "flow": options.flow if options.flow in ("auto", "dis", "raft", "raft-large") else _resolved(options.flow),
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "config": settings.config_to_mapping(config),
    }


def _roi(options: FitOptions, config: Config, source: Video) -> str | None:
    """The region in one form, whatever spaces and zeros it was typed with."""
    region = region_of(options, config, source)
    return region.text if region else None


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
        # Read and written again: settings that came with a later version of the program have their defaults.
        old, new = settings.config_to_mapping(read_fit_record(run).config), record["config"]
        parts = [key for key in new if old.get(key) != new[key]]
        # The number of steps and how often to save may change on the way.
        if parts in ([], ["training"]):
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
