"""What is placed on one frame is, in every frame, what the camera would have seen had it been painted there."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from editors.api import edit
from editors.cli.main import main
from editors.core.source import EditSource
from editors.effects import text
from editors.effects.place import Place, check_corners
from editors.effects.text import draw_text
from editors.inputs.picture_projection import compute_homography, lay_picture
from neural_fields.atlas.chart import Chart
from neural_fields.atlas.placed_picture import PlacedPicture
from neural_fields.atlas.uv_extrapolation import ExtrapolatedMap
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import array_coords, coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import report_nothing
from neural_fields.data.synthetic.planar_clips import PaintedMark, SyntheticClip
from neural_fields.edits.payloads import read_paint
from neural_fields.imaging.image_io import encode_png
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.init.frame_registration import apply_transform
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun
from tests.support.typed import as_one

pytestmark = pytest.mark.slow

AROUND = 3  # pixels around what changes that figures of a placement are of
WANTED = 32.0  # dB


def logo(width: int, height: int) -> np.ndarray:
    """A badge with a ring, a bar and a disc, transparent outside: straight RGBA."""
    finer = Image.new("RGBA", (2 * width, 2 * height))
    draw = ImageDraw.Draw(finer)
    w, h = finer.size
    draw.ellipse((0.01 * w, 0.01 * h, 0.99 * w, 0.99 * h), (20, 40, 150, 255))
    draw.ellipse((0.12 * w, 0.12 * h, 0.88 * w, 0.88 * h), (240, 200, 40, 255))
    draw.rectangle((0.3 * w, 0.2 * h, 0.42 * w, 0.8 * h), (200, 30, 40, 255))
    draw.ellipse((0.5 * w, 0.4 * h, 0.75 * w, 0.7 * h), (30, 120, 60, 255))
    return np.asarray(finer.resize((width, height), Image.Resampling.BOX)).astype(np.float32) / 255


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    """A run to edit."""
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture
def badge(tmp_path: Path) -> Path:
    """A picture file that is much larger than it is shown."""
    (tmp_path / "badge.png").write_bytes(encode_png(logo(400, 300)))
    return tmp_path / "badge.png"


@pytest.fixture(scope="module")
def clip(true_run: TrueRun) -> SyntheticClip:
    return true_run.clip


def box_xy(clip: SyntheticClip, *box: float) -> Box:
    """A box x, y, w, h in pixels in xy units."""
    x, y, width, height = box
    corners = torch.tensor([[x, y], [x + width, y + height]], dtype=torch.float64)
    return Box(*coords.normalize_pixels(corners, clip.width, clip.height).flatten().tolist())


def figures(run: Run, clip: SyntheticClip, mark: PaintedMark) -> tuple[float, float]:
    """The lowest PSNR of a frame, and of what the mark changes of one, with what is around."""
    renderer, true = open_passes(require_planar(run, "the test")), clip.render_edited([mark])
    whole, part = [], []
    for t, frame in enumerate(clip.frames):
        error = ((renderer.render_frame(t, frame).astype(float) - true[t]) / 255) ** 2
        whole.append(error.mean())
        y, x = np.nonzero(np.abs(true[t].astype(int) - frame).max(axis=-1) > 8)
        assert len(y), "the mark is seen in every frame"
        near = (slice(max(0, y.min() - AROUND), y.max() + AROUND), slice(max(0, x.min() - AROUND), x.max() + AROUND))
        part.append(error[near].mean())
    return float(-10 * np.log10(max(whole))), float(-10 * np.log10(max(part)))


@pytest.mark.parametrize(
    ("layer", "frame", "box"),
    [
        ("foreground", 6, (43, 38, 40, 30)),
        ("foreground", 0, (30, 35, 48, 36)),
        ("background", 3, (120, 10, 60, 45)),
        ("background", 11, (60, 60, 72, 54)),  # the object hides a part of it
    ],
)
def test_a_logo_is_seen_as_if_it_had_been_painted_there(
    run: Run, clip: SyntheticClip, badge: Path, layer: str, frame: int, box: tuple
) -> None:
    edit(run, editor=Place(image=badge, box=",".join(map(str, box)), frame=frame), layers=[layer])
    whole, part = figures(run, clip, PaintedMark(logo(400, 300), box_xy(clip, *box), layer, frame))
    assert whole > 38 and part > WANTED


def test_a_quad_is_the_homography_of_its_corners(run: Run, clip: SyntheticClip, badge: Path) -> None:
    corners = np.array([[100.0, 20.0], [175.0, 8.0], [165.0, 66.0], [110.0, 60.0]])
    edit(run, editor=Place(image=badge, quad=words(corners), frame=4), layers=["background"])
    # The same picture, seen through that homography in a box around it.
    finer, low, high = 8, corners.min(axis=0), corners.max(axis=0)
    width, height = ((high - low) * finer).astype(int)
    x, y = np.meshgrid((np.arange(width) + 0.5) / finer + low[0], (np.arange(height) + 0.5) / finer + low[1])
    there = apply_transform(np.linalg.inv(compute_homography((400, 300), corners)), np.stack([x, y], axis=-1))
    column, row = np.floor(np.moveaxis(there, -1, 0)).astype(int)
    inside = (column >= 0) & (column < 400) & (row >= 0) & (row < 300)
    seen = logo(400, 300)[row.clip(0, 299), column.clip(0, 399)] * inside[..., None]
    mark = PaintedMark(seen.astype(np.float32), box_xy(clip, *low, *(high - low)), "background", 4)
    whole, part = figures(run, clip, mark)
    assert whole > 38 and part > WANTED


def test_a_text_is_seen_as_if_it_had_been_written_there(run: Run, clip: SyntheticClip) -> None:
    made = edit(run, editor=Place(text="GO\\n47", color="gold", point="63,52", width=34.0, frame=5))
    assert made.edit.layers == ("foreground",)  # which shows most there, without being named
    low, _, high, _ = np.array(made.edit.record.origin.details["corners"])
    assert (high - low)[0] == pytest.approx(34) and (high + low) / 2 == pytest.approx([63, 52])
    mark = PaintedMark(draw_text("GO\n47", None, "gold"), box_xy(clip, *low, *(high - low)), "foreground", 5)
    whole, part = figures(run, clip, mark)
    assert whole > 38 and part > WANTED


def test_a_turned_picture_turns_clockwise_around_its_point(run: Run, badge: Path) -> None:
    made = edit(run, editor=Place(image=badge, point="63,52", width=40.0, angle=90.0))
    assert np.allclose(made.edit.record.origin.details["corners"], [[78, 32], [78, 72], [48, 72], [48, 32]])
    origin = made.edit.record.origin
    assert origin.sources[0].file == "badge.png" and origin.details["frame"] == 6


def test_a_box_keeps_the_aspect_of_the_picture(run: Run, badge: Path) -> None:
    made = edit(run, editor=Place(image=badge, box="100,20,80,30"))
    assert np.allclose(made.edit.record.origin.details["corners"], [[120, 20], [160, 20], [160, 50], [120, 50]])


def test_a_note_says_how_much_lies_on_the_layer(run: Run, badge: Path) -> None:
    # Half of it lies beyond the frame's edge.
    made = edit(run, editor=Place(image=badge, quad="172,20 212,20 212,60 172,60"))
    assert made.notes == ("50% of the placement falls on layer background in frame 6",)


def test_a_mask_says_where_a_placement_may_go(run: Run, badge: Path, tmp_path: Path) -> None:
    with Image.open(run.canonical / "background.png") as picture:
        mask = Image.new("L", picture.size)
        mask.paste(255, (0, 0, picture.size[0] // 2, picture.size[1]))
    mask.save(tmp_path / "mask.png")
    made = edit(run, editor=Place(image=badge, box="50,0,90,30"), layers=["background"], mask=tmp_path / "mask.png")
    placed, box = read_paint(made.edit, "background"), Maps.open(run.maps).boxes[1]
    overlay = as_one(PlacedPicture, placed).draw_overlay((180, 60), placed.box)
    u = overlay.box.u0 + (np.arange(overlay.size[0]) + 0.5) * overlay.box.width / overlay.size[0]
    middle, texel = (box.u0 + box.u1) / 2, box.width / mask.size[0]
    assert overlay.rgba[:, u < middle - texel, 3].max() == 1 and not overlay.rgba[:, u > middle + texel].any()


def test_an_edit_keeps_the_picture_as_it_was_given(run: Run, badge: Path) -> None:
    made = edit(run, editor=Place(image=badge, box="20,10,140,80"), layers=["background"])
    found = read_paint(made.edit, "background")
    assert np.array_equal(np.rint(255 * found.rgba), np.rint(255 * logo(400, 300)))


def test_a_placement_stays_on_the_chart_of_its_frame(true_run: TrueRun, badge: Path) -> None:
    run = require_planar(true_run.run, "the test")
    box = run.maps.boxes[1]
    left = Box(box.u0, box.v0, box.u0 + 0.6 * box.width, box.v1)
    charts = (Chart("background", 0, 5, left), Chart("background", 6, 11, Box(left.u1, box.v0, box.u1, box.v1)))
    run.maps = dataclasses.replace(run.maps, charts=(charts,))
    source = EditSource(run, ("background",))
    made = Place(image=badge, quad="20,0 190,0 190,40 20,40", frame=0).edit(source, report_nothing)
    placed = as_one(PlacedPicture, made.overlays["background"])
    assert placed.box.u1 == pytest.approx(left.u1)
    assert placed.draw_overlay((90, 40), placed.box).rgba[:, -1, 3].any()


# --- the arithmetic --------------------------------------------------------------------------------------------------


def lay(rgba: np.ndarray, quad: np.ndarray, known: int = 100) -> np.ndarray:
    """What a frame of 100 x 64 pixels shows of a picture that is laid on a layer that does not move."""
    uv = array_coords.frame_xy(100, 64)
    slope = np.broadcast_to(np.eye(2, dtype=np.float32) * 2 / 100, (64, 100, 2, 2)).copy()
    box = Box(-1.0, -0.64, 1.0, 0.64)
    patch = lay_picture(ExtrapolatedMap(uv, slope), np.ones((64, 100), bool), (rgba.shape[1], rgba.shape[0]), quad, box)
    assert patch is not None
    u = np.linspace(patch.box.u0, patch.box.u1, patch.places.shape[1])
    patch.places[:, u > known * 2 / 100 - 1, 2] = 0
    return PlacedPicture(rgba, (patch,)).draw_overlay((100, 64), box).rgba


def ramp(width: int, height: int) -> np.ndarray:
    """A picture whose red and green say where it is."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([x, y, np.zeros_like(x), np.ones_like(x)], axis=-1).astype(np.float32)


