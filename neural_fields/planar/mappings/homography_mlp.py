"""Mappings of NaRCan: one network t -> homography for the clip, and a network of shifts for each chart on top of it.

Chen et al., "NaRCan: Natural Refined Canonical Image with Integration of Diffusion Prior for Video Editing" (2024), by
the steps of their code, which calls the charts segments. Points outside a chart's frames move by the homography alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.config.presets import require_valid
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.nn.siren import Siren
from neural_fields.planar.init.color_pretraining import ColorPretraining
from neural_fields.planar.init.model_shape import ModelShape
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.mapping import PAPER_ADAM, Mapping, MappingConfig, PointFunction, project_points


@dataclass(frozen=True)
class HomographyMlpMappingConfig(MappingConfig, PointFunction):
    """Sets a network t -> homography for all charts, and a sine network of displacements for each chart (NaRCan)."""

    kind: ClassVar[str] = "homography_mlp"
    homography_width: int = 256  # neurons of a hidden layer of the homography network
    homography_layers: int = 2  # hidden layers between the first and the last
    pretrain: int = 3000  # steps that fit the homographies before the training, which does not change them
    width: int = 256  # neurons of a layer of the sine networks
    hidden_layers: int = 5  # between the first sine layer and the last linear one
    omega: float = 30.0  # radians a unit: frequency of a sine layer
    learning_rate: float = 1e-4  # of all networks

    def __post_init__(self) -> None:
        require_valid(min(self.homography_width, self.width) >= 1, "homography_width and width must be at least 1")
        require_valid(
            min(self.homography_layers, self.hidden_layers, self.pretrain) >= 0,
            "homography_layers, hidden_layers and pretrain must not be negative",
        )
        require_valid(self.omega > 0, "omega must be above 0")

    def build(self, shape: ModelShape, spans: Sequence[tuple[int, int]]) -> list[ChartMapping]:
        """See `MappingConfig.build`; all charts share the network of homographies."""
        network = HomographyNetwork(self)
        return [ChartMapping(self, network, number == 0, span, shape.frame_count) for number, span in enumerate(spans)]

    def scale_steps(self, total: int, final: int) -> MappingConfig:
        """See `MappingConfig.scale_steps`; the pretraining takes no more steps than a quarter of the training."""
        return replace(self, pretrain=min(self.pretrain, -(-total // 4)))


@dataclass(frozen=True)
class ChartBoxSettings:
    """Settings of the boxes that follow from the pretrained homographies."""

    box_margin: float = 0.05  # of a box's sides: the shifts may go beyond what the homographies reach
    max_box_reach: float = 5.0  # frame lengths: no box reaches further, whatever a homography does


DEFAULTS = ChartBoxSettings()


class HomographyNetwork(nn.Module):
    """Computes a homography [3, 3] of t with a ReLU network; the last element is 1, and it starts at the identity."""

    def __init__(self, settings: HomographyMlpMappingConfig) -> None:
        super().__init__()
        width = settings.homography_width
        layers: list[nn.Module] = [nn.Linear(1, width), nn.ReLU()]
        for _ in range(settings.homography_layers):
            layers += [nn.Linear(width, width), nn.ReLU()]
        last = nn.Linear(width, 8)
        with torch.no_grad():
            last.bias.copy_(torch.eye(3).flatten()[:8])
        self.network = nn.Sequential(*layers, last)

    def forward(self, t: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
        """Returns the homographies at times from -1 to 1."""
        eight = self.network(t[:, None])
        return torch.cat([eight, torch.ones_like(eight[:, :1])], dim=1).view(-1, 3, 3)

    def map_points(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Moves points by the homographies of their times; the network sees each time once."""
        times, which = xyt[:, 2].unique(return_inverse=True)
        return project_points(self(times)[which], xyt[:, :2])


