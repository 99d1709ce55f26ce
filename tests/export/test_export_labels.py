"""Labels carried to all frames: exact in their own frame, where they truly are in others, stored as they were given."""

from __future__ import annotations

import io
import re
import shutil
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neural_fields.core import coords
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import read_json, sha256_file
from neural_fields.data.masks.layer_masks import load_masks, mask_iou
from neural_fields.data.synthetic.planar_clips import SyntheticClip, make_demo_clip
from neural_fields.data.video.io import write_video
from neural_fields.data.video.metadata import make_metadata
from neural_fields.export.base import export_run
from neural_fields.export.options import ExportOptions
from neural_fields.export.tracks.label_files import read_labels, resize_labels
from neural_fields.export.tracks.labels import LabelsExporter
from neural_fields.imaging.image_io import encode_png
from neural_fields.open_runs.opening import require_planar
from neural_fields.runs.run import Run
from neural_fields.tracking.labels import lift_labels
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

pytestmark = pytest.mark.slow

SIZE, COUNT = (192, 108), 8
METADATA = make_metadata(SIZE, COUNT, Fraction(24))
PALETTE = [10, 20, 30, 200, 0, 0, 0, 200, 0, 7, 7, 7, 0, 0, 250]


@dataclass(frozen=True)
class Shown:
    """A fit at half the size of its source, and the true classes of every frame of the source."""

    run: Run
    clip: SyntheticClip
    classes: np.ndarray  # 0 is the ground, 1 its right half, 2 the object, 4 a stripe on it; 3 is not there


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    home = tmp_path_factory.mktemp("labeled")
    clip = make_demo_clip(COUNT, *SIZE)
    write_video(home / "clip.mkv", clip.render_frames(), METADATA, codec="ffv1")
    np.save(home / "mask.npy", clip.masks[0])
    options = TrainOptions(
        home / "run", size="96x54", masks=(f"foreground={home / 'mask.npy'}",), overrides={"training.steps": 20}
    )
    return Shown(train(home / "clip.mkv", options).run, clip, true_classes(clip))


def true_classes(clip: SyntheticClip) -> np.ndarray:
    xy = coords.frame_xy(*SIZE).double()
    front, back = ([surface.uv_at(t, xy)[..., 0].numpy() for t in range(clip.count)] for surface in clip.surfaces)
    middle = (clip.boxes[0].u0 + clip.boxes[0].u1) / 2
    ground = np.stack(back) > np.median(back[4])
    stripe = np.abs(np.stack(front) - middle) < 0.12
    return np.where(clip.compute_labels() == 0, np.where(stripe, 4, 2), ground).astype(np.uint8)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def with_palette(classes: np.ndarray) -> Image.Image:
    image = Image.fromarray(classes)
    image.putpalette(PALETTE)
    return image


def stored(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


COLORS = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0], [1, 2, 3], [0, 0, 251]], np.uint8)


# --- from frame to frame ---------------------------------------------------------------------------------------------


def test_labels_are_where_they_truly_are(shown: Shown, tmp_path: Path) -> None:
    given = saved(with_palette(shown.classes[4]), tmp_path / "given.png")
    export_run(shown.run, LabelsExporter(labels=given, frame=4), ExportOptions(out=tmp_path / "out"))
    files = sorted((tmp_path / "out").glob("*.png"))
    assert [file.name for file in files] == [f"{t:05d}.png" for t in range(COUNT)]
    np.testing.assert_array_equal(stored(files[4]), shown.classes[4])
    for t, file in enumerate(files):
        with Image.open(file) as image:
            assert image.mode == "P" and image.size == SIZE and image.getpalette("RGB") == PALETTE
        found = stored(file)
        for number in (1, 2, 4):
            assert mask_iou(found == number, shown.classes[t] == number) > 0.85, (t, number)
        assert mask_iou(found > 1, shown.classes[t] > 1) > 0.94


def test_what_labels_json_says_is_what_the_pictures_hold(shown: Shown, tmp_path: Path) -> None:
    given = saved(with_palette(shown.classes[4]), tmp_path / "given.png")
    export_run(shown.run, LabelsExporter(labels=given, frame=4), ExportOptions(out=tmp_path / "out"))
    metadata = read_json(tmp_path / "out" / "labels.json")
    assert metadata["sha256"] == sha256_file(given) and metadata["labels"] == "given.png" and metadata["frame"] == 4
    assert (metadata["width"], metadata["height"], metadata["frames"], metadata["mode"]) == (*SIZE, [0, COUNT, 1], "P")
    all_frames = np.stack([stored(file) for file in sorted((tmp_path / "out").glob("*.png"))])
    for entry in metadata["classes"]:
        (value,) = entry["value"]
        assert entry["color"] == PALETTE[3 * value : 3 * value + 3]
        assert entry["pixels"] == (shown.classes[4] == value).sum()
        assert entry["pixels_in_all_frames"] == (all_frames == value).sum()
    assert [entry["value"] for entry in metadata["classes"]] == [[0], [1], [2], [4]]


