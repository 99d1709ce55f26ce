"""Metrics of an edited video with CLIP: consistency of its frames, and their agreement with the prompt."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from editors.diffusion.backend.clip_model import ClipModel

Features = Float[Tensor, "frames features"]


def measure_with_clip(
    frames: Iterable[UInt8[np.ndarray, "height width 3"]], clip: ClipModel, prompt: str | None = None
) -> dict[str, float | None]:
    """Measures an edited video with CLIP.

    Args:
        frames: frames of the video.
        clip: the model whose features are compared.
        prompt: the prompt of the edit.

    Returns:
        `clip_consistency_all_pairs` and `clip_consistency_consecutive` (see below), and with a prompt
        `clip_text_alignment`, the mean cosine between the frames and the prompt.
    """
    features = _compute_features(frames, clip)
    return {
        "clip_consistency_all_pairs": compute_all_pairs_consistency(features),
        "clip_consistency_consecutive": compute_consecutive_consistency(features),
        "clip_text_alignment": None if prompt is None else compute_text_alignment(clip, features, prompt),
    }


def compute_pick_score(frames: Iterable[UInt8[np.ndarray, "height width 3"]], clip: ClipModel, prompt: str) -> float:
    """Computes PickScore (Kirstain et al., 2023): the scaled cosine of a CLIP fine-tuned on human preferences.

    Args:
        frames: frames of the video.
        clip: the fine-tuned model.
        prompt: the prompt of the edit.

    Returns:
        The mean over the frames.
    """
    return float(clip.network.logit_scale.exp()) * compute_text_alignment(clip, _compute_features(frames, clip), prompt)


def compute_all_pairs_consistency(features: Features) -> float | None:
    """Computes the mean cosine between all pairs of frames (Tune-A-Video, Wu et al., 2023); None for one frame.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> round(compute_all_pairs_consistency(features), 3)
        0.333
    """
    count = len(features)
    if count < 2:
        return None
    return float(((features @ features.T).sum() - count) / (count * (count - 1)))


def compute_consecutive_consistency(features: Features) -> float | None:
    """Computes the mean cosine between consecutive frames (Gen-1, Esser et al., 2023); None for one frame.

    Example:
        >>> compute_consecutive_consistency(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        0.5
    """
    return float((features[:-1] * features[1:]).sum(dim=1).mean()) if len(features) > 1 else None


def compute_text_alignment(clip: ClipModel, features: Features, prompt: str) -> float:
    """Computes the mean cosine between frames and a text.

    Args:
        clip: the model that computed the features.
        features: unit vectors of the frames.
        prompt: the text.
    """
    return float((features @ clip.encode_texts([prompt]).T.to(features)).mean())


@torch.no_grad()
def _compute_features(frames: Iterable[UInt8[np.ndarray, "height width 3"]], clip: ClipModel) -> Features:
    """Computes the features of each frame, a few frames at a time."""
    batch_size = 8
    features: list[Tensor] = []
    batch: list[Tensor] = []
    for frame in frames:
        batch.append(torch.from_numpy(frame.astype(np.float32) / 255).permute(2, 0, 1))
        if len(batch) == batch_size:
            features.append(clip.encode_images(torch.stack(batch)))
            batch = []
    if batch:
        features.append(clip.encode_images(torch.stack(batch)))
    return torch.cat(features)
