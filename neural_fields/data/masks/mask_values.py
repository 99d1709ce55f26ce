"""Which values of the masks of a set are objects, and the pixels of a picture that have them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from neural_fields.data.masks.mask_pictures import MaskPicture

Values = Literal["gray", "alpha", "index", "color"]


@dataclass(frozen=True)
class MaskMeaning:
    """Says what values of masks mean.

    Attributes:
        values: which values count.
        ids: of the objects, rising; empty where all masks are one object.
        white: the gray that fills a pixel; 0 where masks are not exact and only the half of 255 counts.
        factor: by which 8-bit grays are multiplied among pictures of 16 bits.
        note: what the user should know; empty otherwise.
    """

    values: Values
    ids: tuple[int, ...] = ()
    white: int = 255
    factor: int = 1
    note: str = ""

    @property
    def is_soft(self) -> bool:
        """Whether grays between black and white are shares."""
        return self.white > 0 and not self.ids

    def select_values(self, picture: MaskPicture) -> Shaped[np.ndarray, "height width"]:
        """Selects the values of a picture that count."""
        if self.values == "alpha":
            assert picture.alpha is not None
            alpha = picture.alpha
            return alpha if alpha.dtype == np.uint8 else np.rint(alpha.clip(0, 1) * 255).astype(np.uint8)
        if self.values == "color":
            return picture.pack_colors()
        if self.values == "index":
            return picture.values
        gray = picture.compute_gray()
        return gray.astype(np.uint16) * self.factor if self.factor > 1 and gray.dtype == np.uint8 else gray

    def find_object(self, picture: MaskPicture, ids: Iterable[int]) -> Bool[np.ndarray, "height width"]:
        """Finds the pixels of some ids."""
        return np.isin(self.select_values(picture), list(ids))

    def find_share(self, picture: MaskPicture) -> UInt8[np.ndarray, "height width"]:
        """Computes the share of each pixel that the object fills, 0 to 255; half of it is 128."""
        values = self.select_values(picture)
        if not self.white:
            return np.where(values >= 128, np.uint8(255), np.uint8(0))
        if values.dtype == np.uint8 and self.white == 255:
            return np.ascontiguousarray(values)
        wide = values if values.dtype.kind == "f" else values.astype(np.float64)
        return np.rint(wide.clip(0, self.white) * (255 / self.white)).astype(np.uint8)
