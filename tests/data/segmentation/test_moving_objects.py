"""Objects that move on their own are found without hints, and what is no object is not."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from neural_fields.data.flow.compute import compute_flow
from neural_fields.data.masks.layer_masks import load_masks, mask_iou
from neural_fields.data.segmentation import moving_objects
from neural_fields.data.segmentation.moving_objects import find_moving_objects
from neural_fields.data.video.metadata import make_metadata

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
HEIGHT, WIDTH, FRAMES = 120, 160, 9
# The mask of an object in a frame, and how far its texture is shifted there.
Object = tuple[Callable[[int], np.ndarray], Callable[[int], tuple[int, int]]]
COLORS = ((200, 70, 60), (60, 80, 200), (70, 180, 80))


def texture(seed: int, height: int, width: int) -> np.ndarray:
    noise = cv2.GaussianBlur(
        np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32), (0, 0), 1.6
    )
    return noise / noise.std()


def film(*objects: Object, pan: int = 1) -> tuple[np.ndarray, list[np.ndarray]]:
    """Films textured objects, front to back, over a textured ground; each is a shape and the shift of its texture."""
    ground = 120 + 22 * texture(0, HEIGHT, WIDTH + pan * FRAMES)
    coats = [np.array(COLORS[n]) + 18 * texture(1 + n, HEIGHT, WIDTH) for n in range(len(objects))]
    frames: list[np.ndarray] = []
    truth: list[list[np.ndarray]] = [[] for _ in objects]
    for t in range(FRAMES):
        frame, free = ground[:, pan * t : pan * t + WIDTH].copy(), np.ones((HEIGHT, WIDTH), bool)
        for n, (shape, shift) in enumerate(objects):
            mask = shape(t) & free
            frame[mask] = np.roll(coats[n], shift(t), (0, 1))[mask]
            free &= ~mask
            truth[n].append(mask)
        frames.append(frame.clip(0, 255).astype(np.uint8))
    return np.stack(frames), [np.stack(masks) for masks in truth]


def disc(x: float, y: float, radius: float, velocity: tuple[int, int]) -> Object:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]

    def draw(t: int) -> np.ndarray:
        return (columns - x - velocity[0] * t) ** 2 + (rows - y - velocity[1] * t) ** 2 < radius**2

    return draw, lambda t: (velocity[1] * t, velocity[0] * t)


def test_a_disc_over_a_panning_ground_is_the_one_object(tmp_path: Path) -> None:
    frames, (truth,) = film(disc(40, 55, 22, (3, 1)))
    found = find_moving_objects(frames, compute_flow(frames, tmp_path))
    assert found.layers.names == ("foreground",) and found.layers.masks.shape == (1, FRAMES, HEIGHT, WIDTH)
    assert mask_iou(found.layers.masks[0], truth) > 0.9 and found.others == ()


def test_without_an_object_nothing_is_found(tmp_path: Path) -> None:
    frames, _ = film()
    for number, clip in enumerate((frames, np.repeat(frames[:1], 5, axis=0), np.zeros_like(frames), frames[:1])):
        found = find_moving_objects(clip, compute_flow(clip, tmp_path / str(number)))
        assert found.layers.names == () and found.layers.masks.shape == (0, *clip.shape[:3])


@pytest.mark.slow
def test_objects_that_move_apart_are_layers_and_the_covering_one_is_in_front(tmp_path: Path) -> None:
    frames, truth = film(disc(30, 60, 18, (4, 0)), disc(112, 62, 20, (-3, 0)))
    flow = compute_flow(frames, tmp_path)
    found = find_moving_objects(frames, flow)
    assert found.layers.names == ("foreground1", "foreground2")
    assert [mask_iou(mask, true) > 0.85 for mask, true in zip(found.layers.masks, truth, strict=True)] == [True, True]
    assert not (found.layers.masks[0] & found.layers.masks[1]).any()

    # One layer only: the faster one; the report points at the other.
    one = find_moving_objects(frames, flow, 1)
    assert one.layers.names == ("foreground",) and mask_iou(one.layers.masks[0], truth[0]) > 0.8
    (other,) = one.others
    left, top, width, height = np.array(other.box) * (WIDTH, HEIGHT, WIDTH, HEIGHT)
    x, y, wide, high = cv2.boundingRect(truth[1][other.frame].astype(np.uint8))
    assert np.abs(np.array([left - x, top - y, width - wide, height - high])).max() < 6


@pytest.mark.slow
def test_pieces_that_move_together_are_one_object(tmp_path: Path) -> None:
    frames, truth = film(disc(40, 35, 17, (3, 1)), disc(42, 85, 15, (3, 1)))
    found = find_moving_objects(frames, compute_flow(frames, tmp_path))
    assert found.layers.names == ("foreground",) and mask_iou(found.layers.masks[0], truth[0] | truth[1]) > 0.85


@pytest.mark.slow
def test_a_strip_along_the_border_is_no_object(tmp_path: Path) -> None:
    frames, _ = film((lambda t: np.arange(HEIGHT)[:, None] + np.zeros(WIDTH) < 14, lambda t: (0, 4 * t)))
    assert find_moving_objects(frames, compute_flow(frames, tmp_path)).layers.names == ()


def move_in_turn(monkeypatch: pytest.MonkeyPatch, *moving: np.ndarray) -> None:
    """Replaces motion segmentation: the first masks move in its first round, and so on; nothing moves after that."""
    rounds = iter((*moving, None))
    monkeypatch.setattr(moving_objects, "segment_motion", lambda *arguments: next(rounds))


def test_arms_that_move_first_are_part_of_the_body_that_the_border_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]

    def arm(t: int) -> np.ndarray:
        return (np.abs(columns - 62 - t - 3 * (t % 5)) < 13) & (np.abs(rows - 80) < 11)

    def body(t: int) -> np.ndarray:
        return (np.abs(columns - 70 - t) < 30) & (rows > 28)

    frames, (arms, rest) = film((arm, lambda t: (0, t + 3 * (t % 5))), (body, lambda t: (0, t)))
    move_in_turn(monkeypatch, arms, arms | rest)
    found = find_moving_objects(frames, compute_flow(frames, tmp_path), 1)
    assert found.layers.names == ("foreground",) and mask_iou(found.layers.masks[0], arms | rest) > 0.9


def test_what_is_wide_along_the_border_beside_an_object_is_pointed_at_and_no_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]

    def reflection(t: int) -> np.ndarray:
        return (np.abs(columns - 50 - 3 * t) < 40) & (rows > 95)

    frames, (disc_masks, wide) = film(disc(50, 55, 22, (3, 0)), (reflection, lambda t: (0, 3 * t)))
    for count in (None, 2):
        move_in_turn(monkeypatch, disc_masks, wide)
        found = find_moving_objects(frames, compute_flow(frames, tmp_path), count)
        assert found.layers.names == ("foreground",) and mask_iou(found.layers.masks[0], disc_masks) > 0.9
        (other,) = found.others
        assert other.box[1] == pytest.approx(96 / HEIGHT)


@pytest.mark.slow
def test_a_leg_that_stands_still_for_a_while_belongs_to_its_object(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]

    def places(t: int) -> tuple[int, int]:  # of the body, and of the leg that waits and catches up
        return 40 + 3 * t, 40 + (0 if t < 3 else 6 * (t - 3) if t < 6 else 3 * t)

    def body(t: int) -> np.ndarray:
        return (columns - places(t)[0]) ** 2 / 2 + (rows - 45) ** 2 < 22**2

    def leg(t: int) -> np.ndarray:
        return (np.abs(columns - places(t)[1]) < 8) & (rows > 55) & (rows < 100) & ~body(t)

    frames, truth = film((body, lambda t: (0, 3 * t)), (leg, lambda t: (0, places(t)[1])))
    found = find_moving_objects(frames, compute_flow(frames, tmp_path), 1)
    whole = truth[0] | truth[1]
    assert found.layers.names == ("foreground",)
    for t in range(3):
        assert mask_iou(found.layers.masks[0, t], whole[t]) > 0.75


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "davis-car-shadow").is_dir(), reason="needs ../shared/data/davis-car-shadow")
def test_the_car_is_found_by_its_motion(tmp_path: Path) -> None:
    place, size = SHARED / "davis-car-shadow", (427, 240)
    files = sorted((place / "frames").iterdir())[:10]
    frames = np.stack(
        [cv2.resize(cv2.imread(str(file))[..., ::-1], size, interpolation=cv2.INTER_AREA) for file in files]
    )
    truth = load_masks([str(place / "masks")], make_metadata(size, 40, Fraction(24)), size, range(10)).masks[0]
    found = find_moving_objects(frames, compute_flow(frames, tmp_path)).layers
    assert found.names == ("foreground",) and mask_iou(found.masks[0], truth) >= 0.75
