"""What the values of masks mean, decided once for all pictures of a layer: white, soft edges, ids of objects, alpha.

A single picture cannot say it: a frame in which an object is gone holds a rest of noise, whose lightest value is not
white. Ids are told from grays by their areas: a pixel of an object has neighbors with the same id, a soft edge has
another gray in each pixel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from neural_fields.core.errors import UserError, bad_input
from neural_fields.data.masks.mask_pictures import MaskPicture, read_mask_picture

WHITES = (255, 1023, 4095, 65535)  # of 8, 10, 12 and 16 bits
Values = Literal["gray", "alpha", "index", "color"]


@dataclass(frozen=True)
class MaskMeaningSettings:
    """Settings of how values of masks are understood."""

    # Of the pixels of one value, that have only that value around them: from here on the value is an area, no edge.
    min_area_share: float = 0.25
    # Of the pairs of neighbors across the outline of a value, in which the other is lighter: a soft edge lies between
    # dark and light, an object only touches others here and there.
    max_lighter_share: float = 0.35
    # Of the range from black to white: grays so near to an end are black or white with noise, and no ids.
    end_share: float = 0.03
    # Of the range: a highest id without others above this share is "void", the border or what nobody labeled.
    max_id_below_void: float = 0.4
    # Grays between black and white from which masks are soft; fewer are ids or noise.
    soft_levels: int = 8
    max_objects: int = 16  # more ids are refused: a layer each would be too many
    min_flat_share: float = 0.9  # of all pixels, that have colors with an area in masks of several colors
    near_gray: int = 32  # largest difference of the channels of a gray with color noise
    max_overshoot: float = 0.1  # of white: floats that resampling put beyond black or white


DEFAULTS = MaskMeaningSettings()


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

    def find_object(self, picture: MaskPicture, ids: Iterable[int]) -> Bool[np.ndarray, "height width"]:
        """Finds the pixels of some ids."""
        return np.isin(_select_values(picture, self), list(ids))

    def find_share(self, picture: MaskPicture) -> UInt8[np.ndarray, "height width"]:
        """Computes the share of each pixel that the object fills, 0 to 255; half of it is 128."""
        values = _select_values(picture, self)
        if not self.white:
            return np.where(values >= 128, np.uint8(255), np.uint8(0))
        if values.dtype == np.uint8 and self.white == 255:
            return np.ascontiguousarray(values)
        wide = values if values.dtype.kind == "f" else values.astype(np.float64)
        return np.rint(wide.clip(0, self.white) * (255 / self.white)).astype(np.uint8)


@dataclass
class MaskStatistics:
    """Collects what all pictures of a set hold.

    Attributes:
        path: of the set, for messages.
        max_colors: more colors than these are not told apart.
        kinds: the kinds of values that pictures have: gray of 1 or 2 bytes and so on, floats, indices, colors.
        counts: of each kind, for each value: pixels, pixels with the same value all around, and pairs with a lighter
            and with a darker neighbor.
        palettes: the color of each index; None where pictures contradict each other.
        lossy_colors: pixels of each strong color of pictures whose compression changes values.
        alpha_range, float_range: smallest and largest value; of alpha as a share of one.
    """

    path: Path
    max_colors: int = 20_000
    kinds: set[str] = field(default_factory=set)
    counts: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    palettes: dict[int, tuple[int, ...]] | None = field(default_factory=dict)
    lossy_colors: dict[int, int] = field(default_factory=dict)
    alpha_range: tuple[float, float] | None = None
    float_range: tuple[float, float] = (0.0, 0.0)
    are_floats_whole: bool = True
    without_alpha: str = ""  # the first picture that has none
    transparent: set[int] = field(default_factory=set)  # palette indices that are
    is_alpha_soft: bool = False
    is_black_beside_white: bool = False  # in 8 bits
    is_white_alone: bool = False  # whether a picture in 8 bits holds white, and nothing between black and white

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
        if picture.alpha is None:
            self.without_alpha = self.without_alpha or picture.label
        else:
            scale = 255 if picture.alpha.dtype == np.uint8 else 1
            low, high = float(picture.alpha.min()) / scale, float(picture.alpha.max()) / scale
            before = self.alpha_range or (low, high)
            self.alpha_range = min(before[0], low), max(before[1], high)
            self.is_alpha_soft |= bool(((picture.alpha > 0) & (picture.alpha < scale)).any())
            if picture.palette is not None:
                self.transparent |= set(np.unique(picture.values[picture.alpha == 0]).tolist())
        values = picture.values
        if not picture.is_exact:
            self.kinds.add("lossy")
            if picture.is_color:
                most = values.max(-1)
                strong = most.astype(int) - values.min(-1) > 80
                codes = (values[strong] > most[strong][:, None] // 2) @ np.array([4, 2, 1])
                for code, amount in enumerate(np.bincount(codes, minlength=8).tolist()):
                    self.lossy_colors[code] = self.lossy_colors.get(code, 0) + amount
        elif values.dtype.kind == "f":
            self.kinds.add("float")
            low, high = self.float_range
            self.float_range = min(low, float(values.min())), max(high, float(values.max()))
            self.are_floats_whole = self.are_floats_whole and bool((values == np.rint(values)).all())
            if self.are_floats_whole and max(map(abs, self.float_range)) < 2**31:
                self._add_counts("float", _count_values(values.astype(np.int64)))
        elif picture.is_color:
            self.kinds.add("color")
            if len(self.counts.get("color", ())) <= self.max_colors:
                shown = picture.pack_colors()
                if picture.alpha is not None and picture.alpha.any():
                    shown = np.where(picture.alpha == 0, 0, shown)
                self._add_counts("color", _count_values(shown))
        else:
            kind = "index" if picture.palette is not None else f"gray{values.itemsize}"
            self.kinds.add(kind)
            counts = _count_values(values)
            self._add_counts(kind, counts)
            if values.dtype == np.uint8:
                palette = np.arange(256)[:, None].repeat(3, 1) if picture.palette is None else picture.palette
                colors = {index: tuple(palette[index].tolist()) for index in counts}
                for index, color in colors.items():
                    red, green, blue = color
                    self._add_counts("color", {red << 16 | green << 8 | blue: counts[index]})
                    if self.palettes is not None and self.palettes.setdefault(index, color) != color:
                        self.palettes = None
                gray = picture.compute_gray().astype(np.int16)
                self.is_black_beside_white |= any(bool((abs(np.diff(gray, axis=axis)) == 255).any()) for axis in (0, 1))
                self.is_white_alone |= {*colors.values()} - {(0, 0, 0)} == {(255, 255, 255)}

    def _add_counts(self, kind: str, counts: dict[int, list[int]]) -> None:
        found = self.counts.setdefault(kind, {})
        for value, amounts in counts.items():
            found[value] = [a + b for a, b in zip(found.get(value, [0] * 4), amounts, strict=True)]


def _count_values(values: Shaped[np.ndarray, "height width"]) -> dict[int, list[int]]:
    """Counts, for each value, its pixels, those with the same value all around, and pairs of unequal neighbors."""
    rows = values[:, 1:] == values[:, :-1]
    same = rows[:, 1:] & rows[:, :-1]
    columns = values[1:, 1:-1] == values[:-1, 1:-1]
    inside = same[:-2] & same[1:-1] & same[2:] & columns[:-1] & columns[1:]
    pairs = [(values[:, 1:], values[:, :-1]), (values[1:], values[:-1])]
    unequal = [(a[a != b], b[a != b]) for a, b in pairs]
    darker, lighter = (np.concatenate([side(a, b) for a, b in unequal]) for side in (np.minimum, np.maximum))
    found: dict[int, list[int]] = {}
    for place, part in enumerate((values, values[1:-1, 1:-1][inside], darker, lighter)):
        if part.dtype in (np.uint8, np.uint16):
            amounts = np.bincount(part.ravel())
            numbers = np.flatnonzero(amounts)
            amounts = amounts[numbers]
        else:
            numbers, amounts = np.unique(part, return_counts=True)
        for number, amount in zip(numbers.tolist(), amounts.tolist(), strict=True):
            found.setdefault(number, [0] * 4)[place] = amount
    return found


def decide_meaning(found: MaskStatistics, settings: MaskMeaningSettings = DEFAULTS) -> MaskMeaning:
    """Decides what the values of a set of masks mean.

    Args:
        found: what all of its pictures hold.
        settings: the borders between grays, ids and noise.

    Raises:
        UserError: values that are no masks: negative ones, logits, pictures of a film, more ids than layers can be
            (exit 3).
    """
    where = str(found.path)
    empty_gray = set(found.counts.get("gray1", {0: []})) == {0}  # of frames without an object
    is_indexed = "index" in found.kinds and found.kinds <= {"index", "gray1"} and empty_gray
    # Alpha that varies is the mask, also of a cut-out whose object has a few plain colors; of ids it is the background.
    of_ids = is_indexed and found.transparent == {0} and not found.is_alpha_soft
    if not of_ids and found.alpha_range is not None and found.alpha_range[0] < 0.5 <= found.alpha_range[1]:
        colors = found.counts.get("color", {})
        least = settings.min_area_share
        flat = [color for color, (amount, solid, *_) in colors.items() if color and solid > least * amount]
        note = ""
        if 2 <= len(flat) <= settings.max_objects:
            note = f"{found.path} has transparency, which is the mask: its {len(flat)} colors are not told apart; "
            note += "save the masks without transparency for a layer each"
        if found.without_alpha:
            raise bad_input(
                f"{found.without_alpha} has no transparency, and other pictures have",
                where=where,
                why="where pictures are cut out, all of them must be",
                fix="save all masks in the same way",
            )
        return MaskMeaning("alpha", note=note)
    if "lossy" in found.kinds:
        strong = {code: amount for code, amount in found.lossy_colors.items() if amount}
        total = sum(strong.values())
        if sum(amount > 0.05 * total for amount in strong.values()) > 1:
            raise bad_input(
                f"the masks in {found.path} have several colors, which their compression has changed",
                where=where,
                why="a color is an object only where files keep it exactly; or are these frames of a film?",
                fix="save the masks as PNG files, or one file for each object in black and white",
            )
        return MaskMeaning("gray", white=0)
    if "float" in found.kinds:
        return _decide_floats(found, settings)
    if is_indexed and found.palettes is not None:
        return _decide_indices(found, found.palettes, settings)
    if found.kinds & {"index", "color"}:
        return _decide_colors(found, settings)

    # Gray values; among pictures of 16 bits, those of 8 are widened.
    factor = 257 if {"gray1", "gray2"} <= found.kinds else 1
    counts: dict[int, list[int]] = {}
    for kind in found.kinds:
        for value, amounts in found.counts[kind].items():
            wide = value * (factor if kind == "gray1" else 1)
            counts[wide] = [a + b for a, b in zip(counts.get(wide, [0] * 4), amounts, strict=True)]
    return replace(_decide_whole_numbers(found, counts, settings), factor=factor)


def _decide_whole_numbers(
    found: MaskStatistics, counts: dict[int, list[int]], settings: MaskMeaningSettings
) -> MaskMeaning:
    """Decides whether whole numbers are grays or ids."""
    values = sorted(counts)
    if values[0] < 0:
        raise _range_error(found.path, float(values[0]), float(values[-1]))
    above = [value for value in values if value > 0]
    if len(above) <= 1:
        return MaskMeaning("gray", white=above[-1] if above and 0 in counts else 255)
    top = above[-1]
    white = next((white for white in WHITES if top <= white), 0)
    has_area = {value: counts[value][1] >= settings.min_area_share * counts[value][0] for value in above}
    if top * 2 < white or not white:
        # Nothing is white: ids, or nothing at all.
        solid, total = (sum(counts[value][place] for value in above) for place in (1, 0))
        if solid < settings.min_area_share * total or len(above) > settings.max_objects:
            raise bad_input(
                f"nothing in the masks in {found.path} is white: {len(above)} values above 0, up to {top}",
                where=str(found.path),
                why=f"the object must be white (128 or more of 255), or one of {settings.max_objects} ids at most",
                fix="check that these are the right masks, or use --masks auto",
            )
        return _make_ids("gray", found, counts, above, settings)
    near = settings.end_share * white if white in (255, 65535) else 0
    middle = [value for value in above if near < value < white - near]
    areas = []
    for value in middle:
        _, _, lighter, darker = counts[value]
        if has_area[value] and lighter < settings.max_lighter_share * max(lighter + darker, 1):
            areas.append(value)
    if len(middle) - len(areas) >= settings.soft_levels:
        areas = []
    if areas and len(values) == 2:
        areas = []  # two grays: dark and light
    is_half = len(areas) == 1 and white == top == 255 and areas[0] in (127, 128)
    if is_half and 0 in counts and not found.is_black_beside_white:
        note = f"gray {areas[0]} always lies between black and white in {found.path}: taken as the soft edge"
        return MaskMeaning("gray", note=note)
    if areas:
        ids = [value for value in above if has_area[value] and (value in areas or value not in middle)]
        others = [value for value in ids if value != top]
        if top in (255, 65535) and others and max(others) < settings.max_id_below_void * top:
            ids = others  # the highest is void
        return _make_ids("gray", found, counts, ids, settings)
    small = [value for value in above if value <= near and has_area[value]]
    is_void = top == 255 and set(above) == {*small, 255} and bool(small) and not found.is_white_alone
    if is_void and counts[255][0] < sum(counts[value][0] for value in small):
        return _make_ids("gray", found, counts, small, settings)
    return MaskMeaning("gray", white=white)


def _decide_floats(found: MaskStatistics, settings: MaskMeaningSettings) -> MaskMeaning:
    """Decides the white of floating-point numbers; whole ones are grays or ids as in pictures."""
    if found.kinds != {"float"}:
        raise bad_input(
            f"{found.path} holds floating-point and whole numbers",
            where=str(found.path),
            why="one scale is needed for all masks of a layer",
            fix="save all masks in the same way",
        )
    low, high = found.float_range
    if found.are_floats_whole and low >= 0 and high > 1:
        return _decide_whole_numbers(found, found.counts["float"], settings)
    for white in (1, 255, 65535):
        if high <= white * (1 + settings.max_overshoot):
            if low < -settings.max_overshoot * white or (white > 1 and high < white / 2):
                break
            return MaskMeaning("gray", white=white)
    raise _range_error(found.path, low, high)


def _range_error(path: Path, low: float, high: float) -> UserError:
    """Makes the error of numbers that have no black and white."""
    kind = "these look like logits, or distances" if low < 0 else "neither 0 to 1 nor 0 to 255"
    return bad_input(
        f"the masks in {path} have values from {low:.4g} to {high:.4g}",
        where=str(path),
        why=f"{kind}; masks are 0 where there is no object, and 1 or 255 where it is",
        fix='numpy.save("masks.npy", logits > 0), then --masks masks.npy' if low < 0 else "save them from 0 to 1",
    )


def _decide_indices(
    found: MaskStatistics, palette: dict[int, tuple[int, ...]], settings: MaskMeaningSettings
) -> MaskMeaning:
    """Decides whether palette indices are ids, or stand for grays or colors."""
    counts = found.counts["index"]
    colors = [palette[index] for index in counts]
    if len(set(colors)) == len(colors) and all(len(set(color)) == 1 for color in colors):
        mapped = {palette[index][0]: amounts for index, amounts in counts.items()}
        return _decide_whole_numbers(found, mapped, settings)
    if palette.get(0, (0, 0, 0)) != (0, 0, 0) and (0, 0, 0) in colors:
        return _decide_colors(found, settings)
    ids = [index for index in sorted(counts) if index > 0]
    if ids and ids[-1] == 255 and len(ids) > 1:
        ids = ids[:-1]
    return _make_ids("index", found, counts, ids, settings)


def _decide_colors(found: MaskStatistics, settings: MaskMeaningSettings) -> MaskMeaning:
    """Decides which colors are objects; black is none."""
    counts = found.counts["color"]
    total = sum(amounts[0] for amounts in counts.values())
    flat = []
    for color, (amount, solid, *_) in counts.items():
        if color and solid >= settings.min_area_share * amount and amount >= 1e-5 * total:
            flat.append(color)
    channels = [(color >> 16, color >> 8 & 255, color & 255) for color in counts]
    edges = sum(1 for color in counts if color and color not in flat)
    if edges >= settings.soft_levels and all(max(rgb) - min(rgb) <= settings.near_gray for rgb in channels):
        return MaskMeaning("gray")  # grays with color noise
    share = (sum(counts[color][0] for color in flat) + counts.get(0, [0])[0]) / total
    if len(flat) > 1 and share >= settings.min_flat_share:
        # Red counts least, as in the numbers of COCO and in the palettes of DAVIS and VOC.
        flat.sort(key=lambda color: int.from_bytes(color.to_bytes(3, "big"), "little"))
        return _make_ids("color", found, counts, flat, settings)
    if len(flat) <= 1 and len(counts) <= 512:
        return MaskMeaning("gray", white=max(map(max, channels)) or 255)
    raise bad_input(
        f"the masks in {found.path} have {len(counts)} colors",
        where=str(found.path),
        why="masks are black and white, or have one plain color for each object; are these frames of a film?",
        fix="give the folder of the masks; draw objects without antialiasing",
    )


def _make_ids(
    values: Values,
    found: MaskStatistics,
    counts: dict[int, list[int]],
    ids: list[int],
    settings: MaskMeaningSettings,
) -> MaskMeaning:
    """Makes the meaning of ids, which must have a background and not be too many."""
    total = sum(amounts[0] for amounts in counts.values())
    words = []
    for value in ids[: settings.max_objects]:
        name = f"#{value:06x}" if values == "color" else str(value)
        words.append(f"{name} ({100 * counts[value][0] / total:.2g} %)")
    if 0 not in counts and ids:
        raise bad_input(
            f"the masks in {found.path} have ids in all pixels: {', '.join(words)}",
            where=str(found.path),
            why="0 or black is what belongs to no object",
            fix="make the background 0 or black",
        )
    if len(ids) > settings.max_objects:
        raise bad_input(
            f"the masks in {found.path} have {len(ids)} ids: {', '.join(words[:8])} ...",
            where=str(found.path),
            why=f"each would be a layer, and at most {settings.max_objects} are taken",
            fix="keep the objects that you want to paint on, and make the others 0",
        )
    note = f"ids in {found.path}: {', '.join(words)}" if len(ids) > 1 else ""
    left_out = [value for value in sorted(counts) if value and value not in ids]
    if left_out:
        amount = sum(counts[value][0] for value in left_out)
        some = ", ".join(f"#{v:06x}" if values == "color" else str(v) for v in left_out[:4])
        more = " ..." if len(left_out) > 4 else ""
        note = note or f"ids in {found.path}: {words[0]}"
        note += f", without {some}{more} ({100 * amount / total:.2g} %), which are void, edges or noise"
    return MaskMeaning(values, tuple(ids), note=note)


def _select_values(picture: MaskPicture, meaning: MaskMeaning) -> np.ndarray:
    """Selects the values of a picture that count."""
    if meaning.values == "alpha":
        assert picture.alpha is not None
        alpha = picture.alpha
        return alpha if alpha.dtype == np.uint8 else np.rint(alpha.clip(0, 1) * 255).astype(np.uint8)
    if meaning.values == "color":
        return picture.pack_colors()
    if meaning.values == "index":
        return picture.values
    gray = picture.compute_gray()
    return gray.astype(np.uint16) * meaning.factor if meaning.factor > 1 and gray.dtype == np.uint8 else gray


def read_one_mask(path: Path) -> Bool[np.ndarray, "height width"]:
    """Reads a picture that is the mask of one object in one frame.

    Args:
        path: the picture.

    Raises:
        UserError: a picture that cannot be read, is no mask, or holds several objects (exit 3).
    """
    picture, statistics = read_mask_picture(path), MaskStatistics(path)
    statistics.add(picture)
    meaning = decide_meaning(statistics)
    if len(meaning.ids) > 1:
        raise bad_input(
            f"{path.name} holds {len(meaning.ids)} objects",
            where=str(path),
            why=meaning.note,
            fix="save the mask of one object: white, and all else black",
        )
    return meaning.find_object(picture, meaning.ids) if meaning.ids else meaning.find_share(picture) >= 128
