"""The report of a run: `report.html`, one page that says whether the clip suits the model, and why.

`train` calls `report_training` at its end, which looks at some frames; `eval --html` hands a survey of all frames to
`write_report`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from neural_fields.core.files import atomic_write, write_synced
from neural_fields.evaluation.report.collect import Report, TrainingCost, begin_survey, build_report
from neural_fields.evaluation.report.page import render_page
from neural_fields.evaluation.report.survey import Survey, spread_indices
from neural_fields.planar.model import PlanarModel
from neural_fields.planar.samples import composite_layers
from neural_fields.runs.run import Run

__all__ = ["Report", "Survey", "TrainingCost", "begin_full_survey", "report_training", "write_report"]


@dataclass(frozen=True)
class QuickReportSettings:
    """What `train` looks at: 39 frames of 427x240, 9 of 854x480, all of a shorter clip, so that its end stays quick."""

    pixels: float = 4e6  # in all frames together
    min_frames: int = 8
    heat_frames: int = 12  # for stretch, fold-over and residual, which change slowly
    starts: int = 6  # frames that points are followed from


DEFAULTS = QuickReportSettings()


@torch.no_grad()
def report_training(
    run: Run,
    model: PlanarModel,
    frames: UInt8[np.ndarray, "time height width 3"],
    cost: TrainingCost,
    with_flow: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
    settings: QuickReportSettings = DEFAULTS,
) -> Report:
    """Writes the report of a run that has just been trained, baked and exported, from some of its frames.

    Args:
        run: the folder of the run, with its maps and canonical images.
        model: on the CPU, in evaluation mode.
        frames: of the source, at the size of the run.
        cost: of the training.
        with_flow: whether the training used flow, which is then in the cache; it is not computed for the report.
        progress: called with the frames looked at, and how many will be.
        settings: how much is looked at.
    """
    size = model.shape.size
    looked_at = spread_indices(len(frames), max(settings.min_frames, int(settings.pixels / (size[0] * size[1]))))
    heat = [looked_at[i] for i in spread_indices(len(looked_at), settings.heat_frames)]
    survey = begin_survey(run, size, looked_at, heat)
    for done, t in enumerate(looked_at, start=1):
        samples = model.sample_frame(t, size)
        shown = (composite_layers(samples).clamp(0, 1) * 255).round().to(torch.uint8).view(size[1], size[0], 3)
        survey.add_frame(t, np.asarray(frames[t]), shown.numpy(), samples)
        progress(done, len(looked_at))
    return write_report(run, survey, frames, cost, settings.starts, with_flow)


def begin_full_survey(run: Run, model: PlanarModel) -> Survey:
    """Begins a survey of every frame; the caller adds them in order.

    Raises:
        UserError: the run has no maps yet, or they are damaged.
    """
    every = range(model.shape.frame_count)
    return begin_survey(run, model.shape.size, every, every)


def write_report(
    run: Run,
    survey: Survey,
    frames: UInt8[np.ndarray, "time height width 3"],
    cost: TrainingCost,
    starts: int = 64,
    with_flow: bool = True,
) -> Report:
    """Writes `report.html` of a run, atomically, from a survey of its frames.

    Args:
        run: the folder of the run, with its maps and canonical images.
        survey: that the frames of the run were added to.
        frames: of the source, at the size of the run.
        cost: of the training.
        starts: how many frames points are followed from, for the figure of points that stay put.
        with_flow: whether optical flow may be used; it is computed where the cache does not have it.

    Raises:
        UserError: damaged maps or canonical images, no room.
    """
    report = build_report(run, survey, frames, cost, starts, with_flow)
    text = render_page(report)
    with atomic_write(run.report) as part:
        write_synced(part, text.encode())
    return report
