"""Measures a training step of the default preset with the gradients of autograd and with the analytic ones.

    python benchmarks/analytic_gradients.py [--clip NAME] [--size 854 480] [--frames 12] [--rounds 15] [--threads 1]
                                            [--json FILE]

Prints a table and then one line of JSON. Steps of both kinds alternate on the same batches, each on its own copy of the
model; the ratio is the median time with autograd divided by the analytic one. Times are processor times, so that a busy
machine disturbs them little; with several threads they are the sum over the threads. A step consists of the gradients
and Adam's update: the analytic gradient of a texture is a few rectangles, and Adam updates only these.
--clip names a clip in ../shared/data, which is read with its masks at 480p; without it the demo's clip is used.
"""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from common import DATA, finish, masks_of, parser, table
from torch import Tensor

from neural_fields.data.dataset import Batch, ClipDataset
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.masks.layer_masks import LayerMasks, load_masks
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.io import read_video
from neural_fields.nn.adam import Adam
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import frames_per_step, load_planar_config
from neural_fields.planar.losses.analytic_step import accumulate_table_gradients, supports_model
from neural_fields.planar.losses.objective import accumulate_by_autograd
from neural_fields.training.initialize import initialize_model, plan_model

Accumulate = Callable[[PlanarModel, Batch], dict[str, Tensor]]


def make_clip(frames: int, width: int, height: int) -> ClipDataset:
    """Makes the demo's clip with its true masks and flow.

    Args:
        frames: number of frames.
        width: in pixels.
        height: in pixels.
    """
    truth = make_demo_clip(frames, width, height)
    flow = FlowField(truth.forward_flow, truth.backward_flow, truth.forward_visible, truth.backward_visible)
    return ClipDataset(truth.frames, LayerMasks(("foreground",), truth.masks), flow)


def read_clip(name: str, frames: int) -> ClipDataset:
    """Reads the first frames of a real clip at 480p, with its masks."""
    with tempfile.TemporaryDirectory() as folder:
        video = read_video(DATA / name / "frames", Path(folder), "480p", f"0:{frames}")
        pictures = np.array(video.frames)
        size = (pictures.shape[2], pictures.shape[1])
        masks = load_masks([masks_of(name, "truth")], video.metadata, size, range(*video.frame_range))
        return ClipDataset(pictures, masks, compute_flow(pictures, Path(folder), "dis", size))


def time_step(model: PlanarModel, adam: Adam, batch: Batch, accumulate: Accumulate) -> tuple[float, float]:
    """Measures the processor time of a training step.

    Args:
        model: the model; its parameters are changed.
        adam: the optimizer of this model.
        batch: the frames of the step.
        accumulate: computes the losses and leaves the gradients in the parameters.

    Returns:
        Seconds for the gradients, and for the whole step.
    """
    adam.zero_grad()
    begin = time.process_time()
    accumulate(model, batch)
    middle = time.process_time()
    adam.step()
    return middle - begin, time.process_time() - begin


def main() -> None:
    """Measures one clip and prints the ratios."""
    arguments = parser(__doc__)
    arguments.add_argument("--clip", help="a clip in ../shared/data (default: the clip of the demo)")
    arguments.add_argument("--size", type=int, nargs=2, default=[854, 480], help="width and height in pixels")
    arguments.add_argument("--frames", type=int, default=12, help="number of frames")
    arguments.add_argument("--rounds", type=int, default=15, help="number of measured steps of each kind")
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    clip = read_clip(options.clip, options.frames) if options.clip else make_clip(options.frames, *options.size)
    config = load_planar_config("atlas")
    plan = plan_model(config, clip)
    first = build_model(config, plan.shape)
    initialize_model(first, plan, clip)
    assert supports_model(first), "the default preset has no analytic gradients"
    ways: dict[str, Accumulate] = {
        "autograd": lambda model, batch: accumulate_by_autograd(model, batch, 0),
        "analytic": accumulate_table_gradients,
    }
    models = {name: copy.deepcopy(first).train() for name in ways}
    adams = {name: Adam(model.param_groups()) for name, model in models.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    count = frames_per_step(config.training, clip.frame_count, clip.size[0] * clip.size[1])
    for step in range(options.rounds + 1):  # the first round warms up
        for name, accumulate in ways.items():
            measured = time_step(models[name], adams[name], clip.draw_frames(count, step, 0), accumulate)
            if step:
                times[name].append(measured)
    rows = []
    for part, phase in enumerate(("gradients", "step")):
        medians = {name: statistics.median(pair[part] for pair in pairs) for name, pairs in times.items()}
        rows.append({"measured": phase, **medians, "ratio": medians["autograd"] / medians["analytic"]})
    print("\n".join(table(("measured", "autograd", "analytic", "ratio"), rows)))
    finish(
        rows,
        options.json,
        clip=options.clip or "demo",
        size=clip.size,
        frames=clip.frame_count,
        threads=options.threads,
    )


if __name__ == "__main__":
    main()
