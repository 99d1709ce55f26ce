"""`unwrap render`: renders a run and its edits to a video that is encoded like the source."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.files import atomic_write, make_folder, temporary_path
from neural_fields.core.prefetch import prefetch
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing, report_part
from neural_fields.core.threads import available_cores
from neural_fields.data.video.encode import choose_suffix, join_videos
from neural_fields.data.video.image_sequence import encode_frame
from neural_fields.data.video.io import CODECS, resized_frames, write_video
from neural_fields.data.video.metadata import parse_frames, parse_size
from neural_fields.edits.read_stack import Edit
from neural_fields.nn.compiled_loops import can_compile_loops
from neural_fields.open_runs.opening import RunLike, require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.open_runs.provenance import build_provenance
from neural_fields.rendering.base import RenderPass
from neural_fields.rendering.comparison import DIFFERENCE_GAIN, add_caption, show_difference, wipe
from neural_fields.rendering.compositor import build_passes
from neural_fields.rendering.motion_blur import estimate_shutter
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.parallel_parts import render_parts, split_frames
from neural_fields.rendering.retiming.interpolation import Retimer, Weights
from neural_fields.rendering.retiming.timeline import FrameSchedule, Timing, parse_timing, schedule_frames
from neural_fields.runs.output_name import next_version, require_free

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
    return render_edited_frames(require_planar(run, "this rendering"), options or RenderOptions(), report)[0]


def render_edited_frames(
    run: PlanarRun, options: RenderOptions, report: ProgressReporter = report_nothing
) -> tuple[list[Path], list[int]]:
    """Renders a run of a video as `render` does, and says which frames the edits changed.

    Args:
        run: the open run.
        options: the options of `unwrap render`.
        report: called after each frame.

    Returns:
        The files written, and the frames of the run that edits changed.

    Raises:
        UserError: as `render`.
    """
    _ = run.maps, run.metadata  # an unfinished run, or one whose source is gone, is refused before anything is made
    if options.codec not in CODECS:
        raise bad_input(f"unknown codec '{options.codec}'", why=f"codecs: {', '.join(CODECS)}", fix="--codec h264")
    size = parse_size(options.size, *run.source_size, keeps_even=options.codec == "h264")
    timing = parse_timing(options.speed, options.rate, options.freeze)
    chosen = _choose_frames(run, options, timing)
    parts = split_frames(chosen, options.jobs)
    # Pictures use all cores as it is, and an encoder is set up by the times of the last frames where the rate varies.
    if options.codec == "png" or timing.changes_something or run.metadata.variable_rate:
        parts = [chosen]
    rendering = _Rendering(run, options, report, size, timing, chosen, parts)
    modes = {
        "edit": _render_edit,
        "reconstruction": _render_reconstruction,
        "compare": _render_comparison,
        "wipe": _render_comparison,
        "difference": _render_comparison,
        "layers": _render_layers,
    }
    if options.what != "layers" and options.out is not None:
        require_free([options.out], options.overwrite)
    with _share_cores():
        return modes[options.what](rendering), sorted(rendering.changed)


def _choose_frames(run: PlanarRun, options: RenderOptions, timing: Timing) -> range:
    """Chooses the frames of a run that `--frames` names; all of them without it."""
    if options.start_number is not None and options.codec != "png":
        raise bad_input("--start-number numbers pictures", why=f"--codec is {options.codec}", fix="--codec png")
    if options.frames is None:
        return run.frames
    if timing.changes_something:
        raise bad_input(
            f"--frames {options.frames} with another timing",
            why="--speed, --rate and --freeze need what comes before and after",
            fix="leave --frames out, or train on this part: unwrap train --frames",
        )
    if options.frames.isascii() and options.frames.isdigit():
        t = run.require_frame(int(options.frames), "--frames")
        return run.frames[t : t + 1]
    numbers = range(run.frames[0], run.frames[-1] + 1)
    asked = parse_frames(options.frames, numbers)
    chosen = [number for number in run.frames if asked.start <= number < asked.stop]
    if asked.step != 1 or not chosen:
        why = "a render has every frame of the run from A to B"
        raise bad_input(f"--frames {options.frames}", why=why, fix=f"--frames {numbers.start}:{numbers.stop}")
    return range(chosen[0], chosen[-1] + 1, run.frames.step)


@dataclass(frozen=True)
class _Rendering:
    """One rendering: the run, and what is asked for.

    Attributes:
        run, options, report: as for `render`.
        size: (width, height) of the output; a comparison has several such pictures side by side.
        timing: when the frames are shown.
        chosen: numbers in the source of the frames that are rendered.
        parts: of these frames, which are rendered at the same time.
        changed: the frames of the run that edits were found to change.
    """

    run: PlanarRun
    options: RenderOptions
    report: ProgressReporter
    size: tuple[int, int]
    timing: Timing
    chosen: range
    parts: Sequence[range]
    changed: set[int] = field(default_factory=set)

    @property
    def indices(self) -> range:
        """The frames of the run that are rendered."""
        first = self.run.frames.index(self.chosen[0])
        return range(first, first + len(self.chosen))

    @property
    def is_still(self) -> bool:
        """Whether one picture is asked for rather than a video."""
        return self.options.frames is not None and ":" not in self.options.frames

    @cached_property
    def plan(self) -> FrameSchedule:
        """The frames to write: those of the run at their own times, unless the timing is changed."""
        if self.timing.changes_something:
            return schedule_frames(self.run.metadata, self.run.frames, self.timing)
        metadata = self.run.metadata
        if self.options.start_number is not None:  # as if the first frame of the source had the fitting number
            skipped = self.chosen[0] - metadata.first_number
            metadata = replace(metadata, first_number=self.options.start_number - skipped)
        times = self.run.metadata.find_times(self.chosen)
        return FrameSchedule(times, tuple(map(Fraction, range(len(self.chosen)))), metadata)

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
        """Streams the frames of the source at the size of the output."""
        return resized_frames(self.run.metadata, self.chosen, self.size)

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

    def choose_path(self) -> Path:
        """Chooses the output file: as asked for, or by default the next version in the run's folder of renders."""
        suffix = ".png" if self.is_still else choose_suffix(self.options.codec, self.plan.metadata)
        kind = "" if self.options.what == "edit" else f"_{self.options.what}"
        version = next_version(self.run.files.renders, f"{self.run.record.video.stem}{kind}")
        return self.options.out or version.with_name(version.name + suffix)

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
        if self.is_still:
            return _write_still(path, next(frames), self._make_texts(edits), options.overwrite)
        with self._suggest_another_file(path):
            return write_video(
                path,
                frames if report is None else _report_frames(frames, len(self.plan.timestamps), report),
                self.plan.metadata,
                codec=options.codec,
                timestamps=self._own_times,
                overwrite=options.overwrite,
                texts=self._make_texts(edits),
            )

    def join(self, path: Path, films: Sequence[Path], edits: Sequence[Edit]) -> Path:
        """Joins films of the parts of the output.

        Args:
            path: the file to write.
            films: the films, in order.
            edits: the edits that the frames show, for the metadata.

        Raises:
            UserError: the file exists, no room.
        """
        with self._suggest_another_file(path):
            return join_videos(
                path,
                films,
                self.plan.metadata,
                codec=self.options.codec,
                timestamps=self._own_times,
                overwrite=self.options.overwrite,
                texts=self._make_texts(edits),
            )

    @property
    def _own_times(self) -> tuple[Fraction, ...] | None:
        """The times of the frames in the source; None: those of all its frames."""
        return None if self.plan.timestamps == self.plan.metadata.timestamps else self.plan.timestamps

    def _make_texts(self, edits: Sequence[Edit]) -> dict[str, str] | None:
        return build_provenance(self.run, self.options.what, edits) if self.options.metadata else None

    @contextmanager
    def _suggest_another_file(self, path: Path) -> Iterator[None]:
        """Adds to an error about an existing file what can be done."""
        try:
            yield
        except UserError as error:
            if path.exists() and not self.options.overwrite and not error.fix:
                error.fix = "add -y to replace it, or --out with another name"
            raise


