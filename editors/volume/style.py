"""Restyles the background: every feature of a view is pulled to the nearest feature of a style picture.

This is the nearest-neighbor feature matching of Zhang et al., "ARF: Artistic Radiance Fields", ECCV 2022, section 4,
with which DynVideo-E restyles backgrounds. Nothing is averaged, so that strokes stay distinct. Features say little
about color; ARF first repaints the training pictures in the style's colors. Here the mean and the covariance of a
view's colors are pulled to the style's along with the features, which needs no second training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from editors.core.editor import EditorResult
from editors.options.scenes import VolumeStyleOptions
from editors.volume.base import VolumeEditor, VolumeSource, tune_part
from editors.volume.distillation import AdamSettings, RandomStreams, optimize_parameters
from editors.volume.vgg_features import FeatureBackbone, load_backbone
from editors.volume.views import PictureTensor, jittered_camera_rays, values_to_picture
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter
from neural_fields.data.capture.cameras import Camera
from neural_fields.imaging.alpha import premultiply, resize_image
from neural_fields.imaging.image_io import read_picture
from neural_fields.volume.nearest_neighbors import find_nearest
from neural_fields.volume.scene import BACKGROUND


@dataclass(frozen=True, kw_only=True)
class VolumeStyle(VolumeStyleOptions, VolumeEditor):
    """Restyle the background after a picture: nearest-neighbor feature matching (ARF, 2022; DynVideo-E, 2024)."""

    def edit(self, source: VolumeSource, report: ProgressReporter) -> EditorResult:
        """Restyles the background of the scene.

        Args:
            source: the scene, with its cameras.
            report: called with the progress.

        Returns:
            New values of the paint on the background.

        Raises:
            UserError: views that are too small for the network, or a file that cannot be read (exit 3).
        """
        backbone = load_backbone(self.features, source.device)
        chance = RandomStreams(self.seed, source.device)
        views = BackgroundViews(source, self.side, chance)
        if views.min_side < backbone.min_side:
            raise bad_input(
                f"views have a side of {views.min_side} pixels",
                why=f"the network {backbone.kind} sees nothing below {backbone.min_side}",
                fix=f"--side {math.ceil(self.side * backbone.min_side / views.min_side)}",
            )
        style = measure_style(read_style(self.style, self.style_side).to(source.device), backbone)
        with tune_part(source.scene, BACKGROUND) as chosen:

            def loss(done: float) -> Float[Tensor, ""]:
                view = views.draw_view()
                return style_loss(
                    views.render_picture(view), views.plain[view], style, backbone, self.palette, self.content
                )

            optimize_parameters(chosen, loss, AdamSettings(self.steps, self.rate), report, "restyling")
            weights = chosen.copy_weights()
            return EditorResult(weights=weights, parts=(BACKGROUND,), details={"network": backbone.kind})


@dataclass(frozen=True)
class StyleFeatures:
    """Holds the style of a picture: its features and color statistics.

    Attributes:
        features: feature vectors of the picture.
        mean: mean of its colors.
        covariance: covariance of its colors.
    """

    features: Float[Tensor, "channels count"]
    mean: Float[Tensor, "3"]
    covariance: Float[Tensor, "3 3"]


class BackgroundViews:
    """Renders the background from cameras of the capture, at their moments.

    Args:
        source: the trained scene.
        side: longer side of the pictures, in pixels.
        chance: random numbers of the edit.
        max_views: largest number of views, evenly spread over the capture.

    Attributes:
        plain: the picture of each view before the edit.
    """

    def __init__(self, source: VolumeSource, side: int, chance: RandomStreams, max_views: int = 60) -> None:
        count = len(source.cameras)
        chosen = np.unique(np.linspace(0, count - 1, min(count, max_views)).round().astype(int))
        self.source, self.chance = source, chance
        self.cameras: list[Camera] = []
        for view in chosen:
            camera = source.cameras[view]
            scale = min(1.0, side / max(camera.width, camera.height))
            self.cameras.append(
                camera.resize(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))
            )
        self.times = [source.times[view] for view in chosen]
        with torch.no_grad():
            self.plain = [self.render_picture(index) for index in range(len(self.cameras))]

    @property
    def min_side(self) -> int:
        """The shortest side of all pictures, in pixels."""
        return min(min(camera.width, camera.height) for camera in self.cameras)

    def render_picture(self, index: int) -> PictureTensor:
        """Renders the view with an index, with the edit in its current state."""
        camera, device = self.cameras[index], self.source.device
        rays = jittered_camera_rays(camera, self.chance.noise, device)
        rays = replace(rays, time=torch.full_like(rays.time, self.times[index]))
        alone = frozenset({BACKGROUND})
        rendered = self.source.scene.render_rays(rays, self.source.moments, parts=alone, generator=self.chance.samples)
        return values_to_picture(rendered.color, camera)

    def draw_view(self) -> int:
        """Draws the index of a random view."""
        return int(self.chance.random.integers(len(self.cameras)))


def nearest_features(
    found: Float[Tensor, "channels count"], style: Float[Tensor, "channels wanted"]
) -> Float[Tensor, ""]:
    """Computes the mean cosine distance of features from their nearest style features (ARF, equation 1).

    Args:
        found: features of a view; their lengths do not matter.
        style: features of the style, in any order.

    Returns:
        The mean of 1 - cosine: 0 if every feature has the direction of a style feature.

    Example:
        >>> style = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> nearest_features(torch.tensor([[0.0, 3.0], [2.0, 0.0]]), style).item()
        0.0
    """
    unit, target = (F.normalize(features, dim=0) for features in (found, style))
    with torch.no_grad():
        index = find_nearest(unit.t(), target.t())  # of unit vectors the nearest has the largest cosine
    return 1 - (unit * target[:, index]).sum(dim=0).mean()


def color_statistics(picture: PictureTensor) -> tuple[Float[Tensor, "3"], Float[Tensor, "3 3"]]:
    """Computes the mean and the covariance of a picture's colors."""
    colors = picture[0].flatten(1)
    mean = colors.mean(dim=1)
    away = colors - mean[:, None]
    return mean, away @ away.t() / away.shape[1]


