"""Textures as weighted means of frames."""

from __future__ import annotations

import pytest
import torch

from neural_fields.core.box import Box
from neural_fields.imaging import texture_splatting
from neural_fields.imaging.texture_splatting import TextureMean


def test_compiled_splatting_equals_that_of_torch_beyond_the_edges_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    generator = torch.Generator().manual_seed(0)
    box = Box(-1.0, -0.5, 1.5, 0.5)
    uv, rgb, weight = (torch.rand(shape, generator=generator) for shape in ((9, 11, 2), (9, 11, 3), (9, 11)))
    uv = uv * torch.tensor([3.0, 1.6]) - torch.tensor([1.3, 0.8])
    weight[2:4] = 0
    totals = []
    for is_compiled in (True, False):
        monkeypatch.setattr(texture_splatting, "can_compile_loops", lambda found=is_compiled: found)
        mean = TextureMean(box, 20, 8)
        mean.add_frame(uv, rgb, weight)
        mean.add_frame(uv.flip(0), rgb, weight)
        totals.append(mean.total)
    assert totals[0].sum() > 50 and torch.allclose(totals[0], totals[1], atol=1e-4)
