"""Masks: the user's files with every way they can be wrong, and segmentation by motion."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.masks.layer_masks import LayerMasks, load_masks, mask_iou
from neural_fields.data.masks.motion_segmentation import segment_motion
from neural_fields.data.video import io
from neural_fields.data.video.metadata import make_metadata

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
SIZE = (32, 24)


def squares(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A white square that moves right by one pixel a frame."""
    out = np.zeros((count, size[1], size[0]), bool)
    for index, mask in enumerate(out):
        mask[6:14, 4 + index : 12 + index] = True
    return out


def load(
    specs: list[str], count: int, size: tuple[int, int] = SIZE, frames: range | None = None, first: int = 0
) -> LayerMasks:
    """Reads masks of a clip of this many frames."""
    metadata = replace(make_metadata(size, count, Fraction(24)), first_number=first)
    return load_masks(specs, metadata, size, frames)


def save(folder: Path, masks: np.ndarray, names: list[str] | None = None) -> Path:
    folder.mkdir()
    for index, mask in enumerate(masks):
        name = names[index] if names else f"{index}.png"
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / name)
    return folder


def refusal(*args: object, **kwargs: object) -> UserError:
    with pytest.raises(UserError) as caught:
        load(*args, **kwargs)  # type: ignore[arg-type]
    assert caught.value.code == ExitCode.BAD_INPUT
    return caught.value


def test_a_folder_of_images_is_read_in_natural_order(tmp_path: Path) -> None:
    masks = squares(12)
    layers = load([str(save(tmp_path / "m", masks))], 12, SIZE)
    assert layers.names == ("foreground",) and np.array_equal(layers.masks, masks[None])


def test_several_layers_are_numbered_front_to_back_or_named_by_the_user(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a", squares(3)), save(tmp_path / "b", squares(3)[:, ::-1])
    assert load([str(first), str(second)], 3, SIZE).names == ("foreground1", "foreground2")
    named = load([f"car={first}", f"dog={second}"], 3, SIZE)
    assert named.names == ("car", "dog") and np.array_equal(named.masks[1], squares(3)[:, ::-1])


@pytest.mark.parametrize(
    "specs, message",
    [
        (["background={}"], "background"),
        (["a={}", "a={}"], "two mask layers"),
        (["a b={}"], "cannot name a layer"),
        (["={}"], "cannot name a layer"),
    ],
)
def test_layer_names_that_cannot_work_are_refused(tmp_path: Path, specs: list[str], message: str) -> None:
    folder = save(tmp_path / "m", squares(3))
    assert message in refusal([spec.format(folder) for spec in specs], 3, SIZE).what


def test_palette_zero_one_and_sixteen_bit_masks_mean_the_same(tmp_path: Path) -> None:
    mask = squares(1)[0]
    for kind in ("palette", "one", "deep", "alpha"):
        (tmp_path / kind).mkdir()
    palette = Image.fromarray(mask.astype(np.uint8) * 3)
    palette.putpalette([0, 0, 0, 10, 0, 0, 0, 10, 0, 90, 0, 0])
    palette.save(tmp_path / "palette" / "0.png")
    Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "one" / "0.png")
    Image.fromarray(mask.astype(np.uint16) * 65535).save(tmp_path / "deep" / "0.png")
    rgba = np.full((*mask.shape, 4), 255, np.uint8)
    rgba[..., 3] = mask * 255
    Image.fromarray(rgba).save(tmp_path / "alpha" / "0.png")
    for kind in ("palette", "one", "deep", "alpha"):
        assert np.array_equal(load([str(tmp_path / kind)], 1, SIZE).masks[0, 0], mask), kind


def ramps(count: int) -> np.ndarray:
    """Squares whose left halves rise from black to white."""
    out = 255 * squares(count).astype(np.uint8)
    for index, share in enumerate(out):
        share[6:14, 4 + index : 8 + index] = np.arange(32).reshape(8, 4) * 8
    return out


def test_gray_is_the_share_of_a_pixel_in_eight_and_sixteen_bits_in_color_and_in_arrays(tmp_path: Path) -> None:
    shares = ramps(3)
    for kind in ("gray", "deep", "color"):
        (tmp_path / kind).mkdir()
    for index, share in enumerate(shares):
        Image.fromarray(share).save(tmp_path / "gray" / f"{index}.png")
        Image.fromarray(share.astype(np.uint16) * 257).save(tmp_path / "deep" / f"{index}.png")
        Image.fromarray(np.repeat(share[..., None], 3, axis=2)).save(tmp_path / "color" / f"{index}.png")
    np.save(tmp_path / "array.npy", shares / np.float32(255))
    for kind in ("gray", "deep", "color", "array.npy"):
        found = load([str(tmp_path / kind)], 3, SIZE)
        assert found.shares is not None and np.array_equal(found.shares[0], shares), kind
        assert np.array_equal(found.masks[0], shares >= 128), kind


