"""Inputs of a planar training: frames with flow and masks, and the record that a continued run is checked against."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write, require_disk_space
from neural_fields.core.memmap import FILE_BACKED_FROM_BYTES, iterate_releasing
from neural_fields.core.progress import Progress, ProgressReporter, overall_share, report_nothing, report_part
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.flow.shot_detection import find_cuts
from neural_fields.data.masks.layer_masks import LayerMasks, load_masks, mask_iou
from neural_fields.data.masks.refinement import refine_masks
from neural_fields.data.video.io import read_video
from neural_fields.data.video.metadata import Video, VideoMetadata, parse_frames, parse_size
from neural_fields.masking.options import STAGE_WEIGHTS, MaskOptions
from neural_fields.planar.appearance.pixel_opacity import PixelOpacityConfig
from neural_fields.planar.appearance.window_opacity import WindowOpacityConfig, make_chart_masks
from neural_fields.planar.config import PlanarConfig, planar_config_to_mapping
from neural_fields.planar.mappings.grid import GridMappingConfig
from neural_fields.planar.record import parse_planar_record
from neural_fields.planar.recorded_config import parse_recorded_config
from neural_fields.runs.run import Run, read_run_yaml
from neural_fields.training.estimate import DEFAULTS as COSTS
from neural_fields.training.flow_size import choose_flow_size
from neural_fields.training.options import TrainOptions
from neural_fields.training.roi import add_region_layer, parse_roi_option
from neural_fields.training.session import refuse_changed_record


@dataclass(frozen=True)
class GivenMaskSettings:
    """Settings of when the user's masks are refined before the training."""

    keep_above_iou: float = 0.97  # IoU of a mask with its refinement, above which the mask stays as it is
    max_full_frames: int = 80  # longer clips are refined only if a refinement changes samples of them
    sample_frames: int = 16  # length of a sample
    min_frames: int = 8  # shorter clips say too little about what is wrong with a mask
    min_side_px: int = 160  # longer side; so do smaller ones


DEFAULTS = GivenMaskSettings()


def read_given_masks(
    metadata: VideoMetadata, options: TrainOptions, config: PlanarConfig, report: ProgressReporter = report_nothing
) -> LayerMasks | None:
    """Reads the masks that `--masks` names. Whatever is wrong with them is said before any frame is decoded.

    Args:
        metadata: of the video.
        options: of the training.
        config: of the model.
        report: called before each picture, as the stage "masks".

    Returns:
        The masks at the size of the training; None where masks are found by motion, or there are none.

    Raises:
        UserError: masks that cannot be used, or a model without a place for masks (exit 3).
    """
    if options.finds_masks or options.masks == ("none",):
        return None
    if isinstance(config.opacity, WindowOpacityConfig):
        given = " ".join(options.masks)
        raise bad_input(
            f"--masks {given} with --config {options.config}",
            why="its layers are charts of the clip, one after the other: a mask has no place in it",
            fix=f"leave --masks out, or take a preset with objects: --config atlas --masks {given}",
        )
    report(Progress("masks", 0, 1))
    frames = parse_frames(options.frames, metadata.numbers) if options.frames else None
    size = parse_size(options.size, metadata.width, metadata.height)
    return load_masks(options.masks, metadata, size, frames, report)


