"""Editors for what people painted: canonical pictures, documents, frames of the video, unwrapped clips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.core.stack import EditEffects
from editors.inputs.canonical_picture import find_base_version, overlay_from_canonical, overlay_from_whole_picture
from editors.inputs.document import is_document, read_document_overlays
from editors.inputs.frame_recognition import recognize_frame
from editors.inputs.picture_input import PictureInput, name_input, take_picture
from editors.inputs.sizes import compute_pixel_limit
from editors.inputs.unwrapped_clip import read_unwrapped_paint
from editors.options.effects import UnwrappedOptions
from neural_fields.core.errors import bad_input
from neural_fields.core.files import sha256_file
from neural_fields.core.progress import ProgressReporter
from neural_fields.edits.record import SourceFile
from neural_fields.imaging.alpha import resize_image
from neural_fields.imaging.image_io import Picture
from neural_fields.open_runs.planar_run import PlanarRun


@dataclass(frozen=True, kw_only=True)
class PaintedEditor(PlanarEditor):
    """Base of the editors for painted pictures, which are their only settings and go into edit.json as sources."""

    starts_with = "all"  # which layer was painted is found out

    @property
    def title(self) -> str:
        """What error messages call it."""
        return "a painted picture"

    def describe_settings(self) -> dict[str, Any]:
        """Returns nothing: files are the sources of the edit, and arrays are not kept."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PaintedCanonical(PaintedEditor):
    """Edits a layer by a painted canonical picture: the difference from the exported one becomes the overlay.

    Attributes:
        image: the painted picture, with the aspect ratio of the canonical picture.
        upscaled: whether it is an enlarged canonical picture that replaces the old one, unchanged parts included.
    """

    name: ClassVar[str] = "image"

    image: PictureInput
    upscaled: bool = False

    @property
    def edit_name(self) -> str:
        """The name of the picture."""
        return name_input(self.image, "painted")

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Makes the overlay of the paint on the canonical picture of one layer.

        Args:
            source: the run, and the layer that was painted.
            report: called with the progress.

        Raises:
            UserError: a different aspect ratio, a much larger or smaller picture, or no change (exit 3).
        """
        (layer,) = source.layers
        pristine = source.run.canonical(layer)
        painted = take_picture(self.image, pristine.rgba.copy, max_pixels=compute_pixel_limit(pristine.size))
        base = find_base_version(source.run, layer, painted)
        overlay = (overlay_from_whole_picture if self.upscaled else overlay_from_canonical)(painted, base)
        if self.upscaled:  # by a network, most often
            import torch

            from editors.core.model_pictures import check_model_picture

            small = resize_image(np.ascontiguousarray(painted.rgba[..., :3]), base.size)
            shown, had = (torch.from_numpy(part).permute(2, 0, 1)[None] for part in (small, base.rgba))
            fix = "run the upscaler with 32-bit floats (fp32), or take another one"
            check_model_picture(shown, had[:, :3], (had[:, 3:] > 0).float(), fix)
        return EditorResult({layer: overlay}, sources=_list_files([painted]))


@dataclass(frozen=True, kw_only=True)
class PaintedFrames(PaintedEditor):
    """Edits layers by painted frames of the video: their changes are lifted, and merged where they overlap.

    Attributes:
        images: the painted frames, by their number in the source.
        is_recognized: whether the number was found by comparing the picture with all frames, which is said.
    """

    name: ClassVar[str] = "frame"

    images: Mapping[int, PictureInput]
    is_recognized: bool = False

    @property
    def edit_name(self) -> str:
        """The name of the picture of the first frame."""
        return name_input(self.images[min(self.images)], "painted")

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Lifts the changes into overlays of the layers that show them.

        Args:
            source: the run, and the layers that may take the changes.
            report: called with the progress.

        Raises:
            UserError: a frame that the run does not have, a picture of the wrong shape, or no change (exit 3).
        """
        from editors.inputs.painted_frames import lift_frames

        limit, pictures = compute_pixel_limit(source.run.source_size), {}
        for number, image in sorted(self.images.items()):

            def read_frame(number: int = number) -> np.ndarray:
                return source.run.read_frame(number).astype(np.float32) / 255

            pictures[number] = take_picture(image, read_frame, max_pixels=limit)
        overlays = lift_frames(source.run, pictures, source.only_layer)
        notes = (f"recognized as frame {min(pictures)}",) if self.is_recognized else ()
        return EditorResult(overlays, sources=_list_files(pictures.values()), frames=tuple(pictures), notes=notes)


