"""`sds`: optimizes the texels of a region with score distillation by a diffusion model.

DreamFusion (Poole et al., 2023) optimizes a 3D scene in this way; DynVideo-E (Liu et al., 2024) and shape-aware layered
editing (Lee et al., 2023) optimize the texture of a video. As the picture is optimized, not generated, other losses can
be added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.editor import EditorResult
from editors.core.nonsense import make_nonsense_error
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import Images, load_model
from editors.diffusion.backend.noise_schedule import Latents, NoiseSchedule
from editors.diffusion.backend.settings import DiffusionEditor
from editors.diffusion.common.canvas import join_canvases, open_canvases, split_into_overlays
from editors.diffusion.common.score_distillation import (
    DistillationPrompts,
    NoisedSample,
    Score,
    draw_time,
    gradient_loss,
    make_score,
    replace_nonfinite,
)
from editors.options.distillation import SdsOptions
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing


@dataclass(frozen=True)
class TextureSettings:
    """Settings of the texture that is optimized."""

    n_levels: int = 4  # scales: whole texels, and 2, 4 and 8 of them
    color_margin: float = 0.02  # colors start at least so far from black and white, where a sigmoid still moves


DEFAULTS = TextureSettings()


@dataclass(frozen=True, kw_only=True)
class Sds(SdsOptions, DiffusionEditor):
    """Optimize the texels of a region with DreamFusion's score distillation (Poole et al., 2023)."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Optimizes the texels of the region of each layer.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model that cannot be used, or nothing to edit (exit 3).
        """
        model = load_model(self.weights_source(), report)
        side = self.side or model.trained_side
        regions = {layer: source.read_region(layer) for layer in source.layers}
        canvases = open_canvases(source.pictures, regions, side, model.side_multiple, self.feather)
        image, region = (part.to(model.device) for part in join_canvases(canvases, model.side_multiple))
        words = DistillationPrompts(self.prompt, self.negative, self.source_prompt)
        with torch.no_grad():
            score = make_score(model, self.variant, words, self.guidance)
        picture = optimize_texture(
            PyramidTexture(image, region),
            ScoreObjective(model.encode_images, score, model.schedule, needs_source=self.variant == "dds"),
            TextureOptimization(self.steps, self.rate, self.keep, max(1.0, self.guidance), self.anneal, self.seed),
            window=model.trained_side if side > model.trained_side else None,
            multiple=model.side_multiple,
            report=report,
        )
        return EditorResult(split_into_overlays(picture.cpu(), canvases, model.side_multiple), model.notes)


class PyramidTexture(torch.nn.Module):
    """Represents a picture with an editable region as the source plus a pyramid of changes.

    Coarse levels change the color of large parts in few steps, fine levels add detail. They are added before a sigmoid,
    so that colors stay in (0, 1). Outside the region the picture equals the source exactly.

    Args:
        original: the picture before the edit, RGB in [0, 1].
        region: 1 where it may change, else 0.
        settings: number of levels, and margin of the colors.
    """

    def __init__(
        self, original: Images, region: Float[Tensor, "#n 1 height width"], settings: TextureSettings = DEFAULTS
    ) -> None:
        super().__init__()
        self.original, self.region = original, region
        self.start = original.clamp(settings.color_margin, 1 - settings.color_margin).logit()
        self.levels = torch.nn.ParameterList()
        for level in range(settings.n_levels):
            size = [max(1, side >> level) for side in original.shape[-2:]]
            self.levels.append(torch.nn.Parameter(torch.zeros(*original.shape[:2], *size).to(original)))

    def compute_colors(self) -> Images:
        """Computes the current colors of the region and of the texels next to it."""
        size = self.start.shape[-2:]
        change = sum(torch.nn.functional.interpolate(level, size, mode="bilinear") for level in self.levels)
        return (self.start + change).sigmoid()

    def forward(self) -> Images:
        """Computes the current picture."""
        return self.region * self.compute_colors() + (1 - self.region) * self.original


@dataclass(frozen=True)
class ScoreObjective:
    """Holds the objective of score distillation for a picture.

    Attributes:
        encode: differentiable function from pictures in [0, 1] to latents.
        score: the gradient with respect to the latents.
        schedule: noise schedule of the model.
        needs_source: whether `score` needs the source's latents too.
    """

    encode: Callable[[Images], Latents]
    score: Score
    schedule: NoiseSchedule
    needs_source: bool = False

    def compute_loss(self, picture: Images, source: Images, time: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Computes a loss whose gradient moves `picture` along the score, with newly drawn noise.

        Its gradient is that of the mean over all latents, which does not depend on the size.

        Args:
            picture: RGB in [0, 1].
            source: the picture before the edit, of the same size.
            time: noise level, an index into the schedule.
            generator: random generator of the noise.

        Raises:
            UserError: all that the model computed is no number (exit 3).
        """
        pixels = picture.detach().requires_grad_(True)
        latents = self.encode(pixels)
        with torch.no_grad():
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            before = self.encode(source) if self.needs_source else None
            score = self.score(NoisedSample(latents.detach(), time, noise, before)).to(latents)
            if not bool(torch.isfinite(score).any()):  # single values that are no numbers are left out
                raise make_nonsense_error("the model computed nothing but values that are no numbers (NaN)")
            gradient = replace_nonfinite(score)
        # The encoder is gone through backwards before the mean is taken, whose small numbers half precision would lose.
        (pixel_gradient,) = torch.autograd.grad(latents, pixels, gradient)
        return gradient_loss(picture, pixel_gradient / latents.numel())


