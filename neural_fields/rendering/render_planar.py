"""`unwrap render`: renders a run and its edits to a video that is encoded like the source."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from neural_fields.atlas import canonical
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.prefetch import prefetch
from neural_fields.core.threads import available_cores
from neural_fields.data.video.io import CODECS, source_frames, write_video
from neural_fields.data.video.metadata import VideoMetadata, parse_size
from neural_fields.edits.provenance import build_provenance
from neural_fields.edits.read_stack import Edit, active_edits
from neural_fields.planar.init.load import load_planar_model
from neural_fields.planar.samples import composite_layers
from neural_fields.rendering.base import RenderPass
from neural_fields.rendering.compositor import build_passes
from neural_fields.rendering.retiming.interpolation import Retimer, Weights
from neural_fields.rendering.retiming.timeline import FrameSchedule, Timing, parse_timing, schedule_frames
from neural_fields.runs.planar_record import read_planar_record
from neural_fields.runs.run import Run
from neural_fields.runs.source import read_source_metadata

log = logging.getLogger(__name__)

RenderMode = Literal["edit", "reconstruction", "compare", "layers"]


@dataclass(frozen=True)
class RenderOptions:
    """Options of a rendering; the defaults are those of the command."""

    edits: tuple[str, ...] = ()  # names or numbers; default: all active edits
    out: Path | None = None  # default: renders/<edit> in the run
    what: RenderMode = "edit"
    size: str = "source"
    codec: str = "h264"
    overwrite: bool = False
    speed: str = "1"  # "0.5" is half as fast
    rate: str = ""  # frames a second; default: the source's
    freeze: tuple[str, ...] = ()  # "20:2": frame 20 of the source is frozen for two seconds more
    metadata: bool = True  # whether the file says what made it


FrameReporter = Callable[[int, int], None]


def render(
    run: Run, options: RenderOptions | None = None, report: FrameReporter = lambda done, total: None
) -> list[Path]:
    """Renders a run; returns the files written (one, or one per layer with `what="layers"`).

    Args:
        run: the run.
        options: what to render, and how to write it.
        report: is called with the number of frames done and of all frames.

    Raises:
        UserError: nothing to render, the output exists, the source is gone, no room.
    """
    options = options or RenderOptions()
    maps = Maps.open(run)
    facts, chosen = read_source_metadata(run)
    if options.codec not in CODECS:
        raise bad_input(f"unknown codec '{options.codec}'", why=f"codecs: {', '.join(CODECS)}", fix="--codec h264")
    size = parse_size(options.size, facts.width, facts.height)
    timing = parse_timing(options.speed, options.rate, options.freeze)
    rendering = _Rendering(run, options, report, maps, facts, chosen, size, timing)
    modes = {
        "edit": _render_edit,
        "reconstruction": _render_reconstruction,
        "compare": _render_comparison,
        "layers": _render_layers,
    }
    with _share_cores():
        return modes[options.what](rendering)


@dataclass(frozen=True)
class _Rendering:
    """One rendering: the run, what is asked for, and what was opened for it.

    Attributes:
        run, options, report: as for `render`.
        maps: the baked maps of the run.
        facts, chosen: metadata of the source, and the frames of it that the run has.
        size: (width, height) of the output; a comparison has several such pictures side by side.
        timing: when the frames are shown.
    """

    run: Run
    options: RenderOptions
    report: FrameReporter
    maps: Maps
    facts: VideoMetadata
    chosen: range
    size: tuple[int, int]
    timing: Timing

    @cached_property
    def plan(self) -> FrameSchedule:
        """The frames to write: those of the run at their own times, unless the timing is changed."""
        if self.timing.changes_something:
            return schedule_frames(self.facts, self.chosen, self.timing)
        times = tuple(self.facts.timestamps[k] for k in self.chosen)
        return FrameSchedule(times, tuple(map(Fraction, range(len(self.chosen)))), self.facts)

    def require_source_timing(self) -> None:
        """Refuses a changed timing.

        Raises:
            UserError: the timing is changed (exit 3).
        """
        if self.timing.changes_something:
            raise bad_input(
                f"--what {self.options.what} has the source's time",
                why="--speed, --rate and --freeze are for one picture that fills the frame",
                fix="leave them out, or --what edit",
            )

    def resized_source(self) -> Iterator[np.ndarray]:
        """Yields the frames of the source at the size of the output."""
        for frame in source_frames(self.facts, self.chosen):
            if (frame.shape[1], frame.shape[0]) == self.size:
                yield frame
            else:
                mode = cv2.INTER_AREA if self.size[0] < frame.shape[1] else cv2.INTER_CUBIC
                yield cv2.resize(frame, self.size, interpolation=mode)

    def retimed(self, frames: Iterator[np.ndarray], weights: Weights | None = None) -> Iterator[np.ndarray]:
        """Interpolates frames to the planned times, where the timing is changed.

        Args:
            frames: those of the run, in order.
            weights: how much of their pixels each layer fills; by default as the maps say.
        """
        return (
            Retimer(self.maps, weights).interpolate_frames(frames, self.plan)
            if self.timing.changes_something
            else frames
        )

    def path(self, stem: str) -> Path:
        """The output file: as asked for, or by default named in the run's folder of renders."""
        suffix = "" if self.options.codec == "png" else CODECS[self.options.codec].suffixes[0]
        return self.options.out or self.run.renders / f"{stem}{suffix}"

    def encode(
        self, path: Path, frames: Iterator[np.ndarray], edits: Sequence[Edit] = (), report: FrameReporter | None = None
    ) -> Path:
        """Encodes frames like the source.

        Args:
            path: the file to write.
            frames: as many as planned.
            edits: those that the frames show, for the metadata.
            report: is called with the number of frames done and of all frames.

        Raises:
            UserError: the file exists, no room.
        """
        options = self.options
        for note in self.plan.notes:
            log.warning("%s", note)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return write_video(
                path,
                frames if report is None else _report_frames(frames, len(self.plan.timestamps), report),
                self.plan.metadata,
                codec=options.codec,
                timestamps=None if self.plan.timestamps == self.plan.metadata.timestamps else self.plan.timestamps,
                overwrite=options.overwrite,
                texts=build_provenance(self.run, options.what, edits) if options.metadata else None,
            )
        except UserError as error:
            if path.exists() and not options.overwrite and not error.fix:
                error.fix = "add -y to replace it, or --out with another name"
            raise


