"""Exports mattes and layers, from which other programs composite the video again.

A matte is the share of each pixel that a layer fills; the mattes of all layers add up to one. A layer also has its
color, and an alpha for "over": the share of the layer in what the layers in front of it leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from textwrap import fill
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.core.errors import bad_input
from neural_fields.core.files import write_synced
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.video.image_sequence import insert_png_texts
from neural_fields.data.video.io import resized_frames, write_video
from neural_fields.data.video.metadata import VideoMetadata, parse_size
from neural_fields.export.base import Target
from neural_fields.export.exporter_options import LayersOptions, MatteOptions
from neural_fields.imaging.alpha import premultiply
from neural_fields.imaging.exr import write_exr
from neural_fields.open_runs.provenance import build_provenance
from neural_fields.rendering.base import RenderPass
from neural_fields.rendering.edge_guide import FrameEdges
from neural_fields.rendering.render_planar import open_passes
from neural_fields.rendering.unmixing import FrameUnmixer, unmix_edited_frame

Picture = Float[np.ndarray, "height width channels"]  # one channel: a matte; four: straight RGBA
Frames = Callable[[], Iterator[tuple[int, Sequence[Picture]]]]  # index in the run, and a picture of each layer

COLORS = "display-referred (sRGB, Rec. 709 primaries), as in the source; nothing was made linear"
STORED = {
    ("matte", "png"): "16-bit gray PNG files: 65535 where the layer fills the pixel.",
    ("matte", "exr"): "32-bit float OpenEXR files with the channels A and Y, both the matte.",
    ("matte", "prores4444"): "One ProRes 4444 film a layer: white, with the matte as its alpha.",
    ("layers", "png"): "16-bit RGBA PNG files. Alpha is straight: colors are not multiplied by it.",
    ("layers", "exr"): "32-bit float OpenEXR files. Alpha is premultiplied: colors are multiplied by it.",
    ("layers", "prores4444"): "One ProRes 4444 film a layer. Alpha is straight: colors are not multiplied by it.",
}
MEANING = {
    "matte": "A matte is how much of each pixel of the frame the layer fills. In each pixel the mattes of all layers "
    "add up to one: a layer behind others has only what they leave.",
    "layers": 'Put together with "over", the last on the bottom, the layers give the frame. Alpha is how much a layer '
    "fills of what those in front of it leave. The last layer goes on behind the others, where some frame shows it, "
    "with the colors of its canonical picture in the light around.",
}


@dataclass(frozen=True, kw_only=True)
class MatteExporter(MatteOptions):
    """Write the share of each pixel that each layer fills: a sequence for each layer."""

    def __call__(self, target: Target, report: ProgressReporter) -> Sequence[str]:
        """Fills the folder of `target`.

        Raises:
            UserError: an unknown layer, a size or a step out of range, a missing package, no room.
        """
        job = _plan_job(target, "matte", self.layer, self.format, self.size, self.every)
        return job.write_files(partial(_iterate_mattes, job), report)


@dataclass(frozen=True, kw_only=True)
class LayersExporter(LayersOptions):
    """Write every layer with color and alpha; "over" with the last layer at the bottom reproduces the frame."""

    def __call__(self, target: Target, report: ProgressReporter) -> Sequence[str]:
        """Fills the folder of `target`.

        Raises:
            UserError: an unknown layer, a size or a step out of range, a missing package, no room, no edit to show.
        """
        if self.edited and self.what == "model":
            raise bad_input("edits are put on the source's own pixels", fix="leave out --what model, or --edited")
        edits = target.run.active_edits() if self.edited else []
        if self.edited and not edits:
            raise bad_input(
                "no edit is active in this run", where=str(target.run.files.edits), fix="leave out --edited"
            )
        job = _plan_job(target, "layers", self.layer, self.format, self.size, self.every, edits=edits, colors=self.what)
        changer = open_passes(target.run, edits) if edits else None
        images = target.run.canonicals.values()
        unmixing = FrameUnmixer(target.run.maps, [(image.rgba, image.box) for image in images])
        return job.write_files(partial(_iterate_layers, job, unmixing, changer, self.what == "model"), report)


@dataclass(frozen=True)
class _MatteJob:
    """The pictures of one export, checked before anything is written."""

    target: Target
    kind: str  # "matte" or "layers"
    metadata: VideoMetadata
    chosen: range  # number in the source of each frame of the run
    layers: list[int]
    format: str
    size: tuple[int, int]
    every: int
    words: Mapping[str, str]  # metadata

    @property
    def frames(self) -> range:
        """The frames of the run that are written."""
        return range(0, len(self.chosen), self.every)

    def iterate_source(self) -> Iterator[tuple[int, UInt8[np.ndarray, "height width 3"]]]:
        """Yields the index in the run and the frame of the source, at the size that is asked for."""
        return zip(self.frames, resized_frames(self.metadata, self.chosen[:: self.every], self.size), strict=True)

    def write_files(self, pictures: Frames, report: ProgressReporter) -> list[str]:
        """Writes all files; returns notes for the user."""
        names = self.target.run.layers
        if self.format == "prores4444":
            # Each layer is a film of straight RGBA.
            times = self.metadata.find_times(self.chosen[:: self.every])
            metadata = replace(self.metadata, rate=self.metadata.rate / (self.every * self.chosen.step))
            for layer in self.layers:
                path = self.target.folder / f"{names[layer]}.mov"
                frames = self._iterate_film(pictures, layer, path.name, report)
                write_video(path, frames, metadata, codec="prores4444", timestamps=times, sound=False, texts=self.words)
        else:
            # Each picture is a file: PNG (16 bits, straight) or OpenEXR (float, premultiplied).
            for layer in self.layers:
                (self.target.folder / names[layer]).mkdir()
            for done, (t, found) in enumerate(pictures(), start=1):
                for layer in self.layers:
                    picture, is_matte = found[layer], found[layer].shape[2] == 1
                    number = self.target.frame_numbers[t]
                    path = self.target.folder / names[layer] / f"{names[layer]}.{number:04d}.{self.format}"
                    if self.format == "exr":
                        planes = picture[..., 0] if is_matte else np.moveaxis(premultiply(picture), -1, 0)
                        channels = dict.fromkeys("AY", planes) if is_matte else dict(zip("RGBA", planes, strict=True))
                        header = {} if is_matte else {"alpha": "premultiplied", "color": COLORS}
                        write_exr(path, channels, {**header, **self.words})
                    else:
                        values = np.rint(65535 * picture).astype(np.uint16)
                        values = values if is_matte else cv2.cvtColor(values, cv2.COLOR_RGBA2BGRA)
                        ok, png = cv2.imencode(".png", values, [cv2.IMWRITE_PNG_COMPRESSION, 2])
                        assert ok, "16-bit pictures of one or four channels can be written"
                        write_synced(path, insert_png_texts(png.tobytes(), self.words))
                report(Progress(f"writing {self.kind}", done, len(self.frames)))
        stored = STORED[self.kind, self.format]

        # The README says what the files are.
        width, height = self.size
        first = self.target.frame_numbers[0]
        numbers = f"The first has the number {first}, the first frame of the source {self.target.first_number}."
        lines = [
            stored,
            MEANING[self.kind],
            f"Layers, front to back: {', '.join(names)}. Written: {', '.join(names[n] for n in self.layers)}.",
            f"{width}x{height} pixels. {numbers}",
        ]
        if self.kind == "layers":
            lines.insert(2, f"Colors are {COLORS}.")
        text = "\n\n".join(fill(line, 100) for line in lines) + "\n"
        write_synced(self.target.folder / "README.txt", text.encode())
        return [stored]

    def _iterate_film(
        self, pictures: Frames, layer: int, name: str, report: ProgressReporter
    ) -> Iterator[UInt8[np.ndarray, "height width 4"]]:
        """Yields the frames of one layer as 8-bit RGBA; a matte is the alpha of white."""
        for done, (_, found) in enumerate(pictures(), start=1):
            one = found[layer]
            rgba = np.dstack([np.ones((*one.shape[:2], 3), np.float32), one]) if one.shape[2] == 1 else one
            yield np.rint(255 * rgba).astype(np.uint8)
            report(Progress(f"writing {name}", done, len(self.frames)))


def _plan_job(
    target: Target, kind: str, layers: Sequence[str], format: str, size: str, every: int, **more: Any
) -> _MatteJob:
    """Checks what is asked for before anything is written."""
    numbers = target.run.select_layers(layers)
    metadata, chosen = target.run.metadata, target.run.frames
    if not 1 <= every <= len(chosen):
        why = f"the run has {len(chosen)} frames; a step of 1 to {len(chosen)} is possible"
        raise bad_input(f"--every {every} is out of range", why=why, fix="--every 1")
    wanted = parse_size(size, metadata.width, metadata.height)
    words = build_provenance(target.run, kind, **more) if target.metadata else {}
    return _MatteJob(target, kind, metadata, chosen, numbers, format, wanted, every, words)


def _iterate_mattes(job: _MatteJob) -> Iterator[tuple[int, Sequence[Picture]]]:
    """Yields the index in the run and the matte of every layer, for each frame that is written."""
    for t, frame in job.iterate_source():
        yield t, [plane[..., None] for plane in FrameEdges(t, frame).read_weights(job.target.run.maps)]


def _iterate_layers(
    job: _MatteJob, unmixing: FrameUnmixer, changer: RenderPass | None, model: bool
) -> Iterator[tuple[int, Sequence[Picture]]]:
    """Yields the index in the run and every layer for each frame that is written, edited where there is a `changer`."""
    for t, frame in job.iterate_source():
        if changer is None:
            yield t, unmixing.unmix_frame(t, frame, model)
        else:
            yield t, unmix_edited_frame(changer, t, frame)