@dataclass(frozen=True, kw_only=True)
class PaintedDocument(PaintedEditor):
    """Edits a layer by a layered document, OpenRaster or Photoshop: paint on separate layers becomes the overlay.

    Attributes:
        document: the .ora or .psd file that `unwrap export RUN canonical` wrote.
    """

    name: ClassVar[str] = "document"

    document: Path

    @property
    def edit_name(self) -> str:
        """The name of the document."""
        return self.document.stem

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Reads the overlay of the layer that the document belongs to.

        Args:
            source: the run, and the layers that the document may belong to.
            report: called with the progress.

        Raises:
            UserError: a file that cannot be read or is not safe to open, or a document without paint (exit 3 or 7).
        """
        overlays = read_document_overlays(source.run, self.document, source.only_layer)
        origin = SourceFile(file=self.document.name, sha256=sha256_file(self.document))
        return EditorResult(overlays, sources=(origin,))


@dataclass(frozen=True, kw_only=True)
class UnwrappedClip(UnwrappedOptions, PaintedEditor):
    """Edit a layer by an edited version of the clip that `unwrap export RUN unwrapped` wrote, frame by frame."""

    @property
    def title(self) -> str:
        """What error messages call it."""
        return "an unwrapped clip"

    @property
    def edit_name(self) -> str:
        """The name of the clip."""
        return self.clip.stem

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Makes the animated overlay of the paint on the clip.

        Args:
            source: the run, and the layers that the clip may belong to.
            report: called with the progress.

        Raises:
            UserError: a clip of the wrong size or length, or one without a change (exit 3).
        """
        layer, moving = read_unwrapped_paint(source.run, self.clip, source.only_layer, report)
        origin = SourceFile(file=self.clip.name, sha256=sha256_file(self.clip) if self.clip.is_file() else None)
        painted = EditEffects(moving={layer: moving}, lit=False)  # a flat frame has the light already
        return EditorResult(notes=moving.notes, effects=painted, sources=(origin,))


def choose_painted_editor(
    run: PlanarRun,
    image: PictureInput | Mapping[int, PictureInput] | None,
    layers: Sequence[str],
    frame: int | None,
    *,
    upscaled: bool,
) -> PaintedEditor:
    """Chooses the editor for what was painted.

    A picture without a layer or a frame may be a frame that `unwrap frame` wrote, or one that looks like a frame.

    Args:
        run: the open run.
        image: painted frames by their numbers, a document, or a painted picture of a frame or of a layer.
        layers: the layers that were named; at most one.
        frame: number of the painted frame; None for a canonical picture, or a frame that is to be recognized.
        upscaled: whether `image` is an enlarged canonical picture that replaces the old one.

    Raises:
        UserError: no picture, several layers, or a picture that is of neither a layer nor a frame (exit 3).
    """
    first_layer = run.layers[0]
    if image is None or (isinstance(image, Mapping) and not image):
        why = "an edit is a picture, or made by an editor"
        raise bad_input("what is the edit?", why=why, fix=f"edit(run, 'painted.png', layer={first_layer!r})")
    if len(layers) > 1:
        raise bad_input("one painted picture for several layers", fix=f"layer={layers[0]!r}")
    if isinstance(image, Mapping):
        return PaintedFrames(images=image)
    if frame is not None:
        return PaintedFrames(images={frame: image})
    file = Path(image) if isinstance(image, str | Path) else None
    if file is not None and is_document(file):
        return PaintedDocument(document=file)
    if not layers and not callable(image) and not upscaled:
        limit = compute_pixel_limit(run.source_size)
        picture = take_picture(image, lambda: np.zeros((1, 1, 3)), max_pixels=limit)
        number = recognize_frame(run, picture)
        if number is not None:
            return PaintedFrames(images={number: image}, is_recognized=True)
    if not layers:
        raise bad_input(
            "the edit names neither a layer nor a frame",
            where=str(file or ""),
            why="the picture looks like no frame of the video, and does not tell which layer it belongs to",
            fix=f"--layer {first_layer} if it is the picture of a layer, --frame K if it is frame K",
        )
    return PaintedCanonical(image=image, upscaled=upscaled)


def _list_files(pictures: Iterable[Picture]) -> tuple[SourceFile, ...]:
    """Lists the files of pictures, as edit.json stores them."""
    return tuple(SourceFile(file=one.source, sha256=one.sha256) for one in pictures if one.source)
