"""Exported maps say where pixels lie, in the words of each program; read here by implementations of their own."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tyro

from editors.core import stack
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.inverse_uv_raster import invert_map
from neural_fields.atlas.uv_maps import Maps, _add_rim
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.video.metadata import make_metadata
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.record import EditOrigin
from neural_fields.export.base import export_run
from neural_fields.export.maps.comps import locate_source
from neural_fields.export.maps.conventions import CONVENTIONS
from neural_fields.export.maps.stmap import STMapExporter
from neural_fields.export.options import ExportOptions
from neural_fields.imaging.exr import read_exr
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow

pytest.importorskip("OpenEXR", reason="OpenEXR is not installed: the extra `exr`")

FRAME = 7


@pytest.fixture(scope="module")
def painted(true_run: TrueRun, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the true run with paint on both layers, and what the export for Nuke makes of it."""
    home = tmp_path_factory.mktemp("stmap")
    shutil.copytree(true_run.run.path, home / "run")
    run = Run.open(home / "run")
    pictures = {name: canonical.read_pristine(run.canonical, name) for name in ("foreground", "background")}
    paint = {name: Overlay(_paint(picture.size), picture.box) for name, picture in pictures.items()}
    stack.add_edit(run, "paint", paint, EditOrigin(editor="image"))
    exported = export_run(run, STMapExporter(), ExportOptions(out=home / "maps"))
    frames = list(true_run.clip.render_frames())
    return SimpleNamespace(run=run, folder=home / "maps", exported=exported, frames=frames, maps=Maps.open(run.maps))


def _paint(size: tuple[int, int]) -> np.ndarray:
    """A soft blob with a pattern on it, straight RGBA; so smooth that how one filters it makes no difference."""
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    alpha = 0.5 + 0.5 * np.cos(np.pi * np.clip(2 * np.hypot(x, y) - 0.4, 0, 1))
    rgb = np.stack([0.4 + 0.3 * np.sin(3 * x), 0.4 + 0.3 * np.cos(3 * y), 0.3 + 0 * x], axis=-1)
    values = np.concatenate([rgb * (alpha > 0)[..., None], alpha[..., None]], axis=-1)
    return (np.rint(255 * values) / 255).astype(np.float32)


