"""Baking: the maps of a trained model, written to disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import torch

from neural_fields.atlas.uv_maps import Maps, MapsHeader, _add_rim, gain_size
from neural_fields.config.loader import to_mapping
from neural_fields.core.files import atomic_write, require_disk_space, write_json
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.imaging.resampling import RIM
from neural_fields.nn.device import peak_memory_mib
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
    formats: dict[str, tuple[tuple[int, ...], type[np.generic]]]
    formats = {f"uv-{name}": ((count, height, width, 2), np.float32) for name in names}
    formats["weight"] = ((count, len(names), height, width), np.uint8)
    if has_gain:
        gain_shape = (count, small[1] + 2 * RIM, small[0] + 2 * RIM, 3)
        formats |= {f"gain-{name}": (gain_shape, np.float16) for name in names}
    run.maps.mkdir(parents=True, exist_ok=True)
    require_disk_space(
        run.maps, sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in formats.values())
    )
    (run.maps / "maps.json").unlink(missing_ok=True)  # what is there is stale from here on
    with ExitStack() as stack:
        files = {}
        for name, (shape, dtype) in formats.items():
            files[name] = stack.enter_context(_append_to_array(run.maps / f"{name}.npy", shape, dtype))
        for t in range(count):
            frame = torch.tensor([t])
            arrays: dict[str, np.ndarray] = {}
            places = [mapping.map_frames(frame, count, size) for mapping in model.mappings]
            for name, uv in zip(names, places, strict=True):
                arrays[f"uv-{name}"] = _add_rim(uv[0].numpy())
            weights = compute_layer_weights(model.opacity.sample_frames(frame, count, size)[0]).numpy()
            packed = (255 * _add_rim(weights)).round().clip(0, 255).astype(np.uint8)
            arrays["weight"] = packed.transpose(2, 0, 1)
            for name, gain, uv in zip(names, model.gains, places, strict=False):
                if gain.on_canonical:  # it has detail: the means of the pixels around each point
                    values = gain.sample_frames(frame, count, size, uv)[0].numpy()
                    values = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
                else:
                    values = gain.sample_frames(frame, count, small)[0].numpy()
                arrays[f"gain-{name}"] = _add_rim(values)
            for name, array in arrays.items():
                files[name].write(np.ascontiguousarray(array, formats[name][1]).tobytes())
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


@contextmanager
def _append_to_array(path: Path, shape: tuple[int, ...], dtype: type) -> Iterator[BinaryIO]:
    """Opens an .npy file to which frames are appended under a temporary name, so that no frame stays in memory."""
    with atomic_write(path) as part, part.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file
