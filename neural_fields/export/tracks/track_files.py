"""Formats point tracks for other programs. Every format has all points in all frames of the run, visible or not.

Frames have the numbers of the maps' comps: those of the source, whose first is 0 in a film.

- csv: a table. Pixels of the source, y down, the center of the first pixel at 0.5,0.5.
- nuke: a Tracker4 node; its columns are those that Nuke 13.2 writes. y up. A point that is not seen is switched off in
  that frame (column `enable`).
- after_effects: keyframe data to paste onto a layer: its position, and an opacity of 0 where the point is not seen.
  y down, one file a point. A composition counts from the first frame of its source: that is 0 here.
- blender: a Python script that makes tracks in a movie clip. Parts of the frame, y up. Markers count from the first
  frame of the clip; the script sets the frame at which the clip starts. Markers that are not seen are muted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from neural_fields.data.point_tracks import PointTracks

NUKE_COLUMNS = (
    "5 1 20 enable e 1", "3 1 75 name name 1", "2 1 58 track_x track_x 1", "2 1 58 track_y track_y 1",
    "2 1 63 offset_x offset_x 1", "2 1 63 offset_y offset_y 1", "4 1 27 T T 1", "4 1 27 R R 1", "4 1 27 S S 1",
    "2 0 45 error error 1", "1 1 0 error_min error_min 1", "1 1 0 error_max error_max 1",
    *(f"1 1 0 {box}_{side} {box}_{side} 1" for box in ("pattern", "search") for side in "xyrt"),
    "2 1 0 key_track key_track 1",
    *(f"2 1 0 key_{box}_{side} key_{box}_{side} 1" for box in ("search", "track") for side in "xyrt"),
    *(f"2 1 0 key_center_offset_{side} key_center_offset_{side} 1" for side in "xy"),
)  # fmt: skip

BLENDER = '''"""Makes tracks in the movie clip of this size: open it in the Movie Clip Editor, then run this script."""

import bpy

SIZE = {size}
FIRST = {first}  # number of the clip's first frame
TRACKS = [  # name, and for each frame: number, x and y as parts of the frame, hidden
{tracks}
]

fitting = [clip for clip in bpy.data.movieclips if tuple(clip.size) == SIZE]
if not fitting:
    raise RuntimeError("open the clip of %d x %d pixels in the Movie Clip Editor first" % SIZE)
fitting[0].frame_start = FIRST
for name, markers in TRACKS:
    track = fitting[0].tracking.tracks.new(name=name, frame=markers[0][0] - FIRST + 1)
    for frame, x, y, hidden in markers:
        marker = track.markers.insert_frame(frame - FIRST + 1)  # they count from 1 at the clip's first frame
        marker.co = (x, y)
        marker.mute = hidden
'''


@dataclass(frozen=True)
class PointTrajectories:
    """Trajectories of points of one frame through a clip.

    Attributes:
        tracks: pixels of the source.
        frames: number of each frame that the tracks have.
        first_number: number of the first frame of the source.
        size: (width, height) of the source.
        rate: frames a second of the source.
        pixel_aspect: width of a pixel over its height.
    """

    tracks: PointTracks
    frames: range
    first_number: int
    size: tuple[int, int]
    rate: Fraction
    pixel_aspect: Fraction = Fraction(1)

    @property
    def positions_y_up(self) -> Float[np.ndarray, "points frames 2"]:
        """Positions with y up from the lower edge."""
        return np.array([0.0, self.size[1]]) + self.tracks.positions * np.array([1.0, -1.0])


def format_csv(trajectories: PointTrajectories) -> Iterator[tuple[str, str]]:
    """Yields `tracks.csv`: a row for each frame and point."""
    rows = ["frame,point,x,y,visible"]
    for t, frame in enumerate(trajectories.frames):
        here = zip(trajectories.tracks.positions[:, t], trajectories.tracks.visibility[:, t], strict=True)
        for point, ((x, y), seen) in enumerate(here, start=1):
            rows.append(f"{frame},{point},{x:.6f},{y:.6f},{int(seen)}")
    yield "tracks.csv", "\n".join(rows) + "\n"


def format_nuke(trajectories: PointTrajectories) -> Iterator[tuple[str, str]]:
    """Yields `tracks.nk`: a Tracker4 node with a track for each point."""
    still = f"{{curve K x{trajectories.frames[0]} 0}}"
    boxes = "-32 -32 32 32 -22 -22 22 22"  # pattern and search area, as a new track has them
    rest = f"{still} {still} 1 0 0 {still} 1 0 {boxes} " + "  ".join(["{}"] * 11)
    rows = []
    for point, (places, seen) in enumerate(
        zip(trajectories.positions_y_up, trajectories.tracks.visibility, strict=True), start=1
    ):
        curves = []  # of x and y, with a key in every frame
        for values in places.T:
            keys = " ".join(f"x{frame} {value:.6f}" for frame, value in zip(trajectories.frames, values, strict=True))
            curves.append(f"{{curve {keys}}}")
        x, y = curves
        # The column `enable` has a key where the value changes, each of which holds until the next.
        changes = np.flatnonzero(np.diff(seen)) + 1
        keys = " ".join(f"K x{trajectories.frames[t]} {int(seen[t])}" for t in (0, *changes.tolist()))
        rows.append(f' {{ {{curve {keys}}} "track {point}" {x} {y} {rest}   }} ')
    columns = " \n".join(f"{{ {column} }}" for column in NUKE_COLUMNS)
    table = f"{{ {{ 1 {len(NUKE_COLUMNS)} {len(rows)} }} \n{{ {columns} \n}} \n{{ \n" + "\n".join(rows) + "\n} \n}"
    yield "tracks.nk", f"Tracker4 {{\n inputs 0\n tracks {table}\n name Tracker1\n}}\n"


def format_after_effects(trajectories: PointTrajectories) -> Iterator[tuple[str, str]]:
    """Yields `after_effects/point_1.txt` and so on: keyframe data of the position and opacity of a layer."""
    (width, height), aspect = trajectories.size, f"{float(trajectories.pixel_aspect):.6g}"
    frames = [number - trajectories.first_number for number in trajectories.frames]
    head = [
        "Adobe After Effects 8.0 Keyframe Data", "", f"\tUnits Per Second\t{float(trajectories.rate):.6g}",
        f"\tSource Width\t{width}", f"\tSource Height\t{height}", f"\tSource Pixel Aspect Ratio\t{aspect}",
        f"\tComp Pixel Aspect Ratio\t{aspect}", "",
    ]  # fmt: skip
    for point, (places, seen) in enumerate(
        zip(trajectories.tracks.positions, trajectories.tracks.visibility, strict=True)
    ):
        moves = [f"\t{t}\t{x:.6f}\t{y:.6f}\t0" for t, (x, y) in zip(frames, places, strict=True)]
        shown = [f"\t{t}\t{100 * int(value)}" for t, value in zip(frames, seen, strict=True)]
        blocks = [
            "Transform\tPosition", "\tFrame\tX pixels\tY pixels\tZ pixels", *moves, "",
            "Transform\tOpacity", "\tFrame\tpercent", *shown, "", "", "End of Keyframe Data", "",
        ]  # fmt: skip
        yield f"after_effects/point_{point + 1}.txt", "\n".join([*head, *blocks])


def format_blender(trajectories: PointTrajectories) -> Iterator[tuple[str, str]]:
    """Yields `tracks_blender.py`: a script with the tracks as plain numbers."""
    parts = trajectories.positions_y_up / np.array(trajectories.size)
    rows = []
    for point, (places, seen) in enumerate(zip(parts, trajectories.tracks.visibility, strict=True), start=1):
        markers = ", ".join(
            f"({frame}, {x:.9f}, {y:.9f}, {not value})"
            for frame, (x, y), value in zip(trajectories.frames, places, seen, strict=True)
        )
        rows.append(f"    ({f'track {point}'!r}, [{markers}]),")
    size = (int(trajectories.size[0]), int(trajectories.size[1]))
    yield "tracks_blender.py", BLENDER.format(size=size, first=trajectories.first_number, tracks="\n".join(rows))


FORMATS: dict[str, Callable[[PointTrajectories], Iterator[tuple[str, str]]]] = {
    "csv": format_csv,
    "nuke": format_nuke,
    "after_effects": format_after_effects,
    "blender": format_blender,
}
