"""Only what a user painted becomes the edit, whatever the image tool did to the rest of the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from editors.inputs.canonical_picture import find_base_version, overlay_from_canonical
from neural_fields.atlas import canonical as canonicals
from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.imaging.image_io import encode_png, read_picture
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.runs.run import Run

WIDTH, HEIGHT = 128, 96
BOX = Box(-1.0, -0.75, 1.0, 0.75)
Y, X = np.mgrid[:HEIGHT, :WIDTH]


def texture() -> np.ndarray:
    """A textured picture with edges and grain, 8 bit."""
    random = np.random.default_rng(3)
    grain = cv2.GaussianBlur(random.normal(0, 60, (HEIGHT, WIDTH, 3)), (0, 0), 1.5)
    waves = np.stack([110 + 60 * np.sin(X / 9), 120 + 50 * np.cos(Y / 7 + X / 20), 100 + 40 * np.sin((X + Y) / 5)], -1)
    return np.clip(waves + grain, 0, 255).astype(np.uint8)


def coverage(soft: bool) -> np.ndarray:
    disc = ((X - 64) / 55) ** 2 + ((Y - 48) / 42) ** 2 < 1
    alpha = cv2.GaussianBlur(disc.astype(np.float32), (0, 0), 1) if soft else np.ones(disc.shape, np.float32)
    return np.rint(alpha * 255).astype(np.uint8)


PIXELS = {soft: np.dstack([texture(), coverage(soft)]) for soft in (False, True)}
BASES = {soft: CanonicalImage(pixels / np.float32(255), BOX, "foreground") for soft, pixels in PIXELS.items()}
RECTANGLE = np.s_[36:60, 44:84]
RED = (235, 30, 25, 255)


def painted(soft: bool, where: tuple = RECTANGLE, color: tuple = RED) -> np.ndarray:
    pixels = PIXELS[soft].copy()
    pixels[where] = color
    return pixels


def mask(where: tuple = RECTANGLE, grow: int = 0) -> np.ndarray:
    inside = np.zeros((HEIGHT, WIDTH), np.uint8)
    inside[where] = 1
    around = np.ones((2 * abs(grow) + 1,) * 2, np.uint8)
    return (cv2.dilate(inside, around) if grow >= 0 else cv2.erode(inside, around)) > 0


def on(pixels: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    ground = Image.new("RGBA", (WIDTH, HEIGHT), (*color, 255))
    return Image.alpha_composite(ground, Image.fromarray(pixels)).convert("RGB")


def save(path: Path, pixels: np.ndarray, way: str) -> None:
    """The picture as a tool of one kind or another writes it."""
    image = Image.fromarray(pixels)
    if way == "16 bit":
        path.write_bytes(encode_png(pixels / np.float32(255), 16))
    elif way in ("white", "black", "pink"):
        on(pixels, {"white": (255,) * 3, "black": (0,) * 3, "pink": (230, 120, 180)}[way]).save(path, lossless=True)
    elif way == "dropped":
        image.convert("RGB").save(path, lossless=True)
    elif way == "hidden lost":
        clean = pixels.copy()
        clean[clean[..., 3] == 0] = 0
        Image.fromarray(clean).save(path, lossless=True)
    else:
        image.save(path, lossless=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    soft=st.booleans(),
    file=st.sampled_from(["a.png", "a.tiff", "a.webp"]),
    way=st.sampled_from(["plain", "16 bit", "white", "black", "pink", "dropped", "hidden lost"]),
    top=st.integers(24, 50),
    left=st.integers(34, 70),
    size=st.tuples(st.integers(1, 20), st.integers(1, 24)),
)
def test_a_painted_rectangle_and_nothing_else_becomes_the_edit(
    tmp_path: Path, soft: bool, file: str, way: str, top: int, left: int, size: tuple[int, int]
) -> None:
    where = np.s_[top : top + size[0], left : left + size[1]]
    save(tmp_path / (file if way != "16 bit" else "a.png"), painted(soft, where), way)
    overlay = overlay_from_canonical(read_picture(tmp_path / (file if way != "16 bit" else "a.png")), BASES[soft])
    alpha, inside = overlay.rgba[..., 3], mask(where)
    assert overlay.box == BOX and overlay.size == (WIDTH, HEIGHT)
    assert alpha[inside].min() == 1 and alpha[~inside].max() == 0
    np.testing.assert_allclose(overlay.rgba[inside], np.broadcast_to(np.array(RED) / 255, (inside.sum(), 4)), atol=1e-3)


@pytest.mark.parametrize("ground", [None, (255, 255, 255)], ids=["alpha dropped", "on white"])
@pytest.mark.parametrize("soft", [False, True], ids=["full", "soft"])
@pytest.mark.parametrize(("quality", "subsampling"), [(95, 0), (85, 2), (60, 2)])
def test_jpeg_noise_is_not_an_edit(
    tmp_path: Path, quality: int, subsampling: int, soft: bool, ground: tuple[int, int, int] | None
) -> None:
    pixels = painted(soft)
    image = Image.fromarray(pixels).convert("RGB") if ground is None else on(pixels, ground)
    image.save(tmp_path / "p.jpg", quality=quality, subsampling=subsampling)
    alpha = overlay_from_canonical(read_picture(tmp_path / "p.jpg"), BASES[soft]).rgba[..., 3]
    assert alpha[mask(grow=-1)].min() == 1
    # Chroma subsampling itself moves paint by up to two texels; noise further away is left out.
    assert (alpha[~mask(grow=3)] > 0).sum() == 0


@pytest.mark.parametrize("way", ["jpg", "webp", "png of a jpg", "larger", "smaller", "png"])
def test_a_picture_that_was_only_saved_again_is_no_edit(tmp_path: Path, way: str) -> None:
    image = Image.fromarray(PIXELS[False])
    path = tmp_path / ("p.png" if way.startswith("png") or way.endswith("er") else f"p.{way}")
    if way in ("larger", "smaller"):
        factor = 2 if way == "larger" else 0.5
        image = image.resize((int(WIDTH * factor), int(HEIGHT * factor)), Image.Resampling.LANCZOS)
    if way == "png of a jpg":
        image.convert("RGB").save(tmp_path / "p.jpg", quality=85)
        image = Image.open(tmp_path / "p.jpg")
    image = image.convert("RGB") if way == "jpg" else image
    options: dict[str, Any] = {"quality": 80} if way in ("jpg", "webp") else {}
    image.save(path, **options)
    with pytest.raises(UserError, match="no change found") as caught:
        overlay_from_canonical(read_picture(path), BASES[False])
    assert caught.value.code == ExitCode.BAD_INPUT


@pytest.mark.parametrize("factor", [0.5, 1.5, 2, 4])
def test_another_size_of_the_same_aspect_is_resampled_with_a_note(tmp_path: Path, factor: float) -> None:
    size = (int(WIDTH * factor), int(HEIGHT * factor))
    Image.fromarray(painted(False)).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "p.png")
    overlay = overlay_from_canonical(read_picture(tmp_path / "p.png"), BASES[False])
    assert overlay.size == (max(size[0], WIDTH), max(size[1], HEIGHT))
    alpha = canonicals.resample_overlay(overlay, (WIDTH, HEIGHT), BOX)[..., 3]
    assert alpha[mask(grow=-2)].min() > 0.99 and alpha[~mask(grow=4)].max() < 0.01
    assert any("instead of" in note for note in overlay.notes)


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT - 8), (HEIGHT, WIDTH), (WIDTH * 5, HEIGHT * 5)])
def test_another_aspect_or_too_much_scale_is_refused_with_both_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "p.png")
    with pytest.raises(UserError) as caught:
        overlay_from_canonical(read_picture(tmp_path / "p.png"), BASES[False])
    text = str(caught.value)
    assert caught.value.code == ExitCode.BAD_INPUT
    assert f"{WIDTH}x{HEIGHT}" in text and f"{size[0]}x{size[1]}" in text
    assert ("turned by 90 degrees" in text) == (size == (HEIGHT, WIDTH))


def test_erasing_changes_nothing_and_is_said(tmp_path: Path) -> None:
    pixels = painted(True)
    pixels[30:60, 90:110] = 0
    Image.fromarray(pixels).save(tmp_path / "p.png")
    overlay = overlay_from_canonical(read_picture(tmp_path / "p.png"), BASES[True])
    assert overlay.rgba[30:60, 90:110, 3].max() == 0 and overlay.rgba[40, 60, 3] == 1
    assert any("erased" in note for note in overlay.notes)


def test_a_soft_brush_and_paint_beyond_the_coverage_keep_their_alpha(tmp_path: Path) -> None:
    pixels = PIXELS[True].copy()
    pixels[0:6, 0:20] = (10, 200, 30, 128)  # nothing is seen there
    Image.fromarray(pixels).save(tmp_path / "p.png")
    overlay = overlay_from_canonical(read_picture(tmp_path / "p.png"), BASES[True])
    np.testing.assert_allclose(overlay.rgba[2, 8], np.array([10, 200, 30, 128]) / 255, atol=0.01)
    assert overlay.rgba[20:, :, 3].max() == 0


def test_paint_beyond_the_coverage_of_a_flattened_picture_is_told_from_the_background(tmp_path: Path) -> None:
    image = on(PIXELS[True], (255, 255, 255))
    image.paste((10, 120, 30), (2, 2, 14, 10))
    image.save(tmp_path / "p.png")
    alpha = overlay_from_canonical(read_picture(tmp_path / "p.png"), BASES[True]).rgba[..., 3]
    assert alpha[2:10, 2:14].min() == 1 and alpha.sum() == 8 * 12


def test_a_grade_of_the_whole_picture_in_a_jpeg_is_an_edit_everywhere(tmp_path: Path) -> None:
    graded = np.clip(texture() * np.array([1.3, 1.1, 0.7]), 0, 255).astype(np.uint8)
    Image.fromarray(graded).save(tmp_path / "p.jpg", quality=90)
    overlay = overlay_from_canonical(read_picture(tmp_path / "p.jpg"), BASES[False])
    assert (overlay.rgba[..., 3] > 0.99).mean() > 0.98
    assert any("nearly every texel" in note for note in overlay.notes)


def test_a_canonical_image_is_saved_loaded_and_sampled(tmp_path: Path) -> None:
    exported = canonicals.export_canonical(tmp_path, BASES[True], np.full((HEIGHT, WIDTH), 3))
    assert exported.path == tmp_path / "foreground.png"
    back = canonicals.read_pristine(tmp_path, "foreground")
    assert (back.box, back.layer) == (BOX, "foreground")
    np.testing.assert_allclose(back.rgba, BASES[True].rgba, atol=1e-6, rtol=0)
    center = back.sample_rgba(np.array([[[-1 + 2 * 64.5 / WIDTH, -0.75 + 1.5 * 48.5 / HEIGHT]]]))
    np.testing.assert_allclose(center[0, 0], back.rgba[48, 64], atol=1e-4, rtol=0)
    (pristine,) = (tmp_path / "pristine").iterdir()
    pristine.write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        canonicals.read_pristine(tmp_path, "foreground")
    assert caught.value.code == ExitCode.DAMAGED_RUN


def test_an_overlay_painted_over_its_canonical_gives_the_painted_picture(tmp_path: Path) -> None:
    Image.fromarray(painted(True)).save(tmp_path / "p.png")
    overlay = overlay_from_canonical(read_picture(tmp_path / "p.png"), BASES[True])
    np.testing.assert_allclose(BASES[True].composite_overlay(overlay).rgba * 255, painted(True), atol=0.01)


def test_export_never_writes_over_a_painted_picture_and_keeps_every_base(tmp_path: Path) -> None:
    folder = tmp_path / "canonical"
    first, second = BASES[True], CanonicalImage(np.ascontiguousarray(BASES[True].rgba[:, ::-1]), BOX, "foreground")
    assert canonicals.export_canonical(folder, first).path == folder / "foreground.png"
    assert canonicals.export_canonical(folder, first).path == folder / "foreground.png"
    Image.fromarray(painted(True)).save(folder / "foreground.png")
    mine = (folder / "foreground.png").read_bytes()
    again = canonicals.export_canonical(folder, second)
    assert again.path == folder / "foreground.new.png" and "stays" in again.notes[0]
    assert (folder / "foreground.png").read_bytes() == mine
    np.testing.assert_allclose(canonicals.read_pristine(folder, "foreground").rgba, second.rgba, atol=1e-6, rtol=0)
    picture = read_picture(folder / "foreground.png")
    run = PlanarRun(Run(tmp_path), {})
    run.maps = Maps(tmp_path, ("foreground",), (BOX,), (8, 8), 1, False)
    base = find_base_version(run, "foreground", picture)
    np.testing.assert_allclose(base.rgba, first.rgba, atol=1e-6, rtol=0)
    alpha = overlay_from_canonical(picture, base).rgba[..., 3]
    assert alpha[mask()].min() == 1 and alpha[~mask()].max() == 0


def test_missing_and_damaged_facts_are_named(tmp_path: Path) -> None:
    canonicals.export_canonical(tmp_path, BASES[True])
    with pytest.raises(UserError) as caught:
        canonicals.read_pristine(tmp_path, "sky")
    assert caught.value.code == ExitCode.DAMAGED_RUN and "sky.json" in caught.value.what
    (tmp_path / "foreground.json").write_text('{"version": 1}')
    with pytest.raises(UserError) as caught:
        canonicals.read_pristine(tmp_path, "foreground")
    assert caught.value.code == ExitCode.DAMAGED_RUN and "foreground.json" in caught.value.what


def test_fit_keeps_an_overlay_of_the_same_size_as_it_is() -> None:
    overlay = Overlay(np.random.default_rng(0).random((4, 5, 4), dtype=np.float32), BOX)
    assert canonicals.resample_overlay(overlay, (5, 4), BOX) is overlay.rgba
