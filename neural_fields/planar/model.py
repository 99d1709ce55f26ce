"""The planar model: a mapping, a texture and a gain for each layer, joined by one opacity. The papers are presets."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neural_fields import coords
from neural_fields.config import Terms
from neural_fields.coords import Box
from neural_fields.data.clip import Batch
from neural_fields.planar import explicit
from neural_fields.planar import terms as term_functions
from neural_fields.planar.gain import Gain
from neural_fields.planar.mapping import Mapping
from neural_fields.planar.opacity import Opacity, layer_weights
from neural_fields.planar.sheets import Chart, Sheet
from neural_fields.planar.texture import Texture
from neural_fields.planar.window_opacity import WindowOpacity


@dataclass(frozen=True)
class LayerSamples:
    """What a model says of N points: one row per point, layers front to back, the last is the background."""

    color: Float[Tensor, "n layers 3"]
    weight: Float[Tensor, "n layers"]  # sums to one
    uv: Float[Tensor, "n layers 2"] | None
    gain: Float[Tensor, "n layers 3"] | None


def composite(samples: LayerSamples) -> Float[Tensor, "n 3"]:
    """The colour that a viewer sees: the layers' lit colours, weighted."""
    lit = samples.color if samples.gain is None else samples.color * samples.gain
    return (lit * samples.weight[..., None]).sum(1)


class VideoModel(nn.Module):
    """A function of (x, y, t) that shows a video in layers."""

    layers: tuple[str, ...]

    @abstractmethod
    def forward(self, xyt: Float[Tensor, "n 3"]) -> LayerSamples:
        """The layers at any points."""

    @abstractmethod
    def frame(self, t: int, size: tuple[int, int]) -> LayerSamples:
        """The layers at every pixel of frame `t` at `size` (width, height), row-major; agrees with `forward`."""

    @abstractmethod
    def batch(self, batch: Batch) -> LayerSamples:
        """The layers at the points of a training batch, by the fastest way."""

    def at_step(self, step: int) -> None:
        """Called before each training step: what a model does by schedule moves on here."""

    @abstractmethod
    def terms(self, batch: Batch, samples: LayerSamples, step: int) -> dict[str, Float[Tensor, ""]]:
        """The weighted loss terms of a step; their sum is minimised."""

    def accumulate(self, batch: Batch, step: int) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms of a step, with their gradients left in the parameters unless a term is not finite."""
        terms = self.terms(batch, self.batch(batch), step)
        loss = torch.stack(list(terms.values())).sum()
        if torch.isfinite(loss):
            loss.backward()
        return {name: value.detach() for name, value in terms.items()}

    @abstractmethod
    def param_groups(self) -> list[dict]:
        """Parameters with learning rates; `sparse: True` marks tables of which a step touches a few rows."""


@dataclass(frozen=True)
class LayerShape:
    """The canonical image of one layer: its name, the box it covers, and its size in texels."""

    name: str
    box: Box
    width: int
    height: int
    reference: int | None = None  # the frame whose own coordinates the canonical plane has, where it has to
    sheets: tuple[Sheet, ...] = ()  # parts of the plane that belong to spans of frames; none: all of it to all frames


@dataclass(frozen=True)
class ModelShape:
    """What has to be known beside the config to build a planar model: enough to load a checkpoint."""

    width: int
    height: int
    frame_count: int
    layers: tuple[LayerShape, ...]

    @property
    def size(self) -> tuple[int, int]:
        return (self.width, self.height)

    def to_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(value: dict) -> ModelShape:
        layers = tuple(
            LayerShape(
                **{
                    **layer,
                    "box": Box(**layer["box"]),
                    "sheets": tuple(Sheet.from_json(sheet) for sheet in layer.get("sheets", ())),
                }
            )
            for layer in value["layers"]
        )
        return ModelShape(int(value["width"]), int(value["height"]), int(value["frame_count"]), layers)


class PlanarModel(VideoModel):
    """A planar composition.

    Args:
        shape: sizes and layer names.
        mappings, textures, gains: one per layer, front to back; textures may be shared; gains may be empty.
        opacity: alphas of the front layers.
        weights: the loss terms.
    """

    def __init__(
        self,
        shape: ModelShape,
        mappings: list[Mapping],
        textures: list[Texture],
        gains: list[Gain],
        opacity: Opacity,
        weights: Terms,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.layers = tuple(layer.name for layer in shape.layers)
        self.mappings = nn.ModuleList(mappings)
        self.textures = nn.ModuleList(textures)
        self.gains = nn.ModuleList(gains)
        self.opacity = opacity
        self.weights = weights

    def forward(self, xyt: Float[Tensor, "n 3"]) -> LayerSamples:
        uv = [mapping(xyt) for mapping in self.mappings]
        gains = [gain(xyt, points) for gain, points in zip(self.gains, uv, strict=False)]  # there may be none
        time = torch.as_tensor(coords.denormalise_time(xyt[:, 2], self.shape.frame_count))
        return self._samples(uv, gains, self.opacity(xyt), time)

    def frame(self, t: int, size: tuple[int, int]) -> LayerSamples:
        return self.frames(torch.tensor([t]), size)

    def frames(self, frames: Int[Tensor, " frames"], size: tuple[int, int]) -> LayerSamples:
        """The layers at every pixel of some frames, frame by frame in row-major order."""
        count, frames = self.shape.frame_count, frames.to(self.device)
        uv = [mapping.frames(frames, count, size) for mapping in self.mappings]  # type: ignore[operator]
        gains = [
            gain.frames(frames, count, size, points)  # type: ignore[operator]
            for gain, points in zip(self.gains, uv, strict=False)  # there may be none
        ]
        return self._samples(uv, gains, self.opacity.frames(frames, count, size), frames.float())

    def batch(self, batch: Batch) -> LayerSamples:
        return self.frames(batch.frames, batch.clip.size) if batch.index is None else self(batch.xyt.to(self.device))

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    def at_step(self, step: int) -> None:
        for mapping in self.mappings:
            mapping.at_step(step)  # type: ignore[operator]

    def canonical_color(self, layer: str, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 3"]:
        """RGB of a layer's canonical image at any uv."""
        return self.textures[self.layers.index(layer)](uv)

    def canonical_box(self, layer: str) -> Box:
        """The box that a layer's canonical image covers."""
        return self.shape.layers[self.layers.index(layer)].box

    def charts(self) -> list[list[Chart]]:
        """Series of charts, in the order of time: an edit of one is carried to the others of its series."""
        series = [
            [Chart(layer.name, sheet.first, sheet.last, sheet.box) for sheet in layer.sheets]
            for layer in self.shape.layers
            if len(layer.sheets) > 1
        ]
        if isinstance(self.opacity, WindowOpacity) and len(self.layers) > 1:
            spans = zip(self.shape.layers, self.opacity.segments.spans, strict=True)
            series.append([Chart(layer.name, *span, layer.box) for layer, span in spans])
        return series

    def inverse(
        self, layer: str, uv: Float[Tensor, "n 2"], t: int, rounds: int = 20
    ) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
        """Where canonical points are seen in frame `t`: xy units, and the uv error that is left.

        Newton's method from the nearest point of a coarse grid; a large error says that the point is not seen.
        """
        mapping = self.mappings[self.layers.index(layer)]
        return invert(mapping, uv, float(coords.normalise_time(t, self.shape.frame_count)), self.shape.size, rounds)

    def terms(self, batch: Batch, samples: LayerSamples, step: int) -> dict[str, Float[Tensor, ""]]:
        return term_functions.weighted_terms(self, batch, samples, step)

    def accumulate(self, batch: Batch, step: int) -> dict[str, Float[Tensor, ""]]:
        if batch.index is None and explicit.supports(self):
            return explicit.accumulate(self, batch)
        return super().accumulate(batch, step)

    def param_groups(self) -> list[dict]:
        parts: list[Mapping | Texture | Gain | Opacity] = [*self.mappings, *self.gains, self.opacity]
        unique_textures = {id(texture): texture for texture in self.textures}
        groups = [group for part in [*parts, *unique_textures.values()] for group in part.param_groups()]  # type: ignore[operator]
        seen: set[int] = set()
        kept = []
        for group in groups:  # a mapping or texture that layers share is optimised once
            params = [p for p in group["params"] if id(p) not in seen and p.numel()]
            seen.update(id(p) for p in params)
            if params:
                kept.append({**group, "params": params})
        return kept

    def _samples(self, uv: list[Tensor], gains: list[Tensor], alphas: Tensor, time: Tensor) -> LayerSamples:
        """Joins parts, each [..., channels] over the same points; `time` has a frame index for each first entry."""
        weights = layer_weights(alphas)
        color = [
            self._color(number, points, mapping.pixel_step(time), weights[..., number])  # type: ignore[operator]
            for number, (mapping, points) in enumerate(zip(self.mappings, uv, strict=True))
        ]
        return LayerSamples(
            color=_points_first(color),
            weight=weights.movedim(-1, 0).flatten(1).T,
            uv=_points_first(uv),
            gain=_points_first(gains) if gains else None,
        )

    def _color(self, layer: int, uv: Tensor, step: Tensor | None, weight: Tensor) -> Tensor:
        """A layer's colours at its uv; black where an opacity that leaves layers out for good has left it out."""
        texture = self.textures[layer]
        if not self.opacity.leaves_out or step is not None:
            return texture.seen(uv, step)  # type: ignore[operator]
        seen = weight > 0
        return uv.new_zeros(*uv.shape[:-1], 3).index_put((seen,), texture(uv[seen]))