def measure_style(picture: PictureTensor, see: FeatureBackbone) -> StyleFeatures:
    """Measures the style of a picture.

    Args:
        picture: the style picture, RGB in [0, 1].
        see: the network of the features.
    """
    with torch.no_grad():
        return StyleFeatures(see(picture)[0].flatten(1), *color_statistics(picture))


def style_loss(
    picture: PictureTensor,
    plain: PictureTensor,
    style: StyleFeatures,
    backbone: FeatureBackbone,
    color_weight: float,
    content_weight: float,
) -> Float[Tensor, ""]:
    """Computes the loss of a view against a style.

    Args:
        picture: the view with the edit in its current state.
        plain: the view before the edit, whose features are preserved.
        style: the target style.
        backbone: the network of the features.
        color_weight: weight of the color statistics, relative to the features; 0 leaves them out.
        content_weight: weight of the distance from the features of `plain`; 0 leaves it out.
    """
    features = backbone(picture)[0].flatten(1)
    loss = nearest_features(features, style.features)
    if color_weight > 0:
        mean, covariance = color_statistics(picture)
        loss = loss + color_weight * (
            (mean - style.mean).square().sum() + (covariance - style.covariance).square().sum()
        )
    if content_weight > 0:
        with torch.no_grad():
            before = backbone(plain)[0].flatten(1)
        # In parts of their size, which differs from network to network by factors of hundreds.
        loss = loss + content_weight * (features - before).square().mean() / before.square().mean()
    return loss


def read_style(path: Path, side: int) -> PictureTensor:
    """Reads a style picture; transparent parts become white.

    Args:
        path: path of the picture.
        side: largest length of the longer side in pixels; larger pictures are scaled down.

    Raises:
        UserError: a file that cannot be read (exit 3).
    """
    painted = read_picture(path)
    rgba = premultiply(painted.rgba)
    width, height = painted.size
    scale = min(1.0, side / max(width, height))
    rgba = resize_image(rgba, (max(1, round(width * scale)), max(1, round(height * scale))))
    rgb = rgba[..., :3] + (1 - rgba[..., 3:])
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None].float().clamp(0, 1)