class ChartMapping(Mapping):
    """Maps by uv = homography(t) xy + shift(x, y, t), with shifts from a network of sines over the time of its chart.

    The homographies are pretrained (`pretrain_with_colors`) and then stay as they are. The paper's code trains them on
    the time of the whole clip and evaluates them at that of the segment; here each frame gets its own.

    Args:
        settings: sizes of the networks and learning rates.
        homography: shared by all charts.
        owner: the checkpoint of this mapping keeps the homographies.
        span: first and last frame of the chart.
        frame_count: of the clip.
    """

    def __init__(
        self,
        settings: HomographyMlpMappingConfig,
        homography: HomographyNetwork,
        owner: bool,
        span: tuple[int, int],
        frame_count: int,
    ) -> None:
        super().__init__()
        self.settings = settings
        self._shared = (homography.requires_grad_(False),)  # a module inside a tuple is not registered
        if owner:
            self.homography = homography
        self.shift = Siren(3, 2, settings.width, settings.hidden_layers, settings.omega)
        self.owns_homography = owner
        self.span, self.frame_count = span, frame_count
        begin, end = ((2 * edge / frame_count - 1) for edge in (span[0], span[1] + 1))
        self.middle, self.reach = (begin + end) / 2, (end - begin) / 2

    @property
    def shared_network(self) -> HomographyNetwork:
        """The network of homographies, which all charts have in common."""
        return self._shared[0]

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Returns the uv of any points; outside the chart's frames by the homography alone."""
        place = self.shared_network.map_points(xyt)
        inside, points = self._select_inside(xyt)
        if not len(inside):
            return place
        return place.index_add(0, inside, evaluate_in_parts(self.shift, points))

    def plan_pretraining(self) -> ColorPretraining | None:
        """See `Mapping.plan_pretraining`; the homographies of all charts, planned by one of them."""
        if not self.owns_homography:
            return None
        settings, network = self.settings, self.shared_network
        return ColorPretraining(
            network, network.map_points, settings.pretrain, settings.learning_rate, settings.width, settings.omega
        )

    def measure_box(self, size: tuple[int, int]) -> Box | None:
        """See `Mapping.measure_box`; the chart's frames, moved by the pretrained homographies."""
        return compute_chart_box(self, size)

    def residual_jacobian(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
        """Computes the mean absolute derivative of the shift by x, y and t; points outside the chart count as 0."""
        _, points = self._select_inside(xyt)
        points = points.requires_grad_()
        shift = self.shift(points)
        total = points.new_zeros(())
        for axis in range(2):
            (slope,) = torch.autograd.grad(shift[:, axis].sum(), points, create_graph=True)
            total = total + slope.abs().sum()
        return total / (6 * len(xyt))

    def _select_inside(self, xyt: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rows of the points within the chart's frames, and these points with its time from -1 to 1."""
        t = (xyt[:, 2] - self.middle) / self.reach
        inside = (t.abs() <= 1 + 1e-5).nonzero()[:, 0]
        return inside, torch.cat([xyt[inside, :2], t[inside, None]], dim=1)

    def param_groups(self) -> list[dict]:
        """Returns the weights of the network of shifts; the homographies are not trained here."""
        return [{"params": list(self.shift.parameters()), "lr": self.settings.learning_rate, **PAPER_ADAM}]


@torch.no_grad()
def compute_chart_box(mapping: ChartMapping, size: tuple[int, int], settings: ChartBoxSettings = DEFAULTS) -> Box:
    """Computes the box of a chart's canonical picture: the chart's frames, moved by the homographies, and a margin.

    Args:
        mapping: of the chart.
        size: (width, height) of the frames in pixels.
        settings: margin and limit.
    """
    frame = coords.frame_box(*size)
    corners = torch.tensor([[u, v] for u in (frame.u0, frame.u1) for v in (frame.v0, frame.v1)])
    first, last = mapping.span
    times = torch.as_tensor(coords.normalize_time(torch.arange(first, last + 1).float(), mapping.frame_count))
    xyt = torch.cat([corners.repeat(len(times), 1), times.repeat_interleave(4)[:, None]], dim=1)
    reach = 2 * settings.max_box_reach  # in uv units
    places = mapping.shared_network.map_points(xyt).nan_to_num().clamp(-reach, reach)
    low, high = places.amin(0), places.amax(0)
    margin = settings.box_margin * (high - low).clamp_min(2 / max(size))
    return Box(*(low - margin).tolist(), *(high + margin).tolist())
