"""Options of `unwrap eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neural_fields.config.flags import Repeated


@dataclass(frozen=True)
class EvalOptions:
    """Sets how a run of a video is measured; the fields are the flags of `unwrap eval`. 3D scenes take none of them.

    Example:
        >>> EvalOptions(masks=("car=truth/car",)).html
        False
    """

    masks: Repeated = ()
    """True masks, [NAME=]PATH for each front layer, front first."""
    lpips: Path | None = None
    """Weights of an LPIPS backbone (SqueezeNet 1.1, AlexNet or VGG-16)."""
    html: bool = False
    """Also write report.html into the run: a page with pictures that shows how well the clip fits the model."""
