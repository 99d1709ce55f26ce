"""Homographies and segment boxes that the MLP mapping of NaRCan is pretrained to."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from neural_fields.core import coords
from neural_fields.core.coords import Box
from neural_fields.data.dataset import ClipDataset, draw_pixels
from neural_fields.nn.adam import Adam
from neural_fields.nn.siren import Siren
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.planar.mappings.homography_mlp import ChartMapping
from neural_fields.planar.mappings.mapping import PAPER_ADAM


@dataclass(frozen=True)
class HomographyPretrainingSettings:
    """Settings of the homographies' pretraining and of the boxes that follow from it."""

    canonical_hidden_layers: int = 4  # of the network that the homographies are trained with, then dropped
    pixel_divisor: int = 4  # a step sees the pixels of a frame divided by this
    box_margin: float = 0.05  # of a box's sides: the shifts may go beyond what the homographies reach
    max_box_reach: float = 5.0  # frame lengths: no box reaches further, whatever a homography does


DEFAULTS = HomographyPretrainingSettings()


def pretrain_homographies(
    mapping: ChartMapping, clip: ClipDataset, how: WarmUpOptions, settings: HomographyPretrainingSettings = DEFAULTS
) -> None:
    """Trains the homographies together with one canonical network for the whole clip, which is then dropped.

    As the paper's code: mean squared error of colors from -1 to 1, Adam, `pretrain` steps of a fourth of a frame's
    pixels. Steps whose gradients are not finite are left out.

    Args:
        mapping: of any chart; its network of homographies is trained.
        clip: what it learns from.
        how: seed, device and patience.
        settings: sizes.
    """
    planar, network = mapping.settings, mapping.shared_network
    home = next(network.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        canonical = Siren(2, 3, planar.width, settings.canonical_hidden_layers, planar.omega).to(how.device)
    network.to(how.device).requires_grad_(True)
    params = [*network.parameters(), *canonical.parameters()]
    adam = Adam([{"params": params, "lr": planar.learning_rate, **PAPER_ADAM}])
    pixels = max(1, clip.size[0] * clip.size[1] // settings.pixel_divisor)
    begin = time.monotonic()
    with torch.enable_grad():
        for step in range(planar.pretrain):
            if how.stop() or (how.seconds is not None and time.monotonic() - begin > how.seconds):
                break
            batch = draw_pixels(clip, pixels, step, how.seed)
            shown = canonical(network.map_points(batch.xyt.to(how.device)))
            loss = F.mse_loss(shown, 2 * batch.rgb.to(how.device) - 1)
            adam.zero_grad()
            loss.backward()
            if all(bool(torch.isfinite(gradient).all()) for gradient in adam.iterate_gradients()):
                adam.step()
            if step % how.report_every == 0:
                how.progress(step, planar.pretrain)
    network.to(home).requires_grad_(False)


@torch.no_grad()
def compute_chart_box(
    mapping: ChartMapping, size: tuple[int, int], settings: HomographyPretrainingSettings = DEFAULTS
) -> Box:
    """Computes the box of a chart's canonical image: the chart's frames, moved by the homographies, and a margin.

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
