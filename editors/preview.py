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
from jaxtyping import Float, UInt8

from editors.changes import Part, quick_change
from editors.image import (
    check_size,
    find_change,
    overlay_of_change,
)
from editors.watched import DOCUMENTS, Incomplete, Stat, stat_of
from neural_fields import canonical
from neural_fields.baking import Maps
from neural_fields.canonical import CanonicalImage, Overlay
from neural_fields.compositing import Passes, changer_of, painters, shapes_of
from neural_fields.coords import Box
from neural_fields.data.video import source_frames
from neural_fields.edits import Edit, active_edits
from neural_fields.errors import ExitCode, UserError, bad_input
from neural_fields.files import atomic_write, make_folder, read_json, sha256_file, temporary
from neural_fields.frame_parts import inside
from neural_fields.hiding import Hider, without_hidden
from neural_fields.journal import journal_path
from neural_fields.output import source_facts
from neural_fields.pictures import Picture, read_picture
from neural_fields.rendering import Canonicals, FrameChanger, How, Renderer
from neural_fields.reshaping import Reshaper, Shape
from neural_fields.run import Run
from neural_fields.volume_run import require_planar

SIZE = 1280  # pixels of the longer side of a frame in the preview
SMALLEST = 64
QUALITY = 90
ROOM = 3  # a part of a picture is made ready with a third of a side around: overlays are widened by their own size
TRIED = 40  # frames, about, that are looked at for the one that shows most
STEP = 16  # texels; parts, as exported pictures, have sides that can be halved four times

Frame = UInt8[np.ndarray, "_ _ 3"]


@dataclass(frozen=True)
class Shot:
    """A frame of the run as it is without what is being painted.

    Attributes:
        t, number: of the frame, in the run and in the source.
        under: the frame with the active edits on it, at the size of the preview.
        looks: the canonical pictures of all layers, with the edits that this frame shows.
    """

    t: int
    number: int
    under: Frame
    looks: Canonicals


