"""What is paint and what compression did, in pictures that are flat in one half and busy in the other."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from jaxtyping import UInt8
from PIL import Image

from editors.inputs.canonical_picture import find_change
from editors.inputs.change_detection import is_rough
from editors.inputs.frame_lifting import add_alpha
from neural_fields.imaging.image_io import make_picture

Frame = UInt8[np.ndarray, "height width 3"]
PATCH = (slice(120, 150), slice(60, 100))


def add_opaque(frame: Frame) -> UInt8[np.ndarray, "height width 4"]:
    return np.dstack([frame, np.full(frame.shape[:2], 255, np.uint8)])


def compress(frame: Frame, quality: int) -> Frame:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB")).copy()


def make_half_busy() -> Frame:
    """A decoded JPEG file: saturated detail to the right, and a flat ground to the left."""
    random = np.random.default_rng(0)
    frame = np.full((240, 426, 3), 120, np.float32)
    busy = cv2.GaussianBlur(random.standard_normal((240, 213, 3)).astype(np.float32), (0, 0), 1.5)
    frame[:, 213:] += 220 * busy
    return compress(np.rint(frame.clip(0, 255)).astype(np.uint8), 75)


def find_alpha(painted: Frame, base: Frame) -> np.ndarray:
    return find_change(make_picture(painted), add_alpha(base), "the frame", any_colors=True).rgba[..., 3]


def compress_again(frame: Frame) -> Frame:
    return compress(frame, 75)


def reduce_colors(frame: Frame) -> Frame:
    return np.asarray(Image.fromarray(frame).quantize(256).convert("RGB")).copy()


@pytest.mark.parametrize("program", [compress_again, reduce_colors])
def test_paint_on_what_a_program_saved_worse_is_found_and_nothing_else(program: Callable[[Frame], Frame]) -> None:
    base = make_half_busy()
    painted = program(base)
    assert not find_alpha(painted, base).any()
    painted[PATCH] = (225, 20, 205)  # one more color than the palette has
    alpha = find_alpha(painted, base)
    assert (alpha[PATCH] > 0.9).mean() > 0.95
    alpha[PATCH[0].start - 6 : PATCH[0].stop + 6, PATCH[1].start - 6 : PATCH[1].stop + 6] = 0
    assert not alpha.any()


def test_compression_is_rough_and_paint_is_not() -> None:
    base = make_half_busy()
    every = np.full(base.shape[:2], 255, np.uint8)
    assert is_rough(add_opaque(compress(base, 60)), add_opaque(base), every)
    stippled = base.copy()
    random = np.random.default_rng(1)
    for y, x in random.integers(4, (236, 422), (400, 2)):
        cv2.circle(stippled, (int(x), int(y)), 2, (230, 200, 40), -1)
    assert not is_rough(add_opaque(stippled), add_opaque(base), every)
    glazed = np.clip(base.astype(int) + 6, 0, 255).astype(np.uint8)
    assert not is_rough(add_opaque(glazed), add_opaque(base), every)
    alpha = find_alpha(stippled, base)
    assert (alpha[(stippled != base).any(axis=-1)] > 0.5).mean() > 0.95
