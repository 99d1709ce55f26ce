"""The source of a run: its metadata, its frames and its flow."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import read_json
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.video.io import read_video
from neural_fields.data.video.metadata import Video, VideoMetadata
from neural_fields.nn.device import choose_device
from neural_fields.runs.planar_record import PlanarRecord, read_planar_record, require_source_video
from neural_fields.runs.run import Run


def read_source_metadata(run: Run) -> tuple[VideoMetadata, range]:
    """Reads the metadata of the source of a run, and the frames of it that the run was trained on.

    Raises:
        UserError: the source video is not where it was, or a damaged run.
    """
    record = read_planar_record(run)
    path = require_source_video(run, record)
    try:
        facts = VideoMetadata.from_json({**dict(read_json(run.source_json)), "path": str(path)})
    except (UserError, TypeError, ValueError) as error:
        raise UserError(
            ExitCode.DAMAGED_RUN,
            "source.json is damaged",
            where=str(run.source_json),
            why=error.why if isinstance(error, UserError) else str(error),
            fix="run unwrap train again with the same --out: it writes it anew",
        ) from error
    return facts, record.frames


def read_source(run: Run) -> Video:
    """Reads the frames that a run was trained on, from its cache or decoded again.

    Raises:
        UserError: the source video is not where it was, or is another one now.
    """
    record = read_planar_record(run)
    path, (width, height), frames = require_source_video(run, record), record.size, record.frames
    video = read_video(path, run.cache, f"{width}x{height}", f"{frames.start}:{frames.stop}:{frames.step}")
    if video.metadata.sha256 != record.sha256:
        raise bad_input(
            f"{path.name} is not the video that this run was trained on",
            where=str(path),
            why="its content has changed since",
            fix="put the old file back, or train on the new one with another --out",
        )
    return video


def read_run_flow(run: Run, record: PlanarRecord, frames: UInt8[np.ndarray, "time height width 3"]) -> FlowField | None:
    """Reads the flow of a run's frames as its training used it, from the cache, or computes it again.

    Args:
        run: with the cache.
        record: of the run.
        frames: of the source, at the size of the run.

    Returns:
        None for a clip of one frame.
    """
    if len(frames) < 2:
        return None
    size = (frames.shape[2], frames.shape[1])
    shrink = min(1.0, getattr(record.config.mapping, "flow_size", max(size)) / max(size))
    flow_size = (round(size[0] * shrink), round(size[1] * shrink))
    return compute_flow(frames, run.cache, record.flow, flow_size, device=str(choose_device("auto")))
