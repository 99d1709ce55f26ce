"""What the values of masks mean, decided once for all pictures of a layer: white, soft edges, ids of objects, alpha.

A single picture cannot say it: a frame in which an object is gone holds a rest of noise, whose lightest value is not
white. Ids are told from grays by their areas: a pixel of an object has neighbors with the same id, a soft edge has
another gray in each pixel.

`decide_meaning` asks in this order: is alpha the mask; are values kept exactly; are they floats, palette indices,
colors or grays. Each of these is a function below it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from neural_fields.core.errors import UserError, bad_input
from neural_fields.data.masks.mask_pictures import read_mask_picture
from neural_fields.data.masks.mask_statistics import MaskStatistics, ValueCount, ValueCounts
from neural_fields.data.masks.mask_values import MaskMeaning, Values

WHITES = (255, 1023, 4095, 65535)  # of 8, 10, 12 and 16 bits


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


def decide_meaning(found: MaskStatistics, settings: MaskMeaningSettings = DEFAULTS) -> MaskMeaning:
    """Decides what the values of a set of masks mean.

    Args:
        found: what all of its pictures hold.
        settings: the borders between grays, ids and noise.

    Raises:
        UserError: values that are no masks: negative ones, logits, pictures of a film, more ids than layers can be
            (exit 3).
    """
    # Gray pictures among those with a palette are of frames without an object.
    empty_gray = set(found.counts.get("gray1", {0: ValueCount()})) == {0}
    is_indexed = "index" in found.kinds and found.kinds <= {"index", "gray1"} and empty_gray

    # Alpha that varies is the mask, also of a cut-out whose object has a few plain colors; of ids it is the background.
    extremes = found.alpha.extremes
    is_background = is_indexed and found.alpha.clear_indices == {0} and not found.alpha.is_soft
    if extremes is not None and extremes[0] < 0.5 <= extremes[1] and not is_background:
        return decide_alpha(found, settings)
    if "lossy" in found.kinds:
        return decide_lossy(found)
    if "float" in found.kinds:
        return decide_floats(found, settings)
    if is_indexed and found.palette is not None:
        return decide_indices(found, found.palette, settings)
    if found.kinds & {"index", "color"}:
        return decide_colors(found, settings)
    return decide_grays(found, settings)


def decide_alpha(found: MaskStatistics, settings: MaskMeaningSettings) -> MaskMeaning:
    """Takes alpha as the mask, with a note where the colors could have been objects.

    Raises:
        UserError: a picture without alpha (exit 3).
    """
    if found.alpha.first_without:
        raise bad_input(
            f"{found.alpha.first_without} has no transparency, and other pictures have",
            where=str(found.path),
            why="where pictures are cut out, all of them must be",
            fix="save all masks in the same way",
        )
    colors, least = found.counts.get("color", {}), settings.min_area_share
    flat = [color for color, count in colors.items() if color and count.inner > least * count.pixels]
    if not 2 <= len(flat) <= settings.max_objects:
        return MaskMeaning("alpha")
    note = f"{found.path} has transparency, which is the mask: its {len(flat)} colors are not told apart; "
    return MaskMeaning("alpha", note=note + "save the masks without transparency for a layer each")


def decide_lossy(found: MaskStatistics) -> MaskMeaning:
    """Takes what is lighter than half of white as the object, where the compression has changed the values.

    Raises:
        UserError: several colors (exit 3).
    """
    strong = [amount for amount in found.lossy_colors.values() if amount]
    if sum(amount > 0.05 * sum(strong) for amount in strong) > 1:
        raise bad_input(
            f"the masks in {found.path} have several colors, which their compression has changed",
            where=str(found.path),
            why="a color is an object only where files keep it exactly; or are these frames of a film?",
            fix="save the masks as PNG files, or one file for each object in black and white",
        )
    return MaskMeaning("gray", white=0)


def decide_floats(found: MaskStatistics, settings: MaskMeaningSettings) -> MaskMeaning:
    """Decides the white of floating-point numbers; whole ones are grays or ids as in pictures.

    Raises:
        UserError: floats among other values, or numbers that have no black and white (exit 3).
    """
    if found.kinds != {"float"}:
        raise bad_input(
            f"{found.path} holds floating-point and whole numbers",
            where=str(found.path),
            why="one scale is needed for all masks of a layer",
            fix="save all masks in the same way",
        )
    low, high = found.floats.low, found.floats.high
    if found.floats.are_whole and low >= 0 and 1 < high < 2**31:
        return decide_whole_numbers(found, found.counts["float"], settings)
    for white in (1, 255, 65535):
        if high <= white * (1 + settings.max_overshoot):
            if low < -settings.max_overshoot * white or (white > 1 and high < white / 2):
                break
            return MaskMeaning("gray", white=white)
    raise _range_error(found.path, low, high)


def decide_indices(
    found: MaskStatistics, palette: dict[int, tuple[int, ...]], settings: MaskMeaningSettings
) -> MaskMeaning:
    """Decides whether palette indices are ids, or stand for grays or colors.

    Args:
        found: what all pictures hold.
        palette: the color of each index.
        settings: the borders between grays, ids and noise.
    """
    counts = found.counts["index"]
    colors = [palette[index] for index in counts]
    are_gray = all(len(set(color)) == 1 for color in colors)
    if are_gray and len(set(colors)) == len(colors):
        grays = {palette[index][0]: count for index, count in counts.items()}
        return decide_whole_numbers(found, grays, settings)
    if palette.get(0, (0, 0, 0)) != (0, 0, 0) and (0, 0, 0) in colors:  # the background is not the index 0
        return decide_colors(found, settings)
    ids = [index for index in sorted(counts) if index > 0]
    if len(ids) > 1 and ids[-1] == 255:  # void, as in DAVIS and VOC
        ids = ids[:-1]
    return _make_ids("index", found, counts, ids, settings)


def decide_colors(found: MaskStatistics, settings: MaskMeaningSettings) -> MaskMeaning:
    """Decides which colors are objects; black is none.

    Raises:
        UserError: neither black and white nor a few plain colors (exit 3).
    """
    counts = found.counts["color"]
    total = sum(count.pixels for count in counts.values())
    flat = []
    for color, count in counts.items():
        if color and count.has_area(settings.min_area_share) and count.pixels >= 1e-5 * total:
            flat.append(color)

    # Grays with color noise: many colors without an area, all of them near gray.
    channels = [(color >> 16, color >> 8 & 255, color & 255) for color in counts]
    edges = sum(1 for color in counts if color and color not in flat)
    if edges >= settings.soft_levels and all(max(rgb) - min(rgb) <= settings.near_gray for rgb in channels):
        return MaskMeaning("gray")

    # Several plain colors, which with black are nearly all that there is.
    plain = sum(counts[color].pixels for color in flat) + counts.get(0, ValueCount()).pixels
    if len(flat) > 1 and plain / total >= settings.min_flat_share:
        # Red counts least, as in the numbers of COCO and in the palettes of DAVIS and VOC.
        flat.sort(key=lambda color: int.from_bytes(color.to_bytes(3, "big"), "little"))
        return _make_ids("color", found, counts, flat, settings)

    # One color, such as red for white.
    if len(flat) <= 1 and len(counts) <= 512:
        return MaskMeaning("gray", white=max(map(max, channels)) or 255)
    raise bad_input(
        f"the masks in {found.path} have {len(counts)} colors",
        where=str(found.path),
        why="masks are black and white, or have one plain color for each object; are these frames of a film?",
        fix="give the folder of the masks; draw objects without antialiasing",
    )


def decide_grays(found: MaskStatistics, settings: MaskMeaningSettings) -> MaskMeaning:
    """Decides about gray pictures; those of 8 bits are widened among those of 16."""
    factor = 257 if {"gray1", "gray2"} <= found.kinds else 1
    joint = MaskStatistics(found.path)
    for kind in found.kinds:
        scale = factor if kind == "gray1" else 1
        joint.add_counts("gray", {value * scale: count for value, count in found.counts[kind].items()})
    return replace(decide_whole_numbers(found, joint.counts["gray"], settings), factor=factor)


def decide_whole_numbers(found: MaskStatistics, counts: ValueCounts, settings: MaskMeaningSettings) -> MaskMeaning:
    """Decides whether whole numbers are grays or ids.

    Args:
        found: what all pictures hold.
        counts: the numbers, on one scale.
        settings: the borders between grays, ids and noise.

    Raises:
        UserError: negative numbers, or dark ones that are too many for ids or have no areas (exit 3).
    """
    if min(counts) < 0:
        raise _range_error(found.path, float(min(counts)), float(max(counts)))
    above = [value for value in sorted(counts) if value > 0]
    if len(above) <= 1:  # black and one other value, which is white whatever it is
        return MaskMeaning("gray", white=above[-1] if above and 0 in counts else 255)
    top = above[-1]
    white = next((white for white in WHITES if top <= white), 0)

    # Nothing is white: ids, or nothing at all.
    if top * 2 < white or not white:
        inner, pixels = sum(counts[value].inner for value in above), sum(counts[value].pixels for value in above)
        if inner < settings.min_area_share * pixels or len(above) > settings.max_objects:
            raise bad_input(
                f"nothing in the masks in {found.path} is white: {len(above)} values above 0, up to {top}",
                where=str(found.path),
                why=f"the object must be white (128 or more of 255), or one of {settings.max_objects} ids at most",
                fix="check that these are the right masks, or use --masks auto",
            )
        return _make_ids("gray", found, counts, above, settings)

    # Grays in the middle that have areas, and do not lie between dark and light as soft edges do, are ids...
    near = settings.end_share * white if white in (255, 65535) else 0
    middle = [value for value in above if near < value < white - near]
    has_area = {value: counts[value].has_area(settings.min_area_share) for value in above}
    areas = []
    for value in middle:
        lighter, darker = counts[value].below_lighter, counts[value].above_darker
        if has_area[value] and lighter < settings.max_lighter_share * max(lighter + darker, 1):
            areas.append(value)
    # ... unless there are many other grays, or two values in all, which are dark and light.
    if len(middle) - len(areas) >= settings.soft_levels or len(counts) == 2:
        areas = []

    # A single gray of 50 % where black and white never touch is their edge.
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

    # A few ids next to black, and 255, which is void: it never stands alone, and covers less than they do.
    small = [value for value in above if value <= near and has_area[value]]
    is_void = top == 255 and bool(small) and set(above) == {*small, 255} and not found.is_white_alone
    if is_void and counts[255].pixels < sum(counts[value].pixels for value in small):
        return _make_ids("gray", found, counts, small, settings)
    return MaskMeaning("gray", white=white)


def _range_error(path: Path, low: float, high: float) -> UserError:
    """Makes the error of numbers that have no black and white."""
    kind = "these look like logits, or distances" if low < 0 else "neither 0 to 1 nor 0 to 255"
    return bad_input(
        f"the masks in {path} have values from {low:.4g} to {high:.4g}",
        where=str(path),
        why=f"{kind}; masks are 0 where there is no object, and 1 or 255 where it is",
        fix='numpy.save("masks.npy", logits > 0), then --masks masks.npy' if low < 0 else "save them from 0 to 1",
    )


def _make_ids(
    values: Values, found: MaskStatistics, counts: ValueCounts, ids: list[int], settings: MaskMeaningSettings
) -> MaskMeaning:
    """Makes the meaning of ids, which must have a background and not be too many."""
    total = sum(count.pixels for count in counts.values())
    names = {value: f"#{value:06x}" if values == "color" else str(value) for value in counts}
    words = [f"{names[value]} ({100 * counts[value].pixels / total:.2g} %)" for value in ids[: settings.max_objects]]
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
        amount = sum(counts[value].pixels for value in left_out)
        some = ", ".join(names[value] for value in left_out[:4])
        more = " ..." if len(left_out) > 4 else ""
        note = note or f"ids in {found.path}: {words[0]}"
        note += f", without {some}{more} ({100 * amount / total:.2g} %), which are void, edges or noise"
    return MaskMeaning(values, tuple(ids), note=note)


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
