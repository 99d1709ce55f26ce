"""Tiny random diffusion models in diffusers' layout: every editor's full path runs offline in seconds with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WIDTH = 32  # of the text
LATENT = 16  # rows and columns of latents: pictures have 32 x 32 pixels
NORMS = 8


def tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer that knows bytes only."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def text_encoder(projection: int | None = None) -> Any:
    """A CLIP text model; with a projection for models that want pooled features."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=projection or WIDTH,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def vae(channels: int = 4) -> Any:
    """Latents of half the size."""
    from diffusers import AutoencoderKL

    model: Any = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=NORMS,
        sample_size=2 * LATENT,
    )
    return model.eval()


def unet(inputs: int = 4, **more: Any) -> Any:
    """A UNet; with 8 or 9 input channels for instructions or inpainting."""
    from diffusers import UNet2DConditionModel

    model: Any = UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=inputs,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=more.pop("cross_attention_dim", WIDTH),
        attention_head_dim=4,
        norm_num_groups=NORMS,
        **more,
    )
    return model.eval()


def scheduler(kind: str = "epsilon") -> Any:
    """The scheduler of Stable Diffusion 1.5."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=kind,
    )


def stable_diffusion(folder: Path, kind: str = "epsilon", inputs: int = 4) -> Path:
    """A folder in the layout of Stable Diffusion 1.5."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    pipeline: Any = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder / "tokenizer"),
        unet=unet(inputs),
        scheduler=scheduler(kind),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """A folder in the layout of Stable Diffusion XL."""
    from diffusers import StableDiffusionXLPipeline

    torch.manual_seed(0)
    pipeline: Any = StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(projection=WIDTH),
        tokenizer=tokenizer(folder / "tokenizer"),
        tokenizer_2=tokenizer(folder / "tokenizer_2"),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
            transformer_layers_per_block=1,
        ),
        scheduler=scheduler(),
    )
    pipeline.save_pretrained(folder)
    return folder


def stable_diffusion_3(folder: Path) -> Path:
    """A folder in the layout of Stable Diffusion 3, without its third text encoder: flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer: Any = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=64,
    )
    pipeline: Any = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=text_encoder(projection=WIDTH),
        text_encoder_2=text_encoder(projection=WIDTH),
        text_encoder_3=None,
        tokenizer=tokenizer(folder / "tokenizer"),
        tokenizer_2=tokenizer(folder / "tokenizer_2"),
        tokenizer_3=None,
    )
    pipeline.save_pretrained(folder)
    return folder


def controlnet(folder: Path) -> Path:
    """A folder of a ControlNet for `stable_diffusion`."""
    from diffusers import ControlNetModel

    torch.manual_seed(0)
    ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(16, 32)).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    """A folder of a CLIP that looks at pictures of 32 x 32 in patches of 8."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = text_encoder().config.to_dict()
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).save_pretrained(folder)
    tokenizer(folder).save_pretrained(folder)
    return folder
