"""The region that `--roi` names, as the front layer of a clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.masks.roi import REGION_LAYER, Region, convert_corners, missing_region_error, parse_region
from neural_fields.data.video.metadata import Video, VideoMetadata, parse_frames
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.region_tracking import track_region
from neural_fields.planar.mappings.grid import GridMappingConfig
from neural_fields.training.options import TrainOptions


def parse_roi_option(options: TrainOptions, config: PlanarConfig, metadata: VideoMetadata) -> Region | None:
    """Parses the region of `--roi` and checks it against the video.

    Args:
        options: of the training.
        config: of the model; its `region` says whether a region is needed.
        metadata: of the video.

    Returns:
        The region; None where none is given.

    Raises:
        UserError: a malformed region, no region for a preset that needs one, or a region for a preset that cannot
            track one (exit 3).
    """
    frames = parse_frames(options.frames, metadata.numbers) if options.frames else metadata.numbers
    if options.roi is None:
        if config.region:
            raise missing_region_error(metadata.width, metadata.height, frames)
        return None
    if not isinstance(config.mapping, GridMappingConfig):
        raise bad_input(
            f"preset {options.config} cannot track a region",
            where="--roi",
            why="only mapping kind grid keeps the coordinates of a frame",
            fix=f'--config roi --roi "{options.roi}"',
        )
    return parse_region(options.roi, metadata.width, metadata.height, frames)


def add_region_layer(
    clip: ClipDataset, region: Region, source: Video, report: ProgressReporter, min_recognized_share: float = 0.6
) -> tuple[ClipDataset, list[str]]:
    """Tracks a region through all frames and adds it as the front layer of the clip.

    Args:
        clip: frames, masks and flow.
        region: a quadrilateral on one frame.
        source: the video that the clip was read from.
        report: called with the progress.
        min_recognized_share: of the region; if less is recognized on most frames, a note says so.

    Returns:
        The clip with the region's layer, and notes for the user.

    Raises:
        UserError: a mask layer has the region's name.
    """
    if REGION_LAYER in clip.masks.names:
        raise bad_input(
            f'a mask layer cannot be called "{REGION_LAYER}" beside a region',
            where="--masks",
            fix="--masks object=PATH",
        )
    corners = convert_corners(region, source.metadata.width, source.metadata.height, clip.size)
    frame = range(*source.frame_range).index(region.frame)
    found = track_region(clip.frames, clip.flow, corners, frame, report)
    masks = np.concatenate([found.visibility[None], clip.masks.masks])
    shares = None
    if clip.masks.shares is not None:
        shares = np.concatenate([255 * found.visibility[None].astype(np.uint8), clip.masks.shares])
    layers = LayerMasks((REGION_LAYER, *clip.masks.names), masks, shares)
    out = replace(clip, masks=layers, regions={REGION_LAYER: found.track})
    gone = [frame for frame, mask in zip(range(*source.frame_range), found.visibility, strict=True) if not mask.any()]
    notes = []
    if gone:
        intervals: list[tuple[int, int]] = []  # of frames that follow one another: "frames 3, 7 to 9"
        for number in gone:
            if intervals and number == intervals[-1][1] + 1:
                intervals[-1] = (intervals[-1][0], number)
            else:
                intervals.append((number, number))
        parts = [f"{first}" if first == last else f"{first} to {last}" for first, last in intervals]
        more = f" and {len(parts) - 4} more intervals" if len(parts) > 4 else ""
        notes.append(f"the region is not visible on frame{'s' * (len(gone) > 1)} {', '.join(parts[:4])}{more}")
    if np.median(found.visible_shares) < min_recognized_share:
        notes.append(
            f"less than {min_recognized_share:.0%} of the region is recognized on most frames: draw it on a frame on "
            "which nothing is in front of it, and on one plane"
        )
    return out, notes
