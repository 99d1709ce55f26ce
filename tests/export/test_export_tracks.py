"""Tracks for other programs: where points truly go, the same in every format, and read back from what was written."""

from __future__ import annotations

import ast
import csv
import re
import runpy
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from neural_fields.core.errors import UserError
from neural_fields.core.files import read_json
from neural_fields.data.point_tracks import PointTracks
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.synthetic.true_tracks import compute_true_tracks, make_grid_points
from neural_fields.data.video.io import write_video
from neural_fields.data.video.metadata import make_metadata
from neural_fields.export.base import export_run
from neural_fields.export.options import ExportOptions
from neural_fields.export.tracks.point_input import DEFAULTS as LIMITS
from neural_fields.export.tracks.point_input import grid_points as grid
from neural_fields.export.tracks.point_input import read_points
from neural_fields.export.tracks.track_files import FORMATS, PointTrajectories
from neural_fields.export.tracks.tracks import TracksExporter, track_points
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.runs.run import Run
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

pytestmark = pytest.mark.slow

SIZE, FRAMES = (192, 108), range(1003, 1024, 2)
FIRST = 1001  # number of the source's first frame
POINTS = ("60.25,50", "100,54.5", "20.5,90.75")


@pytest.fixture(scope="module")
def followed() -> PointTrajectories:
    """True tracks, some of them hidden now and then, of a clip fitted in every second frame from the third on."""
    clip = make_demo_clip(len(FRAMES), *SIZE)
    return PointTrajectories(
        compute_true_tracks(clip, make_grid_points(clip, 5, 20), 5), FRAMES, FIRST, SIZE, Fraction(24000, 1001)
    )


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Any]:
    """A fit at half the size of its source, of frames 2, 4, ... 10 of the clip."""
    home = tmp_path_factory.mktemp("small")
    clip = make_demo_clip(12, *SIZE)
    write_video(home / "clip.mkv", clip.render_frames(), make_metadata(SIZE, 12, Fraction(25)), codec="ffv1")
    np.save(home / "mask.npy", clip.masks[0])
    masks = (f"foreground={home / 'mask.npy'}",)
    options = TrainOptions(home / "run", size="96x54", masks=masks, frames="2:12:2", overrides={"training.steps": 20})
    return train(home / "clip.mkv", options).run, clip


def written(run: Run, out: Path, **settings: Any) -> Path:
    """The folder of an export."""
    export_run(run, TracksExporter(**settings), ExportOptions(out=out))
    return out


def texts(followed: PointTrajectories, name: str) -> dict[str, str]:
    return dict(FORMATS[name](followed))


def agree(found: dict[int, dict[int, tuple[float, float, bool]]], followed: PointTrajectories, within: float) -> None:
    """Compares point -> frame of the source -> x, y (pixels, y down), seen."""
    assert sorted(found) == list(range(1, len(followed.tracks.positions) + 1))
    for point, frames in found.items():
        assert sorted(frames) == list(followed.frames)
        for t, frame in enumerate(followed.frames):
            x, y, seen = frames[frame]
            assert np.abs(np.array([x, y]) - followed.tracks.positions[point - 1, t]).max() <= within
            assert seen == followed.tracks.visibility[point - 1, t]


# --- formats, each read by a parser of its own -----------------------------------------------------------------------


def test_the_table_has_pixels_of_the_source(followed: PointTrajectories) -> None:
    (text,) = texts(followed, "csv").values()
    assert text.splitlines()[0] == "frame,point,x,y,visible"
    found: dict[int, dict[int, tuple[float, float, bool]]] = {}
    for row in csv.DictReader(text.splitlines()):
        place = (float(row["x"]), float(row["y"]), row["visible"] == "1")
        found.setdefault(int(row["point"]), {})[int(row["frame"])] = place
    agree(found, followed, 5e-7)


def braces(text: str) -> list[Any]:
    """Nested lists of the words of a Tcl text; what stands in quotes is one word."""
    stack: list[list[Any]] = [[]]
    for word in re.findall(r'[{}]|"[^"]*"|[^\s{}"]+', text):
        if word == "{":
            stack.append([])
        elif word == "}":
            stack[-2].append(stack.pop())
        else:
            stack[-1].append(word)
    assert len(stack) == 1
    return stack[0]


def curve(words: list[str]) -> dict[int, float]:
    """The keys of a Nuke curve: an x in front of each value, perhaps the kind K."""
    assert words[0] == "curve"
    keys, x = {}, 0
    for word in (word for word in words[1:] if word != "K"):
        if word.startswith("x"):
            x = int(word[1:])
        else:
            keys[x] = float(word)
    return keys


