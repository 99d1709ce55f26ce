"""Loads models of the Zero-1-to-3 kind (Liu et al., ICCV 2023), for which diffusers has no pipeline.

Such a folder is in diffusers' layout: a UNet that takes the latents of a picture beside the noised ones, a VAE, a CLIP
image encoder, and one linear layer from the picture's embedding and the camera to a token. The class of that layer is
code in the folder; it is not run, only the layer's numbers are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from editors.diffusion.backend.device_placement import fetch_model, plan_placement
from editors.diffusion.backend.diffusers_model import DiffusionModel, read_component
from editors.diffusion.backend.weights import WeightsSource, check_model_folder, explain_load_errors
from neural_fields.core.errors import bad_input

PROJECTIONS = ("cc_projection", "clip_camera_projection")  # what converters call the folder of the linear layer


@dataclass(frozen=True)
class ViewNetworks:
    """Holds the networks of a novel-view model.

    Attributes:
        model: its denoiser and autoencoder; it has no text encoder.
        image_encoder: a `CLIPVisionModelWithProjection` of transformers.
        projection: linear layer from an embedding and four numbers that describe the camera to a token.
    """

    model: DiffusionModel
    image_encoder: Any
    projection: torch.nn.Linear


def load_view_networks(weights: WeightsSource) -> ViewNetworks:
    """Loads a novel-view model from a folder, or by its name on the hub.

    Args:
        weights: the model to load, and its device.

    Raises:
        UserError: an unknown model or one of another kind (exit 3); not enough memory or disk space (exit 4); weights
            in a format that can run code (exit 7).
    """
    weights.check_name()
    with explain_load_errors(weights):
        from transformers import CLIPVisionModelWithProjection

        folder = weights.local_folder or fetch_model(weights)
        check_model_folder(folder, weights.unsafe, plain=PROJECTIONS)

        # The linear layer, from its two tensors, whatever their names.
        from safetensors.torch import load_file

        missing = [part for part in ("unet", "vae", "image_encoder", "scheduler") if not (folder / part).is_dir()]
        files = [path for part in PROJECTIONS for path in sorted((folder / part).glob("*.safetensors"))]
        if missing or not files:
            raise bad_input(
                f"{weights.model} is no model of the Zero-1-to-3 kind",
                where=str(folder),
                why=f"it has no {missing[0] if missing else ' or '.join(PROJECTIONS)} with safetensors in it",
                fix="--view-model FOLDER with unet, vae, image_encoder, scheduler and cc_projection",
            )
        tensors = load_file(files[0])
        weight = next((value for key, value in tensors.items() if key.endswith("weight") and value.dim() == 2), None)
        bias = next((value for key, value in tensors.items() if key.endswith("bias") and value.dim() == 1), None)
        if weight is None or bias is None or len(tensors) != 2:
            fix = "fetch the model again, or use another"
            raise bad_input(f"{files[0].name} holds no linear layer", where=str(files[0]), fix=fix)
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})

        device, chosen = plan_placement(weights, folder)
        dtype = getattr(torch, chosen.dtype)
        options: dict[str, Any] = {"dtype": dtype, "use_safetensors": not weights.unsafe or None}
        unet = read_component(folder / "unet", "UNet2DConditionModel", **options)
        vae = read_component(folder / "vae", "AutoencoderKL", **options)
        # Refuse networks that do not belong together.
        wanted, given = 2 * int(vae.config.latent_channels), int(unet.config.in_channels)
        token = int(unet.config.cross_attention_dim)
        camera_numbers = 4  # inputs of the layer beside the embedding: they describe how the camera moved
        if given != wanted or layer.out_features != token or layer.in_features <= camera_numbers:
            raise bad_input(
                f"{weights.model} is no model of the Zero-1-to-3 kind",
                why=f"its denoiser takes {given} channels and tokens of {token}; expected {wanted} channels, and a "
                f"layer that makes such tokens, which makes {layer.out_features}",
                fix="--view-model FOLDER with a model converted from Zero-1-to-3",
            )
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", **options)
        scheduler = read_component(folder / "scheduler", "DDPMScheduler")
        for network in (unet, vae, encoder, layer.to(dtype=dtype)):
            network.eval().requires_grad_(False).to(device)
        parts = SimpleNamespace(unet=unet, vae=vae, scheduler=scheduler)
        return ViewNetworks(DiffusionModel(parts, device), encoder, layer)