def test_masks_of_a_class_are_what_training_takes(shown: Shown, tmp_path: Path) -> None:
    given = saved(with_palette(shown.classes[4]), tmp_path / "given.png")
    export_run(shown.run, LabelsExporter(labels=given, frame=4, masks=True), ExportOptions(out=tmp_path / "out"))
    metadata = read_json(tmp_path / "out" / "labels.json")
    folders = {entry["value"][0]: entry.get("masks") for entry in metadata["classes"]}
    assert folders == {0: None, 1: "masks/class1", 2: "masks/class2", 4: "masks/class4"}
    specs = [f"object={tmp_path / 'out' / 'masks' / 'class2'}", f"stripe={tmp_path / 'out' / 'masks' / 'class4'}"]
    masks = load_masks(specs, METADATA, SIZE)
    assert masks.names == ("object", "stripe")
    for number, layer in zip((2, 4), masks.masks, strict=True):
        np.testing.assert_array_equal(layer[4], shown.classes[4] == number)
    whole = load_masks([f"things={tmp_path / 'out'}"], METADATA, SIZE)  # index 0 is what it calls nothing
    assert whole.names == ("things",) and np.array_equal(whole.masks[0, 4], shown.classes[4] > 0)
    each = load_masks([str(tmp_path / "out")], METADATA, SIZE)
    assert each.names == ("object-1", "object-2", "object-4")
    for number, layer in zip((1, 2, 4), each.masks, strict=True):
        np.testing.assert_array_equal(layer[4], shown.classes[4] == number)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_labels_of_another_size_are_looked_up_and_never_blended(factor: int, shown: Shown, tmp_path: Path) -> None:
    large = shown.classes[4].repeat(factor, 0).repeat(factor, 1)
    given = saved(Image.fromarray(large), tmp_path / "given.png")
    export_run(shown.run, LabelsExporter(labels=given, frame=4), ExportOptions(out=tmp_path / "out"))
    np.testing.assert_array_equal(stored(tmp_path / "out" / "00004.png"), shown.classes[4])
    values = {int(value) for file in (tmp_path / "out").glob("*.png") for value in np.unique(stored(file))}
    assert values <= {0, 1, 2, 4}


def test_smaller_labels_are_enlarged_in_blocks() -> None:
    small = np.arange(6, dtype=np.int32).reshape(2, 3)
    np.testing.assert_array_equal(resize_labels(small, (9, 4)), small.repeat(2, 0).repeat(3, 1))
    np.testing.assert_array_equal(resize_labels(small.repeat(3, 0).repeat(3, 1), (3, 2)), small)


def test_what_reaches_over_an_outline_does_not_go_on_behind_the_object(shown: Shown) -> None:
    model = require_planar(shown.run, "the test").model
    size = model.shape.size
    thing = resize_labels((shown.clip.compute_labels()[4] == 0).astype(np.int32), size)
    wide = thing.copy()
    wide[:, 6:] |= thing[:, :-6]  # six pixels over the right outline
    ground = lift_labels(model, wide, 4)[-1]
    spilled, hidden = ((wide > thing).sum() * 4, thing.sum() * 4)  # two texels a pixel, both ways
    assert 0 < (ground.labels == 1).sum() < 1.2 * spilled < 0.5 * hidden


# --- every kind of picture -------------------------------------------------------------------------------------------


def pictures(classes: np.ndarray) -> dict[str, Image.Image]:
    deep = np.array([0, 300, 40000, 1, 65535], np.uint16)[classes]
    soft = np.concatenate([COLORS[classes], np.where(classes == 2, 0, 255).astype(np.uint8)[..., None]], axis=-1)
    return {
        "gray.png": Image.fromarray(classes * 60),
        "gray.tif": Image.fromarray(classes * 60),
        "gray.bmp": Image.fromarray(classes * 60),
        "deep.png": Image.fromarray(deep),
        "deep.tif": Image.fromarray(deep),
        "bits.png": Image.fromarray(classes > 1),
        "colors.png": Image.fromarray(COLORS[classes]),
        "colors.tif": Image.fromarray(COLORS[classes]),
        "colors.bmp": Image.fromarray(COLORS[classes]),
        "alpha.png": Image.fromarray(soft),
        "gray_alpha.png": Image.fromarray(soft[..., 2:]),
        "palette.tif": with_palette(classes),
        "palette.bmp": with_palette(classes),
    }


