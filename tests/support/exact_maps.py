"""The exact maps of a synthetic clip, without a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neural_fields.atlas.uv_maps import Maps, MapsHeader, _add_rim, gain_size
from neural_fields.config.loader import to_mapping
from neural_fields.core import coords
from neural_fields.core.files import write_json
from neural_fields.data.synthetic.planar_clips import SyntheticClip
from tests.support.map_arrays import save_map


def write_exact_maps(folder: Path, clip: SyntheticClip) -> Maps:
    """Writes the maps of a clip with one layer in front."""
    folder.mkdir(exist_ok=True)
    size = clip.width, clip.height
    xy = coords.frame_xy(*gain_size(size))
    gains = np.stack([_add_rim(clip.lighting.compute_gain(xy, t).numpy()) for t in range(clip.count)])
    for number, name in enumerate(clip.layer_names):
        save_map(folder, f"uv-{name}", np.stack([_add_rim(clip.uv[number, t]) for t in range(clip.count)]))
        save_map(folder, f"gain-{name}", gains)
    weights = [_add_rim(np.stack([alpha, 1 - alpha], axis=-1)).transpose(2, 0, 1) for alpha in clip.alpha[0]]
    save_map(folder, "weight", np.rint(255 * np.stack(weights)).clip(0, 255).astype(np.uint8))
    header = MapsHeader(clip.layer_names, clip.boxes, size, clip.count, has_gain=True)
    write_json(folder / "maps.json", to_mapping(header))
    return Maps.open(folder)