def prepare_clip(
    run: Run,
    source: Video,
    options: TrainOptions,
    config: PlanarConfig,
    report: ProgressReporter = report_nothing,
    device: torch.device | None = None,
    given: LayerMasks | None = None,
    settings: GivenMaskSettings = DEFAULTS,
) -> tuple[ClipDataset, list[str]]:
    """Prepares frames, masks, flow and cuts at the size of the training.

    Args:
        run: its cache keeps flow and masks.
        source: the frames that are trained on.
        options: of the training.
        config: the model and its training.
        report: called with the progress.
        device: where RAFT runs; the CPU by default.
        given: masks of the user (`read_given_masks`); without them `--masks` of the options is auto or none.
        settings: when masks are refined.

    Returns:
        The clip, and notes for the user.

    Raises:
        UserError: a region that cannot be used (exit 3), no room for masks (4).
    """
    frames = source.frames
    size = (frames.shape[2], frames.shape[1])
    notes: list[str] = []
    region = parse_roi_option(options, config, source.metadata)
    if region and options.finds_masks:
        options = replace(options, masks=("none",))  # the region is the object
    if len(frames) == 1:
        notes.append("the clip has one frame: it is trained on as a still, without motion")

    # Layers that are charts, one after the other in time.
    charts = None
    if isinstance(config.opacity, WindowOpacityConfig):
        charts = make_chart_masks(config.opacity, len(frames), size)

    # Optical flow and cuts, where the mapping, a loss term or the motion segmentation needs them.
    flow: FlowField | None = None
    flow_frames = None
    cuts: tuple[int, ...] = ()
    has_geometry = config.mapping.flow_side is not None
    needs_flow = has_geometry or config.terms.uses_flow
    if len(frames) > 1 and (needs_flow or (charts is None and options.finds_masks)):
        source_size, may_grow = (source.metadata.width, source.metadata.height), not region and options.seconds is None
        flow_size = choose_flow_size(size, source_size, config, may_grow)
        if flow_size[0] > size[0]:
            large = f"{flow_size[0]}x{flow_size[1]}"
            flow_frames = read_video(source.metadata, run.cache, large, options.frames, report).frames
        flow_source = frames if flow_frames is None else flow_frames
        flow = compute_flow(flow_source, run.cache, options.flow, flow_size, report, device=str(device or "cpu"))
        if has_geometry:
            cuts = find_cuts(frames, flow)

    masks = charts or given or _find_masks(source, options, flow, notes, report)
    notes += masks.notes
    if masks.masks.nbytes >= FILE_BACKED_FROM_BYTES and not isinstance(masks.masks, np.memmap):
        masks = _store_masks(masks, run.cache / f"masks-{_hash_masks(masks)}.npy")  # so that they do not fill memory
    if flow is not None and _should_refine_masks(config, options, frames, settings):
        masks = _refine_given_masks(run.cache, frames, flow, masks, report, settings)
    clip = ClipDataset(frames, masks, flow, cuts=cuts, flow_frames=flow_frames)
    if region:
        clip, more = add_region_layer(clip, region, source, report)
        notes += more
    return clip, notes


def _find_masks(
    source: Video,
    options: TrainOptions,
    flow: FlowField | None,
    notes: list[str],
    report: ProgressReporter,
) -> LayerMasks:
    """Returns masks of what moves on its own; none where `--masks none` is asked for."""
    assert options.finds_masks or options.masks == ("none",), "masks of the user are read before"
    nothing = LayerMasks((), np.zeros((0, *source.frames.shape[:3]), bool))
    if not options.finds_masks or flow is None:
        return nothing
    report(Progress("masks", 0, 1))
    # SciPy's part in it takes a third of a second: where masks are given, pictures come sooner.
    from neural_fields.data.segmentation.mattes import soften_masks
    from neural_fields.data.segmentation.moving_objects import find_moving_objects

    report_found, report_soft = (report_part(report, "masks", *part) for part in ((0.0, 0.85), (0.85, 1.0)))
    seconds = None if options.seconds is None else options.seconds * COSTS.max_mask_share
    found = find_moving_objects(source.frames, flow, options.wanted_objects, report_found, seconds)
    hints = []
    for other in found.others:
        left, top, wide, high = other.box * np.tile((source.metadata.width, source.metadata.height), 2)
        box = f"{left:.0f},{top:.0f},{max(wide, 1):.0f},{max(high, 1):.0f}"
        frame = source.frame_range[0] + other.frame * source.frame_range[2]
        hints.append(f"--object NAME --frame {frame} --box {box}")
    if not found.layers.names:
        seen = f" (something moves here: {'; '.join(hints)})" if hints else ""
        notes.append(
            "no separate moving object found, so the model has one layer: point at the object "
            f"with --object NAME --frame N --box x,y,width,height{seen}"
        )
    elif hints:
        notes.append(f"something else moves, and has no layer; to point at it: {'; '.join(hints)}")
    return soften_masks(source.frames, flow, found.layers, report_soft) if found.layers.names else found.layers