@pytest.mark.parametrize("name", sorted(pictures(np.zeros((2, 2), np.uint8))))
def test_a_picture_of_any_kind_is_written_as_it_was_read(name: str, shown: Shown, tmp_path: Path) -> None:
    image = pictures(shown.classes[4])[name]
    labels = read_labels(saved(image, tmp_path / name), SIZE)
    again = Image.open(io.BytesIO(labels.encode_png(labels.classes)))
    assert again.mode == image.mode
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))
    assert len(labels.values) - len(np.unique(labels.classes)) in (0, 1)
    assert not labels.values[0, 0], "the first class is nothing, whether it is there or not"


def test_sixteen_bits_of_a_color_are_kept(shown: Shown, tmp_path: Path) -> None:
    colors = np.array([[0, 0, 0], [1, 0, 0], [65535, 65534, 3], [9, 9, 9], [0, 0, 32769]], np.uint16)
    (tmp_path / "deep.png").write_bytes(encode_png(colors[shown.classes[4]].astype(np.float32) / 65535, 16))
    labels = read_labels(tmp_path / "deep.png", SIZE)
    assert labels.bits_per_channel == 16 and sorted(labels.values.tolist()) == sorted(colors[[0, 1, 2, 4]].tolist())
    (tmp_path / "again.png").write_bytes(labels.encode_png(labels.classes))
    again = read_labels(tmp_path / "again.png", SIZE)
    np.testing.assert_array_equal(again.values[again.classes], colors[shown.classes[4]])


def test_nothing_is_a_class_where_no_pixel_has_it(tmp_path: Path) -> None:
    halves = np.repeat([[5, 9]], 4, axis=0).repeat(4, axis=1).astype(np.uint8)
    gray = read_labels(saved(Image.fromarray(halves), tmp_path / "gray.png"), (8, 4))
    assert gray.values.tolist() == [[0], [5], [9]] and set(np.unique(gray.classes)) == {1, 2}
    solid = np.dstack([halves, halves, halves, np.full_like(halves, 255)])
    color = read_labels(saved(Image.fromarray(solid), tmp_path / "solid.png"), (8, 4))
    assert color.values.tolist() == [[0, 0, 0, 255], [5, 5, 5, 255], [9, 9, 9, 255]]
    assert [color.class_name(number) for number in (1, 2)] == ["rgb_050505ff", "rgb_090909ff"]


def test_a_transparent_index_stays_transparent(tmp_path: Path) -> None:
    classes = np.repeat([[0, 1, 2]], 3, axis=0).astype(np.uint8)
    given = saved(with_palette(classes), tmp_path / "clear.png", transparency=bytes([255, 0, 128]))
    labels = read_labels(given, (3, 3))
    again = Image.open(io.BytesIO(labels.encode_png(labels.classes)))
    assert again.info["transparency"] == bytes([255, 0, 128])


# --- what is refused -------------------------------------------------------------------------------------------------


def photo(size: tuple[int, int] = SIZE) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3))
    return Image.fromarray(values.astype(np.uint8))


def refused(path: Path, size: tuple[int, int] = SIZE) -> UserError:
    with pytest.raises(UserError) as caught:
        read_labels(path, size)
    return caught.value


def test_a_photo_is_refused_with_the_number_of_its_colors(tmp_path: Path) -> None:
    image = photo()
    count = len(np.unique(np.asarray(image).reshape(-1, 3), axis=0))
    error = refused(saved(image, tmp_path / "photo.png"))
    assert f"{count} colors" in error.what and "4096" in error.why


def test_files_whose_compression_changes_colors_are_refused(tmp_path: Path) -> None:
    image = with_palette(np.eye(8, dtype=np.uint8)).convert("RGB")
    jpeg = refused(saved(image, tmp_path / "a.jpg", quality=100), (8, 8))
    assert "JPEG changes colors" in jpeg.why
    renamed = tmp_path / "really.png"
    shutil.copy(tmp_path / "a.jpg", renamed)
    assert "JPEG changes colors" in refused(renamed, (8, 8)).why
    assert "changes colors" in refused(saved(image, tmp_path / "a.tif", compression="jpeg"), (8, 8)).why
    assert "labels are read from" in refused(saved(image, tmp_path / "a.webp", lossless=True), (8, 8)).why


