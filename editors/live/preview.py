"""From a picture that was just saved to a frame that shows it, quickly.

What stays while somebody paints (maps, exported pictures, source frames with the edits so far) is kept in memory. Of a
saved picture only the part that differs from the exported one is compared, made ready and put on the frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from editors.inputs.canonical_picture import find_change, overlay_from_change
from editors.inputs.change_detection import find_local_change
from editors.inputs.file_kinds import DOCUMENT_SUFFIXES
from editors.inputs.sizes import check_picture_size, compute_pixel_limit
from editors.live.file_watching import DEFAULTS, IncompleteFileError, Stat, WatchSettings, read_stat
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.coords import Box
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import atomic_write, make_folder, read_json, sha256_file, temporary_path
from neural_fields.data.video.io import source_frames
from neural_fields.edits.journal import journal_path
from neural_fields.edits.read_stack import Edit, active_edits
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.image_io import Picture, read_picture
from neural_fields.imaging.tiles import to_local_range
from neural_fields.rendering.base import Canonicals, OverlayOptions
from neural_fields.rendering.compositor import PassChain, build_passes, canonical_painters, read_deformations
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.rendering.removal_pass import RemovalPass, hide_layers
from neural_fields.rendering.warp_pass import WarpPass
from neural_fields.runs.kind import require_planar
from neural_fields.runs.run import Run
from neural_fields.runs.source import read_source_metadata

Frame = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class PreviewFrame:
    """A frame of the run as it is without what is being painted.

    Attributes:
        t, number: of the frame, in the run and in the source.
        below: the frame with the active edits on it, at the size of the preview.
        layer_pictures: the canonical pictures of all layers, with the edits that this frame shows.
    """

    t: int
    number: int
    below: Frame
    layer_pictures: Canonicals


@dataclass(frozen=True)
class PreviewSession:
    """What stays while somebody paints.

    Attributes:
        run, maps: the run and its baked maps; `numbers`: the number in the source of each of its frames.
        shown_maps: the maps without the layers that edits hide.
        pictures: the newest exported picture of each layer, with no edits; `pixels`: the same as bytes.
        versions: how many exported pictures of each layer there are.
        shots: the frames of the preview.
        shapes: by which edits deform layers.
        active_digests: SHA-256 of pictures that are active edits already.
        settings: of the preview.
    """

    run: Run
    maps: Maps
    numbers: range
    shown_maps: Maps
    pictures: Mapping[str, CanonicalImage]
    pixels: Mapping[str, UInt8[np.ndarray, "_ _ 4"]]
    versions: Mapping[str, int]
    shots: tuple[PreviewFrame, ...]
    shapes: Mapping[str, Sequence[Deformation]]
    active_digests: frozenset[str]
    settings: WatchSettings

    def read_overlays(self, path: Path, layer: str | None) -> dict[str, Overlay]:
        """Finds what was painted in a picture or a layered document, by layer; nothing where it is as it was exported.

        Args:
            path: the file.
            layer: the layer of a picture. A document tells its own.

        Raises:
            Incomplete: the file cannot be read.
            UserError: it can, but does not fit (exit 3), or has too many pixels (7).
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
        """Reads what was painted in a layered document; nothing where it is an active edit or has no paint."""
        from editors.inputs.document import read_document_overlays

        try:
            if sha256_file(path) in self.active_digests:
                return {}
            return dict(read_document_overlays(self.run, self.maps, path, layer, self.pictures))
        except FileNotFoundError as error:  # between two looks
            raise bad_input(f"there is no file {path}", where=str(path)) from error
        except UserError as error:
            if error.what.startswith("no change found"):
                return {}
            raise

    def find_overlay(self, painted: Picture, layer: str) -> Overlay | None:
        """Finds what was painted on a picture of a layer; None if it is as it was exported.

        The overlay covers the part of the layer that was painted on, where that can be told without the rest.

        Raises:
            UserError: a picture of another shape (exit 3).
        """
        picture, pixels = self.pictures[layer], painted.pixels
        base = f"the exported picture of the layer {layer}"
        check_picture_size(painted, picture.size, base)
        quick = None if painted.lossy or pixels is None else find_local_change(pixels, self.pixels[layer])
        if quick is None:  # all of the picture has to be compared, with the version that it was painted on
            if self.versions[layer] > 1:
                picture = canonical.find_base_version(self.run.canonical, layer, painted)
                check_picture_size(painted, picture.size, base)
            found = find_change(painted, picture.to_array())
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

    def render_picture(self, overlays: Mapping[str, Overlay]) -> Frame:
        """Renders the frames of the preview side by side, with overlays on top of the active edits."""
        frames = [self._render_shot(shot, overlays) for shot in self.shots]
        return frames[0] if len(frames) == 1 else np.concatenate(frames, axis=1)

    def find_best_frame(self, overlays: Mapping[str, Overlay]) -> int | None:
        """Finds the number in the source of the frame that shows most of some overlays; None where no frame shows any.

        Of a long clip not every frame is tried.
        """
        renderer = OverlayPass(self.shown_maps, self.pictures, overlays)
        size = (max(1, self.maps.size[0] // 4), max(1, self.maps.size[1] // 4))
        tried = range(0, self.maps.frame_count, max(1, self.maps.frame_count // self.settings.tried_frames))
        areas = {t: int(renderer.affected_mask(t, size).sum()) for t in tried}
        best = max(areas, key=lambda t: areas[t])
        return self.numbers[best] if areas[best] else None

    def _render_shot(self, shot: PreviewFrame, overlays: Mapping[str, Overlay]) -> Frame:
        on_top = OverlayPass(
            self.shown_maps, self.pictures, overlays, OverlayOptions(canonicals_at=lambda t: shot.layer_pictures)
        )
        frame = on_top.render_frame(shot.t, shot.below)
        if not self.shapes:
            return frame
        # A layer is deformed with everything that is on it, and shows it where it was hidden before.
        looks = []
        for name, (image, box) in zip(self.maps.layers, shot.layer_pictures, strict=True):
            if name in overlays:
                picture = CanonicalImage(torch.from_numpy(image).permute(2, 0, 1), box, name)
                image = picture.composite_overlay(overlays[name]).to_array()
            looks.append((image, box))
        return WarpPass(self.shown_maps, self.pictures, {}, self.shapes, lambda t: looks).render_frame(shot.t, frame)


def open_preview(
    run: Run, frames: Sequence[int] = (), size: int = DEFAULTS.size_px, settings: WatchSettings = DEFAULTS
) -> PreviewSession:
    """Reads all that does not change while somebody paints.

    Args:
        run: the run.
        frames: numbers of frames of the source to show, 0 is the first; by default the middle one.
        size: pixels of the longer side of each frame; frames are never enlarged.
        settings: of the preview.

    Raises:
        UserError: a frame that the run does not have, a size that shows nothing (exit 3), no maps, a damaged run (5).
    """
    if size < settings.min_size_px:
        why = f"expected the pixels of the longer side of a frame, at least {settings.min_size_px}"
        raise bad_input(f"a preview of {size} pixels shows nothing", why=why, fix=f"--size {settings.size_px}")
    require_planar(run, "unwrap watch")
    maps = Maps.open(run)
    metadata, chosen = read_source_metadata(run)
    numbers = list(dict.fromkeys(frames)) or [chosen[len(chosen) // 2]]
    for number in numbers:
        if number not in chosen:
            raise bad_input(
                f"there is no frame {number} in this run",
                where=str(run.path),
                why=f"it was trained on the frames {chosen.start} to {chosen[-1]} of the source, every {chosen.step}",
                fix=f"--frame {chosen[len(chosen) // 2]}",
            )
    pictures = {}
    for name in maps.layers:
        picture = canonical.read_pristine(run.canonical, name)
        # Laid in memory so that it is an array with colors last without copying it every time.
        pictures[name] = replace(picture, rgba=torch.from_numpy(picture.to_array()).permute(2, 0, 1))
    edits = active_edits(run)
    changer = build_passes(maps, pictures, edits, chosen)
    passes = changer.passes if isinstance(changer, PassChain) else [changer]
    looks = _make_looks(maps.layers, pictures, edits, chosen)

    shots = []
    for number in numbers:
        t = chosen.index(number)
        frame = next(iter(source_frames(metadata, range(number, number + 1))))
        scale = size / max(frame.shape[:2])
        if scale < 1:
            frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for render_pass in passes:
            if not isinstance(render_pass, WarpPass):  # shapes come after what is being painted
                frame = render_pass.render_frame(t, frame)
        shots.append(PreviewFrame(t, number, frame, looks(t)))

    shown_maps = maps
    hider = next((render_pass for render_pass in passes if isinstance(render_pass, RemovalPass)), None)
    if hider is not None:
        shown_maps = hide_layers(maps, {maps.layers[layer]: how for layer, how in hider.hidden.items()})
    sources = [edit.spec.get("source") for edit in edits]
    return PreviewSession(
        run=run,
        maps=maps,
        numbers=chosen,
        shown_maps=shown_maps,
        pictures=pictures,
        pixels={name: np.rint(255 * picture.to_array()).astype(np.uint8) for name, picture in pictures.items()},
        versions={name: len(read_json(run.canonical / f"{name}.json")["versions"]) for name in maps.layers},
        shots=tuple(shots),
        shapes=read_deformations(edits, chosen),
        active_digests=frozenset(
            str(file["sha256"]) for file in sources if isinstance(file, dict) and "sha256" in file
        ),
        settings=settings,
    )


def read_run_stamp(run: Run, layers: Sequence[str]) -> tuple[Stat | None, ...]:
    """Reads what changes when the edits, the maps or the exported pictures do: then an easel is out of date."""
    histories = [run.canonical / f"{layer}.json" for layer in layers]
    return tuple(read_stat(path) for path in (run.maps / "maps.json", journal_path(run), run.edits, *histories))


def write_preview(run: Run, picture: Frame, quality: int = DEFAULTS.jpeg_quality) -> Path:
    """Puts a picture in the place of the preview; whoever reads it sees the old one or the new one.

    Nothing is flushed to the disk: a preview need not outlive a power cut, and flushing takes longer than the rest.

    Args:
        run: the run.
        picture: RGB in 8 bits.
        quality: of the JPEG, 0 to 100.
    """
    path = run.previews / "watch.jpg"
    make_folder(path.parent)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be written as JPEG")
    with temporary_path(path.parent, ".jpg") as part:
        part.write_bytes(data.tobytes())
        part.replace(path)
    return path


def write_page(run: Run) -> Path:
    """Writes the page that shows the preview and renews it; it needs no network and no server."""
    path = run.previews / "watch.html"
    with atomic_write(path) as part:
        part.write_text(PAGE, encoding="utf-8")
    return path


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>unwrap watch</title>
<style>
  html, body { margin: 0; height: 100%; background: #202020; }
  body { display: flex; align-items: center; justify-content: center; }
  img { max-width: 100%; max-height: 100%; }
</style>
<img src="watch.jpg" alt="the preview; it renews itself while unwrap watch runs">
<script>
  // Another address each time, or the browser shows what it remembers; swapped when it is there, so nothing flickers.
  const shown = document.querySelector("img");
  let count = Date.now();
  function renew() {
    const next = new Image();
    next.onload = () => { shown.src = next.src; setTimeout(renew, 300); };
    next.onerror = () => setTimeout(renew, 300);
    next.src = "watch.jpg?" + count++;
  }
  renew();
</script>
</html>
"""


def _make_looks(
    layers: Sequence[str], pictures: Mapping[str, CanonicalImage], edits: Sequence[Edit], chosen: Sequence[int]
) -> Callable[[int], Canonicals]:
    """Makes a function that returns how the layers look in a frame with the edits that it shows."""
    known = [painter for edit in edits for painter in canonical_painters(edit, chosen)]

    @cache
    def paint_layers(shown: tuple[bool, ...]) -> Canonicals:
        found = dict(pictures)
        for painter, is_shown in zip(known, shown, strict=True):
            if is_shown:
                found[painter.layer] = painter.paint(found[painter.layer])
        return [(found[name].to_array(), found[name].box) for name in layers]

    return lambda t: paint_layers(tuple(painter.strength(t) > 0.5 for painter in known))


def _widen_span(span: slice, side: int, settings: WatchSettings) -> slice:
    """Widens rows or columns to a share of a side; they begin and end at multiples of a step, or at the edge."""
    step = settings.part_step_texels
    least = -(-side // settings.part_divisor)
    more = max(0, least - (span.stop - span.start)) // 2
    start = max(0, min(span.start - more, side - least))
    stop = min(side, max(span.stop + more, least))
    return slice(start // step * step, min(side, -(-stop // step) * step))
