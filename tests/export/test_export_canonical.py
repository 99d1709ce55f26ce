"""Layered pictures for painters: what the files hold, and that the guides on them tell the truth."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from PIL import Image

from editors.core.stack import add_edit
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.edits.record import EditOrigin
from neural_fields.export.base import export_run
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures import guides
from neural_fields.export.pictures.canonical import CanonicalExporter
from neural_fields.export.pictures.guides import GuidePlane
from neural_fields.imaging.documents.layered import (
    BASE,
    EDITS,
    PAINT,
    DocumentLayer,
    LayeredDocument,
    composite_over,
    constant_pixels,
    flatten_layers,
    place_on_canvas,
)
from neural_fields.imaging.documents.openraster import read_ora, write_ora
from neural_fields.imaging.documents.psd import read_psd, write_psd
from neural_fields.imaging.exr import read_exr
from neural_fields.imaging.image_io import read_picture
from neural_fields.runs.run import Run
from tests.support.map_arrays import save_map
from tests.support.true_run import TrueRun

MOST = 16_000_000
READERS = {"ora": read_ora, "psd": read_psd}
WRITERS = {"ora": write_ora, "psd": write_psd}


@pytest.fixture(scope="module")
def folder(true_run: TrueRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of the true run: ora, psd and png of both layers."""
    home = tmp_path_factory.mktemp("exports")
    for kind in ("ora", "psd", "png"):
        export_run(true_run.run, CanonicalExporter(format=kind), ExportOptions(out=home / kind))
    return home


def bytes_of(rgba: np.ndarray) -> np.ndarray:
    return np.rint(rgba * 255).astype(np.uint8)


def random_rgba(width: int, height: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4))
    values[: height // 3, :, 3] = 0
    values[-1, :, 3] = 255
    return (values / 255).astype(np.float32)


@pytest.mark.slow
def test_open_raster_starts_with_its_stored_type_and_has_what_viewers_need(folder: Path) -> None:
    path = folder / "ora" / "foreground.ora"
    assert path.read_bytes()[30:54] == b"mimetypeimage/openraster"
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].compress_type == zipfile.ZIP_STORED
        image = ElementTree.fromstring(archive.read("stack.xml"))
        merged = Image.open(io.BytesIO(archive.read("mergedimage.png")))
        thumbnail = Image.open(io.BytesIO(archive.read("Thumbnails/thumbnail.png")))
        layers = list(image.iter("layer"))
        assert {layer.get("src") for layer in layers} <= set(archive.namelist())
    size = (int(image.get("w", "")), int(image.get("h", "")))
    assert merged.size == size and max(thumbnail.size) <= 256
    assert abs(thumbnail.width / thumbnail.height - size[0] / size[1]) < 0.02
    locked = {layer.get("name"): layer.get("edit-locked") == "true" for layer in layers}
    assert [name for name, is_locked in locked.items() if not is_locked] == [PAINT]


@pytest.mark.parametrize("kind", ["ora", "psd"])
def test_a_document_has_the_picture_as_exported_and_an_empty_layer_above(
    true_run: TrueRun, folder: Path, kind: str
) -> None:
    picture = canonical.read_pristine(true_run.run.canonical, "foreground")
    document = READERS[kind](folder / kind / f"foreground.{kind}", MOST)
    names = [layer.name for layer in document.layers]
    assert names == ["guides", PAINT, f"{BASE}: foreground"]
    assert [layer.name.removeprefix("guide: ") for layer in document.layers[0].layers] == [
        "frame outlines",
        "stretch",
        "coverage",
    ]
    assert document.size == picture.size
    assert np.array_equal(bytes_of(place_on_canvas(document.layers[2], document.size)), bytes_of(picture.rgba))
    assert not place_on_canvas(document.layers[1], document.size).any()
    assert document.origin["layer"] == "foreground" and tuple(document.origin["box"]) == picture.box.as_tuple()


