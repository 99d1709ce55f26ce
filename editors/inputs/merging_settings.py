"""Settings of merging several frames into a canonical picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameMergingSettings:
    """Settings of merging frames into a canonical picture."""

    rounds: int = 6  # rounds of back-projection: 99% of a smooth picture is then within 1/255 of the input
    range_slack: float = 0.25  # allowed overshoot of a texel, as a share of the range of the pixels around it
    min_weight: float = 1e-3  # least weight of a pixel in a texel
    min_votes: int = 3  # least number of frames that show a texel for a majority
    tie_share: float = 1e-4  # share of a texel's weight: frames that differ by less weigh the same


DEFAULTS = FrameMergingSettings()
