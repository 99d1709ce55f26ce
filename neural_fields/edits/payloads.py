"""Reads the payloads of an edit from its folder, and checks them against the hashes in edit.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Shaped

from neural_fields.atlas.canonical import FramePaint, Overlay, resample_overlay
from neural_fields.atlas.placed_picture import Paint, PicturePatch, PlacedPicture
from neural_fields.core.box import Box
from neural_fields.core.errors import UserError
from neural_fields.core.files import name_in_utf8, sha256_file
from neural_fields.data.video.io import rgba_frames
from neural_fields.edits.animated_overlay import AnimatedOverlay
from neural_fields.edits.read_stack import Edit
from neural_fields.edits.record import OverlayRecord, PlacedRecord, SizedFile, damaged_edit_error
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.alpha import premultiply, unpremultiply
from neural_fields.imaging.image_io import read_picture


def read_paint(edit: Edit, layer: str) -> Paint:
    """Reads the paint on one layer: an overlay or a placed picture.

    Raises:
        UserError: missing, damaged or changed files (exit 5).
    """
    record = edit.record
    frames = tuple(
        FramePaint(entry.frame, _read_stored_picture(edit, entry), entry.box, entry.is_whole)
        for entry in record.frames.get(layer, ())
    )
    if layer in record.placed:
        return replace(_read_placed_picture(edit, record.placed[layer]), frames=frames)
    return replace(_read_overlay_entry(edit, record.overlays[layer]), frames=frames)


def read_mask(edit: Edit, layer: str) -> Overlay | None:
    """Reads the mask of a layer's grade, the alpha of an overlay; None: the grade is everywhere.

    Raises:
        UserError: a missing, damaged or changed file (exit 5).
    """
    mask = edit.record.grades[layer].mask
    return None if mask is None else _read_overlay_entry(edit, mask)


def _read_overlay_entry(edit: Edit, entry: OverlayRecord) -> Overlay:
    """Reads the overlay that an entry of edit.json names."""
    return Overlay(_read_stored_picture(edit, entry), entry.box)


def _read_placed_picture(edit: Edit, entry: PlacedRecord) -> PlacedPicture:
    """Reads the placed picture that an entry of edit.json names, and its maps."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    rgba, path = _read_stored_picture(edit, entry), edit.folder / entry.maps.file
    patches = []
    try:
        if sha256_file(path) != entry.maps.sha256:
            raise damaged_edit_error(edit.folder, f"{entry.maps.file} is not the file that was added")
        with name_in_utf8(path) as readable:
            tables = load_file(readable)
        for number, box in enumerate(entry.boxes):
            places, light = tables[f"{number}.places"], tables.get(f"{number}.light")
            for table in (places,) if light is None else (places, light):
                if table.ndim != 3 or table.shape[2] != 3 or min(table.shape) < 2 or not np.isfinite(table).all():
                    raise damaged_edit_error(edit.folder, f"{entry.maps.file} does not hold places of a picture")
            patches.append(
                PicturePatch(box, places.astype(np.float32), None if light is None else light.astype(np.float32))
            )
    except (OSError, SafetensorError, KeyError) as problem:
        raise damaged_edit_error(edit.folder, f"{entry.maps.file} cannot be read") from problem
    return PlacedPicture(rgba, tuple(patches))


def _read_stored_picture(edit: Edit, entry: SizedFile) -> Float[np.ndarray, "height width 4"]:
    """Reads a picture of an edit, and compares it with the record."""
    path = edit.folder / entry.file
    try:
        changed = sha256_file(path) != entry.sha256
        picture = read_picture(path)
    except (OSError, UserError) as problem:
        raise damaged_edit_error(edit.folder, f"{entry.file} cannot be read") from problem
    if changed or picture.size != entry.size:
        raise damaged_edit_error(edit.folder, f"{entry.file} is not the file that was added")
    return picture.rgba


def read_animated_overlay(edit: Edit, layer: str, count: int) -> AnimatedOverlay:
    """Opens the animated overlay of a layer.

    Args:
        edit: the edit.
        layer: name of the layer.
        count: number of frames of the run.

    Raises:
        UserError: a missing, damaged or changed file, or one for another number of frames (exit 5).
    """
    entry = edit.record.animated[layer]
    path = edit.folder / entry.file
    if sha256_file(path) != entry.sha256:
        raise damaged_edit_error(edit.folder, f"{entry.file} is not the file that was added")
    if entry.count not in (1, count):
        raise damaged_edit_error(edit.folder, f"{entry.file} has {entry.count} frames, and the run {count}")
    return AnimatedOverlay(lambda: rgba_frames(path), entry.count, entry.box)


def read_shapes(edit: Edit, layer: str) -> list[Deformation]:
    """Reads the shapes of one layer, at full strength: one, or one for each chart of the layer.

    Raises:
        UserError: a missing, damaged or changed file (exit 5).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    record, found = edit.record, []
    entries = [record.shapes[layer]] if layer in record.shapes else []
    for entry in (*entries, *record.carried_shapes.get(layer, ())):
        path = edit.folder / entry.file
        try:
            changed = sha256_file(path) != entry.sha256
            with name_in_utf8(path) as readable:
                field = None if changed else load_file(readable)["displacement"]
        except (OSError, SafetensorError, KeyError) as problem:
            raise damaged_edit_error(edit.folder, f"{entry.file} cannot be read") from problem
        if field is None or list(field.shape) != [2, *reversed(entry.size)] or not np.isfinite(field).all():
            raise damaged_edit_error(edit.folder, f"{entry.file} is not the file that was added")
        found.append(Deformation(field.astype(np.float32), entry.box, entry.span))
    return found


def read_weights(edit: Edit) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Reads the tuned parameters of a 3D scene by name; empty where the edit has none.

    Raises:
        UserError: a missing, damaged or changed file (exit 5).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    entry = edit.record.weights
    if entry is None:
        return {}
    path = edit.folder / entry.file
    try:
        if sha256_file(path) != entry.sha256:
            raise damaged_edit_error(edit.folder, f"{entry.file} is not the file that was added")
        with name_in_utf8(path) as readable:
            return load_file(readable)
    except (OSError, SafetensorError) as problem:
        raise damaged_edit_error(edit.folder, f"{entry.file} cannot be read") from problem


def flatten_overlays(
    edits: Sequence[Edit], layer: str, size: tuple[int, int] | None = None, box: Box | None = None
) -> Overlay | None:
    """Composites the overlays of one layer into one with straight alpha; None where no edit has one for the layer.

    Args:
        edits: oldest first; later ones are on top.
        layer: the layer's name.
        size: (width, height) of the result in texels; by default the size of the largest overlay.
        box: the part of the canonical plane that the result covers; by default that of the newest overlay.
    """
    parts = [
        (_read_overlay_entry(edit, edit.record.overlays[layer]), edit.overlay_arrangement.opacity)
        for edit in edits
        if layer in edit.record.overlays
    ]
    if not parts:
        return None
    box = box or parts[-1][0].box
    size = size or max((overlay.size for overlay, _ in parts), key=lambda pair: pair[0] * pair[1])
    overlay, opacity = parts[0]
    if len(parts) == 1 and opacity == 1 and overlay.size == size and overlay.box == box:
        return Overlay(overlay.rgba, box)
    result: Float[np.ndarray, "height width 4"] = np.zeros((size[1], size[0], 4), np.float32)
    for overlay, opacity in parts:
        top = premultiply(resample_overlay(overlay, size, box)) * np.float32(opacity)
        result = top + result * (1 - top[..., 3:])
    return Overlay(unpremultiply(result), box)