@pytest.mark.parametrize("kind", ["ora", "psd"])
def test_layers_come_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    pixels = [random_rgba(37, 23, 1), random_rgba(11, 7, 2)]
    inside = DocumentLayer(
        "süß & <b>", constant_pixels(pixels[1]), corner=(5, 9), opacity=0.4, visible=False, locked=True
    )
    made = LayeredDocument(
        (37, 23),
        (DocumentLayer("group", layers=(inside,)), DocumentLayer("below", constant_pixels(pixels[0]))),
        {"layer": "a"},
    )
    WRITERS[kind](tmp_path / f"a.{kind}", made)
    found = READERS[kind](tmp_path / f"a.{kind}", MOST)
    group, below = found.layers
    (top,) = group.layers
    assert (found.size, dict(found.origin)) == ((37, 23), {"layer": "a"})
    assert (group.name, group.pixels, below.name) == ("group", None, "below")
    assert (top.name, top.corner, top.visible, top.blend) == ("süß & <b>", (5, 9), False, "normal")
    assert top.opacity == pytest.approx(0.4, abs=0.5 / 255)
    assert below.pixels is not None and np.array_equal(below.pixels(), pixels[0])
    assert top.pixels is not None and np.array_equal(top.pixels(), pixels[1])


def test_the_same_document_gives_the_same_open_raster_bytes(tmp_path: Path) -> None:
    made = LayeredDocument((8, 8), (DocumentLayer("a", constant_pixels(random_rgba(8, 8))),), {"layer": "a"})
    for name in ("one.ora", "two.ora"):
        write_ora(tmp_path / name, made)
    assert (tmp_path / "one.ora").read_bytes() == (tmp_path / "two.ora").read_bytes()


def test_what_viewers_see_of_a_photoshop_document_is_its_visible_layers(folder: Path) -> None:
    path = folder / "psd" / "foreground.psd"
    document = read_psd(path, MOST)
    seen = flatten_layers(document.layers, document.size)
    with Image.open(path) as image:
        shown = np.asarray(image).astype(int)
    opaque = seen[..., 3] > 0.999
    assert opaque.any() and np.abs(shown - 255 * seen)[opaque].max() <= 1.5
    assert np.abs(shown - 255 * seen)[..., 3].max() <= 1.5


def test_over_keeps_what_lies_alone_and_is_the_usual_over_elsewhere() -> None:
    top, under = random_rgba(20, 12, 3), random_rgba(20, 12, 4)
    found = composite_over(top, under)
    alone = (under[..., 3] == 0) & (top[..., 3] > 0)
    covered = top[..., 3] == 0
    assert np.array_equal(found[alone], top[alone]) and np.array_equal(found[covered], under[covered])
    expected = top[..., :3] * top[..., 3:] + under[..., :3] * under[..., 3:] * (1 - top[..., 3:])
    assert np.abs(found[..., :3] * found[..., 3:] - expected).max() < 1e-6


def test_a_layer_that_sticks_out_of_the_canvas_is_cut() -> None:
    pixels = random_rgba(6, 5)
    for corner in ((-2, -3), (3, 2), (-50, 0), (0, 50)):
        found = place_on_canvas(DocumentLayer("a", constant_pixels(pixels), corner=corner), (7, 4))
        expected = np.zeros((164, 167, 4), np.float32)
        expected[60 + corner[1] : 65 + corner[1], 60 + corner[0] : 66 + corner[0]] = pixels
        assert np.array_equal(found, expected[60:64, 60:67])


