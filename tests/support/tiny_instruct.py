"""Tiny random models that follow instructions, in diffusers' layout, as `tiny_diffusion.py` makes the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def pix2pix(tiny: Any, folder: Path) -> Path:
    """A folder in the layout of InstructPix2Pix.

    Args:
        tiny: the module `tiny_diffusion`.
    """
    from diffusers import StableDiffusionInstructPix2PixPipeline

    torch.manual_seed(0)
    pipeline: Any = StableDiffusionInstructPix2PixPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.text_encoder(),
        tokenizer=tiny.tokenizer(folder / "tokenizer"),
        unet=tiny.unet(inputs=8),
        scheduler=tiny.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def pix2pix_xl(tiny: Any, folder: Path) -> Path:
    """A folder in the layout of InstructPix2Pix for Stable Diffusion XL."""
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    torch.manual_seed(0)
    pipeline: Any = StableDiffusionXLInstructPix2PixPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.text_encoder(),
        text_encoder_2=tiny.text_encoder(projection=tiny.WIDTH),
        tokenizer=tiny.tokenizer(folder / "tokenizer"),
        tokenizer_2=tiny.tokenizer(folder / "tokenizer_2"),
        unet=tiny.unet(
            inputs=8,
            cross_attention_dim=2 * tiny.WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=tiny.WIDTH + 6 * 8,
            transformer_layers_per_block=1,
        ),
        scheduler=tiny.scheduler(),
    )
    pipeline.save_pretrained(folder)
    return folder


def kontext(tiny: Any, folder: Path) -> Path:
    """A folder in the layout of FLUX.1 Kontext."""
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FluxKontextPipeline,
        FluxTransformer2DModel,
    )
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer: Any = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=tiny.WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    t5 = T5EncoderModel(T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4))
    vae = tiny.vae()
    vae.register_to_config(shift_factor=0.1)
    pipeline: Any = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=tiny.text_encoder(),
        tokenizer=tiny.tokenizer(folder / "tokenizer"),
        text_encoder_2=t5.eval(),
        tokenizer_2=unigrams(),
        transformer=transformer.eval(),
    )
    pipeline.save_pretrained(folder)
    return folder


def unigrams() -> Any:
    """A tokenizer of the kind of T5 that knows letters only."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    letters = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((chr(c), -1.0) for c in range(32, 127))]
    model = Tokenizer(Unigram(letters, unk_id=2))
    model.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def qwen_edit(folder: Path) -> Path:
    """A folder in the layout of Qwen-Image-Edit."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImageEditPipeline,
        QwenImageTransformer2DModel,
    )

    torch.manual_seed(0)
    vae: Any = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    transformer: Any = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    processor = _qwen_processor(folder / "tokenizer")
    pipeline: Any = QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=_qwen_text_encoder(processor.tokenizer),
        tokenizer=processor.tokenizer,
        processor=processor,
        transformer=transformer.eval(),
    )
    pipeline.save_pretrained(folder)
    return folder


def _qwen_processor(folder: Path) -> Any:
    """The processor of Qwen2-VL with a tokenizer that knows bytes only."""
    from transformers import Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(bytes_to_unicode().values())}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = Qwen2Tokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        additional_special_tokens=[
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ],
    )
    # The picture that it reads beside the instruction is small.
    pixels: dict[str, Any] = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**pixels),
    )


def _qwen_text_encoder(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    number = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "default", "mrope_section": [1, 1, 2], "rope_type": "default"},
            "rope_theta": 1e6,
            "bos_token_id": None,
            "eos_token_id": number("<|im_end|>"),
        },
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [1],
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()
