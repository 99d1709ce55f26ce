"""The planar model: a mapping, a texture and a gain for each layer, joined by one opacity. The papers are presets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields.atlas.chart import Chart
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.planar.appearance.gain import Gain
from neural_fields.planar.appearance.opacity import Opacity, compute_layer_weights
from neural_fields.planar.appearance.texture import Texture
from neural_fields.planar.composition.samples import LayerSamples
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.mapping import Mapping


class PlanarModel(nn.Module):
    """Represents a video in layers, as a function of (x, y, t).

    Args:
        shape: sizes and layer names.
        mappings: one per layer, front to back.
        textures: one per layer; they may share a network.
        gains: one per layer, or none at all.
        opacity: alphas of the front layers.
        weights: of the losses that it is trained with (`LossWeights`). Losses look at models, so that a model does not
            know them; it only keeps their weights.
    """

    def __init__(
        self,
        shape: ModelShape,
        mappings: Sequence[Mapping],
        textures: Sequence[Texture],
        gains: Sequence[Gain],
        opacity: Opacity,
        weights: Any,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.layers = tuple(layer.name for layer in shape.layers)
        # Lists of modules, typed as sequences so that calls of the parts are checked.
        self.mappings = cast("Sequence[Mapping]", nn.ModuleList(mappings))
        self.textures = cast("Sequence[Texture]", nn.ModuleList(textures))
        self.gains = cast("Sequence[Gain]", nn.ModuleList(gains))
        self.opacity = opacity
        self.weights = weights

    def forward(self, xyt: Float[Tensor, "n 3"]) -> LayerSamples:
        """Returns the layers at any points."""
        uv = [mapping(xyt) for mapping in self.mappings]
        gains = [gain(xyt, points) for gain, points in zip(self.gains, uv, strict=False)]  # there may be none
        time = torch.as_tensor(coords.denormalize_time(xyt[:, 2], self.shape.frame_count))
        return self._join_parts(uv, gains, self.opacity(xyt), time)

    def sample_frame(self, t: int, size: tuple[int, int]) -> LayerSamples:
        """Returns the layers at every pixel of frame `t`, as `frames` does."""
        return self.sample_frames(torch.tensor([t]), size)

    def sample_frames(self, frames: Int[Tensor, " frames"], size: tuple[int, int]) -> LayerSamples:
        """Returns the layers at every pixel of some frames, frame by frame in row-major order; agrees with `forward`.

        Args:
            frames: numbers of frames.
            size: (width, height) in pixels, that of the training or another one.
        """
        count, frames = self.shape.frame_count, frames.to(self.device)
        uv = [mapping.map_frames(frames, count, size) for mapping in self.mappings]
        gains = [
            gain.sample_frames(frames, count, size, points)
            for gain, points in zip(self.gains, uv, strict=False)  # there may be none
        ]
        return self._join_parts(uv, gains, self.opacity.sample_frames(frames, count, size), frames.float())

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def begin_step(self, step: int) -> None:
        """Prepares a training step: it updates the schedules of the mappings."""
        for mapping in self.mappings:
            mapping.begin_step(step)

    def sample_canonical(self, layer: str, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """Returns the RGB of a layer's canonical picture at any uv."""
        return self.textures[self.layers.index(layer)](uv)

    def canonical_box(self, layer: str) -> Box:
        """Returns the box that a layer's canonical picture covers."""
        return self.shape.layers[self.layers.index(layer)].box

    def list_charts(self) -> list[list[Chart]]:
        """Returns series of charts, in the order of time: an edit of one is propagated to the others of its series."""
        series = [
            [Chart(layer.name, chart.first, chart.last, chart.box) for chart in layer.charts]
            for layer in self.shape.layers
            if len(layer.charts) > 1
        ]
        if self.opacity.spans and len(self.layers) > 1:
            spans = zip(self.shape.layers, self.opacity.spans, strict=True)
            series.append([Chart(layer.name, *span, layer.box) for layer, span in spans])
        return series

    def param_groups(self) -> list[dict]:
        """Returns parameters with learning rates; `sparse: True` marks tables of which a step touches a few rows."""
        parts: list[Mapping | Texture | Gain | Opacity] = [*self.mappings, *self.gains, self.opacity]
        unique_textures = {id(texture): texture for texture in self.textures}
        groups = [group for part in [*parts, *unique_textures.values()] for group in part.param_groups()]
        seen: set[int] = set()
        kept = []
        for group in groups:  # a mapping or texture that layers share is optimized once
            params = [p for p in group["params"] if id(p) not in seen and p.numel()]
            seen.update(id(p) for p in params)
            if params:
                kept.append({**group, "params": params})
        return kept

    def _join_parts(self, uv: list[Tensor], gains: list[Tensor], alphas: Tensor, time: Tensor) -> LayerSamples:
        """Joins parts, each [..., channels] over the same points; `time` has a frame index for each first entry."""
        weights = compute_layer_weights(alphas)
        colors = []
        for number, (mapping, points) in enumerate(zip(self.mappings, uv, strict=True)):
            texture, step = self.textures[number], mapping.uv_per_pixel(time)
            if not self.opacity.skips_hidden or step is not None:
                colors.append(texture.sample_filtered(points, step))
            else:  # black where an opacity that leaves layers out for good has left this one out
                kept = weights[..., number] > 0
                black = points.new_zeros(*points.shape[:-1], 3)
                colors.append(black.index_put((kept,), texture(points[kept])))
        return LayerSamples(
            color=_stack_layers(colors),
            weight=weights.movedim(-1, 0).flatten(1).T,
            uv=_stack_layers(uv),
            gain=_stack_layers(gains) if gains else None,
        )


def _stack_layers(parts: list[Float[Tensor, "*n channels"]]) -> Float[Tensor, "n layers channels"]:
    """Returns [N, layers, channels] as a view of channel planes: sums over layers and channels run along the memory."""
    return torch.stack([part.movedim(-1, 0) for part in parts]).flatten(2).permute(2, 0, 1)
