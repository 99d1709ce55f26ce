"""`unwrap export RUN canonical`: a canonical picture as a layered document to paint on, or alone for other programs.

A document has, from the top down: guides, an empty layer to paint on, the edits so far and the picture itself, both
locked. `unwrap edit` makes an edit of the paint (`editors/inputs/document.py`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neural_fields.atlas.canonical import CanonicalImage, read_sidecar
from neural_fields.core.files import atomic_write
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.video.image_sequence import insert_png_texts
from neural_fields.edits.read_stack import Edit
from neural_fields.export.base import Target
from neural_fields.export.exporter_options import CanonicalExportOptions
from neural_fields.export.pictures import guides
from neural_fields.export.pictures.guides import GuidePlane
from neural_fields.imaging.alpha import premultiply
from neural_fields.imaging.documents.layered import (
    BASE,
    EDITS,
    GUIDE,
    GUIDES,
    PAINT,
    DocumentLayer,
    LayeredDocument,
    Rgba,
    constant_pixels,
)
from neural_fields.imaging.documents.openraster import write_ora
from neural_fields.imaging.documents.psd import write_psd
from neural_fields.imaging.exr import write_exr
from neural_fields.imaging.image_io import encode_png
from neural_fields.open_runs.provenance import build_provenance
from neural_fields.rendering.compositor import canonical_painters
from neural_fields.runs.run import Run

COLORS = "display-referred sRGB as in the video; nothing was made linear"


@dataclass(frozen=True, kw_only=True)
class CanonicalExporter(CanonicalExportOptions):
    """Write canonical pictures for paint programs: with guides and a layer to paint on, or only the picture.

    `unwrap edit RUN FILE` makes an edit of a painted document.
    """

    def __call__(self, target: Target, report: ProgressReporter) -> Sequence[str]:
        """Writes a file for each layer, and a README.

        Raises:
            UserError: an unknown layer or a package that is not installed (exit 3), or no room (exit 4).
        """
        numbers = target.run.select_layers(self.layer)
        names = []
        for done, number in enumerate(numbers):
            report(Progress("drawing layers", done, len(numbers)))
            picture = target.run.canonical(target.run.layers[number])
            path = target.folder / f"{picture.layer}.{self.format}"
            box = list(picture.box.as_tuple())
            made = build_provenance(target.run, "canonical", layer=picture.layer, box=box) if target.metadata else {}
            if self.format == "png":
                with atomic_write(path) as part:
                    part.write_bytes(insert_png_texts(encode_png(picture.rgba, bits=16), made))
            elif self.format == "exr":
                planes = dict(zip("RGBA", np.moveaxis(premultiply(picture.rgba), -1, 0), strict=True))
                header = {"alpha": "premultiplied, the share of the texel that is seen", "colors": COLORS}
                write_exr(path, planes, {**header, "layer": picture.layer, **made})
            else:
                document = build_document(target, number, picture, made)
                write_ora(path, document) if self.format == "ora" else write_psd(path, document)
            names.append(path.name)
        report(Progress("drawing layers", len(numbers), len(numbers)))

        # The README says what the files are and how to give them back.
        if self.format in ("ora", "psd"):
            again = f"unwrap edit {target.run.path} {target.final_folder / names[0]}"
            note = f"paint on the layer {PAINT!r}, save, and give the file back: {again}"
            parts = [
                f"{', '.join(names)}: a layered document for each layer of the video.",
                f'Paint on the layer "{PAINT}", or on new layers above the picture; mode Normal, any opacity. The '
                f'picture itself ("{BASE}"), the edits so far and the guides are locked and are never taken for paint.',
                "Do not crop, turn or stretch the canvas. It may be made up to four times as large or as small.",
                'Guides: "frame outlines" are where the first, the middle and the last frame lie on the picture, or '
                'what they show of it; "stretch" is red where a texel covers more than one pixel of the video, so '
                'that paint gets blurred, and blue where fine detail is lost; "coverage" is how many frames show a '
                "place. Hide and show them as you like.",
                "Save in the same format and give the file back:",
                f"    unwrap edit RUN {names[0]}",
            ]
        else:
            note = "the picture has the 8 bits per channel of the run; the file leaves room for what you do with it"
            alpha = "premultiplied: colors are multiplied by it" if self.format == "exr" else "straight"
            parts = [
                f"{', '.join(names)}: the canonical picture of each layer, as training left it, without edits.",
                f"Alpha is {alpha}. It says how much of a texel the video shows. Colors are {COLORS}.",
            ]
            if self.format == "png":
                parts += ["Paint on it and give it back:", f"    unwrap edit RUN {names[0]} --layer {names[0][:-4]}"]
        texts = [part if part.startswith("    ") else textwrap.fill(part, 100) for part in parts]
        with atomic_write(target.folder / "README.txt") as part:
            part.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        return [note]


def build_document(target: Target, number: int, picture: CanonicalImage, made: dict[str, str]) -> LayeredDocument:
    """Builds the layered document of a canonical picture.

    Args:
        target: the run that is exported.
        number: number of the layer in the maps.
        picture: the canonical picture of that layer.
        made: the provenance; empty leaves out all metadata.

    Returns:
        The document, with its layers from top to bottom.
    """
    maps, plane = target.run.maps, GuidePlane(number, picture.box, picture.size)
    metadata = target.run.stored_metadata
    drawn: list[tuple[str, guides.Guide, bool, float]] = [  # name, picture, whether it is visible, opacity
        ("frame outlines", guides.draw_outlines(maps, plane, target.run.frames), True, 1.0),
        ("stretch", guides.draw_stretch(maps, plane, metadata.width / maps.size[0]), False, 1.0),
        ("coverage", guides.draw_coverage(maps, plane), False, 0.7),
    ]
    shown = tuple(
        DocumentLayer(
            GUIDE + name, constant_pixels(guide.astype(np.float32) / 255), visible=visible, opacity=opacity, locked=True
        )
        for name, guide, visible, opacity in drawn
    )
    empty: Rgba = np.zeros_like(picture.rgba)
    changed = flatten_edits(target.run.active_edits(), picture)
    layers = [
        DocumentLayer(GUIDES, layers=shown),
        DocumentLayer(PAINT, constant_pixels(empty)),
        *([] if changed is None else [DocumentLayer(EDITS, constant_pixels(changed), locked=True)]),
        DocumentLayer(f"{BASE}: {picture.layer}", constant_pixels(picture.rgba), locked=True),
    ]
    ties: dict[str, Any] = {
        "layer": picture.layer,
        "box": list(picture.box.as_tuple()),
        "size": list(picture.size),
        "sha256": read_exported_versions(target.run.files, picture.layer)[-1],
    }
    return LayeredDocument(picture.size, tuple(layers), ties if made else {}, made)


def flatten_edits(edits: Sequence[Edit], picture: CanonicalImage) -> Rgba | None:
    """Flattens edits onto a canonical picture.

    Edits that deform a layer, or that differ from frame to frame, cannot be shown in a still picture.

    Args:
        edits: from the lowest to the highest.
        picture: the canonical picture.

    Returns:
        The changed picture where the edits change it, transparent elsewhere; None where they change nothing.
    """
    now = picture
    for edit in edits:
        for painter in canonical_painters(edit):
            now = painter.paint(now) if painter.layer == picture.layer else now
    after = now.rgba
    visible_change = 0.5 / 255  # less is not seen in 8 bits
    changed = (np.abs(after - picture.rgba) > visible_change).any(axis=-1, keepdims=True)
    return np.where(changed, after, np.float32(0)) if changed.any() else None


def read_exported_versions(run: Run, layer: str) -> list[str]:
    """Reads the SHA-256 of all canonical pictures of a layer that were written, the newest last.

    Args:
        run: the paths of the run.
        layer: the name of the layer.

    Raises:
        UserError: damaged metadata (exit 5).
    """
    return [version.sha256 for version in read_sidecar(run.canonical, layer).versions]
