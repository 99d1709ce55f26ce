"""`unwrap render`: renders a run and its edits to a video that is encoded like the source."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch

from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.prefetch import prefetch
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.core.threads import available_cores
from neural_fields.data.video.io import CODECS, write_video
from neural_fields.data.video.metadata import parse_size
from neural_fields.edits.read_stack import Edit
from neural_fields.open_runs.opening import RunLike, require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.open_runs.provenance import build_provenance
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.rendering.base import RenderPass
from neural_fields.rendering.compositor import build_passes
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.retiming.interpolation import Retimer, Weights
from neural_fields.rendering.retiming.timeline import FrameSchedule, Timing, parse_timing, schedule_frames

log = logging.getLogger(__name__)


def render(run: RunLike, options: RenderOptions | None = None, report: ProgressReporter = report_nothing) -> list[Path]:
    """Renders a run of a video.

    Args:
        run: the run, or its folder.
        options: the options of `unwrap render`.
        report: called after each frame.

    Returns:
        The files written: one file, or one for each layer with `what="layers"`.

    Raises:
        UserError: nothing to render, an existing output, or a source that is gone (exit 3), or no room (exit 4).
    """
    options = options or RenderOptions()
    run = require_planar(run, "this rendering")
    _ = run.maps, run.metadata  # an unfinished run, or one whose source is gone, is refused before anything is made
    if options.codec not in CODECS:
        raise bad_input(f"unknown codec '{options.codec}'", why=f"codecs: {', '.join(CODECS)}", fix="--codec h264")
    size = parse_size(options.size, *run.source_size)
    timing = parse_timing(options.speed, options.rate, options.freeze)
    rendering = _Rendering(run, options, report, size, timing)
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
    """One rendering: the run, and what is asked for.

    Attributes:
        run, options, report: as for `render`.
        size: (width, height) of the output; a comparison has several such pictures side by side.
        timing: when the frames are shown.
    """

    run: PlanarRun
    options: RenderOptions
    report: ProgressReporter
    size: tuple[int, int]
    timing: Timing

    @cached_property
    def plan(self) -> FrameSchedule:
        """The frames to write: those of the run at their own times, unless the timing is changed."""
        if self.timing.changes_something:
            return schedule_frames(self.run.metadata, self.run.frames, self.timing)
        times = self.run.metadata.find_times(self.run.frames)
        return FrameSchedule(times, tuple(map(Fraction, range(self.run.frame_count))), self.run.metadata)

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
        for frame in self.run.iterate_frames():
            if (frame.shape[1], frame.shape[0]) == self.size:
                yield frame
            else:
                mode = cv2.INTER_AREA if self.size[0] < frame.shape[1] else cv2.INTER_CUBIC
                yield cv2.resize(frame, self.size, interpolation=mode)

    def retimed(self, frames: Iterator[np.ndarray], weights: Weights | None = None) -> Iterator[np.ndarray]:
        """Interpolates frames to the planned times, where the timing is changed.

        Args:
            frames: the frames of the run, in order.
            weights: how much of their pixels each layer fills; by default as the maps say.
        """
        return (
            Retimer(self.run.maps, weights).interpolate_frames(frames, self.plan)
            if self.timing.changes_something
            else frames
        )

    def path(self, stem: str) -> Path:
        """The output file: as asked for, or by default named in the run's folder of renders."""
        suffix = "" if self.options.codec == "png" else CODECS[self.options.codec].suffixes[0]
        return self.options.out or self.run.files.renders / f"{stem}{suffix}"

    def encode(
        self,
        path: Path,
        frames: Iterator[np.ndarray],
        edits: Sequence[Edit] = (),
        report: ProgressReporter | None = None,
    ) -> Path:
        """Encodes frames like the source.

        Args:
            path: the file to write.
            frames: the frames to write, as many as planned.
            edits: the edits that the frames show, for the metadata.
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
    run, timing = rendering.run, rendering.timing
    edits = run.active_edits(rendering.options.edits)
    edit_pass = open_passes(run, edits)
    if not edit_pass.changes_something and not timing.changes_something:
        raise bad_input(
            "there is no edit to render",
            where=str(run.files.edits),
            why="no edit is active in this run",
            fix=f"unwrap edit {run.path} IMAGE --layer {run.layers[0]}, or --what reconstruction",
        )
    edited = prefetch(edit_pass.render_frames(enumerate(prefetch(rendering.resized_source()))))
    names = [edit.name for edit in edits] or ["retimed" if timing.changes_something else "edit"]
    stem = re.sub(r"[^a-z0-9+-]", "-", "+".join(names))[:80]
    frames = rendering.retimed(edited, edit_pass.layer_weights)
    return [rendering.encode(rendering.path(stem), frames, edits, rendering.report)]


def _render_reconstruction(rendering: _Rendering) -> list[Path]:
    """Renders what the model shows, without the source."""
    frames = rendering.retimed(_reconstruct_frames(rendering.run, rendering.size))
    return [rendering.encode(rendering.path("reconstruction"), frames, report=rendering.report)]


def _render_comparison(rendering: _Rendering) -> list[Path]:
    """Renders source, reconstruction and, where there is one, the edit, side by side."""
    rendering.require_source_timing()
    edits = rendering.run.active_edits(rendering.options.edits)
    frames = _compare_frames(rendering, open_passes(rendering.run, edits))
    return [rendering.encode(rendering.path("compare"), frames, edits, rendering.report)]


def _render_layers(rendering: _Rendering) -> list[Path]:
    """Renders every layer alone to a file: with alpha where the codec carries it, otherwise over gray."""
    rendering.require_source_timing()
    base = rendering.path("layers")
    paths = []
    for layer, name in enumerate(rendering.run.layers):
        path = base.with_name(f"{base.stem}-{name}{base.suffix}")
        paths.append(rendering.encode(path, _layer_frames(rendering, layer)))
    return paths


def _reconstruct_frames(run: PlanarRun, size: tuple[int, int]) -> Iterator[np.ndarray]:
    model = run.model
    for t in range(run.maps.frame_count):
        with torch.no_grad():
            shown = composite_layers(model.sample_frame(t, size)).clamp(0, 1).view(size[1], size[0], 3)
        yield (shown * 255).round().to(torch.uint8).numpy()


def _compare_frames(rendering: _Rendering, edit_pass: RenderPass) -> Iterator[np.ndarray]:
    reconstructed = _reconstruct_frames(rendering.run, rendering.size)
    for t, (source, shown) in enumerate(zip(rendering.resized_source(), reconstructed, strict=True)):
        parts = [source, shown] + ([edit_pass.render_frame(t, source)] if edit_pass.changes_something else [])
        yield np.concatenate(parts, axis=1)


def _layer_frames(rendering: _Rendering, layer: int) -> Iterator[np.ndarray]:
    size, with_alpha = rendering.size, CODECS[rendering.options.codec].alpha_pixels is not None
    model = rendering.run.model
    for t in range(model.shape.frame_count):
        with torch.no_grad():
            samples = model.sample_frame(t, size)
        color = samples.color[:, layer] if samples.gain is None else samples.color[:, layer] * samples.gain[:, layer]
        alpha = samples.weight[:, layer, None]
        color = color.clamp(0, 1)
        shown = torch.cat([color, alpha], dim=1) if with_alpha else color * alpha + 0.5 * (1 - alpha)
        yield (shown * 255).round().to(torch.uint8).view(size[1], size[0], -1).numpy()


def _report_frames(frames: Iterator[np.ndarray], total: int, report: ProgressReporter) -> Iterator[np.ndarray]:
    """Passes frames on and reports how many were."""
    for done, frame in enumerate(frames, start=1):
        yield frame
        report(Progress("rendering", done, total))


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


def open_passes(run: PlanarRun, edits: Sequence[Edit] | None = None) -> RenderPass:
    """Opens the passes that put edits on the frames of a run.

    Args:
        run: an open run of a video.
        edits: edits of the run, lowest first; by default all active ones.

    Raises:
        UserError: a damaged edit or canonical picture (exit 5).
    """
    edits = run.active_edits() if edits is None else edits
    return build_passes(run.maps, run.canonicals, edits, run.frames)