def make_hinted_masks(
    video: str | Path, run: Run, options: TrainOptions, report: ProgressReporter = report_nothing
) -> TrainOptions:
    """Makes masks of what the hints of the options point at, in the folder of the run.

    Args:
        video: a video file or a folder of numbered images.
        run: the run, which need not be there yet.
        options: of the training, with hints.
        report: called with the progress, as the stage "masks".

    Returns:
        The options with these masks instead of the hints.

    Raises:
        UserError: hints that cannot be used, or an object that is nowhere found (exit 3).
    """
    from neural_fields.masking.segment_video import segment_video  # as heavy as finding masks

    def report_masks(progress: Progress) -> None:
        share = overall_share(STAGE_WEIGHTS, progress)
        if share is not None and not progress.note:
            report(Progress("masks", int(100 * share), 100))

    in_and_out = ":".join(options.frames.split(":")[:2]) if options.frames else None
    asked = MaskOptions(
        out=run.masks,
        hints=options.hints,
        frames=in_and_out,
        text_model=options.text_model,
        main_model=options.main_model,
        device=options.device,
    )
    made = segment_video(video, asked, report_masks)
    for sentence in (*made.notes, *made.advice):
        report(Progress("masks", 1, 1, note=sentence))
    return replace(options, masks=(str(made.folder),), hints=())


# --- masks: large ones in files, the user's refined -----------------------------------------------------------------


def _store_masks(masks: LayerMasks, path: Path) -> LayerMasks:
    """Maps the masks from the file `path`, and shares from one beside it; they are written if they are missing."""
    stored = []
    # The file of the masks is the last: where it is, all are.
    for file, values in ((path.with_name(f"{path.stem}-shares.npy"), masks.shares), (path, masks.masks)):
        if values is not None and not file.is_file():
            require_disk_space(file.parent, values.nbytes)
            with atomic_write(file) as part:
                np.save(part, values, allow_pickle=False)
        if values is not None:
            stored.append(np.load(file, mmap_mode="r", allow_pickle=False))
    return LayerMasks(masks.names, stored[-1], stored[0] if len(stored) == 2 else None)


def _hash_masks(masks: LayerMasks) -> str:
    digest = hashlib.blake2b(str(masks.masks.shape).encode(), digest_size=16)
    for layer in (*masks.masks, *(() if masks.shares is None else masks.shares)):
        for mask in iterate_releasing(layer):
            digest.update(np.ascontiguousarray(mask).tobytes())
    return digest.hexdigest()


def _should_refine_masks(
    config: PlanarConfig, options: TrainOptions, frames: np.ndarray, settings: GivenMaskSettings
) -> bool:
    """Whether the user's masks are refined before the training: in our own preset; the papers' take them as they are.

    Short and very small clips say too little about what is wrong with a mask.
    """
    given = not options.finds_masks and "none" not in options.masks
    enough = len(frames) >= settings.min_frames and max(frames.shape[1:3]) >= settings.min_side_px
    return (
        given
        and enough
        and isinstance(config.mapping, GridMappingConfig)
        and isinstance(config.opacity, PixelOpacityConfig)
    )


def _refine_given_masks(
    cache: Path,
    frames: np.ndarray,
    flow: FlowField,
    masks: LayerMasks,
    report: ProgressReporter,
    settings: GivenMaskSettings,
) -> LayerMasks:
    """Refines masks, once for a run; those that the refinement hardly changes stay as they are."""
    path = cache / f"mended-{_hash_masks(masks)}.npy"
    if path.is_file():
        return _store_masks(masks, path)
    if len(frames) > settings.max_full_frames and _samples_stay(frames, flow, masks, report, settings):
        return masks
    refined = refine_masks(frames, flow, masks, report)
    kept, shares = [], []
    for layer, (before, after) in enumerate(zip(masks.masks, refined.masks, strict=True)):
        chosen = masks if mask_iou(before, after) > settings.keep_above_iou else refined
        kept.append(chosen.masks[layer])
        if chosen.shares is not None:
            shares.append(chosen.shares[layer])
    return _store_masks(LayerMasks(masks.names, np.stack(kept), np.stack(shares) if shares else None), path)


