"""Renders a picture that was just saved into a frame, quickly.

Data that does not change while the user paints (maps, exported pictures, source frames with the active edits) stays in
memory. Only the part of a saved picture that differs from the exported one is compared, prepared and rendered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from editors.inputs.canonical_picture import find_base_version, find_change, overlay_from_change
from editors.inputs.change_detection import find_local_change
from editors.inputs.file_kinds import DOCUMENT_SUFFIXES
from editors.inputs.sizes import check_picture_size, compute_pixel_limit
from editors.live.file_watching import DEFAULTS, IncompleteFileError, Stat, WatchSettings, read_stat
from editors.live.options import WatchOptions
from neural_fields.atlas.canonical import CanonicalImage, Overlay, read_sidecar
from neural_fields.atlas.placed_picture import Paint, draw_paint
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import make_folder, sha256_file, temporary_path
from neural_fields.edits.journal import journal_path
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.image_io import Picture, read_picture
from neural_fields.imaging.tiles import to_local_range
from neural_fields.open_runs.opening import RunLike, require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.base import Canonicals, OverlayOptions
from neural_fields.rendering.compositor import PassChain, build_passes, canonical_painters, read_deformations
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.rendering.removal_pass import RemovalPass, hide_layers
from neural_fields.rendering.warp_pass import WarpPass
from neural_fields.runs.run import Run

Frame = UInt8[np.ndarray, "_ _ 3"]
PREVIEW_FILE = "watch.jpg"


@dataclass(frozen=True)
class PreviewFrame:
    """Holds a frame of the preview without the paint in progress.

    Attributes:
        t: index of the frame in the run.
        number: number of the frame in the source.
        below: the frame with the active edits on it, at the size of the preview.
        layer_pictures: the canonical pictures of all layers, with the edits that this frame shows.
    """

    t: int
    number: int
    below: Frame
    layer_pictures: Canonicals


@dataclass(frozen=True)
class PreviewSession:
    """Holds the data that does not change while the user paints.

    Attributes:
        run: the open run.
        shown_maps: the maps without the layers that edits hide.
        pictures: the newest exported picture of each layer, without edits.
        pixels: the same pictures as uint8.
        versions: number of exported versions of each layer.
        shots: the frames of the preview.
        open_shot: opens another frame, by its number in the source; kept once opened.
        shapes: deformations of each layer by edits.
        active_digests: SHA-256 digests of pictures that are active edits already.
        settings: settings of the preview.
    """

    run: PlanarRun
    shown_maps: Maps
    pictures: Mapping[str, CanonicalImage]
    pixels: Mapping[str, UInt8[np.ndarray, "_ _ 4"]]
    versions: Mapping[str, int]
    shots: tuple[PreviewFrame, ...]
    open_shot: Callable[[int], PreviewFrame]
    shapes: Mapping[str, Sequence[Deformation]]
    active_digests: frozenset[str]
    settings: WatchSettings

    def read_overlays(self, path: Path, layer: str | None) -> dict[str, Overlay]:
        """Finds the paint in a picture or a layered document.

        Args:
            path: path of the file.
            layer: the layer of a picture; None for a document, which states its layer itself.

        Returns:
            Overlays by layer; empty if the file equals the exported one.

        Raises:
            IncompleteFileError: the file cannot be read yet.
            UserError: the file has the wrong shape (exit 3) or too many pixels (exit 7).
        """
        try:
            if path.suffix.lower() in DOCUMENT_SUFFIXES:
                return self._read_document(path, layer)
            assert layer is not None, "pictures of no layer are not watched"
            painted = read_picture(path, compute_pixel_limit(self.pictures[layer].size))
        except UserError as error:
            raise (IncompleteFileError(error) if error.code == ExitCode.BAD_INPUT else error) from error
        overlay = None if painted.sha256 in self.active_digests else self.find_overlay(painted, layer)
        return {} if overlay is None else {layer: overlay}

    def _read_document(self, path: Path, layer: str | None) -> dict[str, Overlay]:
        """Reads the paint in a layered document; returns nothing if it is an active edit already or has no paint."""
        from editors.inputs.document import read_document_overlays

        try:
            if sha256_file(path) in self.active_digests:
                return {}
            return dict(read_document_overlays(self.run, path, layer))
        except FileNotFoundError as error:  # between two looks
            raise bad_input(f"there is no file {path}", where=str(path)) from error
        except UserError as error:
            if error.what.startswith("no change found"):
                return {}
            raise

    def find_overlay(self, painted: Picture, layer: str) -> Overlay | None:
        """Finds the paint on the picture of a layer.

        Args:
            painted: the painted picture.
            layer: name of the layer.

        Returns:
            The overlay, which covers only the painted part of the layer if possible; None if nothing was painted.

        Raises:
            UserError: a picture of the wrong shape (exit 3).
        """
        picture, pixels = self.pictures[layer], painted.pixels
        base = f"the exported picture of the layer {layer}"
        check_picture_size(painted, picture.size, base)
        quick = (
            None
            if painted.lossy or painted.rounding is not None or pixels is None
            else find_local_change(pixels, self.pixels[layer])
        )
        if quick is None:  # all of the picture has to be compared, with the version that it was painted on
            if self.versions[layer] > 1:
                picture = find_base_version(self.run, layer, painted)
                check_picture_size(painted, picture.size, base)
            found = find_change(painted, picture.rgba)
            return None if found.is_empty else overlay_from_change(found, painted, picture)
        part, found = quick
        if found.is_empty:
            return None
        width, height = picture.size
        rows = _widen_span(part[0], height, self.settings)
        columns = _widen_span(part[1], width, self.settings)
        rgba = np.zeros((rows.stop - rows.start, columns.stop - columns.start, 4), np.float32)
        rgba[to_local_range(part[0], rows), to_local_range(part[1], columns)] = found.rgba
        # The part of the canonical plane that the rows and columns cover.
        box = picture.box
        u0, u1 = (box.u0 + box.width * x / width for x in (columns.start, columns.stop))
        v0, v1 = (box.v0 + box.height * y / height for y in (rows.start, rows.stop))
        return Overlay(rgba, Box(u0, v0, u1, v1), (*painted.notes, *found.notes))

    def render_picture(self, overlays: Mapping[str, Paint]) -> Frame:
        """Renders the frames of the preview side by side, with overlays on top of the active edits."""
        frames = [self.render_shot(shot, overlays) for shot in self.shots]
        return frames[0] if len(frames) == 1 else np.concatenate(frames, axis=1)

    def find_best_frame(self, overlays: Mapping[str, Paint]) -> int | None:
        """Finds the frame that shows the largest part of overlays; in long clips only some frames are tried.

        Args:
            overlays: overlays by layer.

        Returns:
            The number of the frame in the source; None if no frame shows any of them.
        """
        renderer = OverlayPass(self.shown_maps, self.pictures, overlays)
        size = (max(1, self.run.maps.size[0] // 4), max(1, self.run.maps.size[1] // 4))
        tried = range(0, self.run.maps.frame_count, max(1, self.run.maps.frame_count // self.settings.tried_frames))
        areas = {t: int(renderer.affected_mask(t, size).sum()) for t in tried}
        best = max(areas, key=lambda t: areas[t])
        return self.run.frames[best] if areas[best] else None

    def render_shot(self, shot: PreviewFrame, overlays: Mapping[str, Paint]) -> Frame:
        """Renders a frame with overlays on top of the active edits."""
        on_top = OverlayPass(
            self.shown_maps, self.pictures, overlays, OverlayOptions(canonicals_at=lambda t: shot.layer_pictures)
        )
        frame = on_top.render_frame(shot.t, shot.below)
        if not self.shapes:
            return frame
        # A layer is deformed with everything that is on it, and shows it where it was hidden before.
        looks = []
        for name, (image, box) in zip(self.run.maps.layers, shot.layer_pictures, strict=True):
            if name in overlays:
                picture = CanonicalImage(image, box, name)
                paint = draw_paint(overlays[name], picture.size, box)
                image = picture.composite_overlay(Overlay(paint, box)).rgba
            looks.append((image, box))
        return WarpPass(self.shown_maps, self.pictures, {}, self.shapes, lambda t: looks).render_frame(shot.t, frame)


def open_preview(
    run: RunLike, frames: Sequence[int] = (), size: int = WatchOptions.size, settings: WatchSettings = DEFAULTS
) -> PreviewSession:
    """Opens a run for previews: reads all data that does not change while the user paints.

    Args:
        run: the run, or the path of its folder.
        frames: numbers of the frames in the source to show; by default the middle one.
        size: longer side of each frame in pixels; frames are never enlarged.
        settings: settings of the preview.

    Raises:
        UserError: a frame that the run does not have (exit 3), missing maps, or a damaged run (exit 5).
    """
    run = require_planar(run, "unwrap watch")
    maps, chosen = run.maps, run.frames
    numbers = list(dict.fromkeys(frames)) or [chosen[len(chosen) // 2]]
    for number in numbers:
        run.require_frame(number)
    pictures = run.canonicals
    edits = run.active_edits()
    changer = build_passes(maps, pictures, edits, chosen)
    passes = changer.passes if isinstance(changer, PassChain) else [changer]

    # The canonical pictures with the edits that a frame shows.
    painters = [painter for edit in edits for painter in canonical_painters(edit, chosen)]

    @cache
    def paint_layers(shown: tuple[bool, ...]) -> Canonicals:
        found = dict(pictures)
        for painter, is_shown in zip(painters, shown, strict=True):
            if is_shown:
                found[painter.layer] = painter.paint(found[painter.layer])
        return [(found[name].rgba, found[name].box) for name in maps.layers]

    @cache
    def open_shot(number: int) -> PreviewFrame:
        t = chosen.index(number)
        frame: Frame = run.read_frame(number)
        scale = size / max(frame.shape[:2])
        if scale < 1:
            frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for render_pass in passes:
            if not isinstance(render_pass, WarpPass):  # shapes come after what is being painted
                frame = render_pass.render_frame(t, frame)
        is_shown = tuple(painter.strength(t) > 0.5 for painter in painters)
        return PreviewFrame(t, number, frame, paint_layers(is_shown))

    shown_maps = maps
    hider = next((render_pass for render_pass in passes if isinstance(render_pass, RemovalPass)), None)
    if hider is not None:
        shown_maps = hide_layers(maps, {maps.layers[layer]: how for layer, how in hider.hidden.items()})
    return PreviewSession(
        run=run,
        shown_maps=shown_maps,
        pictures=pictures,
        pixels={name: np.rint(255 * picture.rgba).astype(np.uint8) for name, picture in pictures.items()},
        versions={name: len(read_sidecar(run.files.canonical, name).versions) for name in maps.layers},
        shots=tuple(open_shot(number) for number in numbers),
        open_shot=open_shot,
        shapes=read_deformations(edits, chosen),
        active_digests=frozenset(
            file.sha256 for edit in edits for file in edit.record.origin.sources if file.sha256 is not None
        ),
        settings=settings,
    )


def read_run_stamp(run: PlanarRun) -> tuple[Stat | None, ...]:
    """Reads a stamp that changes with the edits, the maps and the exported pictures: then a session is out of date."""
    files = run.files
    histories = [files.canonical / f"{layer}.json" for layer in run.layers]
    return tuple(read_stat(path) for path in (files.maps / "maps.json", journal_path(files), files.edits, *histories))


def write_preview(run: Run, picture: Frame, quality: int = DEFAULTS.jpeg_quality, name: str = PREVIEW_FILE) -> Path:
    """Replaces the preview atomically: a reader sees the old picture or the new one.

    Nothing is flushed to the disk: a preview need not survive a power failure, and flushing takes longer than the rest.

    Args:
        run: the run.
        picture: the preview, 8-bit RGB.
        quality: quality of the JPEG, 0 to 100.
        name: its file in the folder of previews.

    Returns:
        The path of the preview.
    """
    path = run.previews / name
    make_folder(path.parent)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be written as JPEG")
    with temporary_path(path.parent, ".jpg") as part:
        part.write_bytes(data.tobytes())
        os.replace(part, path)
    return path


def _widen_span(span: slice, side: int, settings: WatchSettings) -> slice:
    """Widens rows or columns to a share of a side; they start and end at multiples of a step, or at the edge."""
    step = settings.part_step_texels
    least = -(-side // settings.part_divisor)
    more = max(0, least - (span.stop - span.start)) // 2
    start = max(0, min(span.start - more, side - least))
    stop = min(side, max(span.stop + more, least))
    return slice(start // step * step, min(side, -(-stop // step) * step))
