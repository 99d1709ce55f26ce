"""One training step of an atlas whose parts are all tables, with its gradients written out.

Grid mapping, image texture, grid gain and pixel opacity are sums of linear interpolations, so every gradient is a
transposed interpolation. Written out, a step needs no graph, looks at front layers only where they can be seen, at
textures only where the frame falls, and splits into bands of rows that run in threads of their own. What it computes is
what `terms.weighted_terms` computes (a test compares values and gradients), but for the smoothness of the textures,
which is taken over the texels that the step sees.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from neural_fields.adam import Patch as Rectangle
from neural_fields.config import Terms
from neural_fields.data.clip import Batch
from neural_fields.planar.frame_table import FrameTable, add_squared_steps
from neural_fields.planar.gain import GridGain
from neural_fields.planar.mapping import GridMapping
from neural_fields.planar.opacity import DOUBT, PixelOpacity
from neural_fields.planar.patches import Found, Layer, Looked, Patch, Weave, backward, look
from neural_fields.planar.texture import ImageTexture

if TYPE_CHECKING:
    from neural_fields.planar.model import PlanarModel

TASKS = 4  # bands of rows that a step is split into at least
SUREST = 1e-4  # as in `terms.mask`
SUPPORTED = {
    "color",
    "mask",
    "mask_until",
    "residual_smoothness",
    "residual_anchor",
    "texture_smoothness",
    "gain_size",
    "gain_smoothness",
}


def supports(model: PlanarModel) -> bool:
    """Whether the parts and the terms of a model, on the CPU, are those that are written out here."""
    active = {name for name, value in vars(model.weights).items() if value and value != getattr(Terms(), name)}
    return (
        model.device.type == "cpu"
        and active <= SUPPORTED
        and all(type(part) is GridMapping for part in model.mappings)
        and all(type(part) is ImageTexture for part in model.textures)
        and all(type(part) is GridGain for part in model.gains)
        and type(model.opacity) is PixelOpacity
    )


def _mappings(model: PlanarModel) -> list[GridMapping]:
    return cast("list[GridMapping]", list(model.mappings))


def _textures(model: PlanarModel) -> list[ImageTexture]:
    return cast("list[ImageTexture]", list(model.textures))


def _gains(model: PlanarModel) -> list[GridGain]:
    return cast("list[GridGain]", list(model.gains))


def _opacity(model: PlanarModel) -> PixelOpacity:
    return cast("PixelOpacity", model.opacity)


# --- a band of a frame ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One band of rows of one frame."""

    t: int
    patch: Patch
    window: Patch  # where front layers can be seen
    rgb: Tensor  # [3, h, w] of the patch, 0 to 1
    levels: list[tuple[int, int]]  # how often each layer's texture is halved for this frame, across and down
    masks: Tensor | None  # [front, h, w] of the window, visible parts, 0 or 1; None: no mask term


@dataclass
class Result:
    """What a task adds to the loss and to the gradients."""

    task: Task
    squared: float  # sum of squared colour errors
    entropy: float  # sum of the cross-entropies inside the window
    layers: list[Found | None]
    opacity: Tensor | None  # gradient of the logits, [front, rows, columns] of the table


@torch.no_grad()  # threads do not inherit it
def run_task(model: PlanarModel, task: Task, color: float, mask: float) -> Result:
    """Forward and backward of a band; `color` and `mask` are the terms' weights over the number of their summands."""
    size, count = model.shape.size, len(model.mappings)
    looked: list[Looked | None] = [None] * count
    for number in range(count):
        patch = task.patch if number == count - 1 else task.window
        if not patch.is_empty:
            looked[number] = look(_layer(model, number, task.t), task.levels[number], size, patch)
    back = looked[-1]
    assert back is not None
    if task.window.is_empty:
        error = back.lit - task.rgb
        squared = float(torch.dot(error.reshape(-1), error.reshape(-1)))
        found: list[Found | None] = [None] * (count - 1)
        return Result(task, squared, 0.0, [*found, backward(back, error.mul_(2 * color))], None)
    return _over(model, task, [one for one in looked if one is not None], color, mask)