def test_shares_are_averaged_when_a_mask_is_larger_than_the_frames(tmp_path: Path) -> None:
    big = np.kron(ramps(2), np.ones((1, 2, 2), np.uint8))
    big[0, 14, 20] = 0
    found = load([str(save(tmp_path / "m", big / 255))], 2, SIZE).shares
    assert found is not None and found[0, 0, 7, 10] == 191 and np.array_equal(found[0, 1], ramps(2)[1])


def test_labels_in_a_few_grays_and_lossy_files_stay_hard(tmp_path: Path) -> None:
    labels = np.where(squares(3), np.uint8(200), np.uint8(90))
    soft = load([str(save(tmp_path / "labels", labels / 255))], 3, SIZE)
    assert soft.shares is None and np.array_equal(soft.masks[0], squares(3))
    (tmp_path / "lossy").mkdir()
    for index, share in enumerate(ramps(3)):
        Image.fromarray(share).save(tmp_path / "lossy" / f"{index}.jpg")
    assert load([str(tmp_path / "lossy")], 3, SIZE).shares is None


def test_a_hard_layer_beside_a_soft_one_has_full_shares(tmp_path: Path) -> None:
    soft, hard = save(tmp_path / "soft", ramps(3) / 255), save(tmp_path / "hard", squares(3)[:, ::-1])
    found = load([str(soft), str(hard)], 3, SIZE)
    assert found.shares is not None and np.array_equal(found.shares, [ramps(3), 255 * squares(3)[:, ::-1]])


def test_a_faint_trace_in_a_frame_without_the_object_is_not_the_object(tmp_path: Path) -> None:
    shares = ramps(3)
    shares[1] = squares(3)[1]  # of one, where other frames reach 255
    found = load([str(save(tmp_path / "m", shares / 255))], 3, SIZE)
    assert not found.masks[0, 1].any() and found.masks[0, 2].any()


def test_an_array_and_a_video_are_masks_too(tmp_path: Path) -> None:
    masks = squares(5, (64, 48))
    np.save(tmp_path / "m.npy", masks)
    assert np.array_equal(load([str(tmp_path / "m.npy")], 5, (64, 48)).masks[0], masks)
    source = save(tmp_path / "m", masks)
    metadata = io.probe_video(source)
    clip = io.write_video(
        tmp_path / "m.mp4",
        (np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1) for mask in masks),
        metadata,
        timestamps=tuple(Fraction(index, 24) for index in range(5)),
        sound=False,
    )
    assert mask_iou(load([str(clip)], 5, (64, 48)).masks[0], masks) > 0.95
    assert mask_iou(load([str(clip)], 5, (64, 48), range(1, 5, 2)).masks[0], masks[1:5:2]) > 0.95


def test_masks_of_another_size_and_the_same_aspect_are_resized(tmp_path: Path) -> None:
    big = np.kron(squares(3), np.ones((1, 4, 4), bool))
    assert np.array_equal(load([str(save(tmp_path / "m", big))], 3, SIZE).masks[0], squares(3))


def test_masks_of_another_aspect_are_refused_naming_the_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", squares(3))
    error = refusal([str(folder)], 3, (24, 24))
    assert "0.png is 32x24, the clip is 24x24" in error.what
    stretched = load_masks([str(folder)], make_metadata((64, 48), 3, Fraction(24)), (24, 24))
    assert stretched.masks.shape == (1, 3, 24, 24)


def test_a_gap_in_the_numbers_is_named(tmp_path: Path) -> None:
    names = [f"{index:05d}.png" for index in range(10) if index not in (3, 7)]
    error = refusal([str(save(tmp_path / "m", squares(8), names))], 10, SIZE)
    assert "8 masks, the clip has 10 frames" in error.what and "frames 3, 7" in error.what


def test_missing_masks_at_the_end_are_named(tmp_path: Path) -> None:
    assert "frames 6, 7, 8, 9" in refusal([str(save(tmp_path / "m", squares(6)))], 10, SIZE).what
    names = [f"m{index + 1}.png" for index in range(6)]
    assert "frames 0, 7" in refusal([str(save(tmp_path / "n", squares(6), names))], 8, SIZE).what


def test_too_many_masks_are_refused(tmp_path: Path) -> None:
    assert "10 masks, the clip has 8 frames" in refusal([str(save(tmp_path / "m", squares(10)))], 8, SIZE).what


