"""Novel-view diffusion: a model that is given one view of an object scores renders of its other sides.

Liu et al., "Zero-1-to-3: Zero-shot One Image to 3D Object", ICCV 2023, section 3.2: the denoiser gets the latents of
the reference beside the noised ones and, instead of a prompt, one token computed from the reference's CLIP embedding
and four numbers that describe the motion of the camera. DynVideo-E distills it into the person in the reference's pose.
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
    """Describes the motion of a camera around an object, relative to the camera of the reference.

    Attributes:
        polar: increase of the angle to the up direction, in radians: positive if the camera moved down.
        azimuth: rotation around the up direction, in radians: positive if the camera moved to its right.
        distance: increase of the distance, in diameters of the object.
    """

    polar: float
    azimuth: float
    distance: float

    def encode(self) -> Float[Tensor, "4"]:
        """Encodes the motion as the network's four inputs.

        Example:
            >>> CameraMove(polar=0.5, azimuth=0.0, distance=0.25).encode().tolist()
            [0.5, 0.0, 1.0, 0.25]
        """
        return torch.tensor([self.polar, math.sin(self.azimuth), math.cos(self.azimuth), self.distance])


def compute_camera_move(orbit: Orbit, reference: Shaped[ndarray, "3"], place: Shaped[ndarray, "3"]) -> CameraMove:
    """Computes the motion between two positions of a camera that looks at the center of an orbit.

    The objects that the network was trained on fit into a sphere of radius 1/2, which defines the unit of distances.

    Args:
        orbit: the orbit around the object.
        reference: position of the reference's camera, in world units.
        place: position of the moved camera, in world units.
    """
    first, second = orbit.direction_of(reference), orbit.direction_of(place)
    azimuth = (second[0] - first[0] + math.pi) % (2 * math.pi) - math.pi
    return CameraMove(first[1] - second[1], azimuth, (second[2] - first[2]) / (2 * orbit.radius))


class NovelViewModel:
    """Predicts views of an object from a reference with a model of the Zero-1-to-3 kind.

    Args:
        networks: the networks that `load_view_networks` returns.
        reference: a square picture of the object on white, RGB in [0, 1].
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
        """Encodes a camera as a token; the row of the negative prompt holds zeros, which stand for no reference."""
        condition = torch.cat([self.embedding, move.encode().to(self.embedding)[None]], dim=1)
        with torch.no_grad():
            token = self.projection(condition.to(self.projection.weight.dtype)).float()[:, None]
        return EncodedPrompt(torch.cat([torch.zeros_like(token), token]))

    def run_denoiser(self, latents: Latents, time: int, move: CameraMove) -> tuple[Latents, Latents]:
        """Runs the denoiser without and with the reference.

        Args:
            latents: noised latents.
            time: noise level, an index into the schedule.
            move: motion of the camera from that of the reference.

        Returns:
            The output without the reference, and the output with it.
        """
        blank = torch.zeros_like(self.latents)
        return self.model.run_denoiser(latents, time, self.encode_move(move), extra=self.latents, blank=blank)

    def make_score(self, move: CameraMove, guidance: float) -> Score:
        """Makes a score that pulls a view toward the object's appearance from a camera.

        Args:
            move: motion of the camera from that of the reference.
            guidance: scale of classifier-free guidance.
        """
        return make_sds_score(
            lambda latents, time: self.run_denoiser(latents, time, move), self.model.schedule, guidance
        )


def load_view_model(weights: WeightsSource, reference: PictureTensor) -> NovelViewModel:
    """Loads a model of the Zero-1-to-3 kind for a reference.

    Args:
        weights: the model to load, and its device.
        reference: a square picture of the object on white, RGB in [0, 1].

    Raises:
        UserError: an unknown model or one of another kind (exit 3); weights that can run code (exit 7).
    """
    return NovelViewModel(load_view_networks(weights), reference)
