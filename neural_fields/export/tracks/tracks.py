"""Tracks points of one frame through all frames of a run: a table, and files for compositing programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write, write_json, write_synced
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.core.suggestions import nearest_word
from neural_fields.data.point_tracks import PointTracks
from neural_fields.export.base import Target
from neural_fields.export.exporter_options import TracksOptions
from neural_fields.export.tracks.point_input import check_points, grid_points, parse_points, read_points
from neural_fields.export.tracks.track_files import FORMATS, PointTrajectories
from neural_fields.open_runs.opening import RunLike, require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.open_runs.provenance import build_provenance


@dataclass(frozen=True, kw_only=True)
class TracksExporter(TracksOptions):
    """Track points of one frame through all frames: a table, and files for Nuke, After Effects and Blender."""

    def __call__(self, target: Target, report: ProgressReporter) -> Sequence[str]:
        """Tracks the points and writes them.

        Raises:
            UserError: no points, points outside the frame, or an unknown format or frame (exit 3).
        """
        writers = [FORMATS[name] for name in select_formats(self.format)]
        run = target.run
        t = run.frame_count // 2 if self.frame is None else run.require_frame(self.frame)
        points, notes = self.collect_points(run.frames[t], run.source_size)
        report(Progress("tracks", 0, 1))
        metadata = run.metadata
        tracks = _track_from_frame(run, points, t)
        numbers = target.frame_numbers
        trajectories = PointTrajectories(
            tracks, numbers, target.first_number, run.source_size, metadata.rate, metadata.pixel_aspect
        )
        for write_format in writers:
            for name, text in write_format(trajectories):
                with atomic_write(target.folder / name) as part:
                    write_synced(part, text.encode())
        described = {
            "schema": 1,
            "width": trajectories.size[0],
            "height": trajectories.size[1],
            "rate": str(trajectories.rate),
            "frames": [numbers.start, numbers.stop, numbers.step],
            "first_number": target.first_number,
            "frame": numbers[t],
            "points": len(tracks.positions),
            "csv": "pixels of the source, y down, the center of the first pixel is 0.5,0.5",
        }
        made = build_provenance(run, "tracks", frame=run.frames[t]) if target.metadata else {}
        write_json(target.folder / "tracks.json", {**described, **made})
        report(Progress("tracks", 1, 1))
        if metadata.variable_rate:
            notes.append("the source has a variable rate: tracks are given frame by frame, not by time")

        seen_frames = tracks.visibility.sum(axis=1)
        count, frame_count = tracks.visibility.shape
        always = int((seen_frames == frame_count).sum())
        summary = f"{always} of {count} points are seen in all {frame_count} frames"
        if always < count:
            summary += f"; the one seen least, point {int(seen_frames.argmin()) + 1}, in {seen_frames.min()}"
        return [*notes, summary]

    def collect_points(self, frame: int, size: tuple[int, int]) -> tuple[Float[np.ndarray, "points 2"], list[str]]:
        """Collects all points that were named, in pixels of the source.

        Args:
            frame: number in the source of the frame that they are seen in.
            size: (width, height) of the source.

        Returns:
            The points, and notes for the user.

        Raises:
            UserError: no points, points that are outside the frame, or no numbers (exit 3).
        """
        parts, notes = [parse_points(self.point)], []
        if self.points is not None:
            rows, hidden = read_points(self.points, frame)
            parts.append(rows)
            if hidden:
                notes.append(f"{hidden} points of {self.points.name} are hidden in frame {frame} and were left out")
        if self.grid is not None:
            parts.append(grid_points(self.grid, size))
        return check_points(np.concatenate(parts), size), notes


def track_points(run: RunLike, points: Shaped[np.ndarray, "points 2"], frame: int) -> PointTracks:
    """Tracks points seen in one frame through all frames of a run.

    Args:
        run: an open run, or its folder.
        points: (x, y) in pixels of the source; the center of the first pixel is 0.5, 0.5.
        frame: number of the frame in the source.

    Returns:
        Positions in pixels of the source, and where each point is seen, for each frame that the run was trained on.

    Raises:
        UserError: no points, points outside the frame, a frame that was not trained on, or no finished run.
    """
    run = require_planar(run, "following points")
    t = run.require_frame(frame)
    return _track_from_frame(run, check_points(points, run.source_size), t)


def select_formats(names: Sequence[str]) -> list[str]:
    """Returns the formats that were named, each once; all of them where none was.

    Raises:
        UserError: a format that there is not (exit 3).
    """
    for name in names:
        if name not in FORMATS:
            guess = nearest_word(name, FORMATS)
            raise bad_input(
                f"there is no format {name[:40]!r}",
                where="--format",
                why=f"there are {', '.join(FORMATS)}",
                fix=f"--format {guess or 'csv'}",
            )
    return [name for name in FORMATS if not names or name in names]


def _track_from_frame(run: PlanarRun, points: Float[np.ndarray, "points 2"], t: int) -> PointTracks:
    """Tracks points of frame `t` of the run, which keep their exact positions there."""
    from neural_fields.tracking.points import track_through_model

    tracks = track_through_model(run.model, points, t, size=run.source_size, flow=run.chart_flow)
    tracks.positions[:, t] = points  # the model counts in float32
    return tracks
