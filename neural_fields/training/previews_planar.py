"""Preview images of a training that is still running: the reconstruction and the canonical images."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from neural_fields.core import coords
from neural_fields.core.files import atomic_write
from neural_fields.data.dataset import ClipDataset
from neural_fields.imaging.image_io import encode_png
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.runs.run import Run


@torch.no_grad()
def save_previews(run: Run, model: PlanarModel, clip: ClipDataset, max_side_px: int = 640) -> None:
    """Writes `previews/reconstruction.png` (middle frame: source above, model below) and `previews/<layer>.png`.

    Args:
        run: where they are written.
        model: the current model.
        clip: the frames that it is trained on.
        max_side_px: larger images are reduced to it: enough to see, quick to write.
    """
    was_training = model.training
    model.eval()
    t = clip.frame_count // 2
    width, height = clip.size
    reconstruction = composite_layers(model.sample_frame(t, clip.size)).view(height, width, 3).clamp(0, 1).cpu().numpy()
    source = clip.frames[t].astype(np.float32) / 255
    _write_preview(run, "reconstruction", np.concatenate([source, reconstruction]), max_side_px)
    for shape in model.shape.layers:
        scale = min(1.0, max_side_px / max(shape.width, shape.height))
        size = (max(1, round(shape.width * scale)), max(1, round(shape.height * scale)))
        uv = coords.texel_centers(shape.box, *size).to(next(model.parameters()).device)
        image = model.sample_canonical(shape.name, uv).clamp(0, 1).cpu().numpy()
        _write_preview(run, shape.name, image, max_side_px)
    model.train(was_training)


def _write_preview(run: Run, name: str, rgb: np.ndarray, max_side_px: int) -> None:
    scale = min(1.0, max_side_px / max(rgb.shape[:2]))
    if scale < 1:
        rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    with atomic_write(run.previews / f"{name}.png") as part:
        part.write_bytes(encode_png(np.ascontiguousarray(rgb)))
