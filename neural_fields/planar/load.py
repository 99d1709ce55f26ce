"""Loading the model of a run."""

from __future__ import annotations

import torch

from neural_fields.config.loader import from_mapping
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.runs.checkpoints import require_checkpoint
from neural_fields.runs.run import Run


def load_planar_model(run: Run, config: PlanarConfig) -> tuple[PlanarModel, int]:
    """Loads the model of a run from its newest checkpoint, ready for evaluation.

    Args:
        run: the run.
        config: that the run was trained with, of its record.

    Returns:
        The model and its number of steps.

    Raises:
        UserError: no checkpoint yet, or all are damaged.
    """
    checkpoint = require_checkpoint(run, f"unwrap train <the video> --out {run.path}")
    model = build_model(config, from_mapping(ModelShape, checkpoint.metadata["shape"]))
    model.load_state_dict({name: torch.as_tensor(value) for name, value in checkpoint.model.items()})
    return model.eval(), checkpoint.step
