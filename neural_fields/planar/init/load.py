"""Loading the model of a run."""

from __future__ import annotations

import torch

from neural_fields.planar.init.build import build_model
from neural_fields.planar.model import ModelShape, PlanarModel
from neural_fields.runs.checkpoints import require_checkpoint
from neural_fields.runs.planar_record import read_planar_record
from neural_fields.runs.run import Run


def load_planar_model(run: Run) -> tuple[PlanarModel, int]:
    """Loads the model of a run from its newest checkpoint, ready for evaluation.

    Returns:
        The model and its number of steps.

    Raises:
        UserError: no checkpoint yet, or all are damaged.
    """
    checkpoint = require_checkpoint(run, f"unwrap train <the video> --out {run.path}")
    model = build_model(read_planar_record(run).config, ModelShape.from_json(checkpoint.metadata["shape"]))
    model.load_state_dict({name: torch.as_tensor(value) for name, value in checkpoint.model.items()})
    return model.eval(), checkpoint.step