def _write_still(path: Path, frame: np.ndarray, texts: Mapping[str, str] | None, overwrite: bool) -> Path:
    """Writes one frame as a PNG file."""
    if path.suffix.lower() != ".png":
        raise bad_input(
            f"one frame is a picture, and {path.name!r} is not one",
            where=str(path),
            why="a single number for --frames writes a PNG file",
            fix=f"--out {path.with_suffix('.png')}, or --frames K:K+1 for a video of one frame",
        )
    if path.exists() and not overwrite:
        raise bad_input("the output exists already", where=str(path), fix="add -y to replace it, or use another --out")
    with atomic_write(path) as part:
        part.write_bytes(encode_frame(frame, texts))
    return path


def _render_edit(rendering: _Rendering) -> list[Path]:
    """Renders the source with the edits on it."""
    run, timing = rendering.run, rendering.timing
    edits = run.active_edits(rendering.options.edits)
    if can_compile_loops():  # numba takes a second, in which pictures are read and frames are decoded
        threading.Thread(target=_load_blends, name="compile", daemon=True).start()
    shutter = find_shutter(run, rendering.options.motion_blur, rendering.report)
    edit_pass = open_passes(run, edits, shutter)
    if not edit_pass.changes_something and not timing.changes_something:
        raise bad_input(
            "there is no edit to render",
            where=str(run.files.edits),
            why="no edit is active in this run",
            fix=f"unwrap edit {run.path} IMAGE --layer {run.layers[0]}, or --what reconstruction",
        )
    if len(rendering.parts) > 1:
        paths = [_render_parts(rendering, edits, shutter)]
    else:
        numbered = zip(rendering.indices, prefetch(rendering.resized_source()), strict=True)

        def iterate_edited() -> Iterator[np.ndarray]:
            for t, source in numbered:
                frame = edit_pass.render_frame(t, source)
                if frame is not source:
                    rendering.changed.add(t)
                yield frame

        frames = rendering.retimed(prefetch(iterate_edited()), edit_pass.layer_weights)
        paths = [rendering.encode(rendering.choose_path(), frames, edits, rendering.report)]
    if edits and not rendering.changed:
        numbers = rendering.chosen
        log.warning(
            "none of the frames %d to %d shows an edit (%s): they are the source's",
            numbers[0],
            numbers[-1],
            ", ".join(edit.folder.name for edit in edits),
        )
    return paths


