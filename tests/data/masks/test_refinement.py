"""Masks that get better: what goes, what stays, and where outlines go."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.masks import refinement
from neural_fields.data.masks.boundaries import align_outline
from neural_fields.data.masks.layer_masks import LayerMasks, load_masks, mask_iou
from neural_fields.data.masks.propagation import (
    NeighborFlow,
    compute_flow_votes,
    compute_motion_odds,
    compute_object_votes,
    fit_motion,
    measure_motion_distance,
)
from neural_fields.data.masks.refinement import MaskRefinementSettings, refine_masks
from neural_fields.data.video.io import read_video

pytestmark = pytest.mark.slow

COUNT, HEIGHT, WIDTH = 14, 90, 160
CAMERA, OWN = (-2, 0), (3, 1)  # pixels a frame: of the background, of the object


def noise(seed: int, color: tuple[int, int, int], shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A textured picture around a color."""
    values = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32), (0, 0), 1.5)
    return (np.array(color, np.float32) + 60 * values).clip(0, 255).astype(np.uint8)


def scene(size: int = 26) -> tuple[np.ndarray, np.ndarray, FlowField]:
    """A square on its way over a moving background, with its masks and true flow."""
    wide = noise(0, (60, 110, 70), (HEIGHT, WIDTH + 40))
    paint = noise(1, (190, 120, 90), (size, size))
    frames = np.stack([wide[:, 2 * t : 2 * t + WIDTH] for t in range(COUNT)]).copy()
    masks = np.zeros((COUNT, HEIGHT, WIDTH), bool)
    for t in range(COUNT):
        x, y = 20 + OWN[0] * t, 25 + OWN[1] * t
        frames[t, y : y + size, x : x + size] = paint
        masks[t, y : y + size, x : x + size] = True
    return frames, masks, true_flow(masks)


def true_flow(masks: np.ndarray) -> FlowField:
    forward, backward = (
        np.where(part[..., None], np.array(OWN, np.float32), np.array(CAMERA, np.float32)) * np.float32(sign)
        for part, sign in ((masks[:-1], 1), (masks[1:], -1))
    )
    ok = np.ones(masks[1:].shape, bool)
    return FlowField(forward, backward, ok, ok)


def mended(frames: np.ndarray, masks: np.ndarray, flow: FlowField) -> np.ndarray:
    return refine_masks(frames, flow, LayerMasks(("foreground",), masks[None])).masks[0]


def mean_iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([mask_iou(x, y) for x, y in zip(a, b, strict=True)]))


def test_masks_that_agree_stay_as_they_are() -> None:
    frames, masks, flow = scene()
    assert mean_iou(mended(frames, masks, flow), masks) > 0.99


def test_a_blot_that_only_some_frames_have_goes() -> None:
    frames, masks, flow = scene()
    spotted = masks.copy()
    spotted[4, 60:80, 100:130] = spotted[9, 10:24, 110:140] = True
    assert mean_iou(mended(frames, spotted, flow), masks) > 0.99


def test_a_piece_of_the_background_goes_although_every_frame_has_it() -> None:
    frames, masks, flow = scene()
    stuck = masks.copy()
    for t in range(COUNT):
        stuck[t, 66:78, 136 - 2 * t : 150 - 2 * t] = True
    found = mended(frames, stuck, flow)
    assert mean_iou(found, masks) > 0.98


def test_what_hangs_on_the_object_and_moves_with_the_background_goes() -> None:
    frames, masks, flow = scene()
    hung = masks.copy()
    for t in range(5, 9):
        hung[t, 50 + t : 52 + t, 40 + 3 * t : 150 - 2 * t] = True  # a neck
        hung[t, 45 + t : 57 + t, 134 - 2 * t : 150 - 2 * t] = True
    found = mended(frames, hung, flow)
    assert mean_iou(hung[5:9], masks[5:9]) < 0.75 and mean_iou(found[5:9], masks[5:9]) > 0.9


def test_a_second_object_that_moves_on_its_own_stays() -> None:
    frames, masks, _ = scene()
    both = masks | np.roll(masks, (30, 50), (1, 2))
    frames = np.where((both & ~masks)[..., None], np.roll(frames, (30, 50), (1, 2)), frames)
    assert mean_iou(mended(frames, both, true_flow(both)), both) > 0.98