def _render_edit(rendering: _Rendering) -> list[Path]:
    """Renders the source with the edits on it."""
    run, maps, timing = rendering.run, rendering.maps, rendering.timing
    edit_pass = open_passes(run, maps, rendering.options.edits)
    if not edit_pass.changes_something and not timing.changes_something:
        raise bad_input(
            "there is no edit to render",
            where=str(run.edits),
            why="no edit is active in this run",
            fix=f"unwrap edit {run.path} IMAGE --layer {maps.layers[0]}, or --what reconstruction",
        )
    edited = prefetch(edit_pass.render_frames(enumerate(prefetch(rendering.resized_source()))))
    edits = active_edits(run, rendering.options.edits)
    names = [edit.name for edit in edits] or ["retimed" if timing.changes_something else "edit"]
    stem = re.sub(r"[^a-z0-9+-]", "-", "+".join(names))[:80]
    frames = rendering.retimed(edited, edit_pass.layer_weights)
    return [rendering.encode(rendering.path(stem), frames, edits, rendering.report)]


def _render_reconstruction(rendering: _Rendering) -> list[Path]:
    """Renders what the model shows, without the source."""
    frames = rendering.retimed(_reconstruct_frames(rendering.run, rendering.size, rendering.maps.frame_count))
    return [rendering.encode(rendering.path("reconstruction"), frames, report=rendering.report)]


