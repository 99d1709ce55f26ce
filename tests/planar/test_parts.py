"""The tables of losses and of kinds: nothing is listed twice, nothing is left out, and needs are said in words."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest
import torch

from neural_fields.core.box import Box
from neural_fields.planar.appearance.kinds import GainKind, OpacityKind, TextureKind
from neural_fields.planar.appearance.mask_opacity import MaskOpacityConfig
from neural_fields.planar.appearance.window_opacity import WindowOpacityConfig
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.model_shape import LayerShape, ModelShape
from neural_fields.planar.losses.loss import PART_KINDS, Loss, list_kinds
from neural_fields.planar.losses.table import LOSSES, LossWeights
from neural_fields.planar.mappings.kinds import MappingKind
from neural_fields.planar.mappings.mapping import PointFunction

PARTS = {"mapping": MappingKind, "texture": TextureKind, "opacity": OpacityKind, "gain": GainKind}


def test_every_loss_has_a_weight_and_every_weight_a_loss() -> None:
    names = [loss.name for loss in LOSSES]
    schedule = {item.name for item in fields(LossWeights) if item.name.endswith(("_until", "_from"))}
    assert len(set(names)) == len(names)
    assert set(names) == {item.name for item in fields(LossWeights)} - schedule
    assert {name.removesuffix("_until") for name in schedule if name.endswith("_until")} <= set(names)
    assert not any(loss.weigh(LossWeights()) for loss in LOSSES)


@pytest.mark.parametrize("part", PARTS)
def test_every_kind_builds_a_part_for_each_layer(part: str) -> None:
    assert PART_KINDS == PARTS
    kinds = get_args(PARTS[part])
    assert len({kind.kind for kind in kinds}) == len(kinds)
    layers = tuple(LayerShape(name, Box(-1.0, -1.0, 1.0, 1.0), 32, 16) for name in ("a", "b", "background"))
    shape = ModelShape(32, 16, 6, layers)
    small = {"log2_table": 8, "levels": 2, "width": 8}
    for kind in kinds:
        config = kind(**{name: value for name, value in small.items() if name in {item.name for item in fields(kind)}})
        if part == "opacity":
            alphas = config.build(shape).sample_frames(torch.tensor([0, 5]), 6, (32, 16))
            assert alphas.shape == (2, 16, 32, 2), kind
        else:
            built = config.build(shape, [(0, 5)] * 3) if part == "mapping" else config.build(shape)
            assert len(built) == (0 if kind.kind == "none" else 3), kind


def test_needs_are_the_kinds_that_the_accepted_classes_stand_for() -> None:
    assert list_kinds("opacity", (MaskOpacityConfig, WindowOpacityConfig)) == "mask or window"
    assert list_kinds("gain", (PointFunction,)) == "hash or none"
    config = PlanarConfig()
    parts = {"mapping": config.mapping, "texture": config.texture, "opacity": config.opacity, "gain": config.gain}
    needy = Loss("toy", lambda at: torch.zeros(()), whole_frames=True, gain=(PointFunction,))
    assert needy.explain_unmet_need(parts, whole_frames=False) == "terms.toy needs training.batch: frames"
    assert needy.explain_unmet_need(parts, whole_frames=True) == "terms.toy needs gain kind hash or none"
    assert not Loss("toy", needy.compute).explain_unmet_need(parts, whole_frames=False)