def test_a_thin_line_stays() -> None:
    frames, masks, flow = scene()
    lined = masks.copy()
    for t in range(COUNT):
        y = 35 + OWN[1] * t
        frames[t, y : y + 2, 60 + OWN[0] * t :] = (230, 220, 200)
        lined[t, y : y + 2, 60 + OWN[0] * t :] = True  # not joined to the object, and flow does not see it
    found = mended(frames, lined, flow)
    assert (found & lined & ~masks).sum() > 0.9 * (lined & ~masks).sum()


def test_outlines_go_to_where_colors_part() -> None:
    frames, masks, flow = scene()
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    for change in (cv2.dilate, cv2.erode):
        wrong = np.stack([change(mask.astype(np.uint8), disc) for mask in masks]) > 0
        assert mean_iou(mended(frames, wrong, flow), masks) > mean_iou(wrong, masks) + 0.04


def test_a_soft_mask_loses_a_blot_with_its_halo_and_keeps_its_outline() -> None:
    frames, masks, flow = scene()
    spotted = masks.copy()
    spotted[4, 60:80, 100:130] = True
    shares = np.stack([cv2.GaussianBlur(255 * mask.astype(np.uint8), (0, 0), 2) for mask in spotted])
    found = refine_masks(frames, flow, LayerMasks(("foreground",), shares[None] >= 128, shares[None]))
    assert found.shares is not None and not found.shares[0, 4, 50:90, 90:140].any()
    shares[4, 50:90, 90:140] = 0
    assert np.array_equal(found.shares[0], shares)
    assert np.array_equal(found.masks[0], shares >= 128)


def test_sides_of_one_color_leave_the_outline() -> None:
    picture = noise(3, (128, 128, 128))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[30:60, 40:90] = True
    assert mask_iou(align_outline(picture, mask), mask) > 0.95


def test_each_layer_is_judged_where_it_is_seen_and_hidden_parts_stay() -> None:
    frames, masks, flow = scene()
    behind = np.zeros_like(masks)
    behind[:, 30:60] = True  # a bar that the square passes in front of, given with what the square hides
    frames[behind & ~masks] = (60, 60, 160)
    spotted = masks.copy()
    spotted[5, 70:85, 120:150] = True
    found = refine_masks(frames, flow, LayerMasks(("square", "bar"), np.stack([spotted, behind])))
    assert found.names == ("square", "bar")
    assert mean_iou(found.masks[0], masks) > 0.98 and mean_iou(found.masks[1], behind) > 0.95
    inner = (
        np.stack(
            [cv2.erode((m & b).astype(np.uint8), np.ones((9, 9), np.uint8)) for m, b in zip(masks, behind, strict=True)]
        )
        > 0
    )
    assert inner.any() and found.masks[1][inner].all()


def test_empty_masks_single_frames_and_no_layers_come_back() -> None:
    frames, masks, flow = scene()
    empty = np.zeros_like(masks)
    assert not mended(frames, empty, flow).any()
    rare = empty.copy()
    rare[6] = masks[6]
    assert mended(frames, rare, flow)[6].any(), "a frame never loses all of its mask"
    assert np.array_equal(mended(frames[:1], masks[:1], flow), masks[:1])
    nothing = LayerMasks((), np.zeros((0, COUNT, HEIGHT, WIDTH), bool))
    assert refine_masks(frames, flow, nothing) is nothing


def test_a_long_clip_is_judged_in_chunks_that_know_their_neighbors() -> None:
    frames, masks, flow = scene()
    spotted = masks.copy()
    spotted[7, 60:80, 100:130] = True
    whole = mended(frames, spotted, flow)
    shares: list[float] = []  # of the work, frame by frame
    layers = LayerMasks(("foreground",), spotted[None])
    settings = MaskRefinementSettings(chunk_frames=7)
    parts = refine_masks(frames, flow, layers, lambda now: shares.append(now.share), settings).masks[0]
    assert mean_iou(parts, whole) > 0.99
    assert len(shares) > COUNT and shares == sorted(shares) and shares[0] == 0 and 0.9 < shares[-1] <= 1


def test_masks_larger_than_they_are_judged_at_lose_the_same_parts() -> None:
    frames, masks, flow = scene()
    spotted = masks.copy()
    spotted[4, 60:80, 100:130] = True
    large = (WIDTH * 3, HEIGHT * 3)
    pictures = np.stack([cv2.resize(frame, large) for frame in frames])
    big, truth = (
        np.stack([cv2.resize(m.astype(np.uint8), large, interpolation=cv2.INTER_NEAREST) for m in part]) > 0
        for part in (spotted, masks)
    )
    found = mended(pictures, big, flow)
    assert not found[4, 180:240, 300:390].any() and mean_iou(found, truth) > 0.97