@dataclass(frozen=True)
class Easel:
    """What stays while somebody paints.

    Attributes:
        run, maps: the run and its baked maps; `numbers`: the number in the source of each of its frames.
        shown_maps: the maps without the layers that edits hide.
        pictures: the newest exported picture of each layer, with no edits; `pixels`: the same as bytes.
        versions: how many exported pictures of each layer there are.
        shots: the frames of the preview.
        shapes: by which edits deform layers.
        taken: SHA-256 of pictures that are active edits already.
    """

    run: Run
    maps: Maps
    numbers: range
    shown_maps: Maps
    pictures: Mapping[str, CanonicalImage]
    pixels: Mapping[str, UInt8[np.ndarray, "_ _ 4"]]
    versions: Mapping[str, int]
    shots: tuple[Shot, ...]
    shapes: Mapping[str, Sequence[Shape]]
    taken: frozenset[str]

    def overlays(self, path: Path, layer: str | None) -> dict[str, Overlay]:
        """What was painted in a picture or a layered document, by layer; nothing where it is as it was exported.

        Args:
            layer: the layer of a picture. A document tells its own.

        Raises:
            Incomplete: the file cannot be read.
            UserError: it can, but does not fit (exit 3), or has too many pixels (7).
        """
        try:
            if path.suffix.lower() in DOCUMENTS:
                return self._of_document(path, layer)
            assert layer is not None, "pictures of no layer are not watched"
            width, height = self.pictures[layer].size
            painted = read_picture(path, max(16_000_000, 16 * width * height))
        except UserError as error:
            raise (Incomplete(error) if error.code == ExitCode.BAD_INPUT else error) from error
        overlay = None if painted.sha256 in self.taken else self.overlay(painted, layer)
        return {} if overlay is None else {layer: overlay}

    def _of_document(self, path: Path, layer: str | None) -> dict[str, Overlay]:
        from editors.document import overlays_from_document

        try:
            if sha256_file(path) in self.taken:
                return {}
            return dict(overlays_from_document(self.run, self.maps, path, layer, self.pictures))
        except FileNotFoundError as error:  # between two looks
            raise bad_input(f"there is no file {path}", where=str(path)) from error
        except UserError as error:
            if error.what.startswith("no change found"):
                return {}
            raise

    def overlay(self, painted: Picture, layer: str) -> Overlay | None:
        """What was painted on a picture of a layer; None if it is as it was exported.

        The overlay covers the part of the layer that was painted on, where that can be told without the rest.

        Raises:
            UserError: a picture of another shape (exit 3).
        """
        picture, pixels = self.pictures[layer], painted.pixels
        check_size(painted, picture.size, f"the exported picture of the layer {layer}")
        quick = None if painted.lossy or pixels is None else quick_change(pixels, self.pixels[layer])
        if quick is None:
            return self._overlay_of_all(painted, layer)
        part, found = quick
        if found.is_empty:
            return None
        rows, columns = _roomy(part, picture.size)
        rgba = np.zeros((rows.stop - rows.start, columns.stop - columns.start, 4), np.float32)
        rgba[inside(part[0], rows), inside(part[1], columns)] = found.rgba
        return Overlay(rgba, _box_of((rows, columns), picture), (*painted.notes, *found.notes))

    def _overlay_of_all(self, painted: Picture, layer: str) -> Overlay | None:
        picture = self.pictures[layer]
        if self.versions[layer] > 1:
            picture = canonical.base_for(self.run.canonical, layer, painted)
            check_size(painted, picture.size, f"the exported picture of the layer {layer}")
        found = find_change(painted, picture.array())
        return None if found.is_empty else overlay_of_change(found, painted, picture)

    def picture(self, overlays: Mapping[str, Overlay]) -> Frame:
        """The frames of the preview side by side, with overlays on top of the active edits."""
        frames = [self._shown(shot, overlays) for shot in self.shots]
        return frames[0] if len(frames) == 1 else np.concatenate(frames, axis=1)

    def best_frame(self, overlays: Mapping[str, Overlay]) -> int | None:
        """The number in the source of the frame that shows most of some overlays; None where no frame shows any.

        Of a long clip not every frame is looked at.
        """
        renderer = Renderer(self.shown_maps, self.pictures, overlays)
        size = (max(1, self.maps.size[0] // 4), max(1, self.maps.size[1] // 4))
        tried = range(0, self.maps.frame_count, max(1, self.maps.frame_count // TRIED))
        areas = {t: int(renderer.reach(t, size).sum()) for t in tried}
        best = max(areas, key=lambda t: areas[t])
        return self.numbers[best] if areas[best] else None

    def _shown(self, shot: Shot, overlays: Mapping[str, Overlay]) -> Frame:
        on_top = Renderer(self.shown_maps, self.pictures, overlays, How(looks=lambda t: shot.looks))
        frame = on_top.render_frame(shot.t, shot.under)
        if not self.shapes:
            return frame
        # A layer is bent with everything that is on it, and shows it where it was hidden before.
        looks = [
            _painted(image, box, name, overlays.get(name))
            for name, (image, box) in zip(self.maps.layers, shot.looks, strict=True)
        ]
        return Reshaper(self.shown_maps, self.pictures, {}, self.shapes, lambda t: looks).render_frame(shot.t, frame)


def open_easel(run: Run, frames: Sequence[int] = (), size: int = SIZE) -> Easel:
    """Reads all that does not change while somebody paints.

    Args:
        frames: numbers of frames of the source to show, 0 is the first; by default the middle one.
        size: pixels of the longer side of each frame; frames are never enlarged.

    Raises:
        UserError: a frame that the run does not have, a size that shows nothing (exit 3), no maps, a damaged run (5).
    """
    if size < SMALLEST:
        why = f"expected the pixels of the longer side of a frame, at least {SMALLEST}"
        raise bad_input(f"a preview of {size} pixels shows nothing", why=why, fix=f"--size {SIZE}")
    require_planar(run, "unwrap watch")
    maps = Maps.open(run)
    facts, chosen = source_facts(run)
    numbers = list(dict.fromkeys(frames)) or [chosen[len(chosen) // 2]]
    for number in numbers:
        if number not in chosen:
            raise bad_input(
                f"there is no frame {number} in this run",
                where=str(run.path),
                why=f"it was fitted to the frames {chosen.start} to {chosen[-1]} of the source, every {chosen.step}",
                fix=f"--frame {chosen[len(chosen) // 2]}",
            )
    pictures = {name: _colours_last(canonical.pristine(run.canonical, name)) for name in maps.layers}
    edits = active_edits(run)
    changer = changer_of(maps, pictures, edits, chosen)
    looks = _looks(maps.layers, pictures, edits, chosen)
    shots = []
    for number in numbers:
        t = chosen.index(number)
        frame = _fitted(next(iter(source_frames(facts, range(number, number + 1)))), size)
        shots.append(Shot(t, number, _under(changer, t, frame), looks(t)))
    return Easel(
        run=run,
        maps=maps,
        numbers=chosen,
        shown_maps=_shown_maps(maps, changer),
        pictures=pictures,
        pixels={name: np.rint(255 * picture.array()).astype(np.uint8) for name, picture in pictures.items()},
        versions={name: len(read_json(run.canonical / f"{name}.json")["versions"]) for name in maps.layers},
        shots=tuple(shots),
        shapes=shapes_of(edits, chosen),
        taken=frozenset(_sources(edits)),
    )


def stamp_of(run: Run, layers: Sequence[str]) -> tuple[Stat | None, ...]:
    """What changes when the edits, the maps or the exported pictures of a run do: then an easel is out of date."""
    facts = [run.canonical / f"{layer}.json" for layer in layers]
    return tuple(stat_of(path) for path in (run.maps / "maps.json", journal_path(run), run.edits, *facts))


def write_preview(run: Run, picture: Frame) -> Path:
    """Puts a picture in the place of the preview; whoever reads it sees the old one or the new one.

    Nothing is flushed to the disk: a preview need not outlive a power cut, and flushing takes longer than the rest.
    """
    path = run.previews / "watch.jpg"
    make_folder(path.parent)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be written as JPEG")
    with temporary(path.parent, ".jpg") as part:
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


def _sources(edits: Sequence[Edit]) -> list[str]:
    """SHA-256 of the pictures that edits were made from."""
    found = [edit.facts.get("source") for edit in edits]
    return [str(source["sha256"]) for source in found if isinstance(source, dict) and "sha256" in source]


def _colours_last(picture: CanonicalImage) -> CanonicalImage:
    """The same picture, laid in memory so that it is an array with colours last without copying it every time."""
    return replace(picture, rgba=torch.from_numpy(picture.array()).permute(2, 0, 1))


def _fitted(frame: Frame, longest: int) -> Frame:
    scale = longest / max(frame.shape[:2])
    return frame if scale >= 1 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _steps(changer: FrameChanger) -> Sequence[FrameChanger]:
    return changer.passes if isinstance(changer, Passes) else [changer]


def _under(changer: FrameChanger, t: int, frame: Frame) -> Frame:
    """A frame with all edits but the shapes, which come after what is being painted."""
    for step in _steps(changer):
        frame = frame if isinstance(step, Reshaper) else step.render_frame(t, frame)
    return frame


def _shown_maps(maps: Maps, changer: FrameChanger) -> Maps:
    for step in _steps(changer):
        if isinstance(step, Hider):
            return without_hidden(maps, {maps.layers[layer]: how for layer, how in step.hidden.items()})
    return maps


def _looks(
    layers: Sequence[str], pictures: Mapping[str, CanonicalImage], edits: Sequence[Edit], chosen: Sequence[int]
) -> Callable[[int], Canonicals]:
    """How the layers look in a frame with the edits that it shows."""
    known = [painter for edit in edits for painter in painters(edit, chosen)]

    @cache
    def painted(shown: tuple[bool, ...]) -> Canonicals:
        found = dict(pictures)
        for painter, is_shown in zip(known, shown, strict=True):
            if is_shown:
                found[painter.layer] = painter.paint(found[painter.layer])
        return [(found[name].array(), found[name].box) for name in layers]

    return lambda t: painted(tuple(painter.strength(t) > 0.5 for painter in known))


def _painted(
    image: Float[np.ndarray, "height width 4"], box: Box, layer: str, overlay: Overlay | None
) -> tuple[Float[np.ndarray, "height width 4"], Box]:
    """A canonical picture with an overlay on it."""
    if overlay is None:
        return image, box
    return CanonicalImage(torch.from_numpy(image).permute(2, 0, 1), box, layer).over(overlay).array(), box


def _roomy(part: Part, size: tuple[int, int]) -> Part:
    """A part of a picture of `size` (width, height) with room around it."""
    rows, columns = (_widened(span, side) for span, side in zip(part, size[::-1], strict=True))
    return rows, columns


def _widened(span: slice, side: int) -> slice:
    """At least a third of a side, that begins and ends at multiples of `STEP` or at the edge."""
    least = -(-side // ROOM)
    more = max(0, least - (span.stop - span.start)) // 2
    start = max(0, min(span.start - more, side - least))
    stop = min(side, max(span.stop + more, least))
    return slice(start // STEP * STEP, min(side, -(-stop // STEP) * STEP))


def _box_of(part: Part, picture: CanonicalImage) -> Box:
    """The part of the canonical plane that a part (rows, columns) of a picture covers."""
    box, (width, height) = picture.box, picture.size
    u = [box.u0 + box.width * x / width for x in (part[1].start, part[1].stop)]
    v = [box.v0 + box.height * y / height for y in (part[0].start, part[0].stop)]
    return Box(u[0], v[0], u[1], v[1])
