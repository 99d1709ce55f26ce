"""Baking: the maps of a trained model, written to disk."""

from __future__ import annotations

import math
from contextlib import ExitStack

import cv2
import numpy as np
import torch

from neural_fields.atlas.map_files import write_map_file
from neural_fields.atlas.uv_maps import GAIN_STEP, Maps, MapsHeader, _add_rim, gain_size, uv_step
from neural_fields.config.loader import to_mapping
from neural_fields.core.files import require_disk_space, write_json
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.imaging.resampling import RIM
from neural_fields.nn.device import peak_memory_mib
from neural_fields.nn.torch_threads import map_in_torch_threads
from neural_fields.planar.appearance.opacity import compute_layer_weights
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.runs.run import Run


@torch.no_grad()
def bake_maps(run: Run, model: PlanarModel, step: int, report: ProgressReporter = report_nothing) -> Maps:
    """Evaluates the model once per frame and writes the maps.

    Args:
        run: the run that the model belongs to.
        model: a trained model, on the CPU.
        step: of the checkpoint that the model was loaded from.
        report: called after each frame.

    Raises:
        UserError: not enough room on the disk.
    """
    size, count, names = model.shape.size, model.shape.frame_count, model.layers
    width, height = (side + 2 * RIM for side in size)
    small = gain_size(size)
    has_gain = len(model.gains) > 0
    # Channels, rows and columns of each file, the step of its numbers, and its knots.
    formats: dict[str, tuple[tuple[int, int, int], float, tuple[int, int]]] = {}
    for name, mapping in zip(names, model.mappings, strict=True):
        formats[f"uv-{name}"] = (2, height, width), uv_step(size), mapping.knot_grid(size)
        if has_gain:
            formats[f"gain-{name}"] = (3, small[1] + 2 * RIM, small[0] + 2 * RIM), GAIN_STEP, (0, 0)
    formats["weight"] = (len(names), height, width), 0.0, (0, 0)
    run.maps.mkdir(parents=True, exist_ok=True)
    samples = count * sum(math.prod(planes) for planes, _, _ in formats.values())
    require_disk_space(run.maps, samples // 4)  # smooth maps take less than four bits a sample, weights a part of one
    (run.maps / "maps.json").unlink(missing_ok=True)  # what is there is stale from here on
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(write_map_file(run.maps / f"{name}.bin", count, *layout))
            for name, layout in formats.items()
        }

        def encode_frame(t: int) -> dict[str, bytes]:
            frame, blocks = torch.tensor([t]), {}
            places = [mapping.map_frames(frame, count, size) for mapping in model.mappings]
            for name, mapping, uv in zip(names, model.mappings, places, strict=True):
                at_knots = mapping.sample_knots(t, count, size).numpy()
                blocks[f"uv-{name}"] = files[f"uv-{name}"].encode(_add_rim(uv[0].numpy()), at_knots)
            weights = compute_layer_weights(model.opacity.sample_frames(frame, count, size)[0]).numpy()
            packed = (255 * _add_rim(weights)).round().clip(0, 255).astype(np.uint8)
            blocks["weight"] = files["weight"].encode(packed.transpose(2, 0, 1))
            for name, gain, uv in zip(names, model.gains, places, strict=False):
                if gain.on_canonical:  # it has detail: the means of the pixels around each point
                    values = gain.sample_frames(frame, count, size, uv)[0].numpy()
                    values = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
                else:
                    values = gain.sample_frames(frame, count, small)[0].numpy()
                blocks[f"gain-{name}"] = files[f"gain-{name}"].encode(_add_rim(values))
            return blocks

        for t, blocks in enumerate(map_in_torch_threads(encode_frame, range(count))):
            for name, block in blocks.items():
                files[name].append(block)
            report(Progress("baking", t + 1, count, peak_mib=peak_memory_mib()))
    header = MapsHeader(
        layers=names,
        boxes=tuple(model.canonical_box(name) for name in names),
        size=size,
        frame_count=count,
        has_gain=has_gain,
        charts=tuple(tuple(series) for series in model.list_charts()),
        step=step,
    )
    write_json(run.maps / "maps.json", to_mapping(header))
    return Maps.open(run.maps)