def _over(model: PlanarModel, task: Task, looked: list[Looked], color: float, mask: float) -> Result:
    """A band in which front layers lie over the background."""
    *fronts, back = looked
    inside = task.window
    weave, sigmoid, alpha = _alphas(model, task)
    stages = [inside.of(back.lit, task.patch)]  # the picture in the window before each layer is put on, from the back
    for number in reversed(range(len(fronts))):
        stages.append(torch.lerp(stages[-1], fronts[number].lit, alpha[number]))
    error = back.lit - task.rgb
    inside.of(error, task.patch).copy_(stages[-1] - inside.of(task.rgb, task.patch))
    squared = float(torch.dot(error.reshape(-1), error.reshape(-1)))
    gradient = error.mul_(2 * color)
    entropy, alpha_gradient = _mask_gradient(alpha, task.masks, mask)
    flowing = inside.of(gradient, task.patch).clone()
    found: list[Found | None] = []
    for number, front in enumerate(fronts):
        below = stages[-2 - number]
        alpha_gradient[number] += (flowing * (front.lit - below)).sum(0)
        found.append(backward(front, flowing * alpha[number]))
        flowing *= 1 - alpha[number]
    inside.of(gradient, task.patch).copy_(flowing)
    logits = alpha_gradient * (sigmoid * (1 - sigmoid)) / (1 - 2 * DOUBT)
    return Result(task, squared, entropy, [*found, backward(back, gradient)], weave.backward(logits))


def _alphas(model: PlanarModel, task: Task) -> tuple[Weave, Tensor, Tensor]:
    """The interpolation, the sigmoids and the alphas of the front layers in the window."""
    table = _opacity(model).table
    weave = Weave.between(table, model.shape.size, task.window)
    sigmoid = torch.sigmoid(weave.forward(table.values[task.t]))
    return weave, sigmoid, ((sigmoid - DOUBT) / (1 - 2 * DOUBT)).clamp_(0, 1)


def _mask_gradient(alpha: Tensor, visible: Tensor | None, scale: float) -> tuple[float, Tensor]:
    """Sum of the cross-entropies of the front layers' weights, and the gradient of `scale` times it for the alphas."""
    gradient = torch.zeros_like(alpha)
    if visible is None:
        return 0.0, gradient
    left = torch.ones_like(alpha)  # what the layers in front leave
    for number in range(1, len(alpha)):
        left[number] = left[number - 1] * (1 - alpha[number - 1])
    weight = (alpha * left).clamp(SUREST, 1 - SUREST)
    entropy = -float(torch.where(visible > 0, weight, 1 - weight).log().sum())
    slope = torch.where(visible > 0, -1 / weight, 1 / (1 - weight)) * scale
    raw = alpha * left
    slope *= (raw >= SUREST) & (raw <= 1 - SUREST)
    for number in range(len(alpha)):  # each alpha moves its own weight and those of the layers behind it
        gradient[number] += slope[number] * left[number]
        for behind in range(number + 1, len(alpha)):
            without = torch.ones_like(alpha[0])
            for other in range(behind):
                if other != number:
                    without = without * (1 - alpha[other])
            gradient[number] -= slope[behind] * alpha[behind] * without
    return entropy, gradient


def _layer(model: PlanarModel, number: int, t: int) -> Layer:
    gain = _gains(model)[number] if len(model.gains) else None
    return Layer(_mappings(model)[number], _textures(model)[number], gain, t)