def test_the_same_masks_come_out_every_time() -> None:
    frames, masks, flow = scene()
    spotted = masks.copy()
    spotted[4, 60:80, 100:130] = True
    assert np.array_equal(mended(frames, spotted, flow), mended(frames, spotted, flow))


def test_masks_of_one_part_are_judged_without_looking_at_the_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, masks, flow = scene()
    expected = mended(frames, masks, flow)
    monkeypatch.setattr(refinement, "_resize_flow", None)
    assert np.array_equal(mended(frames, masks, flow), expected)
    masks[4, 60:80, 100:130] = True
    with pytest.raises(TypeError):
        mended(frames, masks, flow)


def test_what_is_far_from_a_mask_changes_neither_its_parts_nor_its_outline() -> None:
    frames, masks, _ = scene()
    mask = masks[3].copy()
    mask[40:44, 40:70] = mask[10:13, 3:9] = True
    wide = noise(5, (90, 90, 90), (230, 400))
    wide[60 : 60 + HEIGHT, 80 : 80 + WIDTH] = frames[3]
    padded = np.zeros((230, 400), bool)
    padded[60 : 60 + HEIGHT, 80 : 80 + WIDTH] = mask
    inside = slice(60, 60 + HEIGHT), slice(80, 80 + WIDTH)
    for neck in (0, 3):
        parts = refinement._label_parts(mask, neck)
        assert np.array_equal(refinement._label_parts(padded, neck)[inside], parts) and parts.max() > 1
    box = slice(20, 80), slice(20, 120)  # without the edge of the frame, which repeats itself in means of colors
    assert np.array_equal(align_outline(wide, padded)[inside][box], align_outline(frames[3], mask)[box])


# --- votes ---------------------------------------------------------------------------------------------------------


def test_votes_follow_the_flow_and_the_object() -> None:
    _, masks, flow = scene()
    motion = NeighborFlow(flow.forward, flow.backward, flow.forward_ok, flow.backward_ok)
    shift = np.array([[1.0, 0, OWN[0]], [0, 1, OWN[1]], [0, 0, 1]])
    known = np.ones_like(masks)
    carried = compute_object_votes(masks, known, [shift] * (COUNT - 1))
    assert carried[masks].min() > 0.95 and np.quantile(carried[~masks], 0.95) < 0.05
    assert compute_flow_votes(masks, known, motion)[masks].min() > 0.95
    still = compute_object_votes(masks, known, [np.eye(3)] * (COUNT - 1))
    assert still[7][masks[7]].mean() < 0.8, "a place that the object leaves gets fewer votes"


def test_a_hidden_mask_does_not_vote() -> None:
    _, masks, _ = scene()
    shift = np.array([[1.0, 0, OWN[0]], [0, 1, OWN[1]], [0, 0, 1]])
    nobody = compute_object_votes(masks, np.zeros_like(masks), [shift] * (COUNT - 1))
    assert np.allclose(nobody, 0.5)


def test_no_motion_alone_is_a_proof() -> None:
    _, masks, flow = scene()
    motion = NeighborFlow(flow.forward, flow.backward, flow.forward_ok, flow.backward_ok)
    shift = np.array([[1.0, 0, OWN[0]], [0, 1, OWN[1]], [0, 0, 1]])
    background = measure_motion_distance(motion, fit_motion(~masks, motion, "homography"))
    odds = compute_motion_odds(masks, ~masks, background, measure_motion_distance(motion, [shift] * (COUNT - 1)), 1.0)
    assert odds[masks].min() > 1 and odds[~masks].max() < -1 and np.abs(odds).max() < 5


# --- real clips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clip, part, least",
    [("davis-kite-surf", "8:18", 0.05), ("davis-parkour", "88:98", 0.1)],
)
def test_real_masks_come_out_better_than_they_went_in(
    shared_data: Path, tmp_path: Path, clip: str, part: str, least: float
) -> None:
    folder = shared_data / clip
    source = read_video(folder / "frames", tmp_path, "120p", part)
    size = (source.frames.shape[2], source.frames.shape[1])

    def load(kind: str) -> LayerMasks:
        return load_masks([f"foreground={folder / kind}"], source.metadata, size, range(*source.frame_range))

    given, truth = load("masks_osvos"), load("masks")
    flow = compute_flow(source.frames, tmp_path)
    before = mean_iou(given.masks[0], truth.masks[0])
    assert mean_iou(refine_masks(source.frames, flow, given).masks[0], truth.masks[0]) > before + least
    assert mean_iou(refine_masks(source.frames, flow, truth).masks[0], truth.masks[0]) >= 0.95