def _render_parts(rendering: _Rendering, edits: Sequence[Edit], shutter: float) -> Path:
    """Renders parts of the source with the edits on it at the same time, and joins them."""
    options, path = rendering.options, rendering.choose_path()
    require_free([path], options.overwrite)
    with temporary_path(path.parent) as folder:
        make_folder(folder)
        suffix = CODECS[options.codec].suffixes[-1]
        films = [folder / f"{number:03d}{suffix}" for number in range(len(rendering.parts))]
        requests = [
            {
                "options": {
                    "frames": f"{part[0]}:{part[-1] + 1}",
                    "size": f"{rendering.size[0]}x{rendering.size[1]}",
                    "codec": options.codec,
                    "motion_blur": str(shutter),
                    "metadata": False,
                },
                "edits": [edit.folder.name for edit in edits],
                "out": str(film),
            }
            for part, film in zip(rendering.parts, films, strict=True)
        ]
        rendering.changed.update(render_parts(rendering.run.path, requests, rendering.report))
        return rendering.join(path, films, edits)


def _load_blends() -> None:
    """Loads the compiled loops of passes."""
    from neural_fields.rendering.blend_kernels import compile_blends

    compile_blends()


def _render_reconstruction(rendering: _Rendering) -> list[Path]:
    """Renders what the model shows, without the source."""
    from neural_fields.rendering.model_frames import reconstruct_frames

    frames = rendering.retimed(reconstruct_frames(rendering.run, rendering.indices, rendering.size))
    return [rendering.encode(rendering.choose_path(), frames, report=rendering.report)]


