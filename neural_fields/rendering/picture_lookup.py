"""A picture ready for lookup: copies at all the sizes at which frames show it, made when they are first asked for.

A pixel of a frame should be about as wide as a pixel of the copy that it looks up: of a larger copy it would miss
details, and a smaller one is blurred (Williams, "Pyramidal Parametrics", SIGGRAPH 1983). Pictures that the user gave
have copies a quarter of an octave apart, along each side, three quarters of an octave finer than the frame: against
pixels that are means over their squares, logos and texts then have 37 to 40 dB, with one linear lookup; equally fine
they have 31 to 33, also with cubic kernels, and an octave finer they begin to alias. Where frames show a picture larger
than it is, copies are larger too, so that its edges stay sharp. Overlays have the texels of a fit, which are solved for
lookups in halved copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.atlas.placed_picture import Paint, PicturePatch, PlacedPicture


@dataclass(frozen=True)
class LookupSettings:
    """Settings of the copies of a picture."""

    copies_per_octave: int
    finer_octaves: float  # by which a copy is finer than the frame
    max_doublings: int  # of a picture that frames show larger than it is
    min_side_px: int = 4  # of a copy
    max_copy_px: int = 16_000_000  # of a copy that is larger than the picture
    # Side of the square around opaque pixels that may be changed, as a share of the longer side, ...
    dilation_share: float = 0.02
    min_dilation_px: int = 5  # ... and at least this many pixels
    max_mask_side_px: int = 1024  # of the mask of these pixels


OF_PICTURES = LookupSettings(copies_per_octave=4, finer_octaves=0.75, max_doublings=4)
OF_OVERLAYS = LookupSettings(copies_per_octave=1, finer_octaves=0.0, max_doublings=0)
Level = tuple[int, int]  # how much smaller a copy is than the picture, across and down, in parts of an octave


@dataclass(frozen=True)
class PictureLookup:
    """A picture with its copies, and the patches of the plane that show it."""

    picture: Float[np.ndarray, "height width 4"]  # premultiplied, colors up to 255
    patches: tuple[PicturePatch, ...]
    opaque_mask: UInt8[np.ndarray, "_ _"]  # of the picture, or of a copy of it: 255 where it is not transparent
    settings: LookupSettings
    _copies: dict[Level, Float[np.ndarray, "_ _ 4"]] = field(default_factory=dict, repr=False)
    _touchable_masks: dict[int, UInt8[np.ndarray, "_ _"]] = field(default_factory=dict, repr=False)  # by side

    @staticmethod
    def build(paint: Paint) -> PictureLookup:
        """Prepares an overlay or a placed picture for lookup."""
        is_placed = isinstance(paint, PlacedPicture)
        settings = OF_PICTURES if is_placed else OF_OVERLAYS
        placed = paint if isinstance(paint, PlacedPicture) else PlacedPicture.from_overlay(paint)
        bright = cv2.cvtColor(255 * placed.rgba[..., 3], cv2.COLOR_GRAY2RGBA)  # its fourth channel is one
        opaque = (placed.rgba[..., 3] > 0).astype(np.uint8) * 255
        share = settings.max_mask_side_px / max(opaque.shape)
        if share < 1:
            width, height = (max(1, math.ceil(share * side)) for side in placed.size)
            opaque = (cv2.resize(opaque, (width, height), interpolation=cv2.INTER_AREA) > 0).astype(np.uint8) * 255
        return PictureLookup(cv2.multiply(placed.rgba, bright), placed.patches, opaque, settings)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture."""
        return self.picture.shape[1], self.picture.shape[0]

    def choose_level(self, steps: tuple[float, float]) -> Level:
        """Chooses the copy that a frame looks up.

        Args:
            steps: pixels of the picture, across and down, from one pixel of the frame to the next.
        """
        chosen, octave = [], self.settings.copies_per_octave
        room = max(0.0, math.log2(self.settings.max_copy_px / (self.size[0] * self.size[1])) / 2)
        for step, side in zip(steps, self.size, strict=True):
            smallest = math.floor(octave * math.log2(max(1.0, side / self.settings.min_side_px)))
            largest = math.floor(octave * min(self.settings.max_doublings, room))
            wanted = round(octave * (math.log2(max(step, 1e-6)) - self.settings.finer_octaves))
            chosen.append(max(-largest, min(smallest, wanted)))
        return chosen[0], chosen[1]

    def read_copy(self, level: Level) -> Float[np.ndarray, "_ _ 4"]:
        """Returns a copy of the picture, premultiplied, with colors up to 255."""
        if level == (0, 0):
            return self.picture
        if level not in self._copies:
            octave = self.settings.copies_per_octave
            # From the nearest one that is larger by whole octaves, so that large pictures are read once.
            across, down = (octave * ((parts - 1) // octave) if parts > 0 else 0 for parts in level)
            width, height = (
                max(1, round(side / 2 ** (parts / octave))) for side, parts in zip(self.size, level, strict=True)
            )
            copy = self.read_copy((across, down))
            smaller = (min(width, copy.shape[1]), min(height, copy.shape[0]))
            if smaller != (copy.shape[1], copy.shape[0]):
                copy = cv2.resize(copy, smaller, interpolation=cv2.INTER_AREA)
            if (width, height) != smaller:
                copy = _cut_overshoot(cv2.resize(copy, (width, height), interpolation=cv2.INTER_CUBIC))
            self._copies[level] = copy
        return self._copies[level]

    def scale_places(
        self, level: Level, places: Float[np.ndarray, "rows columns 3"]
    ) -> Float[np.ndarray, "rows columns 2"]:
        """Converts places in the picture to positions in a copy of it, in which 0 is the center of the first pixel."""
        image = self.read_copy(level)
        x, y = image.shape[1] / self.size[0], image.shape[0] / self.size[1]
        return cv2.transform(places, np.array([[x, 0, 0, -0.5], [0, y, 0, -0.5]]))

    def look_up(self, level: Level, places: Float[np.ndarray, "rows columns 2"]) -> Float[np.ndarray, "rows columns 4"]:
        """Looks a copy up; transparent outside of the picture.

        Args:
            level: of the copy.
            places: positions in it; 0 is the center of its first pixel.

        Returns:
            Premultiplied, with colors up to 255.
        """
        image, mode = self.read_copy(level), cv2.BORDER_CONSTANT
        return cv2.remap(image, places, None, cv2.INTER_LINEAR, borderMode=mode, borderValue=0)

    def find_touchable_mask(self, step: float) -> UInt8[np.ndarray, "_ _"]:
        """Finds where the picture may change frames: 255 where it is not transparent, and around there.

        Args:
            step: pixels of the picture between neighboring lookups in the mask; the farther apart they are, the more
                surroundings make sure that no paint slips through between them.
        """
        settings, scale = self.settings, max(self.opaque_mask.shape) / max(self.size)
        least = max(settings.min_dilation_px, round(settings.dilation_share * max(self.opaque_mask.shape)))
        side = max(least, 2 * math.ceil(2 * step * scale)) | 1
        if side not in self._touchable_masks:
            self._touchable_masks[side] = cv2.dilate(self.opaque_mask, np.ones((side, side), np.uint8))
        return self._touchable_masks[side]


def _cut_overshoot(paint: Float[np.ndarray, "rows columns 4"]) -> Float[np.ndarray, "rows columns 4"]:
    """Brings alpha to 0 to 1 and premultiplied colors to what it allows: cubic kernels overshoot at edges."""
    alpha = cv2.min(cv2.extractChannel(paint, 3), 1.0)
    bright = cv2.multiply(alpha, 255.0)
    return cv2.max(cv2.min(paint, cv2.merge([bright, bright, bright, alpha])), 0.0)


def measure_steps(
    places: Float[np.ndarray, "rows columns 3"], is_seen: UInt8[np.ndarray, "rows columns"] | None = None
) -> tuple[float, float]:
    """Measures how far apart, across and down in a picture, neighboring samples of a frame are: the medians.

    Args:
        places: positions of the samples in the picture, and a third number that does not count.
        is_seen: above half of its largest value where the positions count; where a layer is hardly seen, they mean
            little.
    """
    if min(places.shape[:2]) < 2:
        return 1.0, 1.0
    rows, columns = (max(1, (side - 1) // 16) for side in places.shape[:2])
    here = places[:-1:rows, :-1:columns]
    right, below = places[:-1:rows, 1::columns] - here, places[1::rows, :-1:columns] - here
    squares = (np.square(right) + np.square(below))[..., :2]
    if is_seen is not None:
        parts = [is_seen[:-1:rows, :-1:columns], is_seen[:-1:rows, 1::columns], is_seen[1::rows, :-1:columns]]
        seen = np.minimum(np.minimum(parts[0], parts[1]), parts[2]) > is_seen.max() // 2
        squares = squares[seen] if seen.any() else squares
    across, down = np.sqrt(np.median(squares.reshape(-1, 2), axis=0))
    return float(across), float(down)
