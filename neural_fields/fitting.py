"""`unwrap train`: from a video to a fitted run. Run again, it continues; a finished run says so."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from neural_fields import config as settings
from neural_fields.baking import Maps, bake
from neural_fields.canonical import export, pristine
from neural_fields.checkpoints import Checkpoint, load_latest_checkpoint, require_checkpoint
from neural_fields.config import Config
from neural_fields.coverage import canonical_images
from neural_fields.data.clip import Clip
from neural_fields.data.facts import VideoFacts
from neural_fields.data.video import read
from neural_fields.errors import ExitCode, UserError, bad_input
from neural_fields.files import read_json, write_json
from neural_fields.fit_input import check_same, make_clip, record_of
from neural_fields.fit_options import FitOptions, Progress, Reporter
from neural_fields.fit_record import read_fit_record
from neural_fields.interrupt import StopRequest, stop_on_signals
from neural_fields.locking import lock
from neural_fields.planar.build import Plan, build, fill, plan
from neural_fields.planar.extent import measured_shape
from neural_fields.planar.model import ModelShape, PlanarModel
from neural_fields.planar.warm_up import WarmUp
from neural_fields.previews import save_previews
from neural_fields.report import FitCost, report_of_fit
from neural_fields.run import Run, append_metrics, read_metrics, write_run_yaml
from neural_fields.training import Budget, StepRecord, train_steps

REPORT_EVERY = 20  # steps between two lines of metrics.jsonl
MEGAPIXELS_A_SECOND = 5.0  # a careful guess of how fast maps are baked, to end a fit inside its time


@dataclass(frozen=True)
class FitResult:
    """How a fit ended."""

    run: Run
    step: int
    total: int
    exit_code: ExitCode
    notes: tuple[str, ...]
    was_finished: bool = False  # nothing was left to do


def fit(video: str | Path, options: FitOptions | None = None, report: Reporter = lambda progress: None) -> FitResult:
    """Fits a representation to a video, or continues a fit that was stopped.

    Args:
        video: a video file or a folder of numbered images.
        options: what is asked for.
        report: called with the progress, often.

    Raises:
        UserError: bad input (3), no room (4), damaged run (5), another process at work (6), not converged (8).
    """
    started = time.monotonic()
    options = options or FitOptions()
    config = settings.load_config(options.config, options.overrides)
    device = choose_device(options.device)
    run_path = options.out or default_run(video)
    first = read(video, _scratch(run_path), options.size, options.frames) if not run_path.exists() else None
    run = Run.create(run_path)
    with lock(run) as note, stop_on_signals() as stop:
        notes = [note] if note else []
        report(Progress("reading", 0, 1))
        source = first or read(video, run.cache, options.size, options.frames)
        record = record_of(options, config, source)
        check_same(run, record)
        checkpoint = load_latest_checkpoint(run)
        clip, clip_notes = make_clip(run, source, options, config, report)
        notes += [*clip_notes, *source.facts.notes, *(checkpoint.warnings if checkpoint else ())]
        width, height = clip.size
        total = settings.steps_for(config.training, options.quality, clip.frame_count, width * height)
        config = settings.scale_steps(config, total)
        if checkpoint and checkpoint.step >= total and _is_whole(run):
            return FitResult(run, checkpoint.step, total, ExitCode.OK, tuple(notes), was_finished=True)
        write_run_yaml(run, record)
        write_json(run.source_json, source.facts.to_json())
        for text in notes:
            report(Progress("reading", 1, 1, note=text))
        report(Progress("geometry", 0, 1))
        model = make_model(config, clip, checkpoint, _warm_up(options, device, stop, report)).to(device)
        if checkpoint is None and stop.requested is not None:  # its start is not whole: nothing is kept of it
            _close(run, 0, total, time.monotonic() - started, stop.requested)
            return FitResult(run, 0, total, stop.exit_code, tuple(notes))
        had_flow = clip.flow is not None
        if not config.terms.use_flow:
            clip = replace(clip, flow=None)  # it has served its purpose: unmapped, it takes no memory
        if device.type == "cuda":
            clip = clip.resident(device)
        budget = _budget(options, total, started, clip)
        step = _train(run, model, clip, config, budget, options, report, lambda: stop.requested is not None)
        if stop.requested is None:
            finish(run, model, step, report)
            cost = FitCost(step, _in_all(run, time.monotonic() - started), peak_mib())
            _write_report(run, model, clip, cost, had_flow, report)
        _close(run, step, total, time.monotonic() - started, stop.requested)
        return FitResult(run, step, total, stop.exit_code, tuple(notes))


def default_run(video: str | Path) -> Path:
    """Where the run of a video goes: `runs/` and the name of the video, also for "." and ".."."""
    return Path("runs") / (Path(os.path.abspath(video)).stem or "video")


def _is_whole(run: Run) -> bool:
    """Whether what a fit leaves beside its weights can be read; otherwise a finished fit writes it again."""
    try:
        VideoFacts.from_json(read_json(run.source_json))
        for layer in Maps.open(run).layers:
            pristine(run.canonical, layer)
    except UserError:
        return False
    return True


def _scratch(run_path: Path) -> Path:
    """Where frames are decoded before the run exists: its own cache, so that a bad video leaves no run behind."""
    return run_path / "cache"


def choose_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" stands for.

    Raises:
        UserError: an unknown name, or cuda where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise bad_input(f"unknown device '{name}'", why="expected auto, cpu or cuda", fix="--device auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise bad_input(
            "no CUDA device can be used",
            why="torch sees no GPU on this machine",
            fix="--device cpu, or unwrap doctor to see why",
        )
    wanted = "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


# --- model ----------------------------------------------------------------------------------------------------------


def make_model(config: Config, clip: Clip, checkpoint: Checkpoint | None, how: WarmUp | None = None) -> PlanarModel:
    """A new model with its start, or an empty one of the checkpoint's shape (its weights come later); on the CPU.

    Args:
        how: seed of the weights; device and patience of the warm-up, which mappings that are networks start with.
    """
    how = how or WarmUp()
    if checkpoint is not None:
        return build(config, ModelShape.from_json(checkpoint.facts["shape"]))
    start: Plan = plan(config, clip)
    model = build(config, start.shape, how.seed)
    fill(model, start, clip, how)
    return model


def _warm_up(options: FitOptions, device: torch.device, stop: StopRequest, report: Reporter) -> WarmUp:
    """How a mapping that is a network is warmed up: it may be stopped, and takes at most a third of a time budget."""
    return WarmUp(
        options.seed,
        device,
        None if options.seconds is None else options.seconds / 3,
        lambda: stop.requested is not None,
        lambda done, total: report(Progress("geometry", done, total)),
    )


def load_model(run: Run) -> tuple[PlanarModel, int]:
    """The model of a run as its newest checkpoint has it, ready to be looked at, and the step.

    Raises:
        UserError: no checkpoint yet, or all are damaged.
    """
    checkpoint = require_checkpoint(run, f"unwrap train <the video> --out {run.path}")
    model = build(read_fit_record(run).config, ModelShape.from_json(checkpoint.facts["shape"]))
    model.load_state_dict({name: torch.as_tensor(value) for name, value in checkpoint.model.items()})
    return model.eval(), checkpoint.step


# --- training and finishing -----------------------------------------------------------------------------------------


def _budget(options: FitOptions, total: int, started: float, clip: Clip) -> Budget:
    """The step count, and the time that is left for steps when the whole command has to end in time."""
    if options.seconds is None:
        return Budget(total)
    width, height = clip.size
    reserve = 3.0 + clip.frame_count * width * height * len(clip.layers) / (MEGAPIXELS_A_SECOND * 1e6)
    gone = time.monotonic() - started
    return Budget(total, max(0.1, options.seconds - gone - min(reserve, options.seconds / 2)), time.monotonic())


def _train(
    run: Run,
    model: PlanarModel,
    clip: Clip,
    config: Config,
    budget: Budget,
    options: FitOptions,
    report: Reporter,
    stop: Callable[[], bool],
) -> int:
    """Runs the loop, reporting; returns the number of steps done."""
    facts = {"shape": model.shape.to_json()}
    recent: list[StepRecord] = []
    begin = time.monotonic()
    first = None
    step = 0
    for record in train_steps(model, clip, config.training, run, budget, options.seed, stop, facts):
        step = record.step
        first = step - 1 if first is None else first
        recent = [*recent[-(REPORT_EVERY - 1) :], record]
        left = _seconds_left(budget, step, first, time.monotonic() - begin)
        line = Progress(
            "training",
            step,
            budget.steps,
            _psnr(recent, config),
            _mean_seconds(recent),
            left,
            peak_mib(),
            "; ".join(record.notes),
        )
        report(line)
        if step % REPORT_EVERY == 0:
            terms = {name: round(value, 6) for name, value in record.terms.items()}
            append_metrics(
                run,
                {"step": step, "psnr": line.psnr, "terms": terms, "seconds_a_step": line.seconds_a_step,
                 "seconds": round(time.monotonic() - begin, 3), "skipped": record.skipped, "peak_mib": line.peak_mib},
            )  # fmt: skip
        if step % config.training.preview_every == 0:
            save_previews(run, model, clip)
    if not recent:  # the checkpoint was at the end already
        checkpoint = load_latest_checkpoint(run)
        return checkpoint.step if checkpoint else 0
    return step


@torch.no_grad()
def finish(run: Run, model: PlanarModel, step: int, report: Reporter = lambda progress: None) -> list[str]:
    """Bakes the maps and exports the canonical images; returns what to tell the user."""
    model = model.to("cpu").eval()
    model.shape = measured_shape(model)
    maps = bake(run, model, step, lambda done, total: report(Progress("baking", done, total, peak_mib=peak_mib())))
    notes: list[str] = []
    for image, frames_seen in canonical_images(model, maps):
        notes += export(run.canonical, image, frames_seen).notes
    for note in notes:
        report(Progress("baking", 1, 1, note=note))
    return notes


def _write_report(run: Run, model: PlanarModel, clip: Clip, cost: FitCost, had_flow: bool, report: Reporter) -> None:
    """Writes report.html and says its verdict."""

    def progress(done: int, total: int) -> None:
        report(Progress("report", done, total))

    made = report_of_fit(run, model, clip.frames, cost, had_flow, progress)
    report(Progress("report", 1, 1, note=f"{made.sentence} See {run.report}"))


def _in_all(run: Run, seconds: float) -> float:
    """How long a fit took with the times before it was continued."""
    before = [line["train_seconds"] for line in read_metrics(run) if "train_seconds" in line]
    return round(seconds + (before[-1] if before else 0.0), 3)


def _close(run: Run, step: int, total: int, seconds: float, stopped: int | None) -> None:
    """The last line of metrics.jsonl: how long it took in all, over every time it was continued."""
    append_metrics(
        run,
        {
            "event": "stopped" if stopped is not None else "finished",
            "steps": step,
            "total_steps": total,
            "train_seconds": _in_all(run, seconds),
            "peak_mib": peak_mib(),
        },
    )


def _psnr(recent: Sequence[StepRecord], config: Config) -> float | None:
    """PSNR of the last steps' pixels, from the colour term."""
    if not config.terms.color:
        return None
    errors = [record.terms["color"] / config.terms.color for record in recent if "color" in record.terms]
    if not errors or not np.isfinite(errors).all():
        return None
    return round(float(-10 * np.log10(max(1e-10, float(np.mean(errors))))), 3)


def _mean_seconds(recent: Sequence[StepRecord]) -> float:
    return round(float(np.mean([record.seconds for record in recent])), 5)


def _seconds_left(budget: Budget, step: int, first: int, elapsed: float) -> float:
    """How long the rest of the steps will take."""
    by_steps = (budget.steps - step) * elapsed / max(1, step - first)
    if budget.seconds is None:
        return by_steps
    return max(0.0, min(by_steps, budget.seconds - (time.monotonic() - budget.started)))


def peak_mib() -> float:
    """The most memory that this process has had, in MiB."""
    with suppress(OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
    return 0.0