@pytest.mark.parametrize("size", [(40, 30), (500, 700)])
def test_each_texel_shows_what_the_homography_has_there(size: tuple[int, int]) -> None:
    quad = np.array([[10.0, 12.0], [88.0, 5.0], [70.0, 58.0], [16.0, 50.0]])
    assert np.allclose(
        apply_transform(compute_homography(size, quad), np.array([[0.0, 0], [size[0], size[1]]])), quad[[0, 2]]
    )
    found, pixels = lay(ramp(*size), quad), array_coords.pixel_centers(100, 64).astype(np.float64)
    there = apply_transform(np.linalg.inv(compute_homography(size, quad)), pixels) / size
    inside = ((there > 0.05) & (there < 0.95)).all(axis=-1)
    assert np.abs(found[inside][:, :2] - there[inside]).max() < 4e-3 and (found[inside][:, 3] > 0.999).all()
    outside = ((there < -0.05) | (there > 1.05)).any(axis=-1)
    assert not found[outside].any()


def test_a_picture_that_is_shown_much_smaller_does_not_alias() -> None:
    stripes = np.ones((2000, 1500, 4), np.float32)
    stripes[:, ::3, :3] = 0  # a third is black; the sides of the quad are no multiple of that
    quad = np.array([[10.0, 10.0], [87.0, 13.0], [90.0, 51.0], [12.0, 55.0]])
    found = lay(stripes, quad)[16:48, 16:82, :3]
    assert np.abs(found - 2 / 3).max() < 0.04


