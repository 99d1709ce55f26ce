"""`unwrap render`: from a run and its edits on disk to a video like the source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from neural_fields import canonical
from neural_fields.baking import Maps
from neural_fields.compositing import changer_of
from neural_fields.data.facts import VideoFacts, parse_size
from neural_fields.data.video import CODECS, source_frames, write
from neural_fields.edits import active_edits
from neural_fields.errors import ExitCode, UserError, bad_input
from neural_fields.files import read_json
from neural_fields.fit_record import read_fit_record, require_source
from neural_fields.fitting import load_model
from neural_fields.planar.model import composite
from neural_fields.prefetch import prefetch
from neural_fields.rendering import FrameChanger
from neural_fields.run import Run
from neural_fields.threads import available_cores

What = Literal["edit", "reconstruction", "compare", "layers"]


@dataclass(frozen=True)
class RenderOptions:
    """What a rendering is asked for; the defaults are those of the command."""

    edits: tuple[str, ...] = ()  # names or numbers; default: all active edits
    out: Path | None = None  # default: renders/<edit> in the run
    what: What = "edit"
    size: str = "source"
    codec: str = "h264"
    overwrite: bool = False


Reporter = Callable[[int, int], None]


def render(run: Run, options: RenderOptions | None = None, report: Reporter = lambda done, total: None) -> list[Path]:
    """Renders a run; returns the files written (one, or one per layer with `what="layers"`).

    Raises:
        UserError: nothing to render, the output exists, the source is gone, no room.
    """
    options = options or RenderOptions()
    maps = Maps.open(run)
    facts, chosen = source_facts(run)
    if options.codec not in CODECS:
        raise bad_input(f"unknown codec '{options.codec}'", why=f"codecs: {', '.join(CODECS)}", fix="--codec h264")
    size = parse_size(options.size, facts.width, facts.height)
    with _shared_cores():
        if options.what == "layers":
            return [_render_layer(run, maps, facts, chosen, size, options, name) for name in maps.layers]
        if options.what == "edit":
            frames = _edited(run, maps, facts, chosen, size, options)
        elif options.what == "reconstruction":
            frames = _reconstructed(run, size, maps.frame_count)
        else:
            frames = _compared(run, maps, facts, chosen, size, options)
        path = options.out or run.renders / f"{_stem(run, options)}{_suffix(options.codec)}"
        return [_write(path, frames, facts, chosen, options, report, maps.frame_count)]


@contextmanager
def _shared_cores() -> Iterator[None]:
    """Leaves half of the cores to the decoder and the encoder while OpenCV works beside them.

    On two cores all are busy anyway, and splitting a lookup once more only costs time.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(max(1, min(before, available_cores() // 2)))
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def source_facts(run: Run) -> tuple[VideoFacts, range]:
    """Facts of the source of a run, and the frames of it that were fitted.

    Raises:
        UserError: the source video is not where it was, or a damaged run.
    """
    record = read_fit_record(run)
    path = require_source(run, record)
    try:
        facts = VideoFacts.from_json({**dict(read_json(run.source_json)), "path": str(path)})
    except (UserError, TypeError, ValueError) as error:
        raise UserError(
            ExitCode.DAMAGED_RUN,
            "source.json is damaged",
            where=str(run.source_json),
            why=error.why if isinstance(error, UserError) else str(error),
            fix="run unwrap train again with the same --out: it writes it anew",
        ) from error
    return facts, record.frames


def open_renderer(run: Run, maps: Maps, names: Sequence[str] = ()) -> FrameChanger:
    """What puts the active edits of a run, or those named, on its frames."""
    # Unpacking pictures leaves Python's lock: in turn they would hold up the first frame.
    with ThreadPoolExecutor(2) as pool:
        pictures = pool.map(lambda name: canonical.pristine(run.canonical, name), maps.layers)
        images = dict(zip(maps.layers, pictures, strict=True))
    return changer_of(maps, images, active_edits(run, names), read_fit_record(run).frames)


def _edited(
    run: Run, maps: Maps, facts: VideoFacts, chosen: range, size: tuple[int, int], options: RenderOptions
) -> Iterator[np.ndarray]:
    """The source with the edits on it."""
    renderer = open_renderer(run, maps, options.edits)
    if not renderer.changes_something:
        raise bad_input(
            "there is no edit to render",
            where=str(run.edits),
            why="no edit is active in this run",
            fix=f"unwrap edit {run.path} IMAGE --layer {maps.layers[0]}, or --what reconstruction",
        )
    return prefetch(renderer.render(enumerate(prefetch(_at_size(source_frames(facts, chosen), size)))))


def _at_size(frames: Iterator[np.ndarray], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Frames at another size."""
    for frame in frames:
        if (frame.shape[1], frame.shape[0]) == size:
            yield frame
        else:
            mode = cv2.INTER_AREA if size[0] < frame.shape[1] else cv2.INTER_CUBIC
            yield cv2.resize(frame, size, interpolation=mode)


def _reconstructed(run: Run, size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    """What the model shows, without the source."""
    model, _ = load_model(run)
    for t in range(count):
        with torch.no_grad():
            shown = composite(model.frame(t, size)).clamp(0, 1).view(size[1], size[0], 3)
        yield (shown * 255).round().to(torch.uint8).numpy()


def _compared(
    run: Run, maps: Maps, facts: VideoFacts, chosen: range, size: tuple[int, int], options: RenderOptions
) -> Iterator[np.ndarray]:
    """Source, reconstruction and, where there is one, the edit, side by side."""
    renderer = open_renderer(run, maps, options.edits)
    sources = _at_size(source_frames(facts, chosen), size)
    for t, (source, shown) in enumerate(zip(sources, _reconstructed(run, size, maps.frame_count), strict=True)):
        parts = [source, shown] + ([renderer.render_frame(t, source)] if renderer.changes_something else [])
        yield np.concatenate(parts, axis=1)


def _render_layer(
    run: Run,
    maps: Maps,
    facts: VideoFacts,
    chosen: range,
    size: tuple[int, int],
    options: RenderOptions,
    name: str,
) -> Path:
    """One layer alone: with alpha where the codec carries it, otherwise over grey."""
    base = options.out or run.renders / f"layers{_suffix(options.codec)}"
    path = base.with_name(f"{base.stem}-{name}{base.suffix}")
    frames = _layer_frames(run, maps.layers.index(name), size, CODECS[options.codec].alpha_pixels is not None)
    return _write(path, frames, facts, chosen, options, lambda done, total: None, maps.frame_count)


def _layer_frames(run: Run, layer: int, size: tuple[int, int], with_alpha: bool) -> Iterator[np.ndarray]:
    model, _ = load_model(run)
    for t in range(model.shape.frame_count):
        with torch.no_grad():
            samples = model.frame(t, size)
        color = samples.color[:, layer] if samples.gain is None else samples.color[:, layer] * samples.gain[:, layer]
        alpha = samples.weight[:, layer, None]
        color = color.clamp(0, 1)
        shown = torch.cat([color, alpha], dim=1) if with_alpha else color * alpha + 0.5 * (1 - alpha)
        yield (shown * 255).round().to(torch.uint8).view(size[1], size[0], -1).numpy()


def _write(
    path: Path,
    frames: Iterator[np.ndarray],
    facts: VideoFacts,
    chosen: range,
    options: RenderOptions,
    report: Reporter,
    count: int,
) -> Path:
    """Encodes frames like the source, counting them."""

    def counted() -> Iterator[np.ndarray]:
        for done, frame in enumerate(frames, start=1):
            yield frame
            report(done, count)

    times = [facts.timestamps[i] for i in chosen]
    whole = len(times) == facts.frame_count
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return write(
            path,
            counted(),
            facts,
            codec=options.codec,
            timestamps=None if whole else times,
            overwrite=options.overwrite,
        )
    except UserError as error:
        if path.exists() and not options.overwrite and not error.fix:
            error.fix = "add -y to replace it, or --out with another name"
        raise


def _stem(run: Run, options: RenderOptions) -> str:
    """The default name of the output: what it shows."""
    if options.what != "edit":
        return options.what
    edits = active_edits(run, options.edits)
    names = [edit.name for edit in edits] or ["edit"]
    return re.sub(r"[^a-z0-9+-]", "-", "+".join(names))[:80]


def _suffix(codec: str) -> str:
    return "" if codec == "png" else CODECS[codec].suffixes[0]
