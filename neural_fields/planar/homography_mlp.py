"""Mappings of NaRCan: one network t -> homography for the clip, and a network of shifts for each segment on top of it.

Chen et al., "NaRCan: Natural Refined Canonical Image with Integration of Diffusion Prior for Video Editing" (2024), by
the steps of their code. Points outside a segment's frames are led by the homography alone.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields import config, coords
from neural_fields.adam import Adam
from neural_fields.coords import Box
from neural_fields.data.clip import Clip, draw_pixels
from neural_fields.planar.mapping import PAPER_ADAM, Mapping, project
from neural_fields.planar.points import evaluate
from neural_fields.planar.siren import Siren
from neural_fields.planar.warm_up import REPORT_EVERY, WarmUp

PRETRAIN_LAYERS = 4  # hidden layers of the canonical network that the homographies are taught with, then forgotten
PRETRAIN_SHARE = 4  # a step of it sees as many pixels as a fourth of a frame has
MARGIN = 0.05  # of the box that the homographies lead to: the residual may go beyond it
REACH = 5.0  # frame lengths: no box reaches further, whatever a homography does


class HomographyNetwork(nn.Module):
    """Time to a homography [3, 3] whose last element is 1: a ReLU network of t with the identity as its offset."""

    def __init__(self, settings: config.HomographyMlpMapping) -> None:
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
        eight = self.network(t[:, None])
        return torch.cat([eight, torch.ones_like(eight[:, :1])], dim=1).view(-1, 3, 3)

    def places(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Where the homographies lead points; each time is asked for once."""
        times, which = xyt[:, 2].unique(return_inverse=True)
        return project(self(times)[which], xyt[:, :2])


class SegmentMapping(Mapping):
    """uv = homography(t) xy + shift(x, y, t), the shift a network of sines that runs through its segment's time.

    The homographies are taught before the fit (`teach_homographies`) and stay as they are. The paper's code trains them
    on the time of the whole clip and asks them for that of the segment; here each frame gets its own.

    Args:
        homography: shared by all segments; only the `owner`'s checkpoint keeps it.
        span: first and last frame of the segment.
    """

    def __init__(
        self,
        settings: config.HomographyMlpMapping,
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
    def shared(self) -> HomographyNetwork:
        """The network of homographies, which all segments have in common."""
        return self._shared[0]

    def forward(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        place = self.shared.places(xyt)
        inside, points = self._inside(xyt)
        if not len(inside):
            return place
        return place.index_add(0, inside, evaluate(self.shift, points))

    def residual_jacobian(self, xyt: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
        """Mean absolute derivative of the shift by x, y and t; points outside the segment count as 0."""
        _, points = self._inside(xyt)
        points = points.requires_grad_()
        shift = self.shift(points)
        total = points.new_zeros(())
        for axis in range(2):
            (slope,) = torch.autograd.grad(shift[:, axis].sum(), points, create_graph=True)
            total = total + slope.abs().sum()
        return total / (6 * len(xyt))

    def _inside(self, xyt: Tensor) -> tuple[Tensor, Tensor]:
        """Which points lie within the segment's frames, and these with the time from -1 to 1 across the segment."""
        t = (xyt[:, 2] - self.middle) / self.reach
        inside = (t.abs() <= 1 + 1e-5).nonzero()[:, 0]
        return inside, torch.cat([xyt[inside, :2], t[inside, None]], dim=1)

    def param_groups(self) -> list[dict]:
        return [{"params": list(self.shift.parameters()), "lr": self.settings.learning_rate, **PAPER_ADAM}]


def teach_homographies(mapping: SegmentMapping, clip: Clip, how: WarmUp) -> None:
    """Teaches the homographies together with one canonical network for the whole clip, which is then forgotten.

    As the paper's code: mean squared error of colours from -1 to 1, Adam, `pretrain` steps of a fourth of a frame's
    pixels. Steps whose gradients are not finite are left out.
    """
    settings, network = mapping.settings, mapping.shared
    home = next(network.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        canonical = Siren(2, 3, settings.width, PRETRAIN_LAYERS, settings.omega).to(how.device)
    network.to(how.device).requires_grad_(True)
    params = [*network.parameters(), *canonical.parameters()]
    adam = Adam([{"params": params, "lr": settings.learning_rate, **PAPER_ADAM}])
    pixels = max(1, clip.size[0] * clip.size[1] // PRETRAIN_SHARE)
    begin = time.monotonic()
    with torch.enable_grad():
        for step in range(settings.pretrain):
            if how.stop() or (how.seconds is not None and time.monotonic() - begin > how.seconds):
                break
            batch = draw_pixels(clip, pixels, step, how.seed)
            shown = canonical(network.places(batch.xyt.to(how.device)))
            loss = F.mse_loss(shown, 2 * batch.rgb.to(how.device) - 1)
            adam.zero_grad()
            loss.backward()
            if all(bool(torch.isfinite(gradient).all()) for gradient in adam.gradients()):
                adam.step()
            if step % REPORT_EVERY == 0:
                how.progress(step, settings.pretrain)
    network.to(home).requires_grad_(False)


@torch.no_grad()
def segment_box(mapping: SegmentMapping, size: tuple[int, int]) -> Box:
    """The box around the frames of a segment where the homographies lead them, and a margin: its canonical image."""
    frame = coords.frame_box(*size)
    corners = torch.tensor([[u, v] for u in (frame.u0, frame.u1) for v in (frame.v0, frame.v1)])
    first, last = mapping.span
    times = torch.as_tensor(coords.normalise_time(torch.arange(first, last + 1).float(), mapping.frame_count))
    xyt = torch.cat([corners.repeat(len(times), 1), times.repeat_interleave(4)[:, None]], dim=1)
    places = mapping.shared.places(xyt).nan_to_num().clamp(-2 * REACH, 2 * REACH)
    low, high = places.amin(0), places.amax(0)
    margin = MARGIN * (high - low).clamp_min(2 / max(size))
    return Box(*(low - margin).tolist(), *(high + margin).tolist())
