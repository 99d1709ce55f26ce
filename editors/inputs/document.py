"""Edit by layered document: paint on separate layers of an .ora or .psd file becomes an overlay, bit for bit.

No comparison is needed: the document has a layer to paint on, and programs keep layers separate. The other layers (the
picture, the earlier edits, guides) are recognized by their names, which every program preserves; they never become
paint. Only where layers were merged with the picture is that compared with the exported one, as a painted picture is
(`canonical_picture.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from editors.inputs.canonical_picture import find_base_version, find_change, overlay_from_canonical
from editors.inputs.change_detection import Change
from editors.inputs.file_kinds import DOCUMENT_SUFFIXES, PROGRAM_SUFFIXES, match_layer
from editors.inputs.match_to_original import measure_fit
from editors.inputs.noise_model import DEFAULTS as NOISE
from editors.inputs.sizes import check_picture_size, compute_pixel_limit
from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.core.errors import UserError, bad_input
from neural_fields.export.pictures.canonical import read_exported_versions
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.documents.layered import (
    BASE,
    EDITS,
    GUIDE,
    PAINT,
    DocumentLayer,
    LayeredDocument,
    Rgba,
    constant_pixels,
    flatten_layers,
    iterate_layers,
    place_on_canvas,
)
from neural_fields.imaging.documents.openraster import read_ora
from neural_fields.imaging.documents.psd import SIGNATURE, read_psd
from neural_fields.imaging.image_io import Picture
from neural_fields.open_runs.planar_run import PlanarRun

SUFFIXES = (*DOCUMENT_SUFFIXES, *PROGRAM_SUFFIXES)
_ZIP, _XCF = b"PK", b"gimp xcf"


@dataclass(frozen=True)
class DocumentSettings:
    """Settings of reading paint from layered documents."""

    max_rounding: float = 2.5 / 255  # rounding error of programs that store premultiplied 8-bit colors
    max_profile_rounding: float = 16 / 255  # the same where colors were converted from a profile, in 8 bits twice
    max_changed_share: float = 0.5  # share of the seen texels above which the base is another picture, or a part of it
    min_copy_share: float = 0.3  # share of the texels with detail from which merged layers show the picture


DEFAULTS = DocumentSettings()


@dataclass(frozen=True)
class _Leaf:
    """Describes a layer with pixels, and the groups that contain it, outermost first."""

    layer: DocumentLayer
    groups: tuple[DocumentLayer, ...]

    @property
    def is_visible(self) -> bool:
        return all(item.visible and item.opacity > 0 for item in (*self.groups, self.layer))

    def has_name(self, name: str) -> bool:
        """Tells whether its name contains `name`."""
        return name.casefold() in self.layer.name.casefold()

    @property
    def is_ours(self) -> bool:
        """Whether the export wrote this layer for display only."""
        return any(self.has_name(name) for name in (BASE, EDITS, GUIDE))

    @property
    def trouble(self) -> str:
        """The reason why its pixels and the opacity of its groups do not determine what it shows; empty if they do."""
        for item in (self.layer, *self.groups):
            if item.unsupported_reason:
                return item.unsupported_reason
            if item.blend != "normal" and item is self.layer:
                return f"its blend mode is {item.blend}"
            if item.blend != "normal":
                return f"it is in a group with {item.blend}"
        return ""


def is_document(path: Path) -> bool:
    """Tells whether a file is a layered document, by its name or its first bytes. Other files are plain pictures."""
    return path.suffix.lower() in SUFFIXES or _read_head(path).startswith((_ZIP, SIGNATURE, _XCF))


def read_document_overlays(
    run: PlanarRun,
    path: Path,
    layer: str | None = None,
    settings: DocumentSettings = DEFAULTS,
) -> Mapping[str, Overlay]:
    """Reads the paint in a layered document as the overlay of one canonical layer.

    All visible layers above the picture count as paint, in their order and with their opacity: the layer to paint on,
    even if it was renamed, and layers that the painter added. Layers that the export wrote for display do not count.
    Where the picture was painted on, or layers were merged with it, its difference from the exported one counts too.

    Args:
        run: the open run.
        path: an .ora or .psd file.
        layer: the canonical layer; by default the one that the document or its file name states.
        settings: tolerances of the reading.

    Returns:
        One overlay, by the name of its layer.

    Raises:
        UserError: a file that cannot be read or is not safe to open, a cropped or rotated canvas, a layer with a blend
            mode, no paint, or a layer that the run does not have (exit 3 or 7).
    """
    pictures = run.canonicals
    document = _read_document(path, max(compute_pixel_limit(picture.size) for picture in pictures.values()))
    leaves = list(_iterate_leaves(document.layers, ()))
    name = find_layer(run, document, path, layer)
    digest = document.origin.get("sha256")
    if isinstance(digest, str) and digest not in read_exported_versions(run.files, name):
        raise bad_input(
            f"{path.name} was exported from another run",
            where=str(path),
            why=f"it was made from a picture of the layer {name} that this run never had: paint would lie elsewhere",
            fix=f"unwrap export {run.path} canonical, and copy the painted layer into that document",
        )

    # The picture that the canvas shows, and whether it was painted on itself.
    base = next((leaf for leaf in leaves if leaf.has_name(BASE)), None)
    notes = list(document.notes)
    if base is not None and document.size != pictures[name].size:
        corner = find_picture_corner(place_on_canvas(base.layer, document.size), pictures[name])
        if corner is not None:
            notes.append(f"the canvas was extended to {document.size[0]}x{document.size[1]} pixels: cut to the picture")
            document = document.crop_canvas(corner, pictures[name].size)
            leaves = list(_iterate_leaves(document.layers, ()))
            base = next(leaf for leaf in leaves if leaf.has_name(BASE))
    under = None if base is None else _as_picture(place_on_canvas(base.layer, document.size), path)
    picture = pictures[name] if under is None else find_base_version(run, name, under)
    canvas = _as_picture(np.zeros((document.size[1], document.size[0], 4), np.float32), path)
    check_picture_size(canvas, picture.size, f"the exported picture of the layer {name}")
    rounding = settings.max_profile_rounding if document.notes else settings.max_rounding
    if under is None and (merged := _read_merged_layers(run, leaves, document, picture, path, settings)) is not None:
        return {name: replace(merged, notes=(*notes, *merged.notes))}
    change = None if under is None else _find_paint_on_base(under, picture, path, rounding, settings)

    # The paint: all that is visible above it and not ours.
    paint = _find_paint_leaves(leaves, path)
    lowest = () if change is None else (DocumentLayer(BASE, constant_pixels(change.rgba)),)
    shown = _keep_layers(document.layers, [leaf.layer for leaf in paint])
    rgba = flatten_layers((*shown, *lowest), document.size)
    if not (rgba[..., 3] > 0).any():
        raise _no_paint_error(path, leaves, document)
    rgba = np.where(rgba[..., 3:] > 0, rgba, np.float32(0))

    # What was taken and what was left, where that is not plain.
    names = [leaf.layer.name for leaf in reversed(paint)]
    if names != [PAINT]:
        notes.append(f"taken as paint, from the lowest: {', '.join(names)}")
    if change is not None:
        notes += [f"{BASE!r} was painted on: taken too, below the other paint", *change.notes]
    below = leaves[_find_lowest_base(leaves) :]
    if lower := [leaf.layer.name for leaf in below if leaf.is_visible and not leaf.is_ours]:
        notes.append(f"below the picture, and left out: {', '.join(lower)}")
    if document.size != picture.size:
        notes.append(f"the canvas has {document.size[0]}x{document.size[1]} pixels: taken at that size")
    if document.size[0] < picture.size[0]:
        rgba = unpremultiply(resize_image(premultiply(rgba), picture.size))
    return {name: Overlay(rgba, picture.box, tuple(notes))}


def find_picture_corner(canvas: Rgba, picture: CanonicalImage) -> tuple[int, int] | None:
    """Finds the exported picture on a larger canvas, which MyPaint makes of whole tiles, by the outline of its alpha.

    Args:
        canvas: the canvas with nothing but the picture on it.
        picture: the picture.

    Returns:
        (x, y) of the picture's corner on the canvas; None where the canvas does not show it whole, at its own size.
    """
    boxes = []
    for rgba in (canvas, picture.rgba):
        seen = rgba[..., 3] > 0.5 / 255
        rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            return None
        boxes.append((columns[0], rows[0], columns[-1], rows[-1]))
    (x, y, right, bottom), (own_x, own_y, own_right, own_bottom) = np.array(boxes).tolist()
    if (right - x, bottom - y) != (own_right - own_x, own_bottom - own_y):
        return None
    return x - own_x, y - own_y


def find_layer(run: PlanarRun, document: LayeredDocument, path: Path, asked: str | None = None) -> str:
    """Finds the canonical layer that a document belongs to.

    The name of the layer with the picture states it; otherwise the metadata that the export stored in the file;
    otherwise the file name.

    Args:
        run: the open run.
        document: the document.
        path: path of the document.
        asked: the layer that the user named; it must not contradict the document.

    Returns:
        The name of the layer.

    Raises:
        UserError: the layer cannot be determined, or the run does not have it (exit 3).
    """
    if asked is not None:
        run.require_layer(asked)
    layers = run.layers
    every_name = f"the layers of this run, front to back: {', '.join(layers)}"
    told = [item.name.partition(f"{BASE}: ")[2] for item in iterate_layers(document.layers)]
    told.append(str(document.origin.get("layer", "")))
    for text in told:
        found = match_layer(text, layers)
        if found is None and text.strip():
            raise bad_input(
                f"{path.name} belongs to the layer {text.strip()[:80]!r}, which the run does not have",
                where=str(path),
                why=every_name,
                fix="give it to the run that it was exported from",
            )
        if found is not None and asked not in (None, found):
            raise bad_input(
                f"{path.name} belongs to the layer {found}, not to {asked}", where=str(path), fix=f"--layer {found}"
            )
        if found is not None:
            return found
    name = asked or match_layer(path.stem, layers) or (layers[0] if len(layers) == 1 else None)
    if name is None:
        raise bad_input(
            f"{path.name} does not tell which layer it belongs to", where=str(path), why=every_name, fix="--layer NAME"
        )
    return name


def _read_document(path: Path, max_pixels: int) -> LayeredDocument:
    head, suffix = _read_head(path), path.suffix.lower()
    if suffix in PROGRAM_SUFFIXES or head.startswith(_XCF):
        raise bad_input(
            f"{path.name} is a file that only its own program reads well",
            where=str(path),
            why="expected .ora or .psd with its layers, or a plain picture such as .png",
            fix="export it from your program as .ora, .psd or .png",
        )
    if head.startswith(SIGNATURE) or (suffix == ".psd" and not head.startswith(_ZIP)):
        return read_psd(path, max_pixels)
    return read_ora(path, max_pixels)


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""  # whoever reads the file says why it cannot be read


def _iterate_leaves(layers: Sequence[DocumentLayer], groups: tuple[DocumentLayer, ...]) -> Iterator[_Leaf]:
    """Yields all layers that are no groups, the top one first."""
    for layer in layers:
        if layer.pixels is not None or layer.unsupported_reason:
            yield _Leaf(layer, groups)
        yield from _iterate_leaves(layer.layers, (*groups, layer))


def _keep_layers(layers: Sequence[DocumentLayer], kept: Sequence[DocumentLayer]) -> tuple[DocumentLayer, ...]:
    """Removes all layers except `kept` from layers and groups."""
    found = []
    for item in layers:
        item_kept = any(item is other for other in kept)
        group = replace(item, layers=_keep_layers(item.layers, kept))
        if item_kept or group.layers:
            found.append(group)
    return tuple(found)


def _find_paint_leaves(leaves: Sequence[_Leaf], path: Path) -> list[_Leaf]:
    """Finds the layers that are paint.

    Raises:
        UserError: paint cannot be separated from the exported picture, or a layer has an unsupported mode (exit 3).
    """
    known = [leaf for leaf in leaves if leaf.is_ours or leaf.has_name(PAINT)]
    if not known:
        raise bad_input(
            f"{path.name} has no layer {PAINT!r} and no picture {BASE!r}",
            where=str(path),
            why="without them nothing tells paint from what was there before",
            fix=f"name the layer with the paint {PAINT!r}, or save the whole picture flattened as PNG",
        )
    chosen = [leaf for leaf in leaves[: _find_lowest_base(leaves)] if leaf.is_visible and not leaf.is_ours]
    for leaf in chosen:
        if leaf.trouble and (leaf.layer.pixels is None or (leaf.layer.pixels()[..., 3] > 0).any()):
            raise bad_input(
                f"the layer {leaf.layer.name!r} cannot be taken as paint: {leaf.trouble}",
                where=str(path),
                why="what it shows depends on what is below it, or on more than its pixels",
                fix="set it to Normal, rasterize or hide it; or save the picture flattened, without guides, as PNG",
            )
    return [leaf for leaf in chosen if not leaf.trouble]


def _find_lowest_base(leaves: Sequence[_Leaf]) -> int:
    """Finds the index of the picture among the layers; returns the number of layers if it was deleted."""
    return max((place for place, leaf in enumerate(leaves) if leaf.has_name(BASE)), default=len(leaves))


def _as_picture(rgba: Rgba, path: Path) -> Picture:
    return Picture(rgba, had_alpha=True, lossy=False, source=path.name)


def _read_merged_layers(
    run: PlanarRun,
    leaves: Sequence[_Leaf],
    document: LayeredDocument,
    picture: CanonicalImage,
    path: Path,
    settings: DocumentSettings,
) -> Overlay | None:
    """Compares the visible layers, merged, with the picture; None if they do not show the picture at all."""
    visible = [leaf for leaf in leaves if leaf.is_visible and not leaf.is_ours]
    if not visible or any(leaf.trouble for leaf in visible):
        return None
    rgba = flatten_layers(_keep_layers(document.layers, [leaf.layer for leaf in visible]), document.size)
    base = resize_image(picture.rgba, document.size)
    seen = base[..., 3] > NOISE.min_coverage
    if (rgba[..., 3][seen] > NOISE.min_coverage).mean() < settings.max_changed_share:
        return None
    fit = measure_fit(np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(base[..., :3]), seen)
    if fit is None or fit < settings.min_copy_share:
        return None
    merged = _as_picture(rgba, path)
    found = overlay_from_canonical(merged, find_base_version(run, picture.layer, merged))
    note = f"the layers of {path.name} were merged: they are compared with the exported picture"
    return replace(found, notes=(note, *found.notes))


def _find_paint_on_base(
    under: Picture, picture: CanonicalImage, path: Path, max_rounding: float, settings: DocumentSettings
) -> Change | None:
    """Finds the paint on the picture in a document; None if there is none.

    Raises:
        UserError: it is a different picture (exit 3).
    """
    name = f"the exported picture of the layer {picture.layer}"
    check_picture_size(under, picture.size, name)
    if under.size == picture.size:
        off = np.abs(premultiply(under.rgba) - premultiply(picture.rgba)).max(axis=-1)
        if off.max() <= max_rounding:
            return None
    change = find_change(under, picture.rgba, name)
    changed = change.rgba[..., 3] > 0
    seen = resize_image(picture.rgba[..., 3:], under.size)[..., 0] > NOISE.min_coverage
    if seen.any() and changed[seen].mean() > settings.max_changed_share:
        raise bad_input(
            f"the picture in {path.name} is not that of the layer {picture.layer}",
            where=str(path),
            why="most of it differs: the canvas was cropped, all of it was painted over, or it is of another run",
            fix="leave the canvas as it is; a picture that was painted over as a whole can be given flattened, as PNG",
        )
    return None if change.is_empty else change


def _no_paint_error(path: Path, leaves: Sequence[_Leaf], document: LayeredDocument) -> UserError:
    """Makes the error for a document without paint; it says what the user did instead."""
    above = leaves[: _find_lowest_base(leaves)]
    hidden = [leaf for leaf in above if not (leaf.is_visible or leaf.is_ours or leaf.trouble)]
    names = [leaf.layer.name for leaf in hidden if (place_on_canvas(leaf.layer, document.size)[..., 3] > 0).any()]
    why, fix = f"the layer {PAINT!r} is empty", f"paint on the layer {PAINT!r}, save, and run the same command again"
    if names:
        why, fix = f"the layer {names[0]!r} has paint, but is hidden", "show it, save, and run the same command again"
    return bad_input(f"no change found in {path.name}", where=str(path), why=why, fix=fix)
