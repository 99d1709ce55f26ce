"""CLIP (Radford et al., 2021): encodes pictures and texts as unit vectors whose cosine measures how well they match.

The parts of the network are called one by one, which works with every release of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.diffusion.backend.device_placement import fetch_model, plan_placement
from editors.diffusion.backend.weights import WeightsSource, check_model_folder, explain_load_errors
from neural_fields.core.errors import bad_input

Images = Float[Tensor, "n 3 height width"]
ClipFeatures = Float[Tensor, "n features"]

CLIP_PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures CLIP was trained on,
CLIP_PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)  # and their standard deviation


class ClipModel:
    """Encodes pictures and texts with a loaded CLIP.

    Args:
        network: a `CLIPModel` of transformers.
        tokenizer: its tokenizer.
        device: the device that runs it.

    Attributes:
        side: side of the square pictures that it takes, in pixels.
    """

    def __init__(self, network: Any, tokenizer: Any, device: torch.device) -> None:
        self.network, self.tokenizer, self.device = network, tokenizer, device
        self.side = int(network.config.vision_config.image_size)

    def encode_images(self, pictures: Images) -> ClipFeatures:
        """Computes one unit vector for each picture in [0, 1]. Differentiable."""
        pooled = self.network.vision_model(pixel_values=self._prepare_pixels(pictures)).pooler_output
        return torch.nn.functional.normalize(self.network.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> ClipFeatures:
        """Computes one unit vector for each text; long texts are truncated."""
        words = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        encoded = self.network.text_model(input_ids=words["input_ids"], attention_mask=words["attention_mask"])
        return torch.nn.functional.normalize(self.network.text_projection(encoded.pooler_output), dim=-1)

    def encode_patches(self, pictures: Images) -> Float[Tensor, "n tokens channels"]:
        """Computes the deepest features of each patch of pictures in [0, 1], without class token. Differentiable."""
        return self.network.vision_model(pixel_values=self._prepare_pixels(pictures)).last_hidden_state[:, 1:]

    def _prepare_pixels(self, pictures: Images) -> Float[Tensor, "n 3 side side"]:
        """Crops the central square of pictures, at the size and in the range that the network was trained with."""
        height, width = pictures.shape[-2:]
        scale = self.side / min(height, width)
        size = (max(self.side, round(height * scale)), max(self.side, round(width * scale)))
        pictures = pictures.to(self.device)
        if size != (height, width):
            pictures = torch.nn.functional.interpolate(pictures, size, mode="bicubic", antialias=True)
        top, left = ((length - self.side) // 2 for length in size)
        middle = pictures[..., top : top + self.side, left : left + self.side]
        mean, spread = (torch.tensor(values, device=self.device) for values in (CLIP_PIXEL_MEAN, CLIP_PIXEL_STD))
        return (middle - mean[:, None, None]) / spread[:, None, None]


def load_clip(weights: WeightsSource) -> ClipModel:
    """Loads a CLIP from a folder of transformers, or by its name on the hub.

    Args:
        weights: the model to load, and its device.

    Raises:
        UserError: transformers is not installed, the model does not exist or is of another kind (exit 3); weights in a
            format that can run code (exit 7).
    """
    weights.check_name()
    with explain_load_errors(weights):
        from transformers import AutoTokenizer, CLIPModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = weights.local_folder or fetch_model(weights)
        kind = check_model_folder(folder, weights.unsafe).get("model_type")
        if kind != "clip":
            raise bad_input(
                f"{weights.model} is no CLIP",
                why=f"its config.json says {kind or 'nothing of what it is'}",
                fix="--clip-model FOLDER, with the config.json of a CLIPModel in it",
            )
        network = CLIPModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=None if weights.unsafe else True
        )
        device = plan_placement(weights, folder)[0]
        return ClipModel(network.eval().requires_grad_(False).to(device), AutoTokenizer.from_pretrained(folder), device)


def compute_self_similarity(tokens: Float[Tensor, "n tokens channels"]) -> Float[Tensor, "n tokens tokens"]:
    """Computes the cosine between all pairs of tokens: the layout of a picture, independent of its colors."""
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    return unit @ unit.mT


def spherical_distance(one: Float[Tensor, "*n features"], other: Float[Tensor, "*#n features"]) -> Float[Tensor, "*n"]:
    """Computes half the squared angle between vectors.

    Args:
        one: the first vectors, of any length.
        other: the second vectors, of any length.

    Returns:
        0 for equal directions, up to pi^2 / 2 for opposite ones.
    """
    unit, target = (torch.nn.functional.normalize(vectors, dim=-1) for vectors in (one, other))
    # Not by the arc cosine, whose slope is infinite where the two are equal.
    chord = ((unit - target).square().sum(dim=-1) / 4).clamp(1e-12, 1 - 1e-6).sqrt()
    return 2 * chord.asin().square()
