"""Foreign pictures arrive whole, upright and at full depth, or are refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.image_io import encode_png, read_picture

RANDOM = np.random.default_rng(7)
RGBA8 = RANDOM.integers(0, 256, (9, 7, 4), dtype=np.uint8)
RGBA16 = RANDOM.integers(0, 65536, (9, 7, 4), dtype=np.uint16)
SMOOTH = np.stack([*np.meshgrid(np.linspace(20, 230, 48), np.linspace(40, 200, 32)), np.full((32, 48), 90.0)], -1)


def png(width: int, height: int, depth: int, kind: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
        + extra
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def tiff16(pixels: np.ndarray, orientation: int = 1, extra: int | None = None) -> bytes:
    height, width, channels = pixels.shape
    tags = {256: width, 257: height, 258: 0, 259: 1, 262: 2, 273: 0, 274: orientation, 277: channels, 278: height}
    tags |= {279: pixels.nbytes} | ({} if extra is None else {338: extra})
    bits_at = 8 + 2 + 12 * len(tags) + 4
    tags |= {258: bits_at, 273: bits_at + 2 * channels}
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, channels if tag == 258 else 1, value)
        for tag, value in tags.items()
    )
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return head + struct.pack(f"<{channels}H", *[16] * channels) + pixels.astype("<u2").tobytes()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("a.tiff", {}), ("a.webp", {"lossless": True, "exact": True})]
)
def test_lossless_files_are_read_exactly(tmp_path: Path, name: str, options: dict, channels: int) -> None:
    Image.fromarray(RGBA8[..., :channels]).save(tmp_path / name, **options)
    picture = read_picture(tmp_path / name)
    np.testing.assert_allclose(picture.rgba[..., :channels] * 255, RGBA8[..., :channels], atol=1e-4)
    assert (picture.had_alpha, picture.lossy, picture.bits) == (channels == 4, False, 8)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_kept(tmp_path: Path, suffix: str, channels: int) -> None:
    order = [2, 1, 0, 3][:channels]
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), RGBA16[..., order])
    picture = read_picture(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(np.rint(picture.rgba[..., :channels] * 65535), RGBA16[..., :channels])
    assert picture.bits == 16


def test_sixteen_bit_gray_and_gray_alpha_are_kept(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "gray.png"), RGBA16[..., 0])
    rows = [row.astype(">u2").tobytes() for row in RGBA16[..., :2]]
    (tmp_path / "alpha.png").write_bytes(png(7, 9, 16, 4, rows))
    np.testing.assert_array_equal(np.rint(read_picture(tmp_path / "gray.png").rgba[..., 2] * 65535), RGBA16[..., 0])
    both = read_picture(tmp_path / "alpha.png").rgba
    np.testing.assert_array_equal(np.rint(both[..., [0, 3]] * 65535), RGBA16[..., :2])


def test_associated_alpha_of_a_16_bit_tiff_becomes_straight(tmp_path: Path) -> None:
    pixels = RGBA16.copy()
    pixels[..., 3] = np.maximum(pixels[..., 3], 30000)
    stored = pixels.astype(np.float64)
    stored[..., :3] *= stored[..., 3:] / 65535
    (tmp_path / "a.tiff").write_bytes(tiff16(np.rint(stored).astype(np.uint16), extra=1))
    np.testing.assert_allclose(read_picture(tmp_path / "a.tiff").rgba * 65535, pixels, atol=2)


def test_gray_palette_and_one_bit_become_rgb_with_a_note(tmp_path: Path) -> None:
    gray = Image.fromarray(RGBA8[..., 0])
    cases = {"l": gray, "1": gray.point(lambda value: 255 * (value > 127)).convert("1"), "p": gray.convert("P")}
    for name, image in cases.items():
        image.save(tmp_path / f"{name}.png")
        picture = read_picture(tmp_path / f"{name}.png")
        np.testing.assert_allclose(picture.rgba[..., :3] * 255, np.asarray(image.convert("RGB")), atol=1e-4)
        assert "used as RGB" in picture.notes[0] and not picture.had_alpha


def test_palette_transparency_becomes_alpha(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "L").convert("P")
    image.save(tmp_path / "p.png", transparency=0)
    picture = read_picture(tmp_path / "p.png")
    np.testing.assert_array_equal(picture.rgba[..., 3], [[0, 1], [1, 0]])
    assert picture.had_alpha


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp", "deep.tiff", "deep.png"])
def test_exif_orientation_is_applied_once(tmp_path: Path, name: str, orientation: int) -> None:
    path = tmp_path / name
    small = RGBA16[..., :3]
    if name == "deep.tiff":
        path.write_bytes(tiff16(small, orientation))
    elif name == "deep.png":
        tags = chunk(b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
        path.write_bytes(png(7, 9, 16, 2, [row.astype(">u2").tobytes() for row in small], tags))
    else:
        Image.fromarray((small >> 8).astype(np.uint8)).save(path, exif=exif(orientation), lossless=True)
    stored = Image.fromarray((small >> 8).astype(np.uint8))
    stored.info["exif"] = exif(orientation).tobytes()
    upright = np.asarray(ImageOps.exif_transpose(stored))
    rgb = read_picture(path).rgba[..., :3]
    assert rgb.shape == upright.shape
    assert np.abs(rgb * 255 - upright).max() <= 1.01


def test_jpeg_reports_its_tables_and_adobe_cmyk_is_not_inverted(tmp_path: Path) -> None:
    Image.fromarray(SMOOTH.astype(np.uint8)).save(tmp_path / "a.jpg", quality=80, subsampling=2)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    picture, cmyk = read_picture(tmp_path / "a.jpg"), read_picture(tmp_path / "cmyk.jpg")
    assert picture.lossy and picture.subsampling == 2 and len(picture.quantization or {}) == 2
    assert np.abs(picture.rgba[..., :3] * 255 - SMOOTH).max() < 12
    assert cmyk.rgba[8, 8, 0] > 0.9 and cmyk.rgba[8, 8, 1:3].max() < 0.2 and cmyk.quantization is None


def test_color_profile_is_applied_and_a_broken_one_ignored_with_a_note(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    table = slice(128, 128 + 4 + 12 * struct.unpack(">I", profile[128:132])[0])
    names = profile[table].replace(b"rXYZ", b"?XYZ").replace(b"gXYZ", b"rXYZ").replace(b"?XYZ", b"gXYZ")
    swapped = profile[: table.start] + names + profile[table.stop :]
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB b", b"swap b")
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for name, icc in {"own.png": profile, "swapped.png": swapped, "broken.png": b"not a profile" * 20}.items():
        red.save(tmp_path / name, icc_profile=icc)
    np.testing.assert_array_equal(read_picture(tmp_path / "own.png").rgba[0, 0], [1, 0, 0, 1])
    green = read_picture(tmp_path / "swapped.png")
    np.testing.assert_allclose(green.rgba[0, 0], [0, 1, 0, 1], atol=0.02)
    assert "color profile" in green.notes[0]
    broken = read_picture(tmp_path / "broken.png")
    np.testing.assert_array_equal(broken.rgba[0, 0], [1, 0, 0, 1])
    assert "ignored" in broken.notes[0]


def test_the_first_of_several_pictures_is_used_with_a_note(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (5, 4), (9, 8, 7)), Image.new("RGB", (5, 4), (200, 0, 0))
    for name in ("a.tiff", "a.png", "a.webp"):
        first.save(tmp_path / name, save_all=True, append_images=[second], lossless=True)
        picture = read_picture(tmp_path / name)
        np.testing.assert_allclose(picture.rgba[0, 0, :3] * 255, [9, 8, 7], atol=1e-3)
        assert "2 pictures" in picture.notes[0]


@pytest.mark.parametrize(("side", "limit"), [(30_000, None), (12_000, 48_000_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int, limit: int | None) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, []))
    with pytest.raises(UserError) as caught:
        read_picture(tmp_path / "bomb.png", **({} if limit is None else {"max_pixels": limit}))
    assert caught.value.code == ExitCode.UNSAFE_FILE and "bomb.png" in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp", "bmp"])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UserError) as caught:
            read_picture(path)
        assert caught.value.code == ExitCode.BAD_INPUT and caught.value.fix


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    Image.new("RGB", (4, 4)).save(tmp_path / "pcx.png", "PCX")
    for name in ("text.png", "empty.png", "float.tiff", "pcx.png", "missing.png", "."):
        with pytest.raises(UserError) as caught:
            read_picture(tmp_path / name)
        assert caught.value.code == ExitCode.BAD_INPUT


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RGBA8[..., :3]).save(file, kind)
    return file.getvalue()


SEEDS = [encoded(kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP")] + [
    encode_png(RGBA8 / 255, 16),
    tiff16(RGBA16),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(SEEDS),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_mutated_file_gives_a_picture_or_a_user_error(tmp_path: Path, seed: bytes, places: list) -> None:
    data = bytearray(seed)
    for place, value in places:
        data[int(place * len(data))] = value
    (tmp_path / "a").write_bytes(bytes(data))
    try:
        picture = read_picture(tmp_path / "a", max_pixels=10**6)
    except UserError as problem:
        assert problem.code in (ExitCode.BAD_INPUT, ExitCode.UNSAFE_FILE)
    else:
        assert np.isfinite(picture.rgba).all() and picture.rgba.min() >= 0 and picture.rgba.max() <= 1


def test_resizing_an_overlay_does_not_bleed_hidden_colors() -> None:
    rgba = np.zeros((8, 8, 4), np.float32)
    rgba[2:6, 2:6] = (1, 0, 0, 1)
    rgba[rgba[..., 3] == 0, 1] = 1  # hidden green
    large = unpremultiply(resize_image(premultiply(rgba), (32, 32)))
    assert large[..., 1].max() == 0 and large[..., 3].max() == 1