def _samples_stay(
    frames: np.ndarray, flow: FlowField, masks: LayerMasks, report: ProgressReporter, settings: GivenMaskSettings
) -> bool:
    """Whether a refinement hardly changes two samples of the clip; then a long one need not be refined as a whole."""
    for middle in (len(frames) // 4, 3 * len(frames) // 4):
        sample = slice(middle - settings.sample_frames // 2, middle + settings.sample_frames // 2)
        pairs = slice(sample.start, sample.stop - 1)
        sample_flow = FlowField(
            flow.forward[pairs], flow.backward[pairs], flow.forward_ok[pairs], flow.backward_ok[pairs]
        )
        shares = None if masks.shares is None else masks.shares[:, sample]
        given = LayerMasks(masks.names, masks.masks[:, sample], shares)
        refined = refine_masks(frames[sample], sample_flow, given, report)
        overlaps = [mask_iou(before, after) for before, after in zip(given.masks, refined.masks, strict=True)]
        if min(overlaps) < settings.keep_above_iou:
            return False
    return True


# --- the record in run.yaml -----------------------------------------------------------------------------------------


def make_record(run: Run, options: TrainOptions, config: PlanarConfig, metadata: VideoMetadata) -> dict[str, Any]:
    """Makes the content of run.yaml, from which the training can be repeated.

    Args:
        run: the run that is trained.
        options: of the training.
        config: of the model.
        metadata: of the video.

    Returns:
        Plain values.
    """
    frames = parse_frames(options.frames, metadata.numbers) if options.frames else metadata.numbers
    region = parse_roi_option(options, config, metadata)
    named_flow = options.flow in ("auto", "dis", "raft", "raft-large")
    return {
        "video": str(Path(metadata.path).resolve()),
        "video_from_run": os.path.relpath(Path(metadata.path).resolve(), run.path.resolve()),
        "sha256": metadata.sha256,
        "frames": f"{frames.start}:{frames.stop}:{frames.step}",
        "size": list(parse_size(options.size, metadata.width, metadata.height)),
        "canonical_size": list(parse_size(options.canonical_size, metadata.width, metadata.height)),
        "preset": options.config,
        "quality": options.quality,
        "masks": [_resolve_path(spec) for spec in options.masks],
        "roi": region.roi_text if region else None,  # in one form, whatever spaces and zeros it was typed with
        "flow": options.flow if named_flow else _resolve_path(options.flow),
        "seed": options.seed,
        "threads": torch.get_num_threads(),
        "config": planar_config_to_mapping(config),
    }


def _resolve_path(spec: str) -> str:
    """Makes the path of a "[NAME=]PATH" absolute."""
    if spec == "none" or spec.partition(":")[0] == "auto":
        return spec
    name, _, path = spec.rpartition("=")
    return f"{name}={Path(path).resolve()}" if name else str(Path(path).resolve())


def refuse_changed_settings(run: Run, record: dict[str, Any]) -> None:
    """Refuses to continue a run with other settings than it was begun with.

    Raises:
        UserError: the settings differ (exit 3), or run.yaml is damaged (5).
    """
    if not run.run_yaml.is_file():
        return
    before = read_run_yaml(run)
    parse_planar_record(run, before)  # a damaged record is not one of other settings
    # A training may continue for longer, elsewhere, from a moved file with the same content.
    free = ("quality", "canonical_size", "threads", "video", "video_from_run")
    before = {**before, "config": planar_config_to_mapping(parse_recorded_config(run, before))}
    refuse_changed_record(run, before, record, free, "video, size, frame range, set of masks and config")
