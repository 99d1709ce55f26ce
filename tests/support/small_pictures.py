"""Canonical pictures of networks with fewer texels than users get, for tests that do not ask for their size."""

from __future__ import annotations

import pytest

from neural_fields.core.box import Box
from neural_fields.planar.appearance import texture
from neural_fields.planar.composition import canonical_extent
from neural_fields.training import initialize


def draw_small_canonical_images(patch: pytest.MonkeyPatch, longer_side: int = 250) -> None:
    """Lets trainings of networks export pictures of `longer_side` texels instead of a thousand."""

    def compute_small_size(box: Box) -> tuple[int, int]:
        density = longer_side / max(box.width, box.height)
        return max(2, round(box.width * density)), max(2, round(box.height * density))

    name = texture.compute_export_size.__name__
    for module in (texture, canonical_extent, initialize):
        patch.setattr(module, name, compute_small_size)
