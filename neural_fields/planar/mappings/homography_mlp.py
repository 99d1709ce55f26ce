"""Mappings of NaRCan: one network t -> homography for the clip, and a network of shifts for each chart on top of it.

Chen et al., "NaRCan: Natural Refined Canonical Image with Integration of Diffusion Prior for Video Editing" (2024), by
the steps of their code, which calls the charts segments. Points outside a chart's frames move by the homography alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.config import planar
from neural_fields.nn.siren import Siren
from neural_fields.planar.mappings.frame_points import evaluate_in_parts
from neural_fields.planar.mappings.mapping import PAPER_ADAM, Mapping, project_points


class HomographyNetwork(nn.Module):
    """A ReLU network from t to a homography [3, 3] whose last element is 1; its bias starts at the identity."""

    def __init__(self, settings: planar.HomographyMlpMappingConfig) -> None:
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
    """uv = homography(t) xy + shift(x, y, t), the shift a network of sines over the time of its chart.

    The homographies are pretrained (`pretrain_homographies`) and then stay as they are. The paper's code trains them on
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
        settings: planar.HomographyMlpMappingConfig,
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
