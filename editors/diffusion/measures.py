"""Measures of an edited video that need a CLIP: do its frames agree, and do they show what was asked for?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from editors.diffusion.clip import Clip

BATCH = 8  # frames looked at together

Features = Float[Tensor, "frames features"]


def measure_with_clip(
    frames: Iterable[UInt8[np.ndarray, "height width 3"]], clip: Clip, prompt: str | None = None
) -> dict[str, float | None]:
    """CLIP's view of an edited video.

    Args:
        frames: of the video.
        prompt: what the edit was asked for.

    Returns:
        `clip_consistency_all_pairs` and `clip_consistency_consecutive` (see below), and with a prompt
        `clip_text_alignment`, the mean cosine between the frames and the prompt.
    """
    features = _seen(frames, clip)
    return {
        "clip_consistency_all_pairs": consistency_all_pairs(features),
        "clip_consistency_consecutive": consistency_consecutive(features),
        "clip_text_alignment": None if prompt is None else text_alignment(clip, features, prompt),
    }


def pick_score(frames: Iterable[UInt8[np.ndarray, "height width 3"]], clip: Clip, prompt: str) -> float:
    """PickScore (Kirstain et al., 2023): the scaled cosine of a CLIP tuned to people's choices, mean over frames."""
    return float(clip.network.logit_scale.exp()) * text_alignment(clip, _seen(frames, clip), prompt)


def consistency_all_pairs(features: Features) -> float | None:
    """The mean cosine between the unit vectors of all pairs of frames (Tune-A-Video, Wu et al., 2023); None for one."""
    count = len(features)
    if count < 2:
        return None
    return float(((features @ features.T).sum() - count) / (count * (count - 1)))


def consistency_consecutive(features: Features) -> float | None:
    """The mean cosine between frames and those that follow them (Gen-1, Esser et al., 2023); None for one frame."""
    return float((features[:-1] * features[1:]).sum(dim=1).mean()) if len(features) > 1 else None


def text_alignment(clip: Clip, features: Features, prompt: str) -> float:
    """The mean cosine between frames and a text."""
    return float((features @ clip.texts([prompt]).T.to(features)).mean())


@torch.no_grad()
def _seen(frames: Iterable[UInt8[np.ndarray, "height width 3"]], clip: Clip) -> Features:
    """What a CLIP makes of each frame."""
    found: list[Tensor] = []
    waiting: list[Tensor] = []
    for frame in frames:
        waiting.append(torch.from_numpy(frame.astype(np.float32) / 255).permute(2, 0, 1))
        if len(waiting) == BATCH:
            found.append(clip.images(torch.stack(waiting)))
            waiting = []
    if waiting:
        found.append(clip.images(torch.stack(waiting)))
    return torch.cat(found)
