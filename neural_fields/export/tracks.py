"""Points of one frame, followed through all frames of a run: a table, and files for compositing programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Shaped

from neural_fields.config_flags import Repeated
from neural_fields.config_loader import nearest
from neural_fields.data.tracks import Tracks
from neural_fields.errors import bad_input
from neural_fields.export.base import Report, Target
from neural_fields.export.fitted import Fitted, open_fitted
from neural_fields.export.point_input import check_points, grid_points, parse_points, read_points
from neural_fields.export.provenance import provenance
from neural_fields.export.track_files import FORMATS, Followed
from neural_fields.files import atomic_write, write_json, write_synced
from neural_fields.run import Run
from neural_fields.tracking import track
from neural_fields.volume_run import require_planar

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class TrackPoints:
    """Follow points of one frame through all frames: a table, and files for Nuke, After Effects and Blender."""

    name: ClassVar[str] = "tracks"

    frame: int | None = None
    """Number of the frame in the source that the points are seen in, 0 is the first (default: the middle one)."""
    point: Repeated = ()
    """A point of that frame in pixels of the source, from its upper left corner: "x,y". Repeatable."""
    points: Path | None = None
    """A CSV file of points, x,y in each row; or a tracks.csv, whose points of that frame are taken."""
    grid: int | None = None
    """A grid of points: how many lie along the longer side of the frame."""
    format: Repeated = ()
    """csv, nuke, after_effects or blender. Repeatable (default: all of them)."""

    def __call__(self, target: Target, report: Report) -> Sequence[str]:
        """Follows the points and writes them.

        Raises:
            UserError: no points, points that are outside the frame or no numbers, an unknown format or frame (exit 3).
        """
        writers = [FORMATS[name] for name in chosen_formats(self.format)]
        fitted = open_fitted(target.run)
        t = fitted.index(self.frame)
        points, notes = self.given(fitted.frames[t], fitted.size)
        report("tracks", 0, 1)
        facts = fitted.facts
        tracks = _follow(fitted, points, t)
        followed = Followed(tracks, fitted.frames, fitted.size, facts.rate, facts.pixel_aspect)
        for name, text in (file for writer in writers for file in writer(followed)):
            with atomic_write(target.folder / name) as part:
                write_synced(part, text.encode())
        write_json(target.folder / "tracks.json", _description(target, followed, fitted.frames[t]))
        report("tracks", 1, 1)
        if facts.variable_rate:
            notes.append("the source has a variable rate: tracks are given frame by frame, not by time")
        return [*notes, _summary(tracks)]

    def given(self, frame: int, size: tuple[int, int]) -> tuple[Float[np.ndarray, "points 2"], list[str]]:
        """All points that were named, in pixels of a source of that size, and what to say about them.

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


def track_points(run: Run | str | Path, points: Shaped[np.ndarray, "points 2"], frame: int) -> Tracks:
    """Follows points seen in one frame through all frames of a run.

    Args:
        points: (x, y) in pixels of the source; the centre of the first pixel is 0.5, 0.5.
        frame: number of the frame in the source, from 0.

    Returns:
        Positions in pixels of the source, and where each point is seen, for each frame that the run was fitted to.

    Raises:
        UserError: no points, points outside the frame, a frame that was not fitted, or no finished run.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    require_planar(run, "following points")
    fitted = open_fitted(run)
    t = fitted.index(frame)
    return _follow(fitted, check_points(points, fitted.size), t)


def chosen_formats(names: Sequence[str]) -> list[str]:
    """The formats that were named, each once; all of them where none was.

    Raises:
        UserError: a format that there is not (exit 3).
    """
    for name in names:
        if name not in FORMATS:
            guess = nearest(name, FORMATS)
            raise bad_input(
                f"there is no format {name[:40]!r}",
                where="--format",
                why=f"there are {', '.join(FORMATS)}",
                fix=f"--format {guess or 'csv'}",
            )
    return [name for name in FORMATS if not names or name in names]


def _follow(fitted: Fitted, points: Float[np.ndarray, "points 2"], t: int) -> Tracks:
    tracks = track(fitted.model, points, t, size=fitted.size, flow=fitted.flow)
    tracks.positions[:, t] = points  # the model counts in float32
    return tracks


def _description(target: Target, followed: Followed, frame: int) -> dict[str, Any]:
    """What a program needs to know to read the other files."""
    (width, height), frames = followed.size, followed.frames
    facts = {
        "schema": SCHEMA,
        "width": width,
        "height": height,
        "rate": str(followed.rate),
        "frames": [frames.start, frames.stop, frames.step],
        "frame": frame,
        "points": len(followed.tracks.positions),
        "csv": "pixels of the source, y down, the centre of the first pixel is 0.5,0.5; frames are counted from 0",
    }
    return {**facts, **(provenance(target.run, "tracks", frame=frame) if target.metadata else {})}


def _summary(tracks: Tracks) -> str:
    seen = tracks.visible.sum(axis=1)
    count, frames = tracks.visible.shape
    whole = int((seen == frames).sum())
    least = f"; the one seen least, point {int(seen.argmin()) + 1}, in {seen.min()}" if whole < count else ""
    return f"{whole} of {count} points are seen in all {frames} frames{least}"
