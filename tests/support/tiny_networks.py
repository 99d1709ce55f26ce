"""Tiny random networks that find, follow and cut out objects, in the layout of their folders on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SIDE = 64  # of the pictures that the networks look at
CHANNELS = 128


def _prompt_and_decoder(modules: Any, name: str) -> dict[str, Any]:
    prompt = getattr(modules, f"{name}PromptEncoderConfig")(
        hidden_size=CHANNELS, image_size=SIDE, patch_size=16, mask_input_channels=4
    )
    decoder = getattr(modules, f"{name}MaskDecoderConfig")(
        hidden_size=CHANNELS, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
    )
    return {"prompt_encoder_config": prompt.to_dict(), "mask_decoder_config": decoder.to_dict()}


MEMORY = {
    "image_size": SIDE,
    "memory_attention_hidden_size": CHANNELS,
    "memory_attention_num_layers": 1,
    "memory_attention_rope_feat_sizes": [4, 4],
    "memory_encoder_hidden_size": CHANNELS,
    "memory_encoder_output_channels": 64,
    "mask_downsampler_embed_dim": CHANNELS,
    "memory_fuser_num_layers": 1,
    "memory_fuser_embed_dim": CHANNELS,
    "memory_fuser_intermediate_dim": 32,
}


def make_lively(network: Any) -> Any:
    """Draws larger weights, so that what a network finds depends on what it sees, and objects are never hidden."""
    decoder = getattr(network, "mask_decoder", None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.fill_(1.0)
        for weight in network.parameters():
            if weight.dim() > 1:
                fan_in = weight[0].numel()
                weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
        if decoder is not None:
            decoder.pred_obj_score_head.proj_out.bias.fill_(20.0)
    return network


def sam2_video(folder: Path) -> Path:
    """A folder in the layout of facebook/sam2.1-hiera-tiny."""
    import transformers
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 24, 32],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[4, 4, 4, 4],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=[32, 24, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=CHANNELS,
    )
    torch.manual_seed(0)
    config = Sam2VideoConfig(
        vision_config=vision.to_dict(),
        memory_attention_feed_forward_hidden_size=32,
        **_prompt_and_decoder(transformers, "Sam2Video"),
        **MEMORY,
    )
    make_lively(Sam2VideoModel(config)).save_pretrained(folder)
    save_sam_processor(folder)
    return folder


def save_sam_processor(folder: Path) -> None:
    """The files of the processor of SAM 2.1 and EdgeTAM."""
    from transformers import Sam2ImageProcessor, Sam2VideoProcessor, Sam2VideoVideoProcessor

    sizes = {"size": {"height": SIDE, "width": SIDE}, "mask_size": {"height": SIDE // 4, "width": SIDE // 4}}
    videos = Sam2VideoVideoProcessor(size=sizes["size"])
    Sam2VideoProcessor(Sam2ImageProcessor(**sizes), videos).save_pretrained(folder)


def edgetam_video(folder: Path) -> Path:
    """A folder in the layout of yonigozlan/EdgeTAM-hf. Its backbone is timm's, which must be installed."""
    import transformers
    from transformers import EdgeTamVideoConfig, EdgeTamVideoModel

    vision = {
        "model_type": "edgetam_vision_model",
        "backbone_config": {
            "model_type": "timm_wrapper",
            "architecture": "repvit_m1.dist_in1k",
            "num_classes": 0,
            "model_args": {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]},
        },
        "backbone_channel_list": [384, 192, 96, 48],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": CHANNELS,
    }
    torch.manual_seed(0)
    config = EdgeTamVideoConfig(
        vision_config=vision,
        memory_attention_mlp_hidden_size=32,
        memory_attention_rope_k_sizes=[2, 2],
        perceiver_resampler_num_latents=4,
        perceiver_resampler_num_latents_2d=4,
        **_prompt_and_decoder(transformers, "EdgeTamVideo"),
        **MEMORY,
    )
    make_lively(EdgeTamVideoModel(config)).save_pretrained(folder)
    save_sam_processor(folder)
    return folder


