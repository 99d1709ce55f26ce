"""Previews of a trained 3D scene beside the source."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float

from neural_fields.core.files import atomic_write
from neural_fields.data.capture.capture import Capture
from neural_fields.imaging.image_io import encode_png, read_picture
from neural_fields.runs.run import Run
from neural_fields.volume.record import VolumeRecord
from neural_fields.volume.scene import BACKGROUND, PERSON, Scene


@dataclass(frozen=True)
class ScenePreviewSettings:
    """Sets the layout of the previews of a 3D scene."""

    views: int = 4  # side by side, in equal steps through the capture
    max_side_px: int = 640  # of a view: enough to see, quick to write
    rendered_side_px: int = 80  # of a view that is rendered because there is no preview: it takes half a second


DEFAULTS = ScenePreviewSettings()


def save_volume_previews(
    run: Run, scene: Scene, record: VolumeRecord, capture: Capture, settings: ScenePreviewSettings = DEFAULTS
) -> None:
    """Writes `previews/scene.png`: four views; from above what was filmed, the scene, its parts alone and its depth.

    Args:
        run: where the picture goes.
        scene: trained.
        record: of the run.
        capture: the filmed views.
        settings: the layout.
    """
    device = next(scene.parameters()).device
    moments = record.make_moments(device)
    columns = []
    for view in _choose_views(capture.view_count, settings):
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
    scale = min(1.0, settings.max_side_px * settings.views / max(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    with atomic_write(run.previews / "scene.png") as part:
        part.write_bytes(encode_png(np.ascontiguousarray(picture)))


def read_preview_view(
    run: Run, record: VolumeRecord, settings: ScenePreviewSettings = DEFAULTS
) -> dict[str, Float[np.ndarray, "height width 3"]]:
    """Reads one of the views of `previews/scene.png`.

    Args:
        run: where the picture is.
        record: of the run.
        settings: the layout.

    Returns:
        RGB in [0, 1] by the names "filmed", "scene", those of its parts, and "depth"; empty without the picture.

    Raises:
        UserError: the picture is damaged (exit 3).
    """
    path = run.previews / "scene.png"
    if not path.is_file():
        return {}
    picture = read_picture(path).rgba[..., :3]
    parts = [BACKGROUND] if record.motion is None else [BACKGROUND, PERSON]
    names = ["filmed", "scene", *parts, "depth"]
    views = len(_choose_views(len(record.cameras), settings))
    height, width = picture.shape[0] / len(names), picture.shape[1] / views
    left, right = round(views // 2 * width), round((views // 2 + 1) * width)
    return {
        name: picture[round(row * height) : round((row + 1) * height), left:right] for row, name in enumerate(names)
    }


def render_preview_view(
    scene: Scene, record: VolumeRecord, settings: ScenePreviewSettings = DEFAULTS
) -> dict[str, Float[np.ndarray, "height width 3"]]:
    """Renders the view of `read_preview_view`, small and without its parts, which takes less time.

    Args:
        scene: trained.
        record: of the run.
        settings: the layout.

    Returns:
        RGB in [0, 1] by the names "scene" and "depth".
    """
    views = _choose_views(len(record.cameras), settings)
    view = views[len(views) // 2]
    camera = record.cameras[view]
    shrink = min(1.0, settings.rendered_side_px / max(camera.width, camera.height))
    small = camera.resize(max(1, round(camera.width * shrink)), max(1, round(camera.height * shrink)))
    shown = scene.render_view(small, record.times[view], record.make_moments(next(scene.parameters()).device))
    return {"scene": shown.color.cpu().numpy(), "depth": depth_to_gray(shown.depth).cpu().numpy()}


def _choose_views(count: int, settings: ScenePreviewSettings) -> list[int]:
    return np.linspace(0, count - 1, min(settings.views, count)).round().astype(int).tolist()


def depth_to_gray(depth: torch.Tensor) -> torch.Tensor:
    """Turns depth [height, width] into gray [height, width, 3]: near is bright, by disparity; no hit is black."""
    hit = depth > 0
    if not hit.any():
        return depth[..., None].expand(*depth.shape, 3) * 0
    disparity = torch.where(hit, 1 / depth.clamp_min(1e-6), 0)
    low, high = disparity[hit].quantile(0.02), disparity[hit].quantile(0.98)
    gray = torch.where(hit, 0.1 + 0.9 * ((disparity - low) / (high - low).clamp_min(1e-9)).clamp(0, 1), 0)
    return gray[..., None].expand(*depth.shape, 3)