def _points_first(parts: list[Float[Tensor, "*n channels"]]) -> Float[Tensor, "n layers channels"]:
    """[N, layers, channels] as a view of channel planes: sums over layers and channels then run along the memory."""
    return torch.stack([part.movedim(-1, 0) for part in parts]).flatten(2).permute(2, 0, 1)


@torch.no_grad()
def invert(
    mapping: nn.Module, uv: Float[Tensor, "n 2"], time: float, size: tuple[int, int], rounds: int
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Solves mapping(x, y, time) = uv for xy; returns xy and the distance in uv that is left."""
    coarse = coords.frame_xy(max(2, size[0] // 8), max(2, size[1] // 8)).view(-1, 2)

    def at(xy: Tensor) -> Tensor:
        return mapping(torch.cat([xy, xy.new_full((len(xy), 1), time)], dim=1))

    xy = coarse[torch.cdist(uv, at(coarse)).argmin(1)]
    best, error = xy, (at(xy) - uv).norm(dim=1)
    delta = 1 / max(size)  # half a pixel
    for _ in range(rounds):
        here = at(xy)
        columns = [(at(xy + xy.new_tensor(step)) - here) / delta for step in ([delta, 0.0], [0.0, delta])]
        jacobian = torch.stack(columns, dim=-1) + 1e-6 * torch.eye(2)
        move = torch.linalg.solve_ex(jacobian, uv - here)[0]
        xy = xy + move.nan_to_num().clamp(-0.1, 0.1)
        now = (at(xy) - uv).norm(dim=1)
        better = now < error
        best, error = torch.where(better[:, None], xy, best), torch.where(better, now, error)
    return best, error
