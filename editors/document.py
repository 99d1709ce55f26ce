"""Edit by layered document: what was painted on its own layers of an .ora or .psd file becomes an overlay, bit for bit.

Nothing has to be compared: the document has a layer to paint on, and programs keep layers apart. Its other layers (the
picture below, the edits so far, guides) are known by their names, which every program keeps, and never become paint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from editors.image import check_size, find_change
from neural_fields import canonical
from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage, Overlay
from neural_fields.errors import UserError, bad_input
from neural_fields.export.canonical import exported_versions
from neural_fields.export.layered import (
    BASE,
    EDITS,
    GUIDE,
    PAINT,
    Document,
    Layer,
    Rgba,
    every,
    flattened,
    placed,
)
from neural_fields.export.openraster import read_ora
from neural_fields.export.psd import SIGNATURE, read_psd
from neural_fields.pictures import Picture, premultiplied, resize, straight
from neural_fields.run import Run

ELSEWHERE = (".kra", ".xcf", ".psb")  # layered formats of programs, which change with them
SUFFIXES = (".ora", ".psd", *ELSEWHERE)
_ZIP, _XCF = b"PK", b"gimp xcf"
ANOTHER = 0.5  # of the picture; a base that differs in more of it is another picture, or a part of this one
ROUNDING = 2.5 / 255  # programs that keep premultiplied colours in 8 bits give them back about so well
LARGE = 16_000_000  # pixels; a document may always have so many, and 16 times those of the picture


@dataclass(frozen=True)
class _Leaf:
    """A layer with pixels in the document, and the groups it is in, from the outside."""

    layer: Layer
    groups: tuple[Layer, ...]

    @property
    def visible(self) -> bool:
        return all(item.visible and item.opacity > 0 for item in (*self.groups, self.layer))

    def says(self, name: str) -> bool:
        return name.casefold() in self.layer.name.casefold()

    @property
    def ours(self) -> bool:
        """Whether it is a layer that we put there to be looked at."""
        return any(self.says(name) for name in (BASE, EDITS, GUIDE))

    @property
    def trouble(self) -> str:
        """Why its pixels, and the opacity of its groups, do not say what it shows."""
        for item in (self.layer, *self.groups):
            if item.trouble:
                return item.trouble
            if item.blend != "normal":
                return (
                    f"its blend mode is {item.blend}" if item is self.layer else f"it is in a group with {item.blend}"
                )
        return ""


def is_document(path: Path) -> bool:
    """Whether a file is a layered document, by its name or its first bytes; other files are read as plain pictures."""
    return path.suffix.lower() in SUFFIXES or _head(path).startswith((_ZIP, SIGNATURE, _XCF))


def overlays_from_document(
    run: Run,
    maps: Maps,
    path: Path,
    layer: str | None = None,
    pictures: Mapping[str, CanonicalImage] | None = None,
) -> Mapping[str, Overlay]:
    """What was painted in a layered document, as the overlay of one canonical layer.

    All visible layers above the picture count as paint but for those that we put there: the one to paint on, whatever
    it is called now, and those that a painter added, in their order and with their opacity.

    Args:
        path: an .ora or .psd file.
        layer: the canonical layer; by default the one that the document or its file name tells.
        pictures: the exported pictures, where they are at hand.

    Raises:
        UserError: a file that cannot be read or is not safe to open, a canvas that was cropped or turned, a layer with
            a blend mode, nothing painted, a layer that the run does not have (exit 3 or 7).
    """
    pictures = pictures or {name: canonical.pristine(run.canonical, name) for name in maps.layers}
    most = max(LARGE, *(16 * picture.size[0] * picture.size[1] for picture in pictures.values()))
    document = _read(path, most)
    leaves = list(_leaves(document.layers, ()))
    name = layer_of(document, path, list(maps.layers), layer)
    _check_origin(run, document, path, name)
    base = next((leaf for leaf in leaves if leaf.says(BASE)), None)
    under = None if base is None else _picture(placed(base.layer, document.size), path)
    picture = pictures[name] if under is None else canonical.base_for(run.canonical, name, under)
    paint = _picture(np.zeros((document.size[1], document.size[0], 4), np.float32), path)
    check_size(paint, picture.size, f"the exported picture of the layer {name}")
    touched = under is not None and _was_painted(under, picture, path)
    chosen = _painted(leaves, path)
    rgba = flattened(_only(document.layers, [leaf.layer for leaf in chosen]), document.size)
    if not (rgba[..., 3] > 0).any():
        raise _nothing(run, path, name, leaves, document, touched)
    rgba = np.where(rgba[..., 3:] > 0, rgba, np.float32(0))
    notes = _notes(leaves, chosen, touched)
    if document.size != picture.size:
        notes.append(f"the canvas has {document.size[0]}x{document.size[1]} pixels: taken at that size")
    if document.size[0] < picture.size[0]:
        rgba = straight(resize(premultiplied(rgba), picture.size))
    return {name: Overlay(rgba, picture.box, tuple(notes))}


def layer_of(document: Document, path: Path, layers: Sequence[str], asked: str | None = None) -> str:
    """The canonical layer that a document belongs to.

    It is told by the name of the layer with the picture, else by what we stored in the file, else by the file's name.

    Args:
        layers: those of the run.
        asked: what the user says; it must not contradict the document.

    Raises:
        UserError: nothing tells, or a layer that the run does not have (exit 3).
    """
    every_name = f"the layers of this run, front to back: {', '.join(layers)}"
    if asked is not None and asked not in layers:
        raise bad_input(f"there is no layer '{asked}'", why=every_name, fix=f"--layer {layers[0]}")
    told = [item.name.partition(f"{BASE}: ")[2] for item in every(document.layers)]
    told.append(str(document.facts.get("layer", "")))
    for text in told:
        found = _longest(text, layers)
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
    name = asked or _longest(path.stem, layers) or (layers[0] if len(layers) == 1 else None)
    if name is None:
        raise bad_input(
            f"{path.name} does not tell which layer it belongs to", where=str(path), why=every_name, fix="--layer NAME"
        )
    return name


def _read(path: Path, most: int) -> Document:
    head, suffix = _head(path), path.suffix.lower()
    if suffix in ELSEWHERE or head.startswith(_XCF):
        raise bad_input(
            f"{path.name} is a file that only its own program reads well",
            where=str(path),
            why="expected .ora or .psd with its layers, or a plain picture such as .png",
            fix="export it from your program as .ora, .psd or .png",
        )
    if head.startswith(SIGNATURE) or (suffix == ".psd" and not head.startswith(_ZIP)):
        return read_psd(path, most)
    return read_ora(path, most)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:
        return b""  # whoever reads the file says why it cannot be read


def _leaves(layers: Sequence[Layer], groups: tuple[Layer, ...]) -> Iterator[_Leaf]:
    """All layers that are no groups, the top one first."""
    for layer in layers:
        if layer.pixels is not None or layer.trouble:
            yield _Leaf(layer, groups)
        yield from _leaves(layer.layers, (*groups, layer))


def _only(layers: Sequence[Layer], kept: Sequence[Layer]) -> tuple[Layer, ...]:
    """Layers, and groups, with all others but `kept` taken out."""
    groups = [replace(item, layers=_only(item.layers, kept)) for item in layers]
    pairs = zip(layers, groups, strict=True)
    return tuple(made for item, made in pairs if made.layers or any(item is other for other in kept))


def _painted(leaves: Sequence[_Leaf], path: Path) -> list[_Leaf]:
    """The layers that are paint, checked to be understood."""
    known = [leaf for leaf in leaves if leaf.ours or leaf.says(PAINT)]
    if not known:
        raise bad_input(
            f"{path.name} has no layer {PAINT!r} and no picture {BASE!r}",
            where=str(path),
            why="without them nothing tells paint from what was there before",
            fix=f"name the layer with the paint {PAINT!r}, or save the whole picture flattened as PNG",
        )
    chosen = [leaf for leaf in leaves[: _lowest_base(leaves)] if leaf.visible and not leaf.ours]
    for leaf in chosen:
        if leaf.trouble and (leaf.layer.pixels is None or (leaf.layer.pixels()[..., 3] > 0).any()):
            raise bad_input(
                f"the layer {leaf.layer.name!r} cannot be taken as paint: {leaf.trouble}",
                where=str(path),
                why="what it shows depends on what is below it, or on more than its pixels",
                fix="set it to Normal, rasterise or hide it; or save the picture flattened, without guides, as PNG",
            )
    return [leaf for leaf in chosen if not leaf.trouble]


def _lowest_base(leaves: Sequence[_Leaf]) -> int:
    """The place of the picture among the layers; after the last one where it is gone."""
    return max((place for place, leaf in enumerate(leaves) if leaf.says(BASE)), default=len(leaves))


def _picture(rgba: Rgba, path: Path) -> Picture:
    return Picture(rgba, had_alpha=True, lossy=False, source=path.name)


def _was_painted(under: Picture, picture: CanonicalImage, path: Path) -> bool:
    """Whether the picture in a document is not what was exported any more.

    Raises:
        UserError: it is another picture altogether (exit 3).
    """
    check_size(under, picture.size, f"the exported picture of the layer {picture.layer}")
    if under.size == picture.size:
        changed = np.abs(premultiplied(under.rgba) - premultiplied(picture.array())).max(axis=-1) > ROUNDING
    else:
        changed = find_change(under, picture.array()).rgba[..., 3] > 0
    seen = resize(picture.array()[..., 3:], under.size)[..., 0] > 0.5
    if seen.any() and changed[seen].mean() > ANOTHER:
        raise bad_input(
            f"the picture in {path.name} is not that of the layer {picture.layer}",
            where=str(path),
            why="most of it differs: the canvas was cropped, all of it was painted over, or it is of another run",
            fix="leave the canvas as it is; a picture that was painted over as a whole can be given flattened, as PNG",
        )
    return bool(changed.any())


def _check_origin(run: Run, document: Document, path: Path, layer: str) -> None:
    """Refuses a document that says it was made from a picture which this run never exported."""
    digest = document.facts.get("sha256")
    if isinstance(digest, str) and digest not in exported_versions(run, layer):
        raise bad_input(
            f"{path.name} was exported from another run",
            where=str(path),
            why=f"it was made from a picture of the layer {layer} that this run never had: paint would lie elsewhere",
            fix=f"unwrap export {run.path} canonical, and copy the painted layer into that document",
        )


def _longest(text: str, layers: Sequence[str]) -> str | None:
    """The longest name of a layer that a text starts with, as a whole word."""
    fits = [name for name in layers if text.startswith(name) and not text[len(name) : len(name) + 1].isalnum()]
    return max(fits, key=len, default=None)


def _nothing(run: Run, path: Path, layer: str, leaves: Sequence[_Leaf], document: Document, touched: bool) -> UserError:
    """The error for a document without paint, with what was done instead."""
    hidden = [leaf for leaf in leaves[: _lowest_base(leaves)] if not (leaf.visible or leaf.ours or leaf.trouble)]
    names = [leaf.layer.name for leaf in hidden if (placed(leaf.layer, document.size)[..., 3] > 0).any()]
    why, fix = f"the layer {PAINT!r} is empty", f"paint on the layer {PAINT!r}, save, and run the same command again"
    if names:
        why, fix = f"the layer {names[0]!r} has paint, but is hidden", "show it, save, and run the same command again"
    elif touched:
        why = f"the picture itself ({BASE!r}) was painted on instead of the layer {PAINT!r}"
        flat = f"{layer}.png"
        fix = f"save it flattened, without guides, as {flat}: unwrap edit {run.path} {flat} --layer {layer}"
    return bad_input(f"no change found in {path.name}", where=str(path), why=why, fix=fix)


def _notes(leaves: Sequence[_Leaf], chosen: Sequence[_Leaf], touched: bool) -> list[str]:
    """What was taken and what was left, where that is not plain."""
    notes = []
    names = [leaf.layer.name for leaf in reversed(chosen)]
    if names != [PAINT]:
        notes.append(f"taken as paint, from the lowest: {', '.join(names)}")
    if touched:
        notes.append(f"{BASE!r} was painted on too: that is left out; save the picture flattened as PNG to have it")
    if lower := [leaf.layer.name for leaf in leaves[_lowest_base(leaves) :] if leaf.visible and not leaf.ours]:
        notes.append(f"below the picture, and left out: {', '.join(lower)}")
    return notes