@dataclass(frozen=True)
class TextureOptimization:
    """Holds the settings of an optimization of a texture.

    Attributes:
        steps: number of steps of Adam.
        rate: learning rate of Adam.
        keep: weight of the mean absolute change of color.
        scale: divisor of the score's gradient, so that `keep` does not depend on the guidance.
        anneal: whether the noise decreases over the steps, as in `draw_time`.
        seed: seed of times, noise and windows.
    """

    steps: int
    rate: float
    keep: float = 0.0
    scale: float = 1.0
    anneal: bool = True
    seed: int = 0


def optimize_texture(
    texture: PyramidTexture,
    objective: ScoreObjective,
    optimization: TextureOptimization,
    *,
    window: int | None = None,
    multiple: int = 1,
    report: ProgressReporter = report_nothing,
) -> Images:
    """Optimizes a texture with Adam (Kingma and Ba, 2015).

    Args:
        texture: the texture; it is modified in place.
        objective: the objective of every step.
        optimization: steps, rate, seed and so on.
        window: side in pixels of the random square of each step; None for the entire picture.
        multiple: windows start at multiples of this, in pixels.
        report: called with the progress.

    Returns:
        The final colors of the region and of the texels next to it.
    """
    generator = torch.Generator().manual_seed(optimization.seed)
    levels = list(texture.levels)
    # Details of pictures are weaker the finer they are, about as their size (Field, 1987). With one rate for all, the
    # finest level fills with specks that only the encoder sees.
    groups = [{"params": [level], "lr": optimization.rate / 2**fineness} for fineness, level in enumerate(levels[::-1])]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-12)
    for step in range(optimization.steps):
        picture = texture()
        # The whole picture, or a square around a random pixel of the region.
        height, width = texture.region.shape[-2:]
        rows, columns = slice(0, height), slice(0, width)
        if window is not None:
            inside = (texture.region[0, 0] > 0).nonzero()
            center = inside[int(torch.randint(len(inside), (), generator=generator))].tolist()
            top, left = (
                min(max(0, place - window // 2), max(0, limit - window)) // multiple * multiple
                for place, limit in zip(center, (height, width), strict=True)
            )
            rows, columns = slice(top, top + window), slice(left, left + window)
        time = draw_time(objective.schedule, step / optimization.steps, optimization.anneal, generator)
        after, before = picture[..., rows, columns], texture.original[..., rows, columns]
        loss = objective.compute_loss(after, before, time, generator) / optimization.scale
        loss = loss + optimization.keep * (picture - texture.original).abs().sum() / (3 * texture.region.sum())
        for level, gradient in zip(levels, torch.autograd.grad(loss, levels), strict=True):
            level.grad = gradient
        adam.step()
        report(Progress("distilling", step + 1, optimization.steps))
    return texture.compute_colors().detach()