def look_up(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear: x, y are pixels from the top left corner, the first center is (0.5, 0.5). Black outside."""
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)))
    x, y = np.clip(x + 0.5, 0, width + 0.999), np.clip(y + 0.5, 0, height + 0.999)
    j, i = np.floor(x).astype(int), np.floor(y).astype(int)
    a, b = (x - j)[..., None], (y - i)[..., None]
    above = padded[i, j] * (1 - a) + padded[i, j + 1] * a
    return above * (1 - b) + (padded[i + 1, j] * (1 - a) + padded[i + 1, j + 1] * a) * b


def read_map(path: Path) -> np.ndarray:
    """R, G, B, A of an .exr file in double precision."""
    planes, _ = read_exr(path)
    assert all(plane.dtype == np.float32 for plane in planes.values())
    return np.stack([planes[name] for name in "RGBA"], axis=-1).astype(np.float64)


def places(path: Path, program: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and A of a map, by the words of its README: pixels from the top left corner of a picture of `size`."""
    if program == "opencv":
        x, y, alpha = np.load(path).astype(np.float64)
        return x + 0.5, y + 0.5, alpha
    red, green, _, alpha = np.moveaxis(read_map(path), -1, 0)
    down = green if program == "after_effects" else 1 - green
    return red * size[0], down * size[1], alpha


def true_places(maps: Maps, t: int, layer: int, picture: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of a frame lie on the canonical picture, by the maps themselves, in its pixels."""
    u, v = np.moveaxis(maps.read_uv(t, layer, maps.size).astype(np.float64), -1, 0)
    box = maps.boxes[layer]
    return (u - box.u0) / (box.u1 - box.u0) * picture[0], (v - box.v0) / (box.v1 - box.v0) * picture[1]


# --- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", CONVENTIONS)
def test_what_a_program_reads_is_where_the_maps_say_that_pixels_lie(
    true_run: TrueRun, tmp_path: Path, program: Any
) -> None:
    export_run(true_run.run, STMapExporter(convention=program, every=5), ExportOptions(out=tmp_path / "maps"))
    metadata, maps = json.loads((tmp_path / "maps/stmap.json").read_text()), Maps.open(true_run.run.maps)
    assert metadata["frames"] == [0, 5, 10]
    for t in metadata["frames"]:
        weights = maps.read_weights(t, maps.size)
        for number, layer in enumerate(metadata["layers"]):
            size = tuple(layer["canonical"]["size"])
            x, y, alpha = places(tmp_path / "maps" / (layer["forward"] % t), program, size)
            true_x, true_y = true_places(maps, t, number, size)
            assert np.hypot(x - true_x, y - true_y).max() <= 0.02
            inside = (true_x >= 0) & (true_x <= size[0]) & (true_y >= 0) & (true_y <= size[1])
            assert np.abs(alpha - weights[number] * inside).max() < 1e-6
            assert alpha.max() == 1 and x[alpha > 0].min() >= 0 and x[alpha > 0].max() <= size[0]


@pytest.mark.parametrize("program", ["nuke", "opencv"])
def test_the_inverse_of_the_forward_map_is_where_one_came_from(true_run: TrueRun, tmp_path: Path, program: Any) -> None:
    export_run(true_run.run, STMapExporter(convention=program, every=4), ExportOptions(out=tmp_path / "maps"))
    metadata = json.loads((tmp_path / "maps/stmap.json").read_text())
    width, height = metadata["frame_size"]
    here_x, here_y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    for t in metadata["frames"]:
        for layer in metadata["layers"]:
            flat = tuple(layer["inverse_size"])
            assert flat == tuple(layer["canonical"]["size"])
            x, y, alpha = places(tmp_path / "maps" / (layer["forward"] % t), program, flat)
            back = np.stack(places(tmp_path / "maps" / (layer["inverse"] % t), program, (width, height)), axis=-1)
            seen = look_up((back[..., 2:] > 0).astype(float), x, y)[..., 0] == 1
            back_x, back_y, _ = np.moveaxis(look_up(back, x, y), -1, 0)
            error = np.hypot(back_x - here_x, back_y - here_y)
            assert (seen & (alpha > 0.5)).sum() > 0.97 * (alpha > 0.5).sum()
            assert error[seen].max() <= 0.02


def test_the_identity_is_the_map_that_programs_call_the_identity() -> None:
    width, height = 40, 24
    uv = _add_rim(coords.frame_xy(width, height).numpy().astype(np.float32))
    found = invert_map(uv, np.full(uv.shape[:2], 255, np.uint8), coords.frame_box(width, height), (width, height))
    assert found.folded_share == 0 and np.all(found.visibility == 1)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    from_bottom = height - 1 - y  # how Nuke counts rows: its identity is (x + 0.5) / width, (y + 0.5) / height
    nuke = CONVENTIONS["nuke"].encode_positions(found.positions, (width, height))
    assert np.abs(nuke - np.stack([(x + 0.5) / width, (from_bottom + 0.5) / height], axis=-1)).max() < 1e-6
    opencv = CONVENTIONS["opencv"].encode_positions(found.positions, (width, height))
    assert np.abs(opencv - np.stack([x, y], axis=-1)).max() < 1e-4
    after_effects = CONVENTIONS["after_effects"].encode_positions(found.positions, (width, height))
    assert np.abs(after_effects - np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=-1)).max() < 1e-6


def test_the_inverse_of_an_affine_map_is_exact_at_any_size() -> None:
    turn = np.array([[0.9, -0.5], [0.4, 1.1]])
    uv = _add_rim((coords.frame_xy(60, 40).numpy() @ turn.T + [0.1, -0.05]).astype(np.float32))
    box, size = Box(-2.0, -2.0, 2.0, 2.0), (333, 301)
    found = invert_map(uv, np.full(uv.shape[:2], 255, np.uint8), box, size)
    wanted = (coords.texel_centers(box, *size).numpy() - [0.1, -0.05]) @ np.linalg.inv(turn).T
    share = (wanted * 60 + [60, 40]) / 2 / [60, 40]
    inside = ((share > 0) & (share < 1)).all(axis=-1)
    assert np.array_equal(found.visibility > 0.5, inside)
    assert (np.abs(found.positions - share)[inside] * [60, 40]).max() < 1e-3


def test_where_a_map_folds_or_shows_nothing_the_inverse_has_no_place() -> None:
    xy = coords.frame_xy(60, 40).numpy()
    uv = xy.copy()
    uv[..., 0] = np.where(xy[..., 0] < 0.3, xy[..., 0], 0.6 - xy[..., 0])  # the right end lies on what is left of it
    weight = np.full((42, 62), 255, np.uint8)
    weight[:12] = 0
    found = invert_map(_add_rim(uv.astype(np.float32)), weight, coords.frame_box(60, 40), (60, 40))
    assert not found.visibility[:10].any()  # hidden
    assert not found.visibility[:, 40:].any()  # shown by no pixel
    assert not found.visibility[:, 20:37].any()  # shown by two
    assert found.visibility[13:, :17].min() == 1
    assert found.folded_share == pytest.approx(20 / 39, abs=0.05)


def test_a_map_of_no_seen_pixel_and_a_torn_map_have_nothing_to_show() -> None:
    uv = _add_rim(coords.frame_xy(30, 20).numpy().astype(np.float32))
    nothing = invert_map(uv, np.zeros(uv.shape[:2], np.uint8), coords.frame_box(30, 20), (30, 20))
    assert not nothing.visibility.any() and nothing.folded_share == 0
    uv[:, 16:, 0] += 40  # the right half lies far away: what would stretch between the halves is not shown
    torn = invert_map(uv, np.full(uv.shape[:2], 255, np.uint8), Box(-1.0, -1.0, 42.0, 1.0), (1290, 60))
    assert not torn.visibility[:, 40:1200].any() and torn.visibility[20:40, 5:25].min() == 1


# --- pictures -------------------------------------------------------------------------------------------------------


def test_a_picture_through_the_forward_map_lies_as_the_renderer_lays_it(painted: Any) -> None:
    renderer = open_passes(require_planar(painted.run, "the test"))
    assert isinstance(renderer, OverlayPass)
    for number, name in enumerate(painted.maps.layers):
        overlay = _picture(painted.folder / f"overlay/{name}.png")
        x, y, _ = places(painted.folder / f"forward/{name}.{FRAME:04d}.exr", "nuke", overlay.shape[1::-1])
        seen = look_up(_premultiplied(overlay), x, y)
        wanted, _ = renderer.warp_overlay(FRAME, number, painted.maps.size)
        assert np.abs(seen - _premultiplied(wanted)).max() < 1 / 255


def test_the_nuke_script_shows_what_unwrap_renders_where_a_layer_is_alone(painted: Any) -> None:
    renderer, differ = open_passes(require_planar(painted.run, "the test")), []
    for t in (0, FRAME, 11):
        shown = np.rint(255 * np.clip(NukeScript(painted.folder, painted.frames).result(t)[..., :3], 0, 1))
        wanted = renderer.render_frame(t, painted.frames[t])
        alone = painted.maps.read_weights(t, painted.maps.size).max(axis=0) == 1
        difference = np.abs(shown - wanted).max(axis=-1)
        assert difference[alone].max() <= 1 and np.mean((shown - wanted)[alone] ** 2) < 255**2 * 1e-6  # 60 dB
        assert (wanted != painted.frames[t]).any(axis=-1)[alone].mean() > 0.1
        differ.append(difference[~alone].max())
    assert max(differ) > 1  # where layers share a pixel a comp cannot tell them apart, and the README says so


def test_the_frame_through_the_inverse_map_is_the_canonical_picture_under_light(painted: Any) -> None:
    for number, name in enumerate(painted.maps.layers):
        flat = NukeScript(painted.folder, painted.frames).node(f"unwrapped_{name}", FRAME)
        visible = read_map(painted.folder / f"inverse/{name}.{FRAME:04d}.exr")[..., 3]
        picture = _picture(painted.folder / f"canonical/{name}.png")
        x, y, _ = places(painted.folder / f"inverse/{name}.{FRAME:04d}.exr", "nuke", painted.maps.size)
        gain = look_up(painted.maps.read_gain(FRAME, number, painted.maps.size).astype(float), x, y)
        sure = cv2.erode((visible == 1).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        difference = np.abs(flat[..., :3] - picture[..., :3] * gain)[sure]
        assert sure.mean() > 0.1 and np.median(difference) < 0.02  # both were resampled


def test_the_python_lines_of_the_readme_run(painted: Any, tmp_path: Path, monkeypatch: Any) -> None:
    export_run(painted.run, STMapExporter(convention="opencv", every=FRAME), ExportOptions(out=tmp_path / "maps"))
    text = (tmp_path / "maps/README.txt").read_text()
    lines = text.split("IN OPENCV")[1].splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    monkeypatch.chdir(tmp_path / "maps")
    known = {"frame": painted.frames[0][..., ::-1] / np.float32(255)}
    exec(code, known)
    wanted = open_passes(require_planar(painted.run, "the test")).render_frame(0, painted.frames[0])
    alone = painted.maps.read_weights(0, painted.maps.size)[0] == 1
    assert np.abs(255 * known["result"][..., ::-1] - wanted)[alone].max() < 2


# --- files ----------------------------------------------------------------------------------------------------------


def test_headers_and_facts_say_what_the_numbers_are(painted: Any) -> None:
    planes, header = read_exr(painted.folder / f"inverse/foreground.{FRAME:04d}.exr")
    assert sorted(planes) == ["A", "B", "G", "R"] and "ZIP_" in str(header["compression"])
    assert header["uvOrigin"] == "bottom-left" and header["uvUnit"] == "normalized"
    assert (header["pictureWidth"], header["pictureHeight"]) == painted.maps.size
    assert (header["layer"], header["frame"], header["direction"]) == ("foreground", FRAME, "inverse")
    assert Fraction(*map(int, header["framesPerSecond"])) == 24
    assert json.loads(header["comment"])["edits"][0]["edit"] == "0001-paint"
    assert header["software"].startswith("unwrap ")
    _, header = read_exr(painted.folder / f"forward/background.{FRAME:04d}.exr")
    picture = _picture(painted.folder / "canonical/background.png")
    assert (header["pictureHeight"], header["pictureWidth"]) == picture.shape[:2]
    light, _ = read_exr(painted.folder / f"light/background.{FRAME:04d}.exr")
    assert np.array_equal(light["R"], painted.maps.read_gain(FRAME, 1, painted.maps.size)[..., 0].astype(np.float16))
    assert "MB" in painted.exported.notes[0]


def test_without_metadata_nothing_says_what_made_the_files_or_where_the_source_lies(
    painted: Any, tmp_path: Path
) -> None:
    export_run(
        painted.run, STMapExporter(every=20, direction="forward"), ExportOptions(out=tmp_path / "maps", metadata=False)
    )
    _, header = read_exr(tmp_path / "maps/forward/foreground.0000.exr")
    assert "software" not in header and "comment" not in header
    assert not (tmp_path / "maps/inverse").exists()
    texts = [(tmp_path / "maps" / name).read_text() for name in ("comp.nk", "README.txt", "stmap.json")]
    assert not any("clip" in text or "unwrap 0" in text or str(tmp_path) in text for text in texts)


def test_blender_gets_its_mask_in_blue_and_a_script_that_names_the_files(painted: Any, tmp_path: Path) -> None:
    export_run(
        painted.run,
        STMapExporter(convention="blender", every=4, layer=("background",)),
        ExportOptions(out=tmp_path / "maps"),
    )
    for kind in ("forward", "inverse"):
        found = read_map(tmp_path / f"maps/{kind}/background.0004.exr")
        assert np.array_equal(found[..., 2], found[..., 3])
    script = (tmp_path / "maps/comp_blender.py").read_text()
    texts = [node.value for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Constant)]
    files = [text for text in texts if isinstance(text, str) and re.search(r"\.(exr|png|mkv)$", text)]
    assert len(files) == 4 and all((tmp_path / "maps" / name).is_file() for name in files)


def test_frames_keep_the_numbers_of_the_source(painted: Any, tmp_path: Path) -> None:
    shutil.copytree(painted.run.path, tmp_path / "run")
    text = (tmp_path / "run/run.yaml").read_text()
    (tmp_path / "run/run.yaml").write_text(re.sub(r"(?m)^frames: .*$", "frames: '3:27:2'", text))
    exported = export_run(tmp_path / "run", STMapExporter(layer=("foreground",), every=5, direction="inverse"))
    names = [path.name for path in exported.paths if path.parent.name == "inverse"]
    assert names == ["foreground.0003.exr", "foreground.0013.exr", "foreground.0023.exr"]
    assert not (exported.paths[0].parent / "comp.nk").exists()


def test_sizes_are_those_asked_for(painted: Any, tmp_path: Path) -> None:
    settings = STMapExporter(size="96x54", canonical_size="80p", every=20, layer=("foreground",))
    export_run(painted.run, settings, ExportOptions(out=tmp_path / "maps"))
    forward = read_map(tmp_path / "maps/forward/foreground.0000.exr")
    inverse = read_map(tmp_path / "maps/inverse/foreground.0000.exr")
    assert forward.shape[:2] == (54, 96) and min(inverse.shape[:2]) == 80


def test_edits_that_are_more_than_still_paint_are_named(painted: Any, tmp_path: Path) -> None:
    shutil.copytree(painted.run.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    rgba = np.ones((8, 8, 4), np.float32)
    box = painted.maps.boxes[0]
    stack.add_edit(
        run, "late", {"foreground": Overlay(rgba, box)}, EditOrigin(editor="image"), arrangement=Arrangement(start=5)
    )
    exported = export_run(run, STMapExporter(every=20, direction="forward"))
    assert any("0002-late" in note for note in exported.notes)
    before = (painted.folder / "overlay/foreground.png").read_bytes()
    assert (run.exports / "stmap/overlay/foreground.png").read_bytes() == before


@pytest.mark.parametrize("name", ["a[exec x].mkv", 'a"b.mkv', "a$b.mkv", "a\\b.mkv", "a;b\n.mkv", "a#b.mkv", "%d.mkv"])
def test_a_file_name_cannot_become_a_part_of_a_script(tmp_path: Path, name: str) -> None:
    metadata = replace(make_metadata((32, 32), 2, Fraction(24)), kind="file")
    assert locate_source(replace(metadata, path=str(tmp_path / name)), tmp_path) is None
    found = locate_source(replace(metadata, path=str(tmp_path / "a clip-1.mkv")), tmp_path / "maps")
    assert found is not None and found.file == "../a clip-1.mkv" and found.first == 1


def test_numbered_pictures_are_named_by_their_pattern(tmp_path: Path) -> None:
    for number in (8, 9, 10):
        cv2.imwrite(str(tmp_path / f"shot_{number:03d}.png"), np.zeros((32, 32, 3), np.uint8))
    metadata = replace(make_metadata((32, 32), 3, Fraction(24)), path=str(tmp_path))
    found = locate_source(metadata, tmp_path / "maps")
    assert found is not None and (found.file, found.first, found.is_video) == ("../shot_%03d.png", 8, False)


# --- settings and refusals ------------------------------------------------------------------------------------------


def test_the_program_is_named_by_for() -> None:
    words = ["--for", "blender", "--layer", "a", "--layer", "b", "--every", "3"]
    assert tyro.cli(STMapExporter, args=words) == STMapExporter(convention="blender", layer=("a", "b"), every=3)
    assert tyro.cli(STMapExporter, args=[]) == STMapExporter()


REFUSED = {
    "layer": (STMapExporter(layer=("sky",)), ExitCode.BAD_INPUT, "foreground, background"),
    "every": (STMapExporter(every=0), ExitCode.BAD_INPUT, "--every"),
    "small": (STMapExporter(size="4x4"), ExitCode.BAD_INPUT, "--size"),
    "large": (STMapExporter(size="99999x99999"), ExitCode.BAD_INPUT, "--size"),
    "word": (STMapExporter(size="big"), ExitCode.BAD_INPUT, "--size"),
    "flat": (STMapExporter(canonical_size="20000x20000"), ExitCode.BAD_INPUT, "--canonical-size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(painted: Any, tmp_path: Path, case: str) -> None:
    settings, code, said = REFUSED[case]
    with pytest.raises(UserError) as caught:
        export_run(painted.run, settings, ExportOptions(out=tmp_path / "maps"))
    assert caught.value.code == code and said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_openexr_one_sentence_names_the_extra(painted: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(UserError) as caught:
        export_run(painted.run, STMapExporter(), ExportOptions(out=tmp_path / "maps"))
    assert caught.value.code == ExitCode.BAD_INPUT and "[exr]" in caught.value.fix
    assert list(tmp_path.iterdir()) == []
    export_run(
        painted.run, STMapExporter(convention="opencv", every=20), ExportOptions(out=tmp_path / "maps")
    )  # which needs none


def test_a_full_disk_is_noticed_before_the_first_file(painted: Any, tmp_path: Path, monkeypatch: Any) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 1000))
    with pytest.raises(UserError) as caught:
        export_run(painted.run, STMapExporter(), ExportOptions(out=tmp_path / "maps"))
    assert caught.value.code == ExitCode.NO_ROOM
    assert list(tmp_path.iterdir()) == []


# --- a small Nuke ---------------------------------------------------------------------------------------------------


class NukeScript:
    """Reads comp.nk as Nuke's reference says: a stack of nodes, the top one is the first input (B, or src)."""

    def __init__(self, folder: Path, frames: list[np.ndarray]) -> None:
        self.folder, self.frames = folder, frames
        self.nodes: dict[str, tuple[str, dict[str, str], list[str]]] = {}
        stack: list[str] = []
        names: dict[str, str] = {}
        text = (folder / "comp.nk").read_text()
        for kind, body, line in re.findall(r"(?m)^(\w+) \{\n((?: .*\n)*)\}$|^((?:set|push) .*)$", text):
            if line:
                word, name = line.split()[:2]
                if word == "set":
                    names[name] = stack[-1]
                else:
                    stack.append(names[name.removeprefix("$")])
                continue
            knobs = dict(entry.strip().split(" ", 1) for entry in body.splitlines())
            inputs = [stack.pop() for _ in range(int(knobs.get("inputs", 1)))]
            if kind == "Root":
                self.root = knobs
                continue
            self.nodes[knobs["name"]] = (kind, knobs, inputs)
            stack.append(knobs["name"])

    def result(self, t: int) -> np.ndarray:
        kind, _, inputs = self.nodes["result"]
        assert kind == "Write" and int(self.root["first_frame"]) <= t <= int(self.root["last_frame"])
        return self.node(inputs[0], t)

    def node(self, name: str, t: int) -> np.ndarray:
        """RGBA of a node at a frame, rows from the top."""
        kind, knobs, names = self.nodes[name]
        inputs = [self.node(other, t) for other in names]
        if kind == "Read":
            return self._read(knobs, t)
        if kind == "Premult":
            return _premultiplied(inputs[0])
        if kind == "STMap":
            assert knobs["uv"] == "rgb"
            picture, found = inputs
            height, width = picture.shape[:2]
            return look_up(picture, found[..., 0] * width, height - found[..., 1] * height)
        assert kind == "Merge2"
        b, a = inputs
        if knobs["operation"] == "mask":
            return b * a[..., 3:]
        if knobs["operation"] == "multiply":
            return a * b
        if knobs["operation"] == "plus":
            return a + b
        assert knobs["operation"] == "over"
        return a + b * (1 - a[..., 3:])

    def _read(self, knobs: dict[str, str], t: int) -> np.ndarray:
        assert knobs["raw"] == "true"
        file = knobs["file"].strip('"')
        assert file.startswith(r"\[file dirname \[value root.name]]/")
        path = self.folder / file.split("/", 1)[1]
        if path.suffix == ".mkv":
            assert path.is_file() and knobs["frame_mode"] == '"start at"'
            frame = self.frames[t - int(knobs["frame"]) + int(knobs["first"]) - 1]  # Nuke counts them from 1
            return np.concatenate([frame / 255, np.ones((*frame.shape[:2], 1))], axis=-1)
        if path.suffix == ".png":
            return _picture(path)
        planes, _ = read_exr(path.parent / (path.name % t))
        found = np.stack([planes[name] for name in "RGBA"], axis=-1).astype(np.float64)
        width, height = map(int, knobs["format"].strip('"').split()[:2])
        assert found.shape[:2] == (height, width)
        return found


def _picture(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA) / 255.0


def _premultiplied(rgba: np.ndarray) -> np.ndarray:
    return np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1)