def test_png_has_sixteen_bits_straight_and_exr_is_premultiplied(
    true_run: TrueRun, folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("OpenEXR")
    picture = canonical.read_pristine(true_run.run.canonical, "background").rgba
    found = read_picture(folder / "png" / "background.png")
    assert found.bits == 16 and np.abs(found.rgba - picture).max() < 1e-6
    export_run(
        true_run.run, CanonicalExporter(format="exr", layer=("background",)), ExportOptions(out=tmp_path / "exr")
    )
    channels, header = read_exr(tmp_path / "exr" / "background.exr")
    assert set(channels) == set("RGBA") and all(plane.dtype == np.float32 for plane in channels.values())
    assert np.allclose(channels["G"], picture[..., 1] * picture[..., 3]) and "premultiplied" in header["alpha"]
    assert "premultiplied" in (tmp_path / "exr" / "README.txt").read_text()


def test_active_edits_lie_on_a_layer_of_their_own(true_run: TrueRun, tmp_path: Path) -> None:
    run = Run(shutil.copytree(true_run.run.path, tmp_path / "run"))
    picture = canonical.read_pristine(run.canonical, "foreground")
    rgba = np.zeros_like(picture.rgba)
    rgba[20:40, 30:60] = (1, 0, 0, 1)
    add_edit(run, "red", {"foreground": Overlay(rgba, picture.box)}, EditOrigin(editor="test"))
    export_run(run, CanonicalExporter(), ExportOptions(out=tmp_path / "out"))
    document = read_ora(tmp_path / "out" / "foreground.ora", MOST)
    (edits,) = [layer for layer in document.layers if layer.name == EDITS]
    assert np.array_equal(place_on_canvas(edits, document.size), rgba)
    assert document.layers.index(edits) == 2 and edits.locked
    other = read_ora(tmp_path / "out" / "background.ora", MOST)
    assert all(layer.name != EDITS for layer in other.layers)


def test_no_metadata_leaves_out_what_made_a_file(true_run: TrueRun, tmp_path: Path) -> None:
    for kind in ("ora", "psd", "png"):
        out = tmp_path / kind
        export_run(
            true_run.run, CanonicalExporter(format=kind, layer=("foreground",)), ExportOptions(out=out, metadata=False)
        )
        data = (out / f"foreground.{kind}").read_bytes()
        assert b"unwrap" not in data and b"sha256" not in data


def test_files_hold_no_path_of_the_machine(true_run: TrueRun, folder: Path) -> None:
    for path in folder.rglob("*.*"):
        assert str(true_run.run.path.parent).encode() not in path.read_bytes()
    with zipfile.ZipFile(folder / "ora" / "foreground.ora") as archive:
        assert json.loads(archive.read("unwrap.json"))["software"].startswith("unwrap ")


def test_an_unknown_layer_is_refused_and_nothing_is_written(true_run: TrueRun, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        export_run(true_run.run, CanonicalExporter(layer=("sky",)), ExportOptions(out=tmp_path / "out"))
    assert caught.value.code == ExitCode.BAD_INPUT and not list(tmp_path.iterdir())


def flat_maps(home: Path, scale: float, size: tuple[int, int] = (64, 36)) -> Maps:
    """Maps of two frames and one layer: uv is the frame's xy times `scale`, moved to the right in the second frame."""
    width, height = size
    xy = coords.normalize_pixels(coords.pixel_centers(width + 2, height + 2) - 1, width, height).numpy()
    save_map(home, "uv-background", np.stack([xy * scale, xy * scale + np.array([0.5, 0], np.float32)]))
    save_map(home, "weight", np.full((2, 1, height + 2, width + 2), 255, np.uint8))
    return Maps(home, ("background",), (Box(-1.0, -1.0, 2.0, 1.0),), size, 2, False)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_pixels_per_texel_is_the_ratio_of_their_sides(tmp_path: Path, scale: float) -> None:
    maps = flat_maps(tmp_path, scale)
    plane = GuidePlane(
        0, Box(-2.0, -2.0, 3.0, 2.0), (400, 320)
    )  # 80 texels a unit; a unit has 32 pixels divided by the scale
    found = guides.measure_pixels_per_texel(maps, plane, scale=3.0)
    known = found[np.isfinite(found)]
    assert len(known) and np.allclose(known, 3 * 32 / scale / 80, rtol=1e-3)
    assert np.isnan(found).any()


def test_paint_that_would_be_blurred_is_red_and_hidden_detail_is_blue(tmp_path: Path) -> None:
    plane = GuidePlane(0, Box(-2.0, -2.0, 3.0, 2.0), (200, 160))  # 40 texels a unit
    for scale, strongest in ((0.25, 0), (3.2, 2)):  # 3.2 and 1/4 pixels a texel
        guide = guides.draw_stretch(flat_maps(tmp_path, scale), plane)
        place = guide[80, 80]  # uv (0, 0), in both frames
        assert place[3] > 100 and np.argmax(place[:3]) == strongest
    assert guides.draw_stretch(flat_maps(tmp_path, 0.8), plane)[80, 80, 3] == 0


def test_coverage_counts_frames_and_is_clear_where_nothing_is_seen(tmp_path: Path) -> None:
    plane = GuidePlane(0, Box(-2.0, -2.0, 3.0, 2.0), (200, 160))
    guide = guides.draw_coverage(flat_maps(tmp_path, 1.0), plane)
    twice, once, never = guide[80, 90], guide[80, 45], guide[5, 5]
    assert never[3] == 0 and once[3] == twice[3] == 255
    assert twice[0] > 200 and once[0] < 100  # yellow, and the middle of the scale


def test_outlines_go_around_the_frames_and_bear_their_numbers(tmp_path: Path) -> None:
    maps, plane = flat_maps(tmp_path, 1.0), GuidePlane(0, Box(-2.0, -2.0, 3.0, 2.0), (400, 320))
    guide = guides.draw_outlines(maps, plane, range(7, 9))
    drawn = guide[..., 3] > 128
    # Frame 0 spans u from -1 to 1, which are columns 80 to 240, and v of 9/16 either way: rows 115 to 205.
    assert drawn[115:205, 78:84].any(axis=1).all() and drawn[200:207, 84:236].any(axis=0).all()
    assert not drawn[212:, :].any() and not drawn[:, :74].any()
    assert drawn[118:135, 90:150].any()  # the label
    silent = guides.draw_outlines(maps, plane, range(0, 2))
    assert not np.array_equal(guide, silent)


def test_a_layer_that_is_a_thin_line_has_no_outlines(tmp_path: Path) -> None:
    flat, plane = flat_maps(tmp_path, 1.0), GuidePlane(0, Box(-2.0, -2.0, 3.0, 2.0), (400, 320))
    weight = np.full((2, 2, flat.size[1] + 2, flat.size[0] + 2), 0, np.uint8)
    weight[:, 0, 9:11] = 255
    weight[:, 1] = 255 - weight[:, 0]
    save_map(tmp_path, "weight", weight)
    maps = replace(flat, layers=("wire", "background"), boxes=flat.boxes * 2)
    shutil.copy(tmp_path / "uv-background.bin", tmp_path / "uv-wire.bin")
    assert not guides.draw_outlines(maps, plane, range(2)).any()
    assert guides.draw_outlines(maps, replace(plane, layer=1), range(2)).any()


def test_outlines_of_a_front_layer_go_around_what_is_seen_of_it(true_run: TrueRun) -> None:
    maps, clip = Maps.open(true_run.run.maps), true_run.clip
    picture = canonical.read_pristine(true_run.run.canonical, "foreground")
    plane = GuidePlane(0, picture.box, picture.size)
    guide = guides.draw_outlines(maps, plane, range(maps.frame_count))
    edge = cv2.morphologyEx((picture.rgba[..., 3] > 0.5).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((9, 9)))
    texels = plane.uv_to_texels(clip.uv[0, 0][clip.masks[0][0]])
    assert edge.any() and (guide[..., 3][edge > 0] > 0).mean() > 0.3
    inner = cv2.erode((picture.rgba[..., 3] > 0.5).astype(np.uint8), np.ones((25, 25)))
    assert texels.min() > -1 and (guide[..., 3][inner > 0] > 0).mean() < 0.5
