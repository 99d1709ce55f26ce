"""The background in the style of a picture: every feature of a view is drawn to the nearest feature of the style.

Nearest-neighbour feature matching of Zhang et al., "ARF: Artistic Radiance Fields", ECCV 2022, section 4, with which
DynVideo-E restyles backgrounds. Nothing is averaged, so that strokes stay strokes. Features say little about colour as
such; ARF repaints the training pictures in the style's colours first. Here the mean and the spread of a view's colours
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

from editors.base import Report
from editors.diffusion.settings import wrong_setting
from editors.volume.distil import Chance, Descent, descend
from editors.volume.edit import VolumeEditor, VolumeSource, WeightEdit, tuned
from editors.volume.features import Backbone, load_backbone
from editors.volume.views import Picture, as_picture, shaken_rays
from neural_fields.data.cameras import Camera
from neural_fields.errors import bad_input
from neural_fields.pictures import premultiplied, read_picture, resize
from neural_fields.volume.neighbours import nearest
from neural_fields.volume.scene import BACKGROUND


@dataclass(frozen=True, kw_only=True)
class VolumeStyle(VolumeEditor):
    """Nearest-neighbour feature matching (ARF, 2022; DynVideo-E, 2024): the background in the style of a picture."""

    name: ClassVar[str] = "volume_style"

    style: Path
    """The picture whose style the background takes on."""
    features: Path
    """Weights of VGG-16, SqueezeNet 1.1 or AlexNet, as torchvision has them."""
    steps: int = 200
    """Steps of the optimisation; each looks at one view."""
    rate: float = 0.05
    """Learning rate of the colours."""
    side: int = 128
    """Longer side in pixels of the views that are looked at."""
    style_side: int = 256
    """Longer side in pixels of the style; strokes are as large in the views as in a picture of that size."""
    palette: float = 10.0
    """How strongly the colours are drawn to the style's; 0 leaves them to the features."""
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
                raise wrong_setting(flag, value, why, fix)

    def __call__(self, source: VolumeSource, report: Report) -> WeightEdit:
        """Restyles the background of the scene."""
        backbone = load_backbone(self.features, source.device)
        chance = Chance(self.seed, source.device)
        views = Views(source, self.side, chance)
        if views.least < backbone.least:
            raise bad_input(
                f"views have a side of {views.least} pixels",
                why=f"the network {backbone.kind} sees nothing below {backbone.least}",
                fix=f"--side {math.ceil(self.side * backbone.least / views.least)}",
            )
        style = style_of(read_style(self.style, self.style_side).to(source.device), backbone)
        with tuned(source.scene, BACKGROUND) as chosen:

            def loss(done: float) -> Float[Tensor, ""]:
                view = views.random()
                return style_loss(views.picture(view), views.plain[view], style, backbone, self.palette, self.content)

            descend(chosen, loss, Descent(self.steps, self.rate), report, "restyling")
            return WeightEdit(chosen.weights(), (BACKGROUND,), facts={"network": backbone.kind})


@dataclass(frozen=True)
class Style:
    """The style of a picture: its features and colours.

    Attributes:
        features: unit vectors.
        mean, covariance: of its colours.
    """

    features: Float[Tensor, "channels count"]
    mean: Float[Tensor, "3"]
    covariance: Float[Tensor, "3 3"]


class Views:
    """Pictures of the background from cameras of the capture, at their moments.

    Args:
        source: the trained scene.
        side: longer side in pixels of the pictures.
        chance: random numbers of the edit.
        max_views: of the capture that are looked at, evenly spread.

    Attributes:
        plain: each picture before the edit.
    """

    def __init__(self, source: VolumeSource, side: int, chance: Chance, max_views: int = 60) -> None:
        count = len(source.cameras)
        chosen = np.unique(np.linspace(0, count - 1, min(count, max_views)).round().astype(int))
        self.source, self.chance = source, chance
        self.cameras: list[Camera] = []
        for view in chosen:
            camera = source.cameras[view]
            scale = min(1.0, side / max(camera.width, camera.height))
            self.cameras.append(
                camera.resized(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))
            )
        self.times = [source.times[view] for view in chosen]
        with torch.no_grad():
            self.plain = [self.picture(index) for index in range(len(self.cameras))]

    @property
    def least(self) -> int:
        """The shortest side in pixels."""
        return min(min(camera.width, camera.height) for camera in self.cameras)

    def picture(self, index: int) -> Picture:
        """Renders one of them as it is now."""
        camera, device = self.cameras[index], self.source.device
        rays = shaken_rays(camera, self.chance.noise, device)
        rays = replace(rays, time=torch.full_like(rays.time, self.times[index]))
        alone = frozenset({BACKGROUND})
        rendered = self.source.scene.look(rays, self.source.moments, parts=alone, generator=self.chance.samples)
        return as_picture(rendered.color, camera)

    def random(self) -> int:
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
        index = nearest(unit.t(), target.t())  # of unit vectors the nearest has the largest cosine
    return 1 - (unit * target[:, index]).sum(dim=0).mean()


def palette(picture: Picture) -> tuple[Float[Tensor, "3"], Float[Tensor, "3 3"]]:
    """Computes mean and covariance of a picture's colours."""
    colours = picture[0].flatten(1)
    mean = colours.mean(dim=1)
    away = colours - mean[:, None]
    return mean, away @ away.t() / away.shape[1]


def style_of(picture: Picture, see: Backbone) -> Style:
    """Measures the style of a picture."""
    with torch.no_grad():
        return Style(see(picture)[0].flatten(1), *palette(picture))


def style_loss(
    picture: Picture, plain: Picture, style: Style, see: Backbone, colours: float, content: float
) -> Float[Tensor, ""]:
    """Computes the loss of a view against a style.

    Args:
        picture: the view as it is now.
        plain: the view before the edit, whose features are kept.
        style: that it should have.
        see: the network of the features.
        colours, content: weights beside that of the features, which is 1.
    """
    features = see(picture)[0].flatten(1)
    loss = nearest_features(features, style.features)
    if colours > 0:
        mean, covariance = palette(picture)
        loss = loss + colours * ((mean - style.mean).square().sum() + (covariance - style.covariance).square().sum())
    if content > 0:
        with torch.no_grad():
            before = see(plain)[0].flatten(1)
        # In parts of their size, which differs from network to network by factors of hundreds.
        loss = loss + content * (features - before).square().mean() / before.square().mean()
    return loss


def read_style(path: Path, side: int) -> Picture:
    """Reads a picture, on white where it is transparent, its longer side at most `side` pixels.

    Raises:
        UserError: a file that cannot be read (exit 3).
    """
    painted = read_picture(path)
    rgba = premultiplied(painted.rgba)
    width, height = painted.size
    scale = min(1.0, side / max(width, height))
    rgba = resize(rgba, (max(1, round(width * scale)), max(1, round(height * scale))))
    rgb = rgba[..., :3] + (1 - rgba[..., 3:])
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None].float().clamp(0, 1)
