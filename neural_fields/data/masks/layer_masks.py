"""Layer masks: they say which pixels of each frame belong to which object. They come from files or from motion.

Layers are ordered front to back. The background is everything outside the masks, and is never listed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from neural_fields.core.errors import bad_input
from neural_fields.core.memmap import allocate_zeros
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing, report_part
from neural_fields.data.flow.compute import resize_mask
from neural_fields.data.masks.layer_names import check_layer_name
from neural_fields.data.masks.mask_files import MaskFiles, open_mask_files
from neural_fields.data.masks.mask_folder import read_mask_folder
from neural_fields.data.masks.mask_meaning import DEFAULTS as MEANING
from neural_fields.data.masks.mask_numbers import MatchedMasks, match_masks
from neural_fields.data.masks.mask_pictures import MaskPicture
from neural_fields.data.masks.mask_values import MaskMeaning
from neural_fields.data.video.metadata import VideoMetadata

ASPECT_SLACK = 0.01  # Relative. Working sizes are rounded to whole pixels.
MIN_SHARE = 16  # of 255: a frame whose lightest pixel is darker holds noise, and no object


@dataclass(frozen=True)
class LayerMasks:
    """Holds the names of the front layers, front to back, and a mask for each of them in each frame.

    Without names there is a single layer: everything is background.

    Attributes:
        names: of the front layers.
        masks: where a layer fills at least half of a pixel.
        shares: the share of each pixel that a layer fills, 0 to 255, of masks with soft edges; None where all masks are
            hard. Layers may overlap: each gets at most what those in front leave, see `settle_front_to_back`.
        notes: how files were understood, for the user, one sentence each.
    """

    names: tuple[str, ...]
    masks: Bool[np.ndarray, "layers time height width"]
    shares: UInt8[np.ndarray, "layers time height width"] | None = None
    notes: tuple[str, ...] = ()


def is_soft(shares: UInt8[np.ndarray, "height width"]) -> bool:
    """Tells whether a layer fills some pixels of a frame in part.

    Example:
        >>> is_soft(np.uint8([[0, 128, 255]])), is_soft(np.uint8([[0, 0, 255]]))
        (True, False)
    """
    return bool(((shares > 0) & (shares < 255)).any())


def settle_front_to_back(
    shares: UInt8[np.ndarray, "layers height width"],
) -> tuple[UInt8[np.ndarray, "layers height width"], UInt8[np.ndarray, "layers height width"]]:
    """Computes what is visible of overlapping layers: each gets at most what those in front leave.

    Of hard masks, these are the parts that no mask in front hides. Shares that fit beside each other do not change, as
    those of two objects that meet in a pixel. The share of the front layer is never reduced, however sure the others
    are: the order of layers says who covers whom.

    Args:
        shares: of each pixel, 0 to 255, front to back.

    Returns:
        The visible shares, which add up to at most 255, and what is left of each pixel for each layer.

    Example:
        >>> visible, left = settle_front_to_back(np.uint8([[[55]], [[255]], [[100]]]))
        >>> visible.ravel().tolist(), left.ravel().tolist()
        ([55, 200, 0], [255, 200, 0])
    """
    visible, left = np.empty_like(shares), np.empty_like(shares)
    rest = np.full(shares.shape[1:], 255, np.uint8)
    for layer, share in enumerate(shares):
        left[layer] = rest
        visible[layer] = np.minimum(share, rest)
        rest = rest - visible[layer]
    return visible, left


def default_layer_names(count: int) -> tuple[str, ...]:
    """Returns names for mask layers that have none, front to back.

    Example:
        >>> default_layer_names(1), default_layer_names(2)
        (('foreground',), ('foreground1', 'foreground2'))
    """
    return ("foreground",) if count == 1 else tuple(f"foreground{index + 1}" for index in range(count))


@dataclass(frozen=True)
class _MaskSet:
    """The masks of one `--masks`, and the layers that are made of them.

    `layers` says for each layer its name, and the planes and ids that it has; no ids stand for gray values.
    """

    files: MaskFiles
    meaning: MaskMeaning
    matched: MatchedMasks
    layers: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def read_layers(
        self,
        metadata: VideoMetadata,
        size: tuple[int, int],
        out: Bool[np.ndarray, "layers time height width"],
        shares: UInt8[np.ndarray, "layers time height width"],
        report: ProgressReporter,
    ) -> list[set[int]]:
        """Reads the masks into `out`, and the shares of soft ones into `shares`.

        Args:
            metadata: of the clip.
            size: (width, height) of the masks to fill, in pixels.
            out: is filled with the masks of these layers.
            shares: is filled with 0 to 255 where masks are soft.
            report: called before each picture, as the stage "masks".

        Returns:
            The frames with shares of each layer; none where the masks have a few gray values only.

        Raises:
            UserError: another aspect than the clip.
        """
        levels = np.zeros((len(self.layers), 256), bool)  # the gray values of all masks
        soft: list[set[int]] = [set() for _ in self.layers]
        order = sorted(set(self.matched.used))
        slots = {index: slot for slot, index in enumerate(self.matched.used)}
        for done, (index, planes) in enumerate(zip(order, self.files.read(order), strict=True)):
            report(Progress("masks", done, len(order)))
            slot = slots[index]
            _check_size(self.files.path, planes[0], metadata, size)
            for layer, (_, chosen, ids) in enumerate(self.layers):
                if ids:
                    mask = np.logical_or.reduce([self.meaning.find_object(planes[plane], ids) for plane in chosen])
                    out[layer, slot] = resize_mask(mask, size)
                    continue
                share = np.maximum.reduce([self.meaning.find_share(planes[plane]) for plane in chosen])
                mask = share >= 128
                out[layer, slot] = resize_mask(mask, size)
                found = cv2.calcHist([share], [0], None, [256], [0, 256]).ravel() > 0
                levels[layer] |= found
                if self.meaning.is_soft and found[2:255].any() and found[MIN_SHARE:].any():
                    soft[layer].add(slot)
                    shrinks = size[0] * size[1] < mask.size
                    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
                    shares[layer, slot] = cv2.resize(share, size, interpolation=mode)
        return [
            found if np.count_nonzero(levels[layer, 2:255]) >= MEANING.soft_levels else set()
            for layer, found in enumerate(soft)
        ]

    def check_layers(self, masks: Bool[np.ndarray, "layers time height width"]) -> list[str]:
        """Checks that masks are not empty on every frame and not inverted; returns notes.

        Raises:
            UserError: empty masks, or most likely inverted ones.
        """
        path = self.files.path
        covered = [float(layer.mean()) for layer in masks]
        if not any(covered):
            raise bad_input(
                f"the masks in {path} are empty on every frame",
                where=str(path),
                why="the object must be white (128 or more), 1, an id or a palette index above 0",
                fix="check that these are the right masks, or use --masks auto",
            )
        notes = []
        for (name, _, ids), mask, share in zip(self.layers, masks, covered, strict=True):
            border = float(np.concatenate([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], axis=1).mean())
            what = f"{name} ({'white' if not ids else 'id ' + ', '.join(map(str, ids))})"
            percent = f"{100 * share:.0f} %"
            if share > 0.5 and border > 0.9:
                raise bad_input(
                    f"the masks in {path} look inverted: {what} covers {percent} of the clip and all its borders",
                    where=str(path),
                    why="white, or an id, is the object; black, or 0, is the rest",
                    fix="invert the masks with any image tool, or use --masks auto",
                )
            if border > 0.9:
                notes.append(f"{what} covers all borders in {path}: if that is the background, invert the masks")
            if not share:
                notes.append(f"{name} is left out: it is in none of the frames in use")
        return notes


def load_masks(
    specs: Sequence[str],
    metadata: VideoMetadata,
    size: tuple[int, int],
    frames: range | None = None,
    report: ProgressReporter = report_nothing,
) -> LayerMasks:
    """Reads the masks of the front layers and checks that they fit the clip.

    Args:
        specs: "[NAME=]PATH" for each layer, front first. PATH is a folder of pictures, whose numbers are those of the
            frames, or a file: an array, a picture of several pages, or a video. Several ids, palette indices or colors
            are a layer each, in rising order; of a spec with a name they are one layer. A folder that `unwrap mask`
            wrote is a layer for each of its objects.
        metadata: of the whole source.
        size: (width, height) of the result, in pixels.
        frames: numbers of the frames that are used; masks of the other frames are dropped. None uses all of them.
        report: called before each picture, as the stage "masks".

    Returns:
        The masks, at `size`; with shares if at least one of them is soft.

    Raises:
        UserError: a missing path, other frames or another aspect than the clip, values that are no masks, inverted or
            empty masks, or a name that cannot be used (exit 3).
    """
    frames = metadata.numbers if frames is None else frames
    sets, notes = _plan_sets(specs, metadata, frames)
    names = [name for one in sets for name, *_ in one.layers]
    masks = allocate_zeros((len(names), len(frames), size[1], size[0]), bool)
    shares = allocate_zeros(masks.shape, np.uint8)
    soft: list[set[int]] = []  # the frames of each layer that are soft
    for number, one in enumerate(sets):
        part = slice(len(soft), len(soft) + len(one.layers))
        report_set = report_part(report, "masks", number / len(sets), (number + 1) / len(sets))
        soft += one.read_layers(metadata, size, masks[part], shares[part], report_set)
        notes += one.check_layers(masks[part])
    kept = [layer for layer in range(len(names)) if masks[layer].any()]  # of ids, those in the frames in use
    if len(kept) < len(names):
        names, masks, shares = [names[layer] for layer in kept], masks[kept], shares[kept]
        soft = [soft[layer] for layer in kept]
    if not any(soft):
        return LayerMasks(tuple(names), masks, notes=tuple(notes))
    for layer, slots in enumerate(soft):
        for slot in set(range(len(frames))) - slots:
            shares[layer, slot] = 255 * masks[layer, slot]
    return LayerMasks(tuple(names), masks, shares, tuple(notes))


def _plan_sets(specs: Sequence[str], metadata: VideoMetadata, frames: range) -> tuple[list[_MaskSet], list[str]]:
    """Finds the masks of each spec, the layers that they make, and notes.

    Raises:
        UserError: see `load_masks`.
    """
    specs = [part for spec in specs for part in _list_objects(spec)]

    # Names, paths and numbers of all masks, before any picture is read.
    opened: list[tuple[str, bool, MaskFiles, MatchedMasks]] = []
    for spec, fallback in zip(specs, default_layer_names(len(specs)), strict=True):
        given, path = split_mask_spec(spec)
        name, is_named = (fallback, False) if given is None else (given, True)
        check_layer_name(name, where="--masks", fix="--masks car=PATH")
        _refuse_second_name(name, [other for other, *_ in opened])
        files = open_mask_files(path, {metadata.frame_count, len(frames)})
        matched = match_masks(path, files.count, files.numbers, metadata.numbers, frames)
        opened.append((name, is_named, files, matched))

    sets: list[_MaskSet] = []
    notes: list[str] = []
    is_foreign = any(not (files.path / "object.json").is_file() for _, _, files, _ in opened)  # not of `unwrap mask`
    if is_foreign and metadata.rotation and (metadata.rotation == 180 or metadata.width == metadata.height):
        notes.append(  # the size of the masks does not tell
            f"the video is stored turned by {metadata.rotation} degrees: masks must be upright, as players show it; "
            "turn masks of a program that ignores the rotation"
        )
    for name, is_named, files, matched in opened:
        meaning, planes = files.find_meaning(matched), tuple(range(files.planes))
        layers: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [(name, planes, meaning.ids)]
        notes += [note for note in (matched.note, meaning.note) if note]
        if files.planes > 1:
            found = f"{files.path} holds {files.planes} objects"
            notes.append(f"{found}: one layer, {name}" if is_named else f"{found}: a layer each, the first in front")
        elif len(meaning.ids) > 1 and is_named:
            notes[-1] += f": one layer, {name}; without {name}= each would be a layer"
        elif len(meaning.ids) > 1:
            notes[-1] += ": a layer each, the first in front"
        if not is_named and files.planes > 1:
            layers = [(f"object-{plane + 1}", (plane,), meaning.ids) for plane in planes]
        elif not is_named and len(meaning.ids) > 1:
            numbers = range(1, len(meaning.ids) + 1) if meaning.values == "color" else meaning.ids
            layers = [(f"object-{number}", (0,), (id,)) for number, id in zip(numbers, meaning.ids, strict=True)]
        for layer, _, _ in layers if layers[0][0] != name else ():
            _refuse_second_name(layer, [other for one in sets for other, *_ in one.layers])
        sets.append(_MaskSet(files, meaning, matched, tuple(layers)))
    return sets, notes


def _refuse_second_name(name: str, others: Sequence[str]) -> None:
    """Refuses a name that another layer has."""
    if name in others:
        raise bad_input(f'two mask layers are called "{name}"', where="--masks", fix="give each layer its own name")


def _check_size(path: Path, picture: MaskPicture, metadata: VideoMetadata, size: tuple[int, int]) -> None:
    """Refuses masks of another aspect than the clip, whose pixels need not be square."""
    height, width = picture.values.shape[:2]
    wide, high = metadata.width, metadata.height
    shown = (round(wide * metadata.pixel_aspect), high)
    for a, b in (size, (wide, high), shown):
        if abs(width * b / height - a) <= max(1.0, ASPECT_SLACK * a):
            return
    why = "a mask may be larger or smaller than the frames, but must have their aspect"
    fix = f"save the masks at {wide}x{high}"
    if metadata.rotation in (90, 270) and abs(height * high / width - wide) <= max(1.0, ASPECT_SLACK * wide):
        why = (
            f"the video is stored turned: players turn it by {metadata.rotation} degrees clockwise, and frames are "
            "upright here; the program that made these masks ignored the rotation"
        )
        fix = f"turn the masks by {metadata.rotation} degrees clockwise, or make them with: unwrap mask {metadata.path}"
    raise bad_input(
        f"mask {picture.label} is {width}x{height}, the clip is {wide}x{high}", where=str(path), why=why, fix=fix
    )


def mask_iou(a: Bool[np.ndarray, "*shape"], b: Bool[np.ndarray, "*shape"]) -> float:
    """Computes the intersection over union of two masks of any shape: 0 to 1, and 1 for two empty masks.

    Example:
        >>> mask_iou(np.array([True, True, False]), np.array([True, False, False]))
        0.5
    """
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def split_mask_spec(spec: str) -> tuple[str | None, Path]:
    """Splits "[NAME=]PATH".

    Args:
        spec: the text, as `--masks` takes it.

    Returns:
        The name, or None, and the path.

    Raises:
        UserError: there is nothing at the path (exit 3).
    """
    name, equals, rest = spec.partition("=")
    is_named = bool(equals) and "/" not in name and "\\" not in name and not Path(spec).exists()
    text = rest if is_named else spec
    path = Path(text)
    if not text or not path.exists():
        fix = "--masks auto finds what moves by itself"
        if set(path.name) & set("%*#?"):
            fix = f"give the folder: --masks {path.parent}"
        raise bad_input(f"no mask folder or file {text}", where="--masks", fix=fix)
    return (name if is_named else None), path


def _list_objects(spec: str) -> list[str]:
    """Returns "NAME=PATH" for each object, front first, of a folder that `unwrap mask` wrote; otherwise the spec."""
    name, path = split_mask_spec(spec)
    record = read_mask_folder(path) if path.is_dir() else None
    if record is None:
        return [spec]
    if not record.objects:
        fix = "unwrap mask VIDEO --object NAME --frame 0 --box x,y,width,height"
        raise bad_input(f"{path} holds no masks", where=str(path), why="no hint points at an object", fix=fix)
    if name is None:
        return [f"{part}={path / part}" for part in record.objects]
    if len(record.objects) > 1:
        raise bad_input(
            f"--masks {spec}: one name for {len(record.objects)} objects",
            where=str(path),
            why=f"they have names already: {', '.join(record.objects)}",
            fix=f"--masks {path}",
        )
    return [f"{name}={path / record.objects[0]}"]