def _render_comparison(rendering: _Rendering) -> list[Path]:
    """Renders source, reconstruction and edit side by side, or a wipe or the difference of two of them."""
    rendering.require_source_timing()
    edits = rendering.run.active_edits(rendering.options.edits)
    shutter = find_shutter(rendering.run, rendering.options.motion_blur, rendering.report)
    frames = _compare_frames(rendering, open_passes(rendering.run, edits, shutter))
    return [rendering.encode(rendering.choose_path(), frames, edits, rendering.report)]


def _render_layers(rendering: _Rendering) -> list[Path]:
    """Renders every layer alone to a file: with alpha where the codec carries it, otherwise over gray."""
    from neural_fields.rendering.model_frames import reconstruct_layer

    rendering.require_source_timing()
    base, with_alpha = rendering.choose_path(), CODECS[rendering.options.codec].alpha_pixels is not None
    wanted = [base.with_name(f"{base.stem}-{name}{base.suffix}") for name in rendering.run.layers]
    require_free(wanted, rendering.options.overwrite)
    paths = []
    for layer, path in enumerate(wanted):
        frames = reconstruct_layer(rendering.run, rendering.indices, layer, rendering.size, with_alpha)
        report = report_part(rendering.report, "rendering", layer / len(wanted), (layer + 1) / len(wanted))
        paths.append(rendering.encode(path, frames, report=report))
    return paths


def _compare_frames(rendering: _Rendering, edit_pass: RenderPass) -> Iterator[np.ndarray]:
    """Yields the source beside the reconstruction and the edit, or what is left of two of them.

    A wipe and a difference are of the source and the edit, or of the reconstruction if there is no edit.
    """
    what, has_edit, last = rendering.options.what, edit_pass.changes_something, rendering.run.frame_count - 1
    other = "edit" if has_edit else "reconstruction"
    reconstructed = None
    if what == "compare" or not has_edit:
        from neural_fields.rendering.model_frames import reconstruct_frames

        reconstructed = reconstruct_frames(rendering.run, rendering.indices, rendering.size)
    for t, source in zip(rendering.indices, rendering.resized_source(), strict=True):
        parts = {"source": source}
        if reconstructed is not None:
            parts["reconstruction"] = next(reconstructed)
        if has_edit:
            parts["edit"] = edit_pass.render_frame(t, source)
        if what == "compare":
            yield np.concatenate([add_caption(part, name) for name, part in parts.items()], axis=1)
        elif what == "wipe":
            yield add_caption(wipe(source, parts[other], t / max(1, last)), f"source | {other}")
        else:
            caption = f"difference of source and {other}, x{DIFFERENCE_GAIN}"
            yield add_caption(show_difference(source, parts[other]), caption)


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


def find_shutter(run: PlanarRun, text: str, report: ProgressReporter = report_nothing) -> float:
    """Finds for which share of the time between frames the shutter is taken to be open.

    Args:
        run: an open run of a video.
        text: a number from 0 to 1, or "auto", which estimates it.
        report: called with what was estimated.

    Raises:
        UserError: another text (exit 3).
    """
    if text == "auto":
        pictures = [run.canonical(layer) for layer in run.layers]
        shutter = estimate_shutter(run.maps, pictures, lambda t: run.read_frame(run.frames[t]))
        found = f"the shutter is open for {shutter:.0%} of the time" if shutter else "no motion blur was found"
        report(Progress("rendering", 0, 1, note=f"{found}: edits are blurred accordingly" if shutter else found))
        return shutter
    try:
        shutter = float(text)
    except ValueError:
        shutter = math.nan
    if not 0 <= shutter <= 1:
        raise bad_input(f"--motion-blur {text}", why="expected a number from 0 to 1, or auto", fix="--motion-blur 0.5")
    return shutter


def open_passes(run: PlanarRun, edits: Sequence[Edit] | None = None, shutter: float = 0.0) -> RenderPass:
    """Opens the passes that put edits on the frames of a run.

    Args:
        run: an open run of a video.
        edits: edits of the run, lowest first; by default all active ones.
        shutter: share of the time between frames for which the shutter is open; paint is blurred accordingly.

    Raises:
        UserError: a damaged edit or canonical picture (exit 5).
    """
    edits = run.active_edits() if edits is None else edits
    return build_passes(run.maps, run.canonicals, edits, run.frames, shutter)
