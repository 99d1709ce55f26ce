"""From hints in pixels of the source to hints at the size of the frames that are segmented; and what is refused."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Shaped

from neural_fields.core.errors import UserError, bad_input
from neural_fields.data.flow.compute import resize_mask
from neural_fields.data.masks.layer_masks import mask_iou
from neural_fields.data.masks.mask_meaning import read_one_mask
from neural_fields.data.segmentation.segmenter import FrameHints
from neural_fields.imaging.image_io import read_picture
from neural_fields.masking.hint_journal import HintedVideo, is_stored
from neural_fields.masking.hints import AnyHint, BoxHint, MainHint, MaskHint, PointHint, StrokeHint, TextHint

Box = tuple[int, int, int, int]  # left, top, right, bottom, at the size of the frames that are segmented


@dataclass(frozen=True)
class HintCheckSettings:
    """Holds what counts as a contradiction."""

    min_color: float = 0.25  # brightness, 0 to 1, from which a pixel of a picture is a stroke or a mask
    min_stroke_share: float = 0.1  # of a small pixel, that a stroke covers where it counts
    max_conflict_share: float = 0.1  # of a hint, that another one may contradict: boxes and outlines are rough
    max_shared_iou: float = 0.9  # of what two objects are said to be in one frame


DEFAULTS = HintCheckSettings()


@dataclass(frozen=True)
class HintedArea:
    """Holds what one hint says about the pixels of its frame, at the size of the frames that are segmented.

    Attributes:
        hint: the hint.
        inside: pixels that are the object; for a box, those of which some are.
        outside: pixels that are not the object.
    """

    hint: AnyHint
    inside: Bool[np.ndarray, "height width"]
    outside: Bool[np.ndarray, "height width"]


def convert_hints(
    hints: Sequence[AnyHint],
    folder: Path,
    video: HintedVideo,
    frames: range,
    size: tuple[int, int],
    command: str,
    settings: HintCheckSettings = DEFAULTS,
) -> dict[str, dict[int, FrameHints]]:
    """Checks hints and converts them. Of several boxes or masks of an object in one frame the last one counts.

    Args:
        hints: oldest first.
        folder: the folder of masks, for pictures that were copied there.
        video: the source, in whose pixels the hints are.
        frames: numbers of the frames in use.
        size: (width, height) of the frames that are segmented.
        command: `unwrap mask` and the video as the user would type it, for the errors.
        settings: what counts as a contradiction.

    Returns:
        The hints of each object, by the place of the frame in `frames`.

    Raises:
        UserError: a hint outside the frame or the clip, a picture that cannot be used, hints that contradict each
            other or do not say where the object is, or objects that are the same (exit 3).
    """
    areas: dict[int, dict[str, list[HintedArea]]] = defaultdict(lambda: defaultdict(list))
    current = choose_current_hints(hints)
    for hint in current:
        check_frame(hint, video, frames)
        area = _find_area(hint, folder, video, size, settings)
        areas[hint.frame][hint.object].append(area)
    found: dict[str, dict[int, FrameHints]] = {hint.object: {} for hint in current}
    for frame, objects in areas.items():
        _refuse_contradictions(frame, objects, command, settings)
        for name, given in objects.items():
            labels = np.zeros(given[0].inside.shape, np.int8)
            box: Box | None = None
            mask = None
            for area in given:
                if _is_box(area.hint):
                    rows, columns = np.flatnonzero(area.inside.any(1)), np.flatnonzero(area.inside.any(0))
                    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
                elif isinstance(area.hint, MaskHint | TextHint | MainHint):
                    mask = area.inside
                else:
                    labels[area.inside] = 1
                    labels[area.outside] = -1
            found[name][frame - frames.start] = FrameHints(labels, box, mask)
    for name, given_frames in found.items():
        if not any(h.box is not None or h.mask is not None or (h.labels > 0).any() for h in given_frames.values()):
            raise bad_input(
                f"nothing says where {name} is",
                where=", ".join(f"frame {hint.frame}: {hint.words}" for hint in hints if hint.object == name),
                why="there are only pixels that do not belong to it",
                fix=f"{command} --object {name} --frame {frames.start + min(given_frames)} --box x,y,width,height",
            )
    return found


def choose_current_hints(hints: Sequence[AnyHint]) -> tuple[AnyHint, ...]:
    """Chooses the hints that count: of several boxes or masks of an object in one frame the last one, else all.

    Args:
        hints: oldest first.
    """
    current: dict[tuple[object, ...], AnyHint] = {}
    for hint in hints:
        single = isinstance(hint, BoxHint | MaskHint | TextHint | MainHint)
        current[(type(hint), hint.object, hint.frame, None if single else hint)] = hint
    return tuple(current.values())


def check_frame(hint: AnyHint, video: HintedVideo, frames: range) -> None:
    """Refuses a hint in a frame that the clip does not have, or that is not in use.

    Args:
        hint: the hint.
        video: the source.
        frames: numbers of the frames in use.

    Raises:
        UserError: see above (exit 3).
    """
    first, last = video.first_number, video.first_number + video.frame_count - 1
    if not first <= hint.frame <= last:
        raise bad_input(
            f"--frame {hint.frame} is {'before the start' if hint.frame < first else 'after the end'} of the video",
            where=f"{hint.where}: {hint.words}",
            why=f"it has {video.frame_count} frames, {first} to {last}",
            fix=f"--frame {min(max(hint.frame, first), last)}",
        )
    if hint.frame not in frames:
        raise bad_input(
            f"--frame {hint.frame} is outside the frames in use",
            where=f"{hint.where}: {hint.words}",
            why=f"in and out points are {frames.start}:{frames.stop}, the last one not included",
            fix=f"--frames {min(hint.frame, frames.start)}:{max(hint.frame + 1, frames.stop)}",
        )


def _find_area(
    hint: AnyHint,
    folder: Path,
    video: HintedVideo,
    size: tuple[int, int],
    settings: HintCheckSettings,
) -> HintedArea:
    """Finds what a hint says about the pixels of its frame."""
    (width, height), shape = video.size, (size[1], size[0])
    across, down = size[0] / width, size[1] / height
    inside, outside = np.zeros(shape, bool), np.zeros(shape, bool)
    if isinstance(hint, PointHint):
        if not (0 <= hint.x < width and 0 <= hint.y < height):
            raise _outside_error(hint, video, f"--point {width // 2},{height // 2}")
        (inside if hint.is_object else outside)[int(hint.y * down), int(hint.x * across)] = True
    elif isinstance(hint, BoxHint) or (isinstance(hint, TextHint) and hint.file is None):
        box = hint.box if isinstance(hint, TextHint) else (hint.x, hint.y, hint.width, hint.height)
        assert box is not None, "words were found in the frame before"
        x, y, wide, high = box
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + wide, width), min(y + high, height)
        if x1 <= x0 or y1 <= y0:
            raise _outside_error(hint, video, f"--box 0,0,{width},{height}")
        rows = slice(math.floor(y0 * down), math.ceil(y1 * down))
        inside[rows, math.floor(x0 * across) : math.ceil(x1 * across)] = True
        outside = ~inside
    elif isinstance(hint, MaskHint | TextHint | MainHint):
        path, _ = _read_hint_picture(hint, folder, video)
        inside = resize_mask(read_one_mask(path), size)
        outside = ~inside
        if not inside.any():
            raise _empty_picture_error(hint, "white is the object and black the rest")
        if inside.all():
            raise bad_input(
                f"{hint.words} shows the whole frame",
                where=hint.where,
                why="white is the object and black the rest; without a rest there is nothing to tell it from",
                fix="paint what is not the object black, or choose another frame",
            )
    else:
        _, rgb = _read_hint_picture(hint, folder, video)
        strong = rgb.max(-1) >= settings.min_color
        red = strong & (rgb[..., 0] > 1.5 * rgb[..., 1])
        for marked, target in ((strong & ~red, inside), (red, outside)):
            share = cv2.resize(marked.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            target |= share >= settings.min_stroke_share
        inside &= ~outside
        if not (inside.any() or outside.any()):
            raise _empty_picture_error(hint, "green or white strokes are on the object, red ones are not")
    return HintedArea(hint, inside, outside)


def _outside_error(hint: AnyHint, video: HintedVideo, fix: str) -> UserError:
    return bad_input(
        f"{hint.words} is outside the frame",
        where=hint.where,
        why=f"the video is {video.size[0]}x{video.size[1]}; places are in its pixels, from the upper left corner",
        fix=fix,
    )


def _empty_picture_error(hint: AnyHint, why: str) -> UserError:
    return bad_input(f"{hint.words} shows nothing", where=hint.where, why=why, fix="paint on it, or leave it out")


def _read_hint_picture(
    hint: StrokeHint | MaskHint | TextHint | MainHint, folder: Path, video: HintedVideo
) -> tuple[Path, Shaped[np.ndarray, "height width 3"]]:
    """Finds the picture of a hint, and reads its colors over black, 0 to 1."""
    assert hint.file is not None, "it was found before, and boxes of words are no pictures"
    path = folder / hint.file if is_stored(hint.file) else hint.file
    if path.is_dir():
        raise bad_input(
            f"{hint.words} is a folder",
            where=hint.where,
            why=f"--{hint.kind} is the picture of one frame",
            fix=f"--masks {path} of unwrap train takes masks of all frames",
        )
    picture = read_picture(path)
    if picture.size != video.size:
        raise bad_input(
            f"{path.name} is {picture.size[0]}x{picture.size[1]}, the video is {video.size[0]}x{video.size[1]}",
            where=f"{hint.where}: {hint.words}",
            why="each pixel of the picture is one of the frame",
            fix="paint on a frame of the video, and save it at that size",
        )
    return path, picture.rgba[..., :3] * picture.rgba[..., 3:]


def _refuse_contradictions(
    frame: int, objects: Mapping[str, Sequence[HintedArea]], command: str, settings: HintCheckSettings
) -> None:
    """Refuses hints of one frame of which one says what another denies, and two objects that are the same pixels."""
    for areas in objects.values():
        for a, b in (pair for one in combinations(areas, 2) for pair in (one, one[::-1])):
            common = np.count_nonzero(a.inside & b.outside)
            # All of a box need not be the object: it is denied only where the object can be nowhere in it.
            is_rough = _is_box(a.hint)
            least = np.count_nonzero(a.inside)
            if not is_rough:
                least = min(least, np.count_nonzero(b.outside))
            limit = 1 - settings.max_conflict_share if is_rough else settings.max_conflict_share
            if common > limit * least:
                raise bad_input(
                    f"two hints of {a.hint.object} in frame {a.hint.frame} contradict each other",
                    where=f"{a.hint.words} and {b.hint.words}",
                    why="where the first one says that the object is, the second one says that it is not",
                    fix=f"leave one of them out; hints of the last command are taken back by {command} --undo",
                )
    for (name, areas), (other, others) in combinations(objects.items(), 2):
        for a, b in product(areas, others):
            if a.inside.any() and mask_iou(a.inside, b.inside) > settings.max_shared_iou:
                raise bad_input(
                    f"{name} and {other} are the same in frame {frame}",
                    where=f"{name}: {a.hint.words}, {other}: {b.hint.words}",
                    why="they overlap fully, and a pixel belongs to one object",
                    fix=f"point at {other} elsewhere, or leave one of them out",
                )


def _is_box(hint: AnyHint) -> bool:
    """Whether a hint says where the object is only roughly."""
    return isinstance(hint, BoxHint) or (isinstance(hint, TextHint) and hint.file is None)