# --- a step ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def accumulate(model: PlanarModel, batch: Batch) -> dict[str, Tensor]:
    """The weighted terms of a step on whole frames; their gradients are left in the parameters' `grad`."""
    weights, width, height = model.weights, *model.shape.size
    frames = batch.frames.tolist()
    front = len(model.layers) - 1
    pixels = len(frames) * width * height
    with_mask = bool(weights.mask and front)
    tasks = _tasks(model, batch, frames, with_mask)
    color_scale = weights.color / (3 * pixels)
    mask_scale = weights.mask / (front * pixels) if with_mask else 0.0
    results = list(_pool().map(lambda task: run_task(model, task, color_scale, mask_scale), tasks))
    terms = {"color": torch.tensor(color_scale * sum(result.squared for result in results))}
    if with_mask:
        inside = sum((r.task.window.bottom - r.task.window.top) * (r.task.window.right - r.task.window.left)
                     for r in results if not r.task.window.is_empty)  # fmt: skip
        outside = -torch.log1p(torch.tensor(-SUREST)) * (pixels - inside) * front
        terms["mask"] = mask_scale * (sum(result.entropy for result in results) + outside)
    _collect_tables(model, frames, results)
    return terms | _collect_textures(model, results) | _regularise(model, frames)


@cache
def _pool() -> ThreadPoolExecutor:
    """As many threads as torch uses; inside each, torch runs on that one."""
    workers = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1))
    list(pool.map(lambda _: None, range(workers)))
    torch.set_num_threads(workers)
    return pool


def _levels(model: PlanarModel, t: int) -> list[tuple[int, int]]:
    """How often each texture is halved for a frame."""
    time, found = torch.tensor([float(t)]), []
    for mapping, texture in zip(_mappings(model), _textures(model), strict=True):
        across, down = texture.levels(mapping.pixel_step(time))[0].tolist()
        found.append((across, down))
    return found


