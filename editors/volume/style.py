"""The background in the style of a picture: every feature of a view is drawn to the nearest feature of the style.

Nearest-neighbor feature matching of Zhang et al., "ARF: Artistic Radiance Fields", ECCV 2022, section 4, with which
DynVideo-E restyles backgrounds. Nothing is averaged, so that strokes stay strokes. Features say little about color as
such; ARF repaints the training pictures in the style's colors first. Here the mean and the spread of a view's colors
are drawn to the style's along with the features, which needs no second training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from editors.core.editor import Report
from editors.diffusion.backend.settings import wrong_setting_error
from editors.volume.base import VolumeEditor, VolumeSource, WeightEdit, tune_part
from editors.volume.distillation import AdamSettings, RandomStreams, optimize_parameters
from editors.volume.vgg_features import FeatureBackbone, load_backbone
from editors.volume.views import PictureTensor, jittered_camera_rays, values_to_picture
from neural_fields.core.errors import bad_input
from neural_fields.data.capture.cameras import Camera
from neural_fields.imaging.alpha import premultiply, resize_image
from neural_fields.imaging.image_io import read_picture
from neural_fields.volume.nearest_neighbors import find_nearest
from neural_fields.volume.scene import BACKGROUND


@dataclass(frozen=True, kw_only=True)
class VolumeStyle(VolumeEditor):
    """Nearest-neighbor feature matching (ARF, 2022; DynVideo-E, 2024): the background in the style of a picture."""

    name: ClassVar[str] = "volume_style"

    style: Path
    """The picture whose style the background takes on."""
    features: Path
    """Weights of VGG-16, SqueezeNet 1.1 or AlexNet, as torchvision has them."""
    steps: int = 200
    """Steps of the optimization; each looks at one view."""
    rate: float = 0.05
    """Learning rate of the colors."""
    side: int = 128
    """Longer side in pixels of the views that are looked at."""
    style_side: int = 256
    """Longer side in pixels of the style; strokes are as large in the views as in a picture of that size."""
    palette: float = 10.0
    """How strongly the colors are drawn to the style's; 0 leaves them to the features."""
    content: float = 0.05
    """How strongly what the views show is kept."""
    seed: int = 0
    """Another seed makes another result."""

    def __post_init__(self) -> None:
        for wrong, flag, value, why, fix in (
            (self.steps < 1, "steps", self.steps, "at least one is needed", "--steps 200"),
            (not 0 < self.rate < math.inf, "rate", self.rate, "it is above 0", "--rate 0.05"),
            (not 0 <= self.palette < math.inf, "palette", self.palette, "it is 0 or more", "--palette 10"),
            (not 0 <= self.content < math.inf, "content", self.content, "it is 0 or more", "--content 0.05"),
            (self.side < 16, "side", self.side, "networks see nothing in fewer pixels", "--side 128"),
            (self.style_side < 16, "style-side", self.style_side, "it counts pixels", "--style-side 256"),
        ):
            if wrong:
                raise wrong_setting_error(flag, value, why, fix)

    def __call__(self, source: VolumeSource, report: Report) -> WeightEdit:
        """Restyles the background of the scene."""
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
            return WeightEdit(chosen.copy_weights(), (BACKGROUND,), metadata={"network": backbone.kind})


@dataclass(frozen=True)
class StyleFeatures:
    """The style of a picture: its features and colors.

    Attributes:
        features: unit vectors.
        mean, covariance: of its colors.
    """

    features: Float[Tensor, "channels count"]
    mean: Float[Tensor, "3"]
    covariance: Float[Tensor, "3 3"]


class BackgroundViews:
    """Pictures of the background from cameras of the capture, at their moments.

    Args:
        source: the trained scene.
        side: longer side in pixels of the pictures.
        chance: random numbers of the edit.
        max_views: of the capture that are looked at, evenly spread.

    Attributes:
        plain: each picture before the edit.
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
        """The shortest side in pixels."""
        return min(min(camera.width, camera.height) for camera in self.cameras)

    def render_picture(self, index: int) -> PictureTensor:
        """Renders one of them as it is now."""
        camera, device = self.cameras[index], self.source.device
        rays = jittered_camera_rays(camera, self.chance.noise, device)
        rays = replace(rays, time=torch.full_like(rays.time, self.times[index]))
        alone = frozenset({BACKGROUND})
        rendered = self.source.scene.render_rays(rays, self.source.moments, parts=alone, generator=self.chance.samples)
        return values_to_picture(rendered.color, camera)

    def draw_view(self) -> int:
        """Draws the index of one of them."""
        return int(self.chance.random.integers(len(self.cameras)))


def nearest_features(
    found: Float[Tensor, "channels count"], style: Float[Tensor, "channels wanted"]
) -> Float[Tensor, ""]:
    """Computes the distance of features from the style's nearest ones: the mean of 1 - cosine (ARF, equation 1).

    It is 0 where every feature has the direction of one of the style's; order and length do not matter.
    """
    unit, target = (F.normalize(features, dim=0) for features in (found, style))
    with torch.no_grad():
        index = find_nearest(unit.t(), target.t())  # of unit vectors the nearest has the largest cosine
    return 1 - (unit * target[:, index]).sum(dim=0).mean()


def color_statistics(picture: PictureTensor) -> tuple[Float[Tensor, "3"], Float[Tensor, "3 3"]]:
    """Computes mean and covariance of a picture's colors."""
    colors = picture[0].flatten(1)
    mean = colors.mean(dim=1)
    away = colors - mean[:, None]
    return mean, away @ away.t() / away.shape[1]


def measure_style(picture: PictureTensor, see: FeatureBackbone) -> StyleFeatures:
    """Measures the style of a picture."""
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
        picture: the view as it is now.
        plain: the view before the edit, whose features are kept.
        style: that it should have.
        backbone: the network of the features.
        color_weight: weight of the color statistics beside that of the features, which is 1; 0 leaves them out.
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
    """Reads a picture, on white where it is transparent, its longer side at most `side` pixels.

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