def test_nuke_gets_a_tracker_with_y_up(followed: PointTrajectories) -> None:
    kind, node = braces(texts(followed, "nuke")["tracks.nk"])
    assert kind == "Tracker4" and node[:2] == ["inputs", "0"] and node[-2:] == ["name", "Tracker1"]
    (version, columns, count), heads, rows = node[node.index("tracks") + 1]
    assert (version, int(columns), int(count)) == ("1", 31, len(followed.tracks.positions))
    names = [head[3] for head in heads]
    assert len(heads) == 31 and names[:4] == ["enable", "name", "track_x", "track_y"]
    found: dict[int, dict[int, tuple[float, float, bool]]] = {}
    for row in rows:
        cell = dict(zip(names, row, strict=True))
        x, y, enabled = (curve(cell[name]) for name in ("track_x", "track_y", "enable"))
        point = int(re.fullmatch(r'"track (\d+)"', cell["name"])[1])  # type: ignore[index]
        for key in x:
            switch = enabled[max(change for change in enabled if change <= key)]  # K holds until the next key
            found.setdefault(point, {})[key] = (x[key], SIZE[1] - y[key], switch == 1)
    agree(found, followed, 1e-6)


def test_after_effects_gets_position_and_opacity_of_a_layer(followed: PointTrajectories) -> None:
    found: dict[int, dict[int, tuple[float, float, bool]]] = {}
    for name, text in texts(followed, "after_effects").items():
        lines = text.splitlines()
        assert lines[0] == "Adobe After Effects 8.0 Keyframe Data" and lines[-1] == "End of Keyframe Data"
        head = dict(line.strip("\t").split("\t") for line in lines[2:7])
        assert head == {
            "Units Per Second": "23.976", "Source Width": "192", "Source Height": "108",
            "Source Pixel Aspect Ratio": "1", "Comp Pixel Aspect Ratio": "1",
        }  # fmt: skip
        blocks: dict[str, dict[int, list[float]]] = {}
        for line in lines[8:-1]:
            if line and not line.startswith("\t"):
                block = blocks.setdefault(line.replace("\t", " "), {})
            elif re.match(r"\t\d", line):
                frame, *values = line.strip("\t").split("\t")
                block[int(frame)] = [float(value) for value in values]
        point = int(re.fullmatch(r"after_effects/point_(\d+).txt", name)[1])  # type: ignore[index]
        opacity = blocks["Transform Opacity"]
        places = blocks["Transform Position"].items()  # counted from the first frame of the source
        found[point] = {FIRST + t: (x, y, opacity[t] == [100]) for t, (x, y, _) in places}
    agree(found, followed, 5e-7)


class Markers(dict):
    """Markers of a Blender track."""

    def insert_frame(self, frame: int) -> SimpleNamespace:
        return self.setdefault(frame, SimpleNamespace(co=None, mute=False))


