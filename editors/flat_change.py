"""Where a frame of a clip was painted on, however the clip was saved since.

What a video codec leaves of a frame differs from it in fine detail, and the more the busier the frame is around a
texel. Means over some texels differ little: a codec keeps those, and paint changes them. So paint is found by means
that stand far out of what is usual for texels as busy, and followed to its edges from there.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

SMALL, LARGE, NARROW = 5, 17, 3  # texels of the windows that means are taken of
BUSY = (1, 2, 4, 8, 16, 32, 64)  # 8-bit levels of local contrast between which texels count as equally busy
TEXTURED = 4.0  # contrast from which the frame tells how strongly it was compressed
SEEN_ONCE = 64  # texels of a kind that tell what is usual for it
LOWEST, HIGHEST = 0.3, 2.5  # 8-bit levels: usual means of the best and the worst files
BESIDE = 48.0  # levels of contrast that make an edge lose one, however good the file: its colour is stored coarsely
FAR, FAR_LARGE = 21.0, 11.0  # times the usual, for means of either window: no codec does that
NEAR = 10.0  # times the usual: what goes on from there is paint too
LEAST = 9  # texels so far out that make a spot of paint
WHOLE = 0.5  # of what is seen: who painted so much painted all of it

Frame = UInt8[np.ndarray, "height width 3"]


def find_paint(
    painted: Frame, base: Frame, seen: Bool[np.ndarray, "height width"], is_lossy: bool
) -> Float[np.ndarray, "height width"] | None:
    """How much of each texel is paint; None: nothing is.

    Args:
        painted, base: a frame after and before.
        seen: texels that count for whether all of it was painted on.
        is_lossy: whether saving alone may have changed colours.
    """
    if not is_lossy:
        off = cv2.absdiff(painted, base)
        off = cv2.max(cv2.max(off[..., 0], off[..., 1]), off[..., 2]).astype(np.float32)
        # One level is what other machines may make of the same lookup.
        return np.clip((off - 1) / 2, 0, 1) if off.max(initial=0) > 1 else None
    found = _out_of_noise(painted, base)
    if found is None:
        return None
    if seen.any() and found[seen].mean() > WHOLE:
        found |= seen
    mask = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((SMALL, SMALL), np.uint8))
    return mask * np.minimum(1, 2 * cv2.blur(mask.astype(np.float32), (3, 3)))


def _out_of_noise(painted: Frame, base: Frame) -> Bool[np.ndarray, "height width"] | None:
    """Texels that differ by more than compression makes them; None: there are none."""
    # Codecs store brightness well and colour roughly; as RGB, noise of colour would look three times as strong.
    after, before = (cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb).astype(np.float32) for frame in (painted, base))
    off = after - before
    smooth = _mean(off, LARGE)
    usual = _usual(off - smooth, before)
    far = (_largest(_mean(off, SMALL)) > FAR * usual) | (_largest(smooth) > FAR_LARGE * usual)
    if not far.any():
        return None
    near = _largest(_mean(off, NARROW)) > NEAR * usual
    _, labels = cv2.connectedComponents(near.astype(np.uint8), connectivity=8)
    chosen = np.bincount(labels[far & near], minlength=int(labels.max()) + 1) >= LEAST
    chosen[0] = False
    found = chosen[labels]
    return found if found.any() else None


def _usual(rough: Float[np.ndarray, "height width 3"], before: Float[np.ndarray, "height width 3"]) -> np.ndarray:
    """What is usual for the mean of some texels to differ by, texel by texel: more where the frame is busy.

    Args:
        rough: differences without their local mean, which paint may have and noise has not.
    """
    mean = cv2.blur(before, (LARGE, LARGE))
    square = cv2.blur(before * before, (LARGE, LARGE))
    contrast = np.sqrt(np.maximum(_largest(square - mean * mean), 0))
    off = _largest(_mean(rough, SMALL))
    every = (slice(None, None, 2), slice(None, None, 2))  # enough to tell
    some, kind = off[every], np.digitize(contrast[every], BUSY)
    textured = some[contrast[every] > TEXTURED]
    overall = float(np.median(textured)) if len(textured) >= SEEN_ONCE else 0.0
    table = np.full(len(BUSY) + 1, overall, np.float32)
    for number in range(len(table)):
        same = some[kind == number]
        if len(same) >= SEEN_ONCE:
            table[number] = max(overall, float(np.median(same)))
    # Beyond the highest no file would be looked at: it is paint that differs so much everywhere.
    return np.maximum(table.clip(LOWEST, HIGHEST)[np.digitize(contrast, BUSY)], contrast / BESIDE)


def _mean(off: Float[np.ndarray, "height width 3"], side: int) -> Float[np.ndarray, "height width 3"]:
    """The mean of the texels around; beyond the edge nothing differs, or an edge alone would count twice."""
    return cv2.blur(off, (side, side), borderType=cv2.BORDER_CONSTANT)


def _largest(values: Float[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    """The largest size of the three channels."""
    one, two, three = (cv2.absdiff(plane, 0.0) for plane in cv2.split(values))
    return cv2.max(cv2.max(one, two), three)
