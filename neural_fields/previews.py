"""Pictures of a fit that is still running: the reconstruction beside the source, and the canonical images."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from neural_fields import coords
from neural_fields.data.clip import Clip
from neural_fields.files import atomic_write
from neural_fields.pictures import png_bytes
from neural_fields.planar.model import PlanarModel, composite
from neural_fields.run import Run

LONGEST = 640  # pixels: enough to see, quick to write


@torch.no_grad()
def save_previews(run: Run, model: PlanarModel, clip: Clip) -> None:
    """Writes `previews/reconstruction.png` (middle frame: source above, model below) and `previews/<layer>.png`."""
    was_training = model.training
    model.eval()
    t = clip.frame_count // 2
    width, height = clip.size
    shown = composite(model.frame(t, clip.size)).view(height, width, 3).clamp(0, 1).cpu().numpy()
    source = clip.frames[t].astype(np.float32) / 255
    _write(run, "reconstruction", np.concatenate([source, shown]))
    for shape in model.shape.layers:
        scale = min(1.0, LONGEST / max(shape.width, shape.height))
        size = (max(1, round(shape.width * scale)), max(1, round(shape.height * scale)))
        uv = coords.texel_centres(shape.box, *size).to(next(model.parameters()).device)
        _write(run, shape.name, model.canonical_color(shape.name, uv).clamp(0, 1).cpu().numpy())
    model.train(was_training)


def _write(run: Run, name: str, rgb: np.ndarray) -> None:
    scale = min(1.0, LONGEST / max(rgb.shape[:2]))
    if scale < 1:
        rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    with atomic_write(run.previews / f"{name}.png") as part:
        part.write_bytes(png_bytes(np.ascontiguousarray(rgb)))