def _tasks(model: PlanarModel, batch: Batch, frames: list[int], with_mask: bool) -> list[Task]:
    """The bands of the frames of a step."""
    width, height = model.shape.size
    bands = min(height, -(-TASKS // len(frames)))
    edges = [height * band // bands for band in range(bands + 1)]
    tasks = []
    for t in frames:
        frame = torch.from_numpy(np.array(batch.clip.frames[t]))
        window = Patch(*_opacity(model).windows[t].tolist())
        masks = torch.from_numpy(np.array(batch.clip.masks.masks[:, t])) if with_mask else None
        levels = _levels(model, t)
        for top, bottom in pairwise(edges):
            patch = Patch(top, bottom, 0, width)
            inside = window.cut(patch) if len(model.layers) > 1 else Patch(0, 0, 0, 0)
            rgb = frame[top:bottom].permute(2, 0, 1).float().div_(255)
            tasks.append(Task(t, patch, inside, rgb, levels, None if masks is None else _visible(inside.of(masks))))
    return tasks


def _visible(masks: Tensor) -> Tensor:
    """The parts of the masks that no mask in front of them hides."""
    masks = masks.float()
    return masks * (torch.cumsum(masks, dim=0) - masks == 0)


def _collect_tables(model: PlanarModel, frames: list[int], results: list[Result]) -> None:
    """Sums the bands' gradients of what each frame has for itself."""
    place = {t: index for index, t in enumerate(frames)}
    for number, mapping in enumerate(_mappings(model)):
        tables = [(mapping.residual, "shift")] + ([(_gains(model)[number].table, "gain")] if len(model.gains) else [])
        for table, name in tables:
            total = torch.zeros(len(frames), *table.shape[1:])
            for result in results:
                found = result.layers[number]
                if found is not None:
                    total[place[result.task.t]] += getattr(found, name)
            _add_rows(table, frames, total)
    table = _opacity(model).table
    if table.shape[1]:
        total = torch.zeros(len(frames), *table.shape[1:])
        for result in results:
            if result.opacity is not None:
                total[place[result.task.t]] += result.opacity
        _add_rows(table, frames, total)


def _add_rows(table: FrameTable, frames: list[int], values: Tensor) -> None:
    """Adds a gradient for the rows of some frames, each of which comes once, in order."""
    values = values.flatten(1)
    if table.flat.grad is not None:
        values = values + table.flat.grad.coalesce().values()
    indices = torch.tensor([frames])
    table.flat.grad = torch.sparse_coo_tensor(
        indices, values, tuple(table.flat.shape), is_coalesced=True, check_invariants=False
    )


def _collect_textures(model: PlanarModel, results: list[Result]) -> dict[str, Tensor]:
    """Joins the bands' gradients of each texture into rectangles that do not overlap; also the smoothness there."""
    weight, roughness = model.weights.texture_smoothness, torch.zeros(())
    for number, texture in enumerate(_textures(model)):
        parts = [_whole_texels(found) for result in results if (found := result.layers[number]) is not None]
        patches = [_joined(group) for group in _overlapping(parts)]
        texture.image.patches = patches  # type: ignore[attr-defined]
        texels = sum(patch.gradient[0].numel() for patch in patches)
        for patch in patches if weight else ():
            share = weight * patch.gradient[0].numel() / texels
            roughness += add_squared_steps(patch.of(texture.image.data)[None], share, patch.gradient[None])
    return {"texture_smoothness": roughness} if weight else {}


def _whole_texels(found: Found) -> Rectangle:
    """A gradient at the texture's own size: that of a smaller level spreads evenly over the texels of its cells."""
    across, down = (2**halved for halved in found.level)
    top, left = found.corner[0] * down, found.corner[1] * across
    gradient = found.texture
    if across * down > 1:
        gradient = gradient.repeat_interleave(down, 1).repeat_interleave(across, 2) / (down * across)
    return Rectangle(top, left, gradient)


def _overlapping(parts: list[Rectangle]) -> list[list[Rectangle]]:
    """Groups of rectangles whose hulls do not overlap."""
    groups: list[list[Rectangle]] = []
    for part in parts:
        group = [part]
        while touching := [other for other in groups if _touch(_hull(other), _hull(group))]:
            groups = [other for other in groups if other not in touching]
            group = [*(rectangle for other in touching for rectangle in other), *group]
        groups.append(group)
    return groups


def _hull(parts: list[Rectangle]) -> Patch:
    bottoms = [part.top + part.gradient.shape[1] for part in parts]
    rights = [part.left + part.gradient.shape[2] for part in parts]
    return Patch(min(part.top for part in parts), max(bottoms), min(part.left for part in parts), max(rights))


def _touch(a: Patch, b: Patch) -> bool:
    return not a.cut(b).is_empty


def _joined(parts: list[Rectangle]) -> Rectangle:
    """The sum of rectangles, over their hull."""
    if len(parts) == 1:
        return parts[0]
    hull = _hull(parts)
    channels = parts[0].gradient.shape[0]
    total = torch.zeros(channels, hull.bottom - hull.top, hull.right - hull.left)
    for part in parts:
        Rectangle(part.top - hull.top, part.left - hull.left, part.gradient).of(total).add_(part.gradient)
    return Rectangle(hull.top, hull.left, total)


# --- what keeps the tables smooth -----------------------------------------------------------------------------------


def _regularise(model: PlanarModel, frames: list[int]) -> dict[str, Tensor]:
    """The terms that look at the tables alone; adds their gradients."""
    weights = model.weights
    terms: dict[str, Tensor] = {}
    chosen = torch.tensor(frames)

    def add(name: str, value: Tensor) -> None:
        terms[name] = terms[name] + value if name in terms else value

    for mapping in _mappings(model):
        rows = mapping.residual.values[chosen]
        away, gradient = rows - mapping.placed[chosen].view_as(rows), torch.zeros_like(rows)
        if weights.residual_smoothness:
            add(
                "residual_smoothness", add_squared_steps(away, weights.residual_smoothness / mapping.pixel**2, gradient)
            )
        if weights.residual_anchor:
            scale = weights.residual_anchor / (mapping.pixel**2 * rows.numel())
            gradient.add_(away, alpha=2 * scale)
            add("residual_anchor", scale * away.square().sum())
        _add_rows(mapping.residual, frames, gradient)
    for gain in _gains(model):
        if not (weights.gain_size or weights.gain_smoothness):
            break
        rows = gain.table.values[chosen]
        scale = weights.gain_size / rows.numel()
        gradient = rows * (2 * scale)
        add("gain_size", scale * rows.square().sum())
        add("gain_smoothness", add_squared_steps(rows, weights.gain_smoothness, gradient))
        _add_rows(gain.table, frames, gradient)
    return terms
