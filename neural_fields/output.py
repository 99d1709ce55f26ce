"""`unwrap render`: from a run and its edits on disk to a video like the source."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
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
from neural_fields.export.provenance import provenance
from neural_fields.files import read_json
from neural_fields.fit_record import read_fit_record, require_source
from neural_fields.fitting import load_model
from neural_fields.in_between import Retimer
from neural_fields.planar.model import composite
from neural_fields.prefetch import prefetch
from neural_fields.rendering import FrameChanger
from neural_fields.retiming import Plan, Timing, parse_timing, plan
from neural_fields.run import Run
from neural_fields.threads import available_cores

log = logging.getLogger(__name__)

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
    speed: str = "1"  # "0.5" is half as fast
    rate: str = ""  # frames a second; default: the source's
    freeze: tuple[str, ...] = ()  # "20:2": frame 20 of the source stands still for two seconds more
    metadata: bool = True  # whether the file says what made it


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
    timing = parse_timing(options.speed, options.rate, options.freeze)
    if timing.changes_something and options.what not in ("edit", "reconstruction"):
        raise bad_input(
            f"--what {options.what} has the source's time",
            why="--speed, --rate and --freeze are for one picture that fills the frame",
            fix="leave them out, or --what edit",
        )
    asked = plan(facts, chosen, timing) if timing.changes_something else _as_filmed(facts, chosen)
    with _shared_cores():
        if options.what == "layers":
            return [_render_layer(run, maps, asked, size, options, name) for name in maps.layers]
        changer = open_renderer(run, maps, options.edits) if options.what in ("edit", "compare") else None
        if options.what == "edit" and changer is not None:
            if not changer.changes_something and not timing.changes_something:
                raise _nothing_to_render(run, maps)
            frames = _edited(changer, facts, chosen, size)
        elif changer is None:
            frames = _reconstructed(run, size, maps.frame_count)
        else:
            frames = _compared(run, changer, facts, chosen, size)
        if timing.changes_something:
            frames = Retimer(maps, None if changer is None else changer.weights).frames(frames, asked)
        path = options.out or run.renders / f"{_stem(run, options, timing)}{_suffix(options.codec)}"
        return [_write(run, path, frames, asked, options, report)]


def _as_filmed(facts: VideoFacts, chosen: range) -> Plan:
    """All frames of the run at their own times."""
    return Plan(tuple(facts.timestamps[k] for k in chosen), tuple(map(Fraction, range(len(chosen)))), facts)


def _nothing_to_render(run: Run, maps: Maps) -> UserError:
    return bad_input(
        "there is no edit to render",
        where=str(run.edits),
        why="no edit is active in this run",
        fix=f"unwrap edit {run.path} IMAGE --layer {maps.layers[0]}, or --what reconstruction",
    )


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


def _edited(changer: FrameChanger, facts: VideoFacts, chosen: range, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The source with the edits on it."""
    return prefetch(changer.render(enumerate(prefetch(_at_size(source_frames(facts, chosen), size)))))


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
    run: Run, changer: FrameChanger, facts: VideoFacts, chosen: range, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Source, reconstruction and, where there is one, the edit, side by side."""
    sources = _at_size(source_frames(facts, chosen), size)
    shown_frames = _reconstructed(run, size, len(chosen))
    for t, (source, shown) in enumerate(zip(sources, shown_frames, strict=True)):
        parts = [source, shown] + ([changer.render_frame(t, source)] if changer.changes_something else [])
        yield np.concatenate(parts, axis=1)


def _render_layer(run: Run, maps: Maps, asked: Plan, size: tuple[int, int], options: RenderOptions, name: str) -> Path:
    """One layer alone: with alpha where the codec carries it, otherwise over grey."""
    base = options.out or run.renders / f"layers{_suffix(options.codec)}"
    path = base.with_name(f"{base.stem}-{name}{base.suffix}")
    frames = _layer_frames(run, maps.layers.index(name), size, CODECS[options.codec].alpha_pixels is not None)
    return _write(run, path, frames, asked, options, lambda done, total: None)


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
    run: Run, path: Path, frames: Iterator[np.ndarray], asked: Plan, options: RenderOptions, report: Reporter
) -> Path:
    """Encodes frames like the source, counting them."""

    def counted() -> Iterator[np.ndarray]:
        for done, frame in enumerate(frames, start=1):
            yield frame
            report(done, len(asked.timestamps))

    for note in asked.notes:
        log.warning("%s", note)
    edits = active_edits(run, options.edits) if options.what in ("edit", "compare") else []
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return write(
            path,
            counted(),
            asked.facts,
            codec=options.codec,
            timestamps=None if asked.timestamps == asked.facts.timestamps else asked.timestamps,
            overwrite=options.overwrite,
            metadata=provenance(run, options.what, edits) if options.metadata else None,
        )
    except UserError as error:
        if path.exists() and not options.overwrite and not error.fix:
            error.fix = "add -y to replace it, or --out with another name"
        raise


def _stem(run: Run, options: RenderOptions, timing: Timing) -> str:
    """The default name of the output: what it shows."""
    if options.what != "edit":
        return options.what
    edits = active_edits(run, options.edits)
    names = [edit.name for edit in edits] or ["retimed" if timing.changes_something else "edit"]
    return re.sub(r"[^a-z0-9+-]", "-", "+".join(names))[:80]


def _suffix(codec: str) -> str:
    return "" if codec == "png" else CODECS[codec].suffixes[0]
