"""Baked maps of all frames at once, as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neural_fields.atlas.map_files import MapFile, write_map_file
from neural_fields.atlas.uv_maps import GAIN_STEP, uv_step


def save_map(folder: Path, name: str, values: np.ndarray) -> None:
    """Writes a file of maps: "uv-..." and "gain-..." of [T, rows, columns, C], "weight" of [T, L, rows, columns]."""
    step, planes = 0.0, values.shape[1:]
    if name != "weight":
        rows, columns, channels = planes
        planes = channels, rows, columns
        step = uv_step((columns - 2, rows - 2)) if name.startswith("uv-") else GAIN_STEP
    with write_map_file(folder / f"{name}.bin", len(values), planes, step) as write_frame:
        for frame in values:
            write_frame(frame)


def load_map(folder: Path, name: str) -> np.ndarray:
    """Reads what `save_map` or a training wrote."""
    file = MapFile(folder / f"{name}.bin")
    return np.stack([file[t] for t in range(file.frame_count)])
