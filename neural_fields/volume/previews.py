"""Previews of a trained 3D scene beside the source."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from neural_fields.core.files import atomic_write
from neural_fields.data.capture.capture import Capture
from neural_fields.imaging.image_io import encode_png
from neural_fields.runs.run import Run
from neural_fields.volume.record import VolumeRecord
from neural_fields.volume.scene import BACKGROUND, PERSON, Scene


def save_volume_previews(run: Run, scene: Scene, record: VolumeRecord, capture: Capture) -> None:
    """Writes `previews/scene.png`: four views; from above what was filmed, the scene, its parts alone and its depth.

    Args:
        run: where the picture goes.
        scene: trained.
        record: of the run.
        capture: the filmed views.
    """
    views, max_side_px = 4, 640  # enough to see, quick to write
    device = next(scene.parameters()).device
    moments = record.make_moments(device)
    columns = []
    for view in np.linspace(0, capture.view_count - 1, min(views, capture.view_count)).round().astype(int):
        camera, time = capture.cameras[view], capture.times[view]
        whole = scene.render_view(camera, time, moments)
        rows = [torch.from_numpy(capture.frames[view].astype(np.float32) / 255).to(device), whole.color]
        rows.append(scene.render_view(camera, time, moments, parts=frozenset({BACKGROUND})).color)
        if scene.person is not None:
            gray = torch.full((3,), 0.5, device=device)
            rows.append(scene.render_view(camera, time, moments, parts=frozenset({PERSON}), behind=gray).color)
        rows.append(depth_to_gray(whole.depth))
        columns.append(torch.cat(rows))
    picture = torch.cat(columns, dim=1).cpu().numpy()
    scale = min(1.0, max_side_px * views / max(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    with atomic_write(run.previews / "scene.png") as part:
        part.write_bytes(encode_png(np.ascontiguousarray(picture)))


def depth_to_gray(depth: torch.Tensor) -> torch.Tensor:
    """Turns depth [height, width] into gray [height, width, 3]: near is bright, by disparity; no hit is black."""
    hit = depth > 0
    if not hit.any():
        return depth[..., None].expand(*depth.shape, 3) * 0
    disparity = torch.where(hit, 1 / depth.clamp_min(1e-6), 0)
    low, high = disparity[hit].quantile(0.02), disparity[hit].quantile(0.98)
    gray = torch.where(hit, 0.1 + 0.9 * ((disparity - low) / (high - low).clamp_min(1e-9)).clamp(0, 1), 0)
    return gray[..., None].expand(*depth.shape, 3)
