"""Preview images of a training that is still running: the reconstruction and the canonical pictures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float

from neural_fields.core import coords
from neural_fields.core.files import atomic_write
from neural_fields.data.dataset import ClipDataset
from neural_fields.imaging.image_io import encode_png
from neural_fields.imaging.notebook_pictures import NotebookSettings, draw_thumbnail
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class PreviewSettings:
    """Holds the sizes of previews: enough to see, quick to write."""

    max_side_px: int = 640  # of a picture; larger ones are scaled down
    seen_frames: int = 12  # evenly spread frames that say which part of a layer is ever seen, ...
    seen_side_px: int = 120  # ... at this size


DEFAULTS = PreviewSettings()


@torch.no_grad()
def save_previews(run: Run, model: PlanarModel, clip: ClipDataset, settings: PreviewSettings = DEFAULTS) -> None:
    """Writes `previews/reconstruction.png` (middle frame: source above, model below) and `previews/<layer>.png`.

    Args:
        run: where they are written.
        model: the current model.
        clip: the frames that it is trained on.
        settings: sizes.
    """
    was_training = model.training
    model.eval()
    t = clip.frame_count // 2
    width, height = clip.size
    reconstruction = composite_layers(model.sample_frame(t, clip.size)).view(height, width, 3).clamp(0, 1).cpu().numpy()
    source = clip.frames[t].astype(np.float32) / 255
    pictures = {"reconstruction": np.concatenate([source, reconstruction])}
    seen = _find_seen_parts(model, clip, settings)
    for shape in model.shape.layers:
        scale = min(1.0, settings.max_side_px / max(shape.width, shape.height))
        size = (max(1, round(shape.width * scale)), max(1, round(shape.height * scale)))
        uv = coords.texel_centers(shape.box, *size).to(next(model.parameters()).device)
        image = model.sample_canonical(shape.name, uv).clamp(0, 1).cpu().numpy()
        if shape.name in seen:  # what no frame shows is made up
            image = np.dstack([image, cv2.resize(seen[shape.name], size, interpolation=cv2.INTER_LINEAR)])
        pictures[shape.name] = image
    for name, picture in pictures.items():
        drawn = draw_thumbnail(picture, NotebookSettings(max_side_px=settings.max_side_px)).clip(0, 1)
        with atomic_write(run.previews / f"{name}.png") as part:
            part.write_bytes(encode_png(np.ascontiguousarray(drawn, np.float32)))
    model.train(was_training)


def _find_seen_parts(
    model: PlanarModel, clip: ClipDataset, settings: PreviewSettings
) -> dict[str, Float[np.ndarray, "rows columns"]]:
    """Finds the part of each layer's canonical picture that frames show, coarsely: 1 where they do."""
    shrink = min(1.0, settings.seen_side_px / max(clip.size))
    size = (max(2, round(clip.size[0] * shrink)), max(2, round(clip.size[1] * shrink)))
    found = {}
    unit_px = max(size) / 2  # of the small frames, in one unit of uv
    for shape in model.shape.layers:
        box = shape.box
        found[shape.name] = np.zeros(
            (max(1, round(box.height * unit_px)), max(1, round(box.width * unit_px))), np.uint8
        )
    for t in np.unique(np.linspace(0, clip.frame_count - 1, settings.seen_frames).round().astype(int)).tolist():
        samples = model.sample_frame(t, size)
        if samples.uv is None:
            return {}
        for number, shape in enumerate(model.shape.layers):
            cells = found[shape.name]
            uv = samples.uv[samples.weight[:, number] > 0.5, number].cpu().numpy()
            x = np.floor((uv[:, 0] - shape.box.u0) / shape.box.width * cells.shape[1]).astype(int)
            y = np.floor((uv[:, 1] - shape.box.v0) / shape.box.height * cells.shape[0]).astype(int)
            inside = (x >= 0) & (x < cells.shape[1]) & (y >= 0) & (y < cells.shape[0])
            cells[y[inside], x[inside]] = 1
    closing = np.ones((3, 3), np.uint8)  # pixels beside one another may leave a cell between them
    return {name: cv2.morphologyEx(c, cv2.MORPH_CLOSE, closing).astype(np.float32) for name, c in found.items()}