def test_where_no_place_is_known_nothing_is_shown() -> None:
    quad = np.array([[5.0, 5.0], [35.0, 5.0], [35.0, 25.0], [5.0, 25.0]])
    found = lay(ramp(20, 20), quad, known=20)
    assert found[10:20, 8:18, 3].all() and not found[:, 22:].any()


# --- what a user gives -----------------------------------------------------------------------------------------------


def words(corners: Sequence[Any] | np.ndarray) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in corners)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"image": None, "box": "1,1,50,50"}, "one of --image and --text"),
        ({"text": "a", "box": "1,1,50,50"}, "one of --image and --text"),
        ({}, "one of --point, --box and --quad"),
        ({"point": "5,5", "box": "1,1,50,50"}, "one of --point, --box and --quad"),
        ({"color": "red", "point": "5,5"}, "--color goes with --text"),
        ({"font": Path("a.ttf"), "point": "5,5"}, "--font goes with --text"),
        ({"box": "1,1,50,50", "width": 4.0}, "--width goes with --point"),
        ({"box": "1,1,50,50", "angle": 4.0}, "--angle goes with --point"),
        ({"point": "5,5", "frame": 12}, "frame 12 is not part"),
        ({"point": "5"}, "is not a point"),
        ({"point": "nan,5"}, "is not a point"),
        ({"point": "5,5;1"}, "is not a point"),
        ({"point": "193,5"}, "outside the frame"),
        ({"point": "5,-1"}, "outside the frame"),
        ({"point": "5,5", "width": 0.0}, "no width"),
        ({"point": "5,5", "width": float("nan")}, "no width"),
        ({"point": "5,5", "width": float("inf")}, "no width"),
        ({"point": "5,5", "width": 1e300}, "too far beyond"),
        ({"point": "5,5", "width": 9e5}, "too far beyond"),
        ({"point": "5,5", "width": 3.0}, "too small"),
        ({"point": "5,5", "angle": float("inf")}, "no angle"),
        ({"box": "1,1,50"}, "no box"),
        ({"box": "1,1,-5,50"}, "no box"),
        ({"box": "1,1,nan,50"}, "no box"),
        ({"box": "inf,1,20,50"}, "no box"),
        ({"box": "1e300,1,1e308,50"}, "too far beyond"),
        ({"box": "200,10,50,50"}, "is outside the frame"),
        ({"quad": "1,1 20,1 20,20"}, "has 3 corners"),
        ({"quad": ""}, "has 0 corners"),
        ({"quad": "1,1 20,1 20,inf 1,20"}, "is not a point"),
        ({"quad": "1,1 20,1 20,1e300 1,20"}, "too far beyond"),
    ],
)
def test_a_user_is_told_what_is_wrong_with_a_placement(
    true_run: TrueRun, badge: Path, settings: dict, what: str
) -> None:
    with pytest.raises(UserError, match=what) as caught:
        edit(true_run.run, editor=Place(**{"image": badge, **settings}))
    assert caught.value.code == ExitCode.BAD_INPUT and not true_run.run.edits.exists()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"text": ""}, "--text is empty"),
        ({"text": " \n "}, "--text is empty"),
        ({"text": "\u00a0"}, "--text is empty"),
        ({"text": "a\x07"}, "no letter"),
        ({"text": "a" * 401}, "too long"),
        ({"text": "a\n" * 41}, "too long"),
        ({"text": "Grüße"}, "does not have all letters"),
        ({"text": "a", "color": "#12"}, "no color"),
        ({"text": "a", "color": "glittering"}, "no color"),
        ({"text": "a", "color": ""}, "no color"),
        ({"text": "a", "color": "#ffffff00"}, "can be seen"),
        ({"text": "a", "font": Path("gone.ttf")}, "no font"),
    ],
)
def test_a_user_is_told_what_is_wrong_with_a_text(true_run: TrueRun, settings: dict, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        edit(true_run.run, editor=Place(**settings, point="63,52"))
    assert caught.value.code == ExitCode.BAD_INPUT and not true_run.run.edits.exists()


@pytest.mark.parametrize(
    ("corners", "what"),
    [
        ([(1, 1), (1, 20), (20, 20), (20, 1)], "counter-clockwise"),
        ([(1, 1), (20, 20), (20, 1), (1, 20)], "no picture has the corners"),  # crossed
        ([(1, 1), (20, 1), (4, 4), (1, 20)], "no picture has the corners"),  # dented
        ([(1, 1), (10, 10), (20, 20), (30, 30)], "no picture has the corners"),  # on a line
        ([(1, 1), (1, 1), (20, 20), (1, 20)], "no picture has the corners"),  # one twice
        ([(5, 5), (5, 5), (5, 5), (5, 5)], "no picture has the corners"),
        ([(1, 1), (50, 1), (50, 4), (1, 4)], "too small"),
        ([(1, 1), (900, 1), (900, 20), (1, 20)], "too far beyond"),
    ],
)
def test_corners_that_no_picture_can_have_are_refused(corners: list, what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        check_corners(np.array(corners, float), (192, 108))
    if what == "counter-clockwise":
        assert "1,1 20,1 20,20 1,20" in caught.value.fix


def test_a_layer_that_is_not_seen_there_is_refused_with_the_one_that_is(true_run: TrueRun) -> None:
    with pytest.raises(UserError, match="the layer foreground is not seen there") as caught:
        edit(true_run.run, editor=Place(text="a", box="150,10,30,30"), layers=["foreground"])
    assert "100% of the placement falls on layer background" in caught.value.why
    assert "--layer background" in caught.value.fix


def test_pictures_that_show_nothing_or_are_too_large_or_damaged_are_refused(true_run: TrueRun, tmp_path: Path) -> None:
    def refused(path: Path, what: str, code: ExitCode = ExitCode.BAD_INPUT) -> None:
        with pytest.raises(UserError, match=what) as caught:
            edit(true_run.run, editor=Place(image=path, box="10,10,50,50"))
        assert caught.value.code == code

    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    refused(tmp_path / "clear.png", "transparent everywhere")
    Image.new("L", (16_001, 1)).save(tmp_path / "long.png")
    refused(tmp_path / "long.png", "too long")
    Image.new("1", (6000, 5000)).save(tmp_path / "large.png")
    refused(tmp_path / "large.png", "over the limit", ExitCode.UNSAFE_FILE)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    refused(tmp_path / "broken.png", "broken.png")
    refused(tmp_path / "gone.png", "no file")
    assert not true_run.run.edits.exists()


def test_fonts_that_are_none_or_too_large_are_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.ttf").write_bytes(b"\x00\x01\x00\x00" + bytes(range(256)) * 4)
    with pytest.raises(UserError, match=r"damaged\.ttf cannot draw the text"):
        draw_text("a", tmp_path / "damaged.ttf", "white")
    (tmp_path / "font.txt").write_text("no")
    with pytest.raises(UserError, match="is no font"):
        draw_text("a", tmp_path / "font.txt", "white")
    (tmp_path / "empty.otf").touch()
    with pytest.raises(UserError, match="was not opened"):
        draw_text("a", tmp_path / "empty.otf", "white")
    with pytest.raises(UserError, match="was not opened"):
        draw_text("a", tmp_path / "damaged.ttf", "white", dataclasses.replace(text.DEFAULTS, max_font_bytes=100))


def test_a_text_is_cropped_to_its_ink_and_has_its_color() -> None:
    one, two = draw_text("HI", None, "#ff8000"), draw_text("HI\\nHI", None, "#ff800080")
    for picture, alpha in ((one, 1.0), (two, 128 / 255)):
        ink = picture[..., 3]
        assert all(edge.any() for edge in (ink[0], ink[-1], ink[:, 0], ink[:, -1]))
        assert ink.max() == pytest.approx(alpha) and picture[0, 0, :3] == pytest.approx([1, 128 / 255, 0])
    assert one.shape[1] / one.shape[0] > 1.8 * two.shape[1] / two.shape[0]


def test_a_letter_of_a_font_from_a_file_is_drawn(tmp_path: Path) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(20)
    if not isinstance(font, ImageFont.FreeTypeFont):
        pytest.skip("this Pillow has no FreeType")
    (tmp_path / "own.ttf").write_bytes(font.font_bytes)
    assert np.array_equal(draw_text("Ab", tmp_path / "own.ttf", "white"), draw_text("Ab", None, "white"))


def test_the_command_places_a_text(run: Run, capsys: pytest.CaptureFixture) -> None:
    line = ["edit", str(run.path), "--editor", "place", "--text", "Hi", "--point", "63,52", "--width", "30"]
    assert main([*line, "--frame", "3", "--angle", "-10", "--opacity", "0.8"]) == 0
    assert "of the placement falls on layer foreground in frame 3" in capsys.readouterr().err
    assert main([*line, "--quad", "1,1"]) == 3
