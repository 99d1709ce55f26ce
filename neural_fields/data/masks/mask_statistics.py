"""What the pictures of a set of masks hold: which values, in how many pixels, and beside what.

Nothing is decided here: `mask_meaning` looks at all pictures of a set together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Shaped

from neural_fields.core.errors import bad_input
from neural_fields.data.masks.mask_pictures import MaskPicture


class ValueCount(NamedTuple):
    """How often a value occurs in all pictures, and beside what."""

    pixels: int = 0
    inner: int = 0  # of these pixels: those whose eight neighbors have the value too
    below_lighter: int = 0  # pairs of neighboring pixels: this value and a lighter one
    above_darker: int = 0  # and this value and a darker one

    def has_area(self, min_share: float) -> bool:
        """Whether so large a share of the pixels is inside of areas: an edge has another value in each pixel."""
        return self.inner >= min_share * self.pixels


ValueCounts = dict[int, ValueCount]


@dataclass
class AlphaStatistics:
    """Collects the alpha of pictures.

    Attributes:
        extremes: smallest and largest alpha as a share of one; None where no picture has alpha.
        is_soft: whether a pixel is neither clear nor opaque.
        first_without: name of the first picture that has no alpha.
        clear_indices: palette indices that are transparent.
    """

    extremes: tuple[float, float] | None = None
    is_soft: bool = False
    first_without: str = ""
    clear_indices: set[int] = field(default_factory=set)

    def add(self, picture: MaskPicture) -> None:
        """Adds a picture."""
        alpha = picture.alpha
        if alpha is None:
            self.first_without = self.first_without or picture.label
            return
        opaque = 255 if alpha.dtype == np.uint8 else 1
        low, high = float(alpha.min()) / opaque, float(alpha.max()) / opaque
        before = self.extremes or (low, high)
        self.extremes = min(before[0], low), max(before[1], high)
        self.is_soft |= bool(((alpha > 0) & (alpha < opaque)).any())
        if picture.palette is not None:
            self.clear_indices |= set(np.unique(picture.values[alpha == 0]).tolist())


@dataclass
class FloatStatistics:
    """Collects floating-point values: the smallest and largest one (0 included), and whether all are whole."""

    low: float = 0.0
    high: float = 0.0
    are_whole: bool = True

    def add(self, values: Shaped[np.ndarray, "height width"]) -> None:
        """Adds the values of a picture."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.are_whole = self.are_whole and bool((values == np.rint(values)).all())


