"""Finds what words name: boxes by Grounding DINO (Liu et al., 2023), masks by SAM 3, both through transformers.

The best find of a frame is a hint like those of the user, from which any segmenter follows the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from neural_fields.data.segmentation.networks.load_network import load_network
from neural_fields.nn.pretrained import NetworkSource

EXAMPLE = "IDEA-Research/grounding-dino-tiny"
NETWORKS = {  # model_type: the classes of the network and of its processor in transformers
    "grounding-dino": ("GroundingDinoForObjectDetection", "GroundingDinoProcessor"),
    "mm-grounding-dino": ("MMGroundingDinoForObjectDetection", "GroundingDinoProcessor"),
    "sam3": ("Sam3Model", "Sam3Processor"),
    "sam3_video": ("Sam3Model", "Sam3Processor"),
}


@dataclass(frozen=True)
class WordSettings:
    """Holds the settings of `WordFinder`."""

    min_score: float = 0.3  # of what counts as found, 0 to 1
    mask_share: float = 0.5  # least share of a pixel that belongs to a mask


DEFAULTS = WordSettings()


@dataclass(frozen=True, eq=False)
class WordMatch:
    """Holds something in a frame that fits the words.

    Attributes:
        score: how well, 0 to 1.
        box: left, top, right and bottom, in pixels.
        mask: its pixels; None from networks that find boxes only.
    """

    score: float
    box: tuple[int, int, int, int]
    mask: Bool[np.ndarray, "height width"] | None = None


class WordFinder:
    """Finds what words name with a network.

    Args:
        source: the network, of the kind grounding-dino, mm-grounding-dino, sam3 or sam3_video.
        settings: thresholds.
    """

    def __init__(self, source: NetworkSource, settings: WordSettings = DEFAULTS) -> None:
        self.source, self.settings = source, settings

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The processor and the network, loaded when they are first asked for.

        Raises:
            UserError: the network does not exist, is of another kind or cannot be read.
        """
        return load_network(self.source, NETWORKS, "that finds objects by words", EXAMPLE)

    def find_in_frame(self, frame: UInt8[np.ndarray, "height width 3"], words: str) -> list[WordMatch]:
        """Finds what the words name in a frame, the best first.

        Args:
            frame: RGB.
            words: what to look for, such as "surfer" or "red car".
        """
        settings = self.settings
        processor, network = self.loaded
        size = (frame.shape[0], frame.shape[1])
        finds_masks = network.config.model_type.startswith("sam3")
        # Grounding DINO was trained on lower-case phrases, each with a period at its end.
        text = words.strip() if finds_masks else f"{words.strip().lower().rstrip('.')}."
        inputs = processor(images=np.array(frame), text=text, return_tensors="pt").to(network.device)
        with torch.inference_mode():
            output = network(**{key: value for key, value in inputs.items() if key != "original_sizes"})
        if finds_masks:
            found = processor.post_process_instance_segmentation(
                output, threshold=settings.min_score, mask_threshold=settings.mask_share, target_sizes=[size]
            )[0]
            masks = [mask.bool().cpu().numpy() for mask in found["masks"]]
        else:
            found = processor.post_process_grounded_object_detection(
                output, inputs["input_ids"], threshold=settings.min_score, text_threshold=0.0, target_sizes=[size]
            )[0]
            masks = [None] * len(found["scores"])
        matches = []
        for score, (left, top, right, bottom), mask in zip(
            found["scores"].tolist(), found["boxes"].tolist(), masks, strict=True
        ):
            sides = (np.floor(left), np.floor(top), np.ceil(right), np.ceil(bottom))
            x0, y0, x1, y1 = np.clip(np.nan_to_num(sides), 0, (size[1], size[0]) * 2).astype(int).tolist()
            if x1 > x0 and y1 > y0 and (mask is None or mask.any()):
                matches.append(WordMatch(score, (x0, y0, x1, y1), mask))
        return sorted(matches, key=lambda match: -match.score)
