"""What is paint: a painted picture is compared with what it must be a copy of. Rows F32 to F42 and U5, U6 and U28."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFilter

from editors.api import edit
from editors.cli.main import main
from editors.inputs.canonical_picture import overlay_from_canonical
from editors.inputs.frame_lifting import place_frame, squeeze_pixels
from editors.inputs.frame_recognition import check_frame_number, recognize_frame
from editors.inputs.painted_frames import lift_frames
from neural_fields.core.errors import UserError
from neural_fields.imaging.image_io import make_picture, read_picture
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.overlay_pass import OverlayPass
from tests.support.matrix_profiles import LINEAR_CURVE, make_profile
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow
Frame = UInt8[np.ndarray, "height width 3"]
FRAME = 6
MAGENTA = (225, 20, 205)


@pytest.fixture(scope="module")
def run(true_run: TrueRun) -> PlanarRun:
    return require_planar(true_run.run, "this test")


@pytest.fixture(scope="module")
def patch(run: PlanarRun) -> Bool[np.ndarray, "height width"]:
    """A rectangle inside the object in the frame that is painted."""
    weight = run.maps.read_weights(FRAME, run.source_size)[0]
    inside = cv2.distanceTransform((weight > 0.95).astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    mask = np.zeros(inside.shape, bool)
    mask[y - 5 : y + 5, x - 7 : x + 7] = True
    return mask


def decode_otherwise(frame: Frame) -> Frame:
    """The frame as a program shows it that repeats texels of color and rounds down, as ffmpeg does."""
    height, width = frame.shape[:2]
    color = cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb)
    color[..., 1:] = cv2.resize(
        cv2.resize(color[..., 1:], (width // 2, height // 2), interpolation=cv2.INTER_AREA),
        (width, height),
        interpolation=cv2.INTER_NEAREST,
    )
    return np.maximum(cv2.cvtColor(color, cv2.COLOR_YCrCb2RGB), 2) - np.uint8(2)


def convert_range(frame: Frame, factor: float, offset: float) -> Frame:
    return np.rint(np.clip(frame * factor + offset, 0, 255)).astype(np.uint8)


def swap_matrix(frame: Frame) -> Frame:
    """The frame encoded with the matrix of BT.709 and decoded with that of BT.601."""
    made = []
    for red, blue in ((0.2126, 0.0722), (0.299, 0.114)):
        green, cb, cr = 1 - red - blue, 2 - 2 * blue, 2 - 2 * red
        made.append([[red, green, blue], [-red / cb, -green / cb, 0.5], [0.5, -green / cr, -blue / cr]])
    both = np.linalg.inv(made[1]) @ np.array(made[0])
    return np.rint(np.clip(frame @ both.T, 0, 255)).astype(np.uint8)


def enlarge(frame: Frame, how: Image.Resampling) -> Frame:
    return np.asarray(Image.fromarray(frame).resize((2 * frame.shape[1], 2 * frame.shape[0]), how))


WAYS: dict[str, Callable[[Frame], Frame]] = {
    "other decoder": lambda frame: frame,
    "2x bicubic": lambda frame: enlarge(frame, Image.Resampling.BICUBIC),
    "matrix": swap_matrix,
    "limited range": lambda frame: convert_range(frame, 219 / 255, 16),
    "full range": lambda frame: convert_range(frame, 255 / 219, -16 * 255 / 219),
    "gamma": lambda frame: np.rint(255 * (frame / 255) ** (2.2 / 1.8)).astype(np.uint8),
    "palette": lambda frame: np.asarray(Image.fromarray(frame).quantize(256).convert("RGB")),
    "sharpened": lambda frame: np.asarray(Image.fromarray(frame).filter(ImageFilter.UnsharpMask(1.5, 80, 0))),
}


def check_patch(run: PlanarRun, patch: Bool[np.ndarray, "height width"], path: Path, way: str) -> None:
    """Checks that a frame without paint is no edit, and that of one with paint on the object the paint is carried."""
    frame = run.read_frame(run.frames[FRAME])
    for is_painted in (False, True):
        shown = decode_otherwise(frame)
        if is_painted:
            shown[patch] = MAGENTA
        Image.fromarray(WAYS.get(way, np.copy)(shown)).save(path, quality=90)
        picture = read_picture(path)
        if not is_painted:
            with pytest.raises(UserError, match="no change found"):
                lift_frames(run, {run.frames[FRAME]: picture})
            continue
        overlays = lift_frames(run, {run.frames[FRAME]: picture})
        made = OverlayPass(run.maps, run.canonicals, overlays).render_frame(FRAME, frame)
        changed = np.abs(made.astype(int) - frame).max(axis=-1) > 8
        around = cv2.dilate(patch.astype(np.uint8), np.ones((13, 13), np.uint8)) > 0
        assert list(overlays) == [run.layers[0]]
        assert changed[patch].mean() > 0.95 and not changed[~around].any()


@pytest.mark.parametrize("way", WAYS)
def test_u05_a_frame_of_another_program_carries_its_patch_and_nothing_else(
    way: str, run: PlanarRun, patch: np.ndarray, tmp_path: Path
) -> None:
    check_patch(run, patch, tmp_path / "p.png", way)


def test_f34a_the_layer_under_the_paint_takes_it_and_not_the_one_under_most_noise(
    run: PlanarRun, patch: np.ndarray, tmp_path: Path
) -> None:
    check_patch(run, patch, tmp_path / "p.jpg", "other decoder")


def save_with_chunk(path: Path, rgb: Frame, kind: bytes, content: bytes) -> None:
    """Saves a PNG file with one more chunk after its header."""
    Image.fromarray(rgb).save(path)
    data, chunk = path.read_bytes(), kind + content
    length, check = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(data[:33] + length + chunk + check + data[33:])


@pytest.mark.parametrize("way", ["profile named sRGB", "gAMA"])
def test_f32a_a_picture_in_linear_light_is_converted_by_its_curves(way: str, run: PlanarRun, tmp_path: Path) -> None:
    canonical = run.canonical(run.layers[1])
    base = canonical.rgba
    for is_painted in (False, True):
        rgb = base[..., :3].copy()
        if is_painted:
            rgb[20:32, 30:48] = (40 / 255, 90 / 255, 220 / 255)
        light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        values = np.concatenate([np.rint(255 * light), np.rint(255 * base[..., 3:])], axis=-1).astype(np.uint8)
        content = b"x\0\0" + zlib.compress(make_profile("sRGB-elle-V2-g10", LINEAR_CURVE))
        kind, content = (b"gAMA", struct.pack(">I", 100000)) if way == "gAMA" else (b"iCCP", content)
        save_with_chunk(tmp_path / "p.png", values, kind, content)
        if not is_painted:
            with pytest.raises(UserError, match="no change found"):
                overlay_from_canonical(read_picture(tmp_path / "p.png"), canonical)
            continue
        rgba = overlay_from_canonical(read_picture(tmp_path / "p.png"), canonical).rgba
        np.testing.assert_allclose(255 * rgba[26, 40, :3], (40, 90, 220), atol=4)
        assert (rgba[20:32, 30:48, 3] == 1).all()
        rgba[16:36, 26:52, 3] = 0
        assert rgba[..., 3].max() == 0


@pytest.mark.parametrize("scaled", [False, True], ids=["as it is", "its shape by chance"])
def test_f33a_a_trimmed_canvas_is_refused_with_the_part_that_it_shows(run: PlanarRun, scaled: bool) -> None:
    canonical = run.canonical(run.layers[1])
    base = canonical.rgba
    height, width = base.shape[:2]
    base[20:32, 30:48] = (0.9, 0.1, 0.8, 1)
    left = 8
    top = round(left * height / width) if scaled else 3
    trimmed = np.ascontiguousarray(base[top : height - top, left : width - left])
    with pytest.raises(UserError, match="cropped") as caught:
        overlay_from_canonical(make_picture(trimmed), canonical)
    assert f"columns {left} to {width - left}" in str(caught.value)
    assert f"must stay {width}x{height}" in str(caught.value)
    with pytest.raises(UserError, match="larger or shifted canvas"):
        overlay_from_canonical(make_picture(np.pad(base, ((9, 9), (12, 12), (0, 0)))), canonical)


def test_f35_u06_the_picture_of_another_frame_is_refused_with_its_number(run: PlanarRun, patch: np.ndarray) -> None:
    first = run.frames[0]
    for number in (first + 5, first + 7, first + 10):
        painted = run.read_frame(number).copy()
        painted[patch] = MAGENTA
        with pytest.raises(UserError, match=f"looks like frame {number}, not like frame {first + FRAME}") as caught:
            check_frame_number(run, make_picture(painted), first + FRAME)
        assert f"--frame {number}" in str(caught.value)
        check_frame_number(run, make_picture(painted), number)
        assert recognize_frame(run, make_picture(decode_otherwise(painted))) == number


@pytest.mark.parametrize("cell", [8, 32])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_f37_a_checkered_ground_is_no_paint(run: PlanarRun, cell: int, kind: str, tmp_path: Path) -> None:
    canonical = run.canonical(run.layers[0])
    base = canonical.rgba.copy()
    base[..., 3] = cv2.GaussianBlur(base[..., 3], (0, 0), 2)  # soft edges, which show the ground
    canonical = replace(canonical, rgba=base)
    y, x = np.indices(base.shape[:2])
    ground = np.where((y // cell + x // cell) % 2, 1.0, 0.8)[..., None]
    middle = tuple(length // 2 for length in base.shape[:2])
    where = np.s_[middle[0] - 6 : middle[0] + 6, middle[1] - 8 : middle[1] + 8]
    for is_painted in (False, True):
        shown = base[..., :3] * base[..., 3:] + ground * (1 - base[..., 3:])
        if is_painted:
            shown[where] = np.array(MAGENTA) / 255
        Image.fromarray(np.rint(255 * shown).astype(np.uint8)).save(tmp_path / f"p.{kind}", quality=90)
        if not is_painted:
            with pytest.raises(UserError, match="no change found"):
                overlay_from_canonical(read_picture(tmp_path / f"p.{kind}"), canonical)
            continue
        alpha = overlay_from_canonical(read_picture(tmp_path / f"p.{kind}"), canonical).rgba[..., 3].copy()
        assert alpha[where].mean() > 0.95
        alpha[middle[0] - 10 : middle[0] + 10, middle[1] - 12 : middle[1] + 12] = 0
        assert alpha.max() == 0


def test_f42_a_frame_at_the_size_of_the_display_is_taken_and_said(run: PlanarRun) -> None:
    frame = run.read_frame(run.frames[FRAME])
    height, width = frame.shape[:2]
    shown = make_picture(cv2.resize(frame, (round(width * 10 / 7), height)))
    taken = squeeze_pixels(shown, (width, height), Fraction(10, 7))
    assert taken.size == (width, height) and "10:7" in taken.notes[-1]
    assert np.abs(taken.rgba[..., :3] - frame / 255).mean() < 0.02
    assert squeeze_pixels(shown, (width, height), Fraction(1)) is shown


def test_u05_the_frame_that_the_program_writes_needs_no_number(
    run: PlanarRun,
    patch: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    number = run.frames[FRAME]
    assert main(["frame", str(run.path), str(number)]) == 0
    path = Path(f"frame-{number:05d}.png")
    assert capsys.readouterr().out.strip() == str(path)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), run.read_frame(number))
    assert main(["frame", str(run.path), str(number)]) == 3  # it may have paint on it
    picture = read_picture(path)
    assert recognize_frame(run, replace(picture, rgba=np.zeros_like(picture.rgba))) == number
    with pytest.raises(UserError, match="no change found"):
        edit(run, path)
    with pytest.raises(UserError, match=f"looks like frame {number}"):
        edit(run, path, frame=number + 1)


def test_u28_white_paint_on_a_dark_frame_stays_white(run: PlanarRun, patch: np.ndarray) -> None:
    frame = run.read_frame(run.frames[FRAME])
    painted = frame.copy()
    painted[patch] = 255
    ((name, placed),) = place_frame(make_picture(painted), frame, run, run.frames[FRAME], run.layers[0]).items()
    shown = OverlayPass(run.maps, run.canonicals, {name: placed}, frames=run.frames).render_frame(FRAME, frame)
    seen = run.maps.read_layer_weight(FRAME, 0, run.source_size) >= 0.25
    assert (shown[patch & seen] == 255).all()
    assert not any("out of range" in note for note in placed.notes)
