"""Pictures to paint on of the frames that are placed first, long before the training knows the others."""

from __future__ import annotations

import torch

from neural_fields.atlas.canonical import export_canonical
from neural_fields.core.progress import ProgressReporter, report_part
from neural_fields.data.dataset import ClipDataset
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.canonical_extent import measure_shape
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.runs.run import Run
from neural_fields.training.export_canonical import make_canonical_images
from neural_fields.training.initialize import ModelPlan, initialize_model


@torch.no_grad()
def export_first_pictures(
    run: Run, config: PlanarConfig, clip: ClipDataset, plan: ModelPlan, early: range, report: ProgressReporter
) -> None:
    """Exports the canonical pictures of some frames, whose planes are those of the whole clip.

    Nothing of the model stays: where these frames lie is where the training begins with them, and what is painted on
    its pictures stays in place.

    Args:
        run: the paths of the run.
        config: of the model.
        clip: all frames.
        plan: the sizes of a model of these frames, and their geometry.
        early: the numbers of these frames.
        report: called with the progress, as the stage "pictures".
    """
    report_textures, report_pictures = (report_part(report, "pictures", *part) for part in ((0.0, 0.7), (0.7, 1.0)))
    model = build_model(config, plan.shape)
    initialize_model(model, plan, clip.select_frames(early), WarmUpOptions(report=report_textures), has_light=False)
    model.eval()
    model.shape = measure_shape(model)
    for image, frames_seen in make_canonical_images(model, None, report_pictures):
        export_canonical(run.canonical, image, frames_seen)