def run_in_blender(path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> dict[str, Markers]:
    """The tracks that a script makes in a clip of that size."""
    tracks: dict[str, Markers] = {}

    def new(name: str, frame: int) -> SimpleNamespace:
        tracks[name] = Markers()
        tracks[name].insert_frame(frame)
        return SimpleNamespace(markers=tracks[name])

    blender: Any = ModuleType("bpy")
    clip = SimpleNamespace(size=size, frame_start=1, tracking=SimpleNamespace(tracks=SimpleNamespace(new=new)))
    blender.data = SimpleNamespace(movieclips=[SimpleNamespace(size=(1, 1)), clip])
    monkeypatch.setitem(sys.modules, "bpy", blender)
    runpy.run_path(str(path))
    assert clip.frame_start == FIRST
    return tracks


def test_blender_gets_a_script_that_makes_tracks(
    followed: PointTrajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "tracks.py"
    script.write_text(texts(followed, "blender")["tracks_blender.py"])
    tracks = run_in_blender(script, SIZE, monkeypatch)
    found = {
        int(name.split()[1]): {
            # The first frame of a clip is its frame 1.
            FIRST + frame - 1: (m.co[0] * SIZE[0], SIZE[1] - m.co[1] * SIZE[1], not m.mute)
            for frame, m in markers.items()
        }
        for name, markers in tracks.items()
    }
    agree(found, followed, 1e-6)
    with pytest.raises(RuntimeError, match="192 x 108"):
        run_in_blender(script, (200, 100), monkeypatch)


def test_what_the_blender_script_says_of_tracks_is_nothing_but_numbers(followed: PointTrajectories) -> None:
    tree = ast.parse(texts(followed, "blender")["tracks_blender.py"])
    given = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert len(ast.literal_eval(given["TRACKS"])) == len(followed.tracks.positions)
    assert ast.literal_eval(given["FIRST"]) == FIRST
    assert {ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)} == {"import bpy"}


# --- from a run ------------------------------------------------------------------------------------------------------


def test_points_go_where_they_truly_go(small_run: tuple[Run, Any]) -> None:
    run, clip = small_run
    points = make_grid_points(clip, 6, 9)
    found, true = track_points(run, points, 6), compute_true_tracks(clip, points, 6)
    frames = list(range(2, 12, 2))
    both = found.visibility & true.visibility[:, frames]
    off = np.linalg.norm(found.positions - true.positions[:, frames], axis=-1)
    assert np.median(off[both]) < 0.4 and np.quantile(off[both], 0.95) < 1.2  # pixels of the source, of half a texel
    assert (found.visibility == true.visibility[:, frames]).mean() > 0.97
    np.testing.assert_array_equal(found.positions[:, 2], points)


def test_flow_is_at_hand_where_a_canonical_plane_has_several_parts(
    small_run: tuple[Run, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = small_run
    assert require_planar(run, "the test").chart_flow is None  # one part: nobody would ask for it
    monkeypatch.setattr(PlanarModel, "list_charts", lambda model: [["several"]])
    flow = require_planar(run, "the test").chart_flow
    assert flow is not None and len(flow.forward) == 4


def test_an_export_writes_every_format_and_says_what_it_wrote(small_run: tuple[Run, Any], tmp_path: Path) -> None:
    run, _ = small_run
    done = export_run(run, TracksExporter(frame=6, point=POINTS, grid=4), ExportOptions(out=tmp_path / "out"))
    names = {path.relative_to(tmp_path / "out").as_posix() for path in done.paths}
    points = len(POINTS) + 4 * 2
    single = {f"after_effects/point_{number + 1}.txt" for number in range(points)}
    assert names == {"tracks.csv", "tracks.nk", "tracks_blender.py", "tracks.json"} | single
    metadata = read_json(tmp_path / "out" / "tracks.json")
    assert (metadata["width"], metadata["height"], metadata["rate"], metadata["frames"]) == (192, 108, "25", [2, 12, 2])
    assert metadata["frame"] == 6 and metadata["points"] == points and metadata["software"].startswith("unwrap")
    assert any("are seen in all 5 frames" in note for note in done.notes)
    own = track_points(run, np.array([[60.25, 50], [100, 54.5], [20.5, 90.75]]), 6)
    rows = list(csv.DictReader((tmp_path / "out" / "tracks.csv").read_text().splitlines()))
    for row in (row for row in rows if int(row["point"]) <= 3):
        t = (int(row["frame"]) - 2) // 2
        expected = own.positions[int(row["point"]) - 1, t]
        assert np.abs(np.array([float(row["x"]), float(row["y"])]) - expected).max() < 0.01  # pixels


def test_one_format_is_written_where_one_is_named(small_run: tuple[Run, Any], tmp_path: Path) -> None:
    out = written(small_run[0], tmp_path / "out", point=POINTS, format=("nuke", "nuke"))
    assert sorted(path.name for path in out.rglob("*")) == ["tracks.json", "tracks.nk"]


def test_metadata_can_be_left_out(small_run: tuple[Run, Any], tmp_path: Path) -> None:
    export_run(
        small_run[0], TracksExporter(point=POINTS, format=("csv",)), ExportOptions(out=tmp_path / "out", metadata=False)
    )
    assert not {"software", "comment"} & set(read_json(tmp_path / "out" / "tracks.json"))


def test_a_table_that_was_written_can_be_changed_and_taken_again(small_run: tuple[Run, Any], tmp_path: Path) -> None:
    run, _ = small_run
    first = written(run, tmp_path / "first", frame=6, point=POINTS, format=("csv",))
    again = written(run, tmp_path / "again", frame=6, points=first / "tracks.csv", format=("csv",))
    assert (again / "tracks.csv").read_bytes() == (first / "tracks.csv").read_bytes()
    text = (first / "tracks.csv").read_text().replace("6,1,60.250000,50.000000", "6,1,61.250000,50.000000")
    (tmp_path / "moved.csv").write_text(text)
    moved = written(run, tmp_path / "moved", frame=6, points=tmp_path / "moved.csv", format=("csv",))
    plain = written(run, tmp_path / "plain", frame=6, point=("61.25,50", *POINTS[1:]), format=("csv",))
    assert (moved / "tracks.csv").read_bytes() == (plain / "tracks.csv").read_bytes()
    assert (moved / "tracks.csv").read_bytes() != (first / "tracks.csv").read_bytes()


def test_points_that_are_hidden_in_the_frame_are_left_out_and_counted(tmp_path: Path) -> None:
    table = tmp_path / "tracks.csv"
    table.write_text("frame,point,x,y,visible\n4,1,10,20,1\n4,2,30,40,0\n5,1,11,20,1\n")
    points, hidden = read_points(table, 4)
    assert points.tolist() == [[10, 20]] and hidden == 1


@pytest.mark.parametrize(
    "text",
    [
        "10,20\n30.5,40\n",
        "x,y\n10,20\n30.5,40\n",
        "\ufeffName;Y;X\r\na;20;10\r\n\r\nb;40;30.5\r\n",
        '"10","20"\n"30.5","4e1"',
    ],
)
def test_points_are_read_from_tables_as_programs_write_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(text, encoding="utf-8", newline="")
    points, hidden = read_points(tmp_path / "points.csv", 0)
    assert points.tolist() == [[10, 20], [30.5, 40]] and hidden == 0


@pytest.mark.parametrize("count,size,shape", [(4, (192, 108), (4, 2)), (3, (108, 192), (2, 3)), (1, (50, 40), (1, 1))])
def test_a_grid_lies_evenly_in_the_frame(count: int, size: tuple[int, int], shape: tuple[int, int]) -> None:
    points = grid(count, size)
    assert len(points) == shape[0] * shape[1]
    np.testing.assert_allclose(points.mean(0), np.array(size) / 2)
    np.testing.assert_allclose(points.min(0), np.array(size) / shape / 2)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings,words",
    [
        ({}, "no points are given"),
        ({"point": ("60",)}, "is not a point"),
        ({"point": ("60,abc",)}, "is not a point"),
        ({"point": ("nan,5",)}, "is not a point"),
        ({"point": ("1e999,5",)}, "is not a point"),
        ({"point": ("=2+3,5",)}, "is not a point"),
        ({"point": ("60,50", "192,50")}, "point 2 is not in the frame: 192,50"),
        ({"point": ("60,-0.1",)}, "not in the frame"),
        ({"point": POINTS, "frame": 5}, "frame 5 is not part of this run"),
        ({"point": POINTS, "frame": -1}, "frame -1 is not part of this run"),
        ({"point": POINTS, "format": ("maya",)}, "there is no format 'maya'"),
        ({"grid": 0}, "is no grid"),
        ({"grid": 10**9}, "points or more"),
        ({"points": Path("nowhere.csv")}, "cannot be read"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_and_nothing_is_written(
    settings: dict[str, Any], words: str, small_run: tuple[Run, Any]
) -> None:
    run, _ = small_run
    with pytest.raises(UserError, match=re.escape(words)):
        export_run(run, TracksExporter(**{"frame": 6, **settings}))
    assert not run.exports.exists() or not list(run.exports.iterdir())


@pytest.mark.parametrize(
    "content,words",
    [
        (b"", "holds no points"),
        (b"\n \n", "holds no points"),
        (b"10,20\n30\n", "line 2: 1 values in a row"),
        (b"10,20,30\n", "line 1: 3 values in a row"),
        (b"10,20\n30,up\n", "line 2: 'up' is not a number"),
        (b"10,20\n=cmd|' /C calc'!A0,4\n", "is not a number"),
        (b"a,b\n1,2\n", "neither two numbers nor a heading"),
        (b"10,20\n1_0,2\n", "'1_0' is not a number"),
        (b"10,20\ninf,2\n", "'inf' is not a number"),
        (b"10,20\n1e400,2\n", "is not a number"),
        (b"10,20\0\n", "binary data"),
        (b"\xff\xfe1\x00,\x00", "is not text"),
        (b"10,20\n" + b"9" * 2000, "line 2: 2000 characters"),
        (b"x,y\n", "there is a heading and nothing else"),
        (b"frame,point,x,y,visible\n7,1,10,20,1\n9,1,10,20,1\n", "its frames are 7 to 9"),
        (b"frame,point,x,y,visible\n6,1,10,20,0\n", "all 1 points of that frame are hidden"),
        (b"frame,x,y\n6,1\n", "line 2: 2 values in a row"),
        (b"1,2\n" * (LIMITS.points + 1), "points or more"),
    ],
)
def test_tables_that_are_none_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_points(path, 6)
    assert words in str(caught.value) and len(str(caught.value)) < 1000


def test_a_table_of_many_megabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(UserError, match="cannot be read"):
        read_points(path, 0)


def test_a_call_with_points_outside_the_frame_is_refused(small_run: tuple[Run, Any]) -> None:
    for points in ([[np.nan, 3.0]], [[500.0, 3.0]]):
        with pytest.raises(UserError, match="not in the frame"):
            track_points(small_run[0], np.array(points), 6)


def test_tracks_that_lead_out_of_the_frame_are_written_as_they_are(followed: PointTrajectories) -> None:
    far = PointTracks(followed.tracks.positions[:1] - 1234.5, followed.tracks.visibility[:1] & False)
    (text,) = texts(replace(followed, tracks=far), "csv").values()
    row = text.splitlines()[1].split(",")
    assert float(row[2]) == pytest.approx(far.positions[0, 0, 0], abs=1e-6) and row[4] == "0"
