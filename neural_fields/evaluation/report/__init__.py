"""The report of a run: `report.html`, one page that says how well the model fits the clip, and why.

`train` calls `report_training` at its end, which looks at some frames; `eval --html` hands a survey of all frames to
`write_report`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from neural_fields.core.even_spread import spread_indices
from neural_fields.core.files import atomic_write, write_synced
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing, report_part
from neural_fields.data.flow.compute import FlowField
from neural_fields.evaluation.report.collect import Report, TrainingCost, begin_survey, build_report
from neural_fields.evaluation.report.heat_maps import encode_jpeg
from neural_fields.evaluation.report.page import render_page
from neural_fields.evaluation.report.survey import Survey
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import composite_layers

__all__ = ["Report", "Survey", "TrainingCost", "begin_full_survey", "report_training", "write_report"]


@dataclass(frozen=True)
class QuickReportSettings:
    """Limits the frames that `train` samples: 39 of 427x240, 9 of 854x480, all of a shorter clip."""

    pixels: float = 4e6  # most pixels in all sampled frames together
    min_frames: int = 8  # least number of sampled frames
    heat_frames: int = 12  # sampled frames that also give stretch, fold-over and residual, which change slowly
    starts: int = 6  # number of frames from which points are followed


DEFAULTS = QuickReportSettings()


@torch.no_grad()
def report_training(
    run: PlanarRun,
    model: PlanarModel,
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField | None,
    cost: TrainingCost,
    report: ProgressReporter = report_nothing,
    settings: QuickReportSettings = DEFAULTS,
) -> Report:
    """Writes the report of a run that has just been trained, baked and exported, from some of its frames.

    Args:
        run: the run, with its maps and canonical pictures.
        model: the trained model, on the CPU, in evaluation mode.
        frames: RGB at the size of the training; may be memory-mapped.
        flow: the optical flow of the training; None leaves out the measurements that need it.
        cost: time and memory of the training.
        report: called after each sampled frame.
        settings: number of sampled frames, and their size.
    """
    size = model.shape.size
    looked_at = spread_indices(len(frames), max(settings.min_frames, int(settings.pixels / (size[0] * size[1]))))
    heat = [looked_at[i] for i in spread_indices(len(looked_at), settings.heat_frames)]
    survey = begin_survey(run, size, looked_at, heat)
    report_frames, report_rest = (report_part(report, "report", *part) for part in ((0.0, 0.5), (0.5, 1.0)))
    for done, t in enumerate(looked_at, start=1):
        samples = model.sample_frame(t, size)
        shown = (composite_layers(samples).clamp(0, 1) * 255).round().to(torch.uint8).view(size[1], size[0], 3)
        survey.add_frame(t, np.asarray(frames[t]), shown.numpy(), samples)
        report_frames(Progress("report", done, len(looked_at)))
    return write_report(run, survey, frames, flow, cost, settings.starts, report_rest)


def begin_full_survey(run: PlanarRun) -> Survey:
    """Begins a survey of every frame; the caller adds them in order.

    Raises:
        UserError: the run has no maps yet, or they are damaged.
    """
    every = range(run.frame_count)
    return begin_survey(run, run.record.size, every, every)


def write_report(
    run: PlanarRun,
    survey: Survey,
    frames: UInt8[np.ndarray, "time height width 3"],
    flow: FlowField | None,
    cost: TrainingCost,
    starts: int = 64,
    report: ProgressReporter = report_nothing,
) -> Report:
    """Writes `report.html` and `previews/layers.jpg` of a run, atomically, from a survey of its frames.

    Args:
        run: the run, with its maps and canonical pictures.
        survey: the survey to which the frames of the run were added.
        frames: RGB at the size of the training; may be memory-mapped.
        flow: the optical flow of the clip; None leaves out the measurements that need it.
        cost: time and memory of the training.
        starts: number of frames from which points are tracked.
        report: called with the progress, as the stage "report".

    Raises:
        UserError: damaged maps or canonical pictures, no room.
    """
    made = build_report(run, survey, frames, flow, cost, starts, report=report)
    text = render_page(made)
    run.files.previews.mkdir(exist_ok=True)
    with atomic_write(run.files.layers_picture) as part:
        write_synced(part, encode_jpeg(made.sheet.draw_legend()))
    with atomic_write(run.files.report) as part:
        write_synced(part, text.encode(errors="replace"))  # file names that are not UTF-8
    report(Progress("report", 1, 1))
    return made
