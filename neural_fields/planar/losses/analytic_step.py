"""One training step of an atlas whose parts are all tables, with its gradients written out.

Grid mapping, image texture, grid gain and pixel opacity are sums of linear interpolations, so every gradient is a
transposed interpolation. Written out, a step needs no graph, looks at front layers only where they can be visible, at
textures only where the frame falls, and splits into bands of rows that run in threads of their own. What it computes is
what `objective.compute_losses` computes (a test compares values and gradients), but for the smoothness of the textures,
which is taken over the texels that the step shows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neural_fields.data.dataset import Batch
from neural_fields.nn.adam import RectangleGradient
from neural_fields.planar.appearance.grid_gain import GridGain
from neural_fields.planar.appearance.image_texture import ImageTexture
from neural_fields.planar.appearance.layer_patch import (
    ForwardCache,
    InterpolationMatrices,
    LayerGradients,
    LayerTables,
    backpropagate_patch,
    render_patch,
)
from neural_fields.planar.appearance.pixel_opacity import SNAP_MARGIN, PixelOpacity
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.init.frame_patch import FramePatch
from neural_fields.planar.losses.layered_neural_atlases import MASK_CLAMP, find_visible_parts
from neural_fields.planar.losses.table import LOSSES, LossWeights
from neural_fields.planar.mappings.frame_grid import FrameTable, accumulate_squared_steps
from neural_fields.planar.mappings.grid import GridMapping

WRITTEN_OUT = {
    "color",
    "mask",
    "residual_smoothness",
    "residual_anchor",
    "texture_smoothness",
    "gain_size",
    "gain_smoothness",
}


def supports_model(model: PlanarModel) -> bool:
    """Tells whether this module has the analytic gradients of a model: its parts, its losses, and the CPU."""
    weights: LossWeights = model.weights
    active = {loss.name for loss in LOSSES if loss.weigh(weights)}
    return (
        model.device.type == "cpu"
        and active <= WRITTEN_OUT
        and not (weights.mask_until or weights.opacity_from)  # the same losses at every step
        and all(type(part) is GridMapping for part in model.mappings)
        and all(type(part) is ImageTexture for part in model.textures)
        and all(type(part) is GridGain for part in model.gains)
        and type(model.opacity) is PixelOpacity
    )


class _Parts:
    """The parts of a model that `supports_model` has accepted, with their types."""

    def __init__(self, model: PlanarModel) -> None:
        self.mappings = cast("list[GridMapping]", list(model.mappings))
        self.textures = cast("list[ImageTexture]", list(model.textures))
        self.gains = cast("list[GridGain]", list(model.gains))  # may be empty
        self.opacity = cast("PixelOpacity", model.opacity)


# --- a band of a frame ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """Holds a band of rows of a frame, for a step."""

    t: int
    patch: FramePatch
    window: FramePatch  # where front layers can be visible
    rgb: Float[Tensor, "3 height width"]  # of the patch, 0 to 1
    levels: list[tuple[int, int]]  # how often each layer's texture is halved for this frame, across and down
    masks: Float[Tensor, "front _ _"] | None  # visible parts in the window, 0 to 1; None: no mask loss


@dataclass
class BandGradients:
    """Holds the contribution of a band to the losses and to the gradients."""

    band: Band
    squared_error: float  # sum over pixels and channels
    entropy: float  # sum of the cross-entropies inside the window
    layers: list[LayerGradients | None]  # None: the layer cannot be visible in the band
    logits: Float[Tensor, "front rows columns"] | None  # gradient of the opacity's table


@torch.no_grad()  # threads do not inherit it
def compute_band_gradients(model: PlanarModel, band: Band, color_scale: float, mask_scale: float) -> BandGradients:
    """Runs a band forward and backward.

    Args:
        model: one that `supports_model` accepts.
        band: a part of a frame.
        color_scale: the weight of the color loss over the number of its summands.
        mask_scale: the weight of the mask loss over the number of its summands.
    """
    parts, size = _Parts(model), model.shape.size
    front = len(parts.mappings) - 1
    # Forward: every layer that can be visible in the band.
    caches: list[ForwardCache] = []
    for number, mapping in enumerate(parts.mappings):
        patch = band.window if number < front else band.patch
        if not patch.is_empty:
            gain = parts.gains[number].table if parts.gains else None
            layer = LayerTables(mapping, parts.textures[number], gain, band.t)
            caches.append(render_patch(layer, band.levels[number], size, patch))
    *fronts, back = caches
    error = back.lit - band.rgb
    if band.window.is_empty:
        squared = float(torch.dot(error.reshape(-1), error.reshape(-1)))
        background = backpropagate_patch(back, error.mul_(2 * color_scale))
        return BandGradients(band, squared, 0.0, [*[None] * front, background], None)

    # Forward: the front layers over the background, inside the window.
    window = band.window
    table = parts.opacity.table
    matrices = InterpolationMatrices.for_patch(table, size, window)
    sigmoid = torch.sigmoid(matrices.interpolate_table(table.values[band.t]))
    alpha = ((sigmoid - SNAP_MARGIN) / (1 - 2 * SNAP_MARGIN)).clamp_(0, 1)
    stages = [window.crop(back.lit, band.patch)]  # the picture before each layer is put on, from the back
    for number in reversed(range(front)):
        stages.append(torch.lerp(stages[-1], fronts[number].lit, alpha[number]))
    window.crop(error, band.patch).copy_(stages[-1] - window.crop(band.rgb, band.patch))
    squared = float(torch.dot(error.reshape(-1), error.reshape(-1)))

    # Backward: from the front to the back.
    gradient = error.mul_(2 * color_scale)
    entropy, alpha_gradient = _compute_mask_gradient(alpha, band.masks, mask_scale)
    passing = window.crop(gradient, band.patch).clone()
    layers: list[LayerGradients | None] = []
    for number, shown in enumerate(fronts):
        below = stages[-2 - number]
        alpha_gradient[number] += (passing * (shown.lit - below)).sum(0)
        layers.append(backpropagate_patch(shown, passing * alpha[number]))
        passing *= 1 - alpha[number]
    window.crop(gradient, band.patch).copy_(passing)
    layers.append(backpropagate_patch(back, gradient))
    logits = alpha_gradient * (sigmoid * (1 - sigmoid)) / (1 - 2 * SNAP_MARGIN)
    return BandGradients(band, squared, entropy, layers, matrices.backpropagate_table(logits))


def _compute_mask_gradient(
    alpha: Float[Tensor, "front height width"], visible: Float[Tensor, "front height width"] | None, scale: float
) -> tuple[float, Float[Tensor, "front height width"]]:
    """Computes what `terms.mask` does, written out.

    Returns:
        The sum of the cross-entropies of the front layers' weights, and the alphas' gradient of `scale` times it.
    """
    gradient = torch.zeros_like(alpha)
    if visible is None:
        return 0.0, gradient
    left = torch.ones_like(alpha)  # the light that reaches each layer
    for number in range(1, len(alpha)):
        left[number] = left[number - 1] * (1 - alpha[number - 1])
    weight = (alpha * left).clamp(MASK_CLAMP, 1 - MASK_CLAMP)
    rest = 1 - weight
    entropy = -float((visible * weight.log() + (1 - visible) * rest.log()).sum())
    slope = ((1 - visible) / rest - visible / weight) * scale
    unclamped = alpha * left
    slope *= (unclamped >= MASK_CLAMP) & (unclamped <= 1 - MASK_CLAMP)
    for number in range(len(alpha)):  # each alpha moves its own weight and those of the layers behind it
        gradient[number] += slope[number] * left[number]
        for behind in range(number + 1, len(alpha)):
            without = torch.ones_like(alpha[0])
            for other in range(behind):
                if other != number:
                    without = without * (1 - alpha[other])
            gradient[number] -= slope[behind] * alpha[behind] * without
    return entropy, gradient


# --- a step ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def accumulate_table_gradients(model: PlanarModel, batch: Batch, min_bands: int = 4) -> dict[str, Tensor]:
    """Adds the gradients of a step on whole frames to the model's parameters; returns the weighted losses.

    Gradients of textures are left in `patches`, as rectangles (see `Adam`), the others in `grad`.

    Args:
        model: one that `supports_model` accepts.
        batch: whole frames.
        min_bands: that a step is split into at least.
    """
    weights: LossWeights = model.weights
    parts, frames = _Parts(model), batch.frames.tolist()
    front = len(model.layers) - 1
    pixels = len(frames) * model.shape.width * model.shape.height
    with_mask = bool(weights.mask and front)
    color_scale = weights.color / (3 * pixels)
    mask_scale = weights.mask / (front * pixels) if with_mask else 0.0
    bands = _split_into_bands(model, batch, with_mask, min_bands)
    results = list(_thread_pool().map(lambda band: compute_band_gradients(model, band, color_scale, mask_scale), bands))
    # The losses of colors and masks; outside the windows a weight is 0, and its entropy that of the clamp.
    losses = {"color": torch.tensor(color_scale * sum(result.squared_error for result in results))}
    if with_mask:
        inside = sum(result.band.window.area for result in results)
        outside = -torch.log1p(torch.tensor(-MASK_CLAMP)) * (pixels - inside) * front
        losses["mask"] = mask_scale * (sum(result.entropy for result in results) + outside)
    # The bands' gradients of what each frame has for itself: shifts, gains and opacities.
    place = {t: index for index, t in enumerate(frames)}
    for number, mapping in enumerate(parts.mappings):
        tables = [(mapping.residual, "shift")]
        if parts.gains:
            tables.append((parts.gains[number].table, "gain"))
        for table, name in tables:
            total = torch.zeros(len(frames), *table.shape[1:])
            for result in results:
                found = result.layers[number]
                if found is not None:
                    total[place[result.band.t]] += getattr(found, name)
            _add_row_gradients(table, frames, total)
    table = parts.opacity.table
    if table.shape[1]:
        total = torch.zeros(len(frames), *table.shape[1:])
        for result in results:
            if result.logits is not None:
                total[place[result.band.t]] += result.logits
        _add_row_gradients(table, frames, total)
    # The bands' gradients of each texture, joined into rectangles that do not overlap; also the smoothness there.
    roughness = torch.zeros(())
    for number, texture in enumerate(parts.textures):
        rectangles = []
        for result in results:
            found = result.layers[number]
            if found is None:
                continue
            # At the texture's own size: the gradient of a cell of a smaller level spreads evenly over its texels.
            across, down = (2**halved for halved in found.level)
            gradient = found.texture
            if across * down > 1:
                gradient = gradient.repeat_interleave(down, 1).repeat_interleave(across, 2) / (down * across)
            rectangles.append(RectangleGradient(found.corner[0] * down, found.corner[1] * across, gradient))
        patches = _join_overlapping(rectangles)
        texture.image.patches = patches  # type: ignore[attr-defined]
        texels = sum(patch.gradient[0].numel() for patch in patches)
        for patch in patches if weights.texture_smoothness else ():
            share = weights.texture_smoothness * patch.gradient[0].numel() / texels
            roughness += accumulate_squared_steps(patch.crop(texture.image.data)[None], share, patch.gradient[None])
    if weights.texture_smoothness:
        losses["texture_smoothness"] = roughness
    return losses | _add_table_losses(model, weights, frames)


@cache
def _thread_pool() -> ThreadPoolExecutor:
    """As many threads as torch uses; inside each, torch runs on that one."""
    workers = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1))
    list(pool.map(lambda _: None, range(workers)))
    torch.set_num_threads(workers)
    return pool


def _split_into_bands(model: PlanarModel, batch: Batch, with_mask: bool, min_bands: int) -> list[Band]:
    """Cuts the frames of a step into bands of rows, with the pixels and masks of each."""
    parts, (width, height) = _Parts(model), model.shape.size
    frames = batch.frames.tolist()
    per_frame = min(height, -(-min_bands // len(frames)))
    edges = [height * band // per_frame for band in range(per_frame + 1)]
    bands = []
    for t in frames:
        picture = torch.from_numpy(np.array(batch.clip.frames[t]))
        front_window = FramePatch(*parts.opacity.windows[t].tolist())
        # How often each texture is halved for the frame.
        levels, time = [], torch.tensor([float(t)])
        for mapping, texture in zip(parts.mappings, parts.textures, strict=True):
            across, down = texture.choose_levels(mapping.uv_per_pixel(time))[0].tolist()
            levels.append((across, down))
        # The parts of the masks that no mask in front of them hides.
        visible = None
        if with_mask:
            masks = batch.clip.read_frame_masks(torch.tensor([t])).T.unflatten(1, (height, width))
            visible = find_visible_parts(masks, dim=0)
        for top, bottom in pairwise(edges):
            patch = FramePatch(top, bottom, 0, width)
            window = front_window.intersect(patch) if len(model.layers) > 1 else FramePatch(0, 0, 0, 0)
            rgb = picture[top:bottom].permute(2, 0, 1).float().div_(255)
            bands.append(Band(t, patch, window, rgb, levels, None if visible is None else window.crop(visible)))
    return bands


def _add_row_gradients(table: FrameTable, frames: list[int], values: Tensor) -> None:
    """Adds a gradient for the rows of some frames, each of which comes once, in order."""
    values = values.flatten(1)
    if table.flat.grad is not None:
        values = values + table.flat.grad.coalesce().values()
    indices = torch.tensor([frames])
    table.flat.grad = torch.sparse_coo_tensor(
        indices, values, tuple(table.flat.shape), is_coalesced=True, check_invariants=False
    )


def _join_overlapping(parts: list[RectangleGradient]) -> list[RectangleGradient]:
    """Sums rectangles whose hulls overlap, until no two hulls do."""
    groups: list[list[RectangleGradient]] = []
    for part in parts:
        group = [part]
        while True:
            hull = _bound_rectangles(group)
            touching = [other for other in groups if not _bound_rectangles(other).intersect(hull).is_empty]
            if not touching:
                break
            groups = [other for other in groups if other not in touching]
            group = [*(rectangle for other in touching for rectangle in other), *group]
        groups.append(group)
    joined = []
    for group in groups:
        if len(group) == 1:
            joined += group
            continue
        hull = _bound_rectangles(group)
        total = torch.zeros(len(group[0].gradient), hull.bottom - hull.top, hull.right - hull.left)
        for part in group:
            inside = RectangleGradient(part.top - hull.top, part.left - hull.left, part.gradient)
            inside.crop(total).add_(part.gradient)
        joined.append(RectangleGradient(hull.top, hull.left, total))
    return joined


def _bound_rectangles(parts: list[RectangleGradient]) -> FramePatch:
    """Returns the smallest rectangle that holds all of them."""
    bottoms = [part.top + part.gradient.shape[1] for part in parts]
    rights = [part.left + part.gradient.shape[2] for part in parts]
    return FramePatch(min(part.top for part in parts), max(bottoms), min(part.left for part in parts), max(rights))


def _add_table_losses(model: PlanarModel, weights: LossWeights, frames: list[int]) -> dict[str, Tensor]:
    """Returns the losses that look at the tables alone; adds their gradients."""
    parts = _Parts(model)
    chosen = torch.tensor(frames)
    found: list[tuple[str, Tensor]] = []
    for mapping in parts.mappings:
        rows = mapping.residual.values[chosen]
        away, gradient = rows - mapping.placed[chosen].view_as(rows), torch.zeros_like(rows)
        if weights.residual_smoothness:
            scale = weights.residual_smoothness / mapping.pixel**2
            found.append(("residual_smoothness", accumulate_squared_steps(away, scale, gradient)))
        if weights.residual_anchor:
            scale = weights.residual_anchor / (mapping.pixel**2 * rows.numel())
            gradient.add_(away, alpha=2 * scale)
            found.append(("residual_anchor", scale * away.square().sum()))
        _add_row_gradients(mapping.residual, frames, gradient)
    if weights.gain_size or weights.gain_smoothness:
        for gain in parts.gains:
            rows = gain.table.values[chosen]
            scale = weights.gain_size / rows.numel()
            gradient = rows * (2 * scale)
            found.append(("gain_size", scale * rows.square().sum()))
            found.append(("gain_smoothness", accumulate_squared_steps(rows, weights.gain_smoothness, gradient)))
            _add_row_gradients(gain.table, frames, gradient)
    losses: dict[str, Tensor] = {}
    for name, value in found:  # layers are added
        losses[name] = losses[name] + value if name in losses else value
    return losses