def grounding_dino(folder: Path) -> Path:
    """A folder in the layout of IDEA-Research/grounding-dino-tiny."""
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    words = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "surfer": 200, ".": 1012, "?": 1029, "[MASK]": 103}
    vocabulary = {words_at: i for i, words_at in enumerate(f"[unused{i}]" for i in range(1040))}
    vocabulary = {word: i for word, i in vocabulary.items() if i not in words.values()} | words
    tokenizer = BertTokenizer(vocab=dict(sorted(vocabulary.items(), key=lambda item: item[1])))
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": SIDE,
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 1, 1],
            "window_size": 2,
            "out_indices": [2, 3, 4],
        },
        text_config={
            "model_type": "bert",
            "vocab_size": 1040,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE})
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def vitmatte(folder: Path) -> Path:
    """A folder in the layout of hustvl/vitmatte-small-composition-1k."""
    from transformers import VitMatteConfig, VitMatteForImageMatting, VitMatteImageProcessor

    torch.manual_seed(0)
    config = VitMatteConfig(
        backbone_config={
            "model_type": "vitdet",
            "num_channels": 4,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 512,
            "pretrain_image_size": 224,
            "out_features": ["stage2"],
        },
        hidden_size=16,
        convstream_hidden_sizes=[4, 4, 4],
        fusion_hidden_sizes=[4, 4, 4, 4],
    )
    make_lively(VitMatteForImageMatting(config)).save_pretrained(folder)
    VitMatteImageProcessor().save_pretrained(folder)
    return folder


def sam3_video(tiny: Any, folder: Path) -> Path:
    """A folder in the layout of facebook/sam3: what finds objects by words and what follows them, in one.

    Args:
        tiny: the module `tiny_diffusion`, for its tokenizer.
    """
    from transformers import (
        Sam2VideoVideoProcessor,
        Sam3ImageProcessor,
        Sam3VideoConfig,
        Sam3VideoModel,
        Sam3VideoProcessor,
    )

    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": {
            "model_type": "sam3_vit_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "pretrain_image_size": SIDE,
            "patch_size": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
        },
        "fpn_hidden_size": CHANNELS,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }
    small = {"hidden_size": CHANNELS, "num_attention_heads": 2}
    layer = {**small, "num_layers": 1, "intermediate_size": 32}
    text = {"vocab_size": 514, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 32, "projection_dim": 32}
    detector = {
        "model_type": "sam3",
        "vision_config": vision,
        "text_config": {"model_type": "clip_text_model", **text, "bos_token_id": 512, "eos_token_id": 513},
        "geometry_encoder_config": layer,
        "detr_encoder_config": layer,
        "detr_decoder_config": {**layer, "num_queries": 5},
        "mask_decoder_config": small,
    }
    tracker = {
        "model_type": "sam3_tracker_video",
        "vision_config": vision,
        "memory_attention_feed_forward_hidden_size": 32,
        "prompt_encoder_config": {"hidden_size": CHANNELS, "image_size": SIDE, "patch_size": 16},
        "mask_decoder_config": {"hidden_size": CHANNELS, "mlp_dim": 32, "num_attention_heads": 2},
        **MEMORY,
    }
    torch.manual_seed(0)
    Sam3VideoModel(Sam3VideoConfig(detector_config=detector, tracker_config=tracker)).save_pretrained(folder)
    sizes = {"size": {"height": SIDE, "width": SIDE}, "mask_size": {"height": SIDE // 4, "width": SIDE // 4}}
    words = tiny.tokenizer(folder / "words")
    words.model_max_length = 32
    Sam3VideoProcessor(
        Sam3ImageProcessor(**sizes), Sam2VideoVideoProcessor(size=sizes["size"]), words, target_size=SIDE
    ).save_pretrained(folder)
    return folder