def _render_comparison(rendering: _Rendering) -> list[Path]:
    """Renders source, reconstruction and, where there is one, the edit, side by side."""
    rendering.require_source_timing()
    edit_pass = open_passes(rendering.run, rendering.maps, rendering.options.edits)
    edits = active_edits(rendering.run, rendering.options.edits)
    frames = _compare_frames(rendering, edit_pass)
    return [rendering.encode(rendering.path("compare"), frames, edits, rendering.report)]


def _render_layers(rendering: _Rendering) -> list[Path]:
    """Renders every layer alone to a file: with alpha where the codec carries it, otherwise over gray."""
    rendering.require_source_timing()
    base = rendering.path("layers")
    paths = []
    for layer, name in enumerate(rendering.maps.layers):
        path = base.with_name(f"{base.stem}-{name}{base.suffix}")
        paths.append(rendering.encode(path, _layer_frames(rendering, layer)))
    return paths


def _reconstruct_frames(run: Run, size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    model, _ = load_planar_model(run)
    for t in range(count):
        with torch.no_grad():
            shown = composite_layers(model.sample_frame(t, size)).clamp(0, 1).view(size[1], size[0], 3)
        yield (shown * 255).round().to(torch.uint8).numpy()


def _compare_frames(rendering: _Rendering, edit_pass: RenderPass) -> Iterator[np.ndarray]:
    reconstructed = _reconstruct_frames(rendering.run, rendering.size, len(rendering.chosen))
    for t, (source, shown) in enumerate(zip(rendering.resized_source(), reconstructed, strict=True)):
        parts = [source, shown] + ([edit_pass.render_frame(t, source)] if edit_pass.changes_something else [])
        yield np.concatenate(parts, axis=1)


def _layer_frames(rendering: _Rendering, layer: int) -> Iterator[np.ndarray]:
    size, with_alpha = rendering.size, CODECS[rendering.options.codec].alpha_pixels is not None
    model, _ = load_planar_model(rendering.run)
    for t in range(model.shape.frame_count):
        with torch.no_grad():
            samples = model.sample_frame(t, size)
        color = samples.color[:, layer] if samples.gain is None else samples.color[:, layer] * samples.gain[:, layer]
        alpha = samples.weight[:, layer, None]
        color = color.clamp(0, 1)
        shown = torch.cat([color, alpha], dim=1) if with_alpha else color * alpha + 0.5 * (1 - alpha)
        yield (shown * 255).round().to(torch.uint8).view(size[1], size[0], -1).numpy()


def _report_frames(frames: Iterator[np.ndarray], total: int, report: FrameReporter) -> Iterator[np.ndarray]:
    """Passes frames on and reports how many were."""
    for done, frame in enumerate(frames, start=1):
        yield frame
        report(done, total)


@contextmanager
def _share_cores() -> Iterator[None]:
    """Leaves half of the cores to the decoder and the encoder while OpenCV works beside them.

    On two cores all are busy anyway, and splitting a lookup once more only costs time.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(max(1, min(before, available_cores() // 2)))
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def open_passes(run: Run, maps: Maps, names: Sequence[str] = ()) -> RenderPass:
    """Opens the passes that put the active edits of a run, or those named, on its frames.

    Args:
        run: the run.
        maps: its baked maps.
        names: names or numbers of edits; by default all active ones.

    Raises:
        UserError: an unknown name (exit 3), a damaged edit or canonical picture (exit 5).
    """
    # Decoding pictures releases Python's lock: one after the other they would hold up the first frame.
    with ThreadPoolExecutor(2) as pool:
        pictures = pool.map(lambda name: canonical.read_pristine(run.canonical, name), maps.layers)
        images = dict(zip(maps.layers, pictures, strict=True))
    return build_passes(maps, images, active_edits(run, names), read_planar_record(run).frames)