def test_masks_of_the_whole_clip_are_cut_to_the_frames_in_use(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "m", squares(10)))
    assert np.array_equal(load([folder], 10, SIZE, range(2, 9, 3)).masks[0], squares(10)[2:9:3])
    only = str(save(tmp_path / "n", squares(3), ["2.png", "5.png", "8.png"]))
    assert np.array_equal(load([only], 10, SIZE, range(2, 9, 3)).masks[0], squares(3))
    np.save(tmp_path / "o.npy", squares(3))  # without numbers
    assert np.array_equal(load([str(tmp_path / "o.npy")], 10, SIZE, range(2, 9, 3)).masks[0], squares(3))
    others = str(save(tmp_path / "p", squares(3)))  # of the frames 0, 1 and 2
    assert "frames 5, 8" in refusal([others], 10, SIZE, range(2, 9, 3)).what


def test_inverted_masks_are_refused_and_large_objects_are_not(tmp_path: Path) -> None:
    assert "look inverted" in refusal([str(save(tmp_path / "m", ~squares(3)))], 3, SIZE).what
    large = np.zeros((3, 24, 32), bool)
    large[:, 2:, 2:-2] = True
    assert load([str(save(tmp_path / "n", large))], 3, SIZE).masks.mean() > 0.7


def test_masks_empty_on_every_frame_are_refused_and_on_some_are_not(tmp_path: Path) -> None:
    some = squares(4)
    some[1:3] = False
    assert not load([str(save(tmp_path / "m", some))], 4, SIZE).masks[0, 1].any()
    assert "empty on every frame" in refusal([str(save(tmp_path / "n", some & False))], 4, SIZE).what


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    assert "no mask folder or file" in refusal([str(tmp_path / "none")], 3, SIZE).what
    (tmp_path / "empty").mkdir()
    assert "holds no mask images" in refusal([str(tmp_path / "empty")], 3, SIZE).what
    folder = save(tmp_path / "m", squares(3))
    (folder / "1.png").write_bytes(b"not an image")
    assert "1.png cannot be read" in refusal([str(folder)], 3, SIZE).what


def test_iou_is_intersection_over_union() -> None:
    a, b = np.array([True, True, False]), np.array([False, True, True])
    assert mask_iou(a, b) == pytest.approx(1 / 3) and mask_iou(a & False, b & False) == 1.0


def panning(count: int, with_object: bool) -> tuple[np.ndarray, np.ndarray]:
    """A textured disc crossing a panning textured background, at 160 x 120, and its true masks."""
    generator = np.random.default_rng(1)

    def texture(low: int, high: int) -> np.ndarray:
        noise = cv2.GaussianBlur(generator.random((200, 300, 3)).astype(np.float32), (0, 0), 2)
        return (low + (high - low) * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)

    scene, coat = texture(20, 170), texture(90, 250)
    y, x = np.mgrid[0:120, 0:160]
    frames, masks = [], []
    for t in range(count):
        mask = (x - 40 - 3 * t) ** 2 + (y - 60 - t) ** 2 < 22**2
        ground = scene[20:140, 20 + t : 180 + t]
        object_ = np.roll(coat, (t, 3 * t), axis=(0, 1))[20:140, 20:180]
        frames.append(np.where((mask & with_object)[..., None], object_, ground))
        masks.append(mask)
    return np.stack(frames), np.stack(masks)


@pytest.mark.slow
def test_motion_masks_do_not_depend_on_chance_or_on_the_size_of_the_flow(tmp_path: Path) -> None:
    frames, truth = panning(10, with_object=True)
    first = segment_motion(frames, compute_flow(frames, tmp_path))
    second = segment_motion(frames, compute_flow(frames, tmp_path))
    half = segment_motion(frames, compute_flow(frames, tmp_path, size=(80, 60)))
    assert first is not None and second is not None and half is not None
    assert np.array_equal(first, second) and mask_iou(half, truth) > 0.8


def test_what_jumps_about_against_its_own_flow_is_no_object() -> None:
    masks, random = np.zeros((10, 60, 80), bool), np.random.default_rng(3)
    for mask in masks:
        x, y = random.integers(0, (60, 40))
        mask[y : y + 20, x : x + 20] = True
    frames = np.where(masks[..., None], np.uint8(200), panning(6, with_object=False)[0][:1, :60, :80])
    moved = np.array([2, 0], np.float32)
    ok = np.ones(masks[1:].shape, bool)
    flow = FlowField(masks[:-1, ..., None] * moved, -(masks[1:, ..., None] * moved), ok, ok)
    assert segment_motion(frames, flow) is None