@dataclass
class MaskStatistics:
    """Collects what all pictures of a set hold.

    Attributes:
        path: of the set, for messages.
        max_colors: more colors than these are not told apart.
        kinds: the kinds of pictures: "lossy" where the compression changes values, otherwise "float", "color",
            "index" (of a palette), "gray1" and "gray2" (grays of 1 and 2 bytes, "gray4"...).
        counts: of each kind but "lossy", its values. "color" also has the colors of indices and of 8-bit grays.
        palette: the color of each index; None where pictures contradict each other.
        lossy_colors: pixels of each strong color of lossy pictures.
        alpha: what is known of transparency.
        floats: what is known of floating-point values.
        is_black_beside_white: whether black and white touch in a picture of 8 bits.
        is_white_alone: whether a picture of 8 bits has white, and else only black.
    """

    path: Path
    max_colors: int = 20_000
    kinds: set[str] = field(default_factory=set)
    counts: dict[str, ValueCounts] = field(default_factory=dict)
    palette: dict[int, tuple[int, ...]] | None = field(default_factory=dict)
    lossy_colors: dict[int, int] = field(default_factory=dict)
    alpha: AlphaStatistics = field(default_factory=AlphaStatistics)
    floats: FloatStatistics = field(default_factory=FloatStatistics)
    is_black_beside_white: bool = False
    is_white_alone: bool = False

    def add(self, picture: MaskPicture) -> None:
        """Adds a picture.

        Raises:
            UserError: values that are no numbers (exit 3).
        """
        for numbers in (picture.values, picture.alpha):
            if numbers is not None and numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
                y, x = (int(position) for position in np.argwhere(~np.isfinite(numbers))[0])
                raise bad_input(
                    f"{picture.label} holds {numbers[y, x]} at row {y}, column {x}",
                    where=str(self.path),
                    why="masks are numbers from 0 to 1, or from 0 to 255",
                    fix="write 0 where there is no object",
                )
        self.alpha.add(picture)
        if not picture.is_exact:
            self.kinds.add("lossy")
            if picture.is_color:  # its strong colors are told apart by the channels that are on
                most = picture.values.max(-1)
                strong = most.astype(int) - picture.values.min(-1) > 80
                codes = (picture.values[strong] > most[strong][:, None] // 2) @ np.array([4, 2, 1])
                for code, amount in enumerate(np.bincount(codes, minlength=8).tolist()):
                    self.lossy_colors[code] = self.lossy_colors.get(code, 0) + amount
        elif picture.values.dtype.kind == "f":
            self.kinds.add("float")
            self.floats.add(picture.values)
            if self.floats.are_whole and max(abs(self.floats.low), abs(self.floats.high)) < 2**31:
                self.add_counts("float", count_values(picture.values.astype(np.int64)))
        elif picture.is_color:
            self.kinds.add("color")
            if len(self.counts.get("color", ())) <= self.max_colors:
                shown = picture.pack_colors()
                if picture.alpha is not None and picture.alpha.any():
                    shown = np.where(picture.alpha == 0, 0, shown)
                self.add_counts("color", count_values(shown))
        else:
            kind = "index" if picture.palette is not None else f"gray{picture.values.itemsize}"
            self.kinds.add(kind)
            counts = count_values(picture.values)
            self.add_counts(kind, counts)
            if picture.values.dtype != np.uint8:
                return
            # The colors that grays or indices show.
            shown = np.arange(256)[:, None].repeat(3, 1) if picture.palette is None else picture.palette
            colors = {index: tuple(shown[index].tolist()) for index in counts}
            for index, color in colors.items():
                red, green, blue = color
                self.add_counts("color", {red << 16 | green << 8 | blue: counts[index]})
                if self.palette is not None and self.palette.setdefault(index, color) != color:
                    self.palette = None
            gray = picture.compute_gray().astype(np.int16)
            self.is_black_beside_white |= any(bool((abs(np.diff(gray, axis=axis)) == 255).any()) for axis in (0, 1))
            self.is_white_alone |= {*colors.values()} - {(0, 0, 0)} == {(255, 255, 255)}

    def add_counts(self, kind: str, counts: ValueCounts) -> None:
        """Adds the values of a picture of some kind."""
        known = self.counts.setdefault(kind, {})
        for value, more in counts.items():
            pixels, inner, below, above = known.get(value, ValueCount())
            known[value] = ValueCount(
                pixels + more.pixels, inner + more.inner, below + more.below_lighter, above + more.above_darker
            )


def count_values(values: Shaped[np.ndarray, "height width"]) -> ValueCounts:
    """Counts the values of a picture.

    Example:
        >>> count_values(np.array([[0, 0, 7], [0, 0, 7]], np.uint8))[7]
        ValueCount(pixels=2, inner=0, below_lighter=0, above_darker=2)
    """
    # A pixel is inside of an area when it and its eight neighbors have one value.
    rows = values[:, 1:] == values[:, :-1]
    same = rows[:, 1:] & rows[:, :-1]
    columns = values[1:, 1:-1] == values[:-1, 1:-1]
    inside = same[:-2] & same[1:-1] & same[2:] & columns[:-1] & columns[1:]

    # Of every two neighbors of different values, which one is the darker.
    pairs = [(values[:, 1:], values[:, :-1]), (values[1:], values[:-1])]
    unequal = [(a[a != b], b[a != b]) for a, b in pairs]
    darker, lighter = (np.concatenate([side(a, b) for a, b in unequal]) for side in (np.minimum, np.maximum))

    found: dict[int, list[int]] = {}
    parts = ((values, None), (values[1:-1, 1:-1], inside), (darker[None], None), (lighter[None], None))
    for place, (part, where) in enumerate(parts):
        if part.dtype == np.uint8 and part.size:  # most masks
            chosen = None if where is None else where.view(np.uint8)
            amounts = cv2.calcHist([part], [0], chosen, [256], [0, 256]).ravel().astype(np.int64)
            numbers = np.flatnonzero(amounts)
            amounts = amounts[numbers]
        else:
            numbers, amounts = np.unique(part if where is None else part[where], return_counts=True)
        for number, amount in zip(numbers.tolist(), amounts.tolist(), strict=True):
            found.setdefault(number, [0] * 4)[place] = amount
    return {number: ValueCount(*amounts) for number, amounts in found.items()}
