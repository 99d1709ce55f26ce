"""Novel-view diffusion: a model that is shown an object from one side scores renders of its other sides.

Liu et al., "Zero-1-to-3: Zero-shot One Image to 3D Object", ICCV 2023, section 3.2: the denoiser sees the latents of
the reference beside the noised ones, and in place of a prompt one token made of the reference's CLIP embedding and the
four numbers of how the camera has moved. DynVideo-E distils it into the person in the pose of the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from numpy import ndarray
from torch import Tensor

from editors.diffusion.backend.clip_model import CLIP_PIXEL_MEAN, CLIP_PIXEL_STD
from editors.diffusion.backend.diffusers_model import EncodedPrompt
from editors.diffusion.backend.noise_schedule import Latents
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.backend.zero123_loader import ViewNetworks, load_view_networks
from editors.diffusion.common.score_distillation import Score, make_sds_score
from editors.volume.views import Orbit, PictureTensor


@dataclass(frozen=True)
class CameraMove:
    """The motion of a camera around what it looks at, from where the reference was taken.

    Attributes:
        polar: radians by which it has come down: the angle against the way up has grown.
        azimuth: radians by which it has gone to its own right.
        distance: by how much it is farther away, in sizes of the object.
    """

    polar: float
    azimuth: float
    distance: float

    def encode(self) -> Float[Tensor, "4"]:
        """Encodes the motion as the four numbers that the network takes."""
        return torch.tensor([self.polar, math.sin(self.azimuth), math.cos(self.azimuth), self.distance])


def compute_camera_move(orbit: Orbit, reference: Shaped[ndarray, "3"], place: Shaped[ndarray, "3"]) -> CameraMove:
    """Computes the motion of a camera from one place to another that always looks at the middle of an orbit.

    The network's objects fit into a ball of radius 1 / 2: that is the unit of distances.

    Args:
        orbit: around the object.
        reference: where the camera of the reference is.
        place: where the camera goes.
    """
    first, second = orbit.direction_of(reference), orbit.direction_of(place)
    azimuth = (second[0] - first[0] + math.pi) % (2 * math.pi) - math.pi
    return CameraMove(first[1] - second[1], azimuth, (second[2] - first[2]) / (2 * orbit.radius))


class NovelViewModel:
    """A loaded model with its reference.

    Args:
        networks: as `load_view_networks` reads them.
        reference: the object before white, square, in [0, 1].
    """

    def __init__(self, networks: ViewNetworks, reference: PictureTensor) -> None:
        self.model, self.projection = networks.model, networks.projection
        side = self.model.trained_side
        resized = torch.nn.functional.interpolate(reference, (side, side), mode="bilinear", antialias=True)
        with torch.no_grad():
            # The network was trained on latents as the encoder gives them, not at the scale that is noised.
            self.latents = self.model.encode_images(resized.clamp(0, 1)) / self.model.vae.config.scaling_factor
            # The image encoder was trained on pictures resampled between their corners, not blurred.
            encoder = networks.image_encoder
            side, parameter = int(encoder.config.image_size), next(encoder.parameters())
            small = torch.nn.functional.interpolate(resized, (side, side), mode="bicubic", align_corners=True)
            mean, spread = (torch.tensor(values)[:, None, None] for values in (CLIP_PIXEL_MEAN, CLIP_PIXEL_STD))
            pixels = ((small.cpu() - mean) / spread).to(parameter.device, parameter.dtype)
            self.embedding = encoder(pixel_values=pixels).image_embeds.float()

    def encode_move(self, move: CameraMove) -> EncodedPrompt:
        """Returns the token of a camera, and the zeros that stand for no reference."""
        condition = torch.cat([self.embedding, move.encode().to(self.embedding)[None]], dim=1)
        with torch.no_grad():
            token = self.projection(condition.to(self.projection.weight.dtype)).float()[:, None]
        return EncodedPrompt(torch.cat([torch.zeros_like(token), token]))

    def run_denoiser(self, latents: Latents, time: int, move: CameraMove) -> tuple[Latents, Latents]:
        """Runs the denoiser without the reference, and with it for a camera.

        Args:
            latents: noised.
            time: of the schedule.
            move: of the camera, from that of the reference.
        """
        blank = torch.zeros_like(self.latents)
        return self.model.run_denoiser(latents, time, self.encode_move(move), extra=self.latents, blank=blank)

    def make_score(self, move: CameraMove, guidance: float) -> Score:
        """Makes the score distillation towards the look of the object for a camera."""
        return make_sds_score(
            lambda latents, time: self.run_denoiser(latents, time, move), self.model.schedule, guidance
        )


def load_view_model(weights: WeightsSource, reference: PictureTensor) -> NovelViewModel:
    """Reads a model of the Zero-1-to-3 kind, for a reference.

    Raises:
        UserError: there is no such model or it is another kind (exit 3); weights that could run code (exit 7).
    """
    return NovelViewModel(load_view_networks(weights), reference)