def test_other_files_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    small = with_palette(np.eye(8, dtype=np.uint8))
    assert "one color everywhere" in refused(saved(Image.new("L", (8, 8), 3), tmp_path / "flat.png"), (8, 8)).what
    assert "is 8x8, the frames are 192x108" in refused(saved(small, tmp_path / "square.png")).what
    assert "CMYK" in refused(saved(small.convert("CMYK"), tmp_path / "ink.tif"), (8, 8)).why
    float_picture = Image.fromarray(np.eye(8, dtype=np.float32))
    assert "bits" in refused(saved(float_picture, tmp_path / "float.tif"), (8, 8)).what
    pages = saved(small, tmp_path / "pages.tif", save_all=True, append_images=[small])
    assert "2 pictures" in refused(pages, (8, 8)).why
    turned = Image.Exif()
    turned[0x0112] = 6
    assert "turned" in refused(saved(small, tmp_path / "turned.png", exif=turned), (8, 8)).why
    whole = saved(small, tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("labels")
    for name in ("half.png", "text.png", "nowhere.png"):
        assert refused(tmp_path / name, (8, 8)).code == ExitCode.BAD_INPUT
    bomb = chunk(b"IHDR", (65536).to_bytes(4) * 2 + whole[24:29])
    (tmp_path / "bomb.png").write_bytes(whole[:8] + bomb + whole[33:])
    assert refused(tmp_path / "bomb.png", (8, 8)).code == ExitCode.UNSAFE_FILE


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file."""
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def test_an_index_that_the_palette_lacks_is_refused(tmp_path: Path) -> None:
    head = (2).to_bytes(4) * 2 + bytes([8, 3, 0, 0, 0])
    for index, palette in ((7, bytes(PALETTE)), (4, bytes(PALETTE))):
        rows = zlib.compress(bytes([0, 0, 1, 0, 1, index]))
        parts = (chunk(b"IHDR", head), chunk(b"PLTE", palette), chunk(b"IDAT", rows), chunk(b"IEND", b""))
        (tmp_path / f"{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert read_labels(tmp_path / "4.png", (2, 2)).values.ravel().tolist() == [0, 1, 4]
    assert "its palette lacks" in refused(tmp_path / "7.png", (2, 2)).what


@pytest.mark.parametrize(
    "settings,words",
    [
        ({}, "no label picture is given"),
        ({"labels": "labels.png", "frame": COUNT}, f"frame {COUNT} is not part of this run"),
        ({"labels": "photo.png"}, "colors"),
        ({"labels": "nowhere.png"}, "nowhere.png"),
        ({"labels": "many.png", "masks": True}, "folders of masks"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_and_nothing_is_written(
    settings: dict[str, Any], words: str, shown: Shown, tmp_path: Path
) -> None:
    saved(with_palette(shown.classes[4]), tmp_path / "labels.png")
    saved(photo(), tmp_path / "photo.png")
    many = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[::-1]) % 1000
    saved(Image.fromarray(many), tmp_path / "many.png")
    if "labels" in settings:
        settings = {**settings, "labels": tmp_path / settings["labels"]}
    with pytest.raises(UserError, match=re.escape(words)):
        export_run(shown.run, LabelsExporter(**settings))
    assert not shown.run.exports.exists() or not list(shown.run.exports.iterdir())


def test_soft_edges_and_lost_classes_are_said(shown: Shown, tmp_path: Path) -> None:
    ramp = np.where(shown.classes[4] > 1, np.arange(SIZE[0]) // 2, 0).astype(np.uint8)
    done = export_run(
        shown.run,
        LabelsExporter(labels=saved(Image.fromarray(ramp), tmp_path / "ramp.png")),
        ExportOptions(out=tmp_path / "out"),
    )
    assert not any("antialiasing" in note for note in done.notes)  # some twenty classes
    steep = (np.arange(SIZE[0]) // 2).astype(np.uint8)[None].repeat(SIZE[1], 0)
    done = export_run(
        shown.run,
        LabelsExporter(labels=saved(Image.fromarray(steep), tmp_path / "a.png")),
        ExportOptions(out=tmp_path / "steep"),
    )
    assert any("draw labels without antialiasing" in note for note in done.notes)
    dot = shown.classes[4].copy()
    dot[0, 0] = 250  # one pixel of the source is none of the maps
    done = export_run(
        shown.run,
        LabelsExporter(labels=saved(Image.fromarray(dot), tmp_path / "dot.png")),
        ExportOptions(out=tmp_path / "dot"),
    )
    assert done.notes == ("too small for the size of the run, or never seen again: class250",)
