"""`text2live`: trains a small network that paints a layer over a picture (Text2LIVE, Bar-Tal et al., ECCV 2022).

The network maps the picture to colors and opacity. It is trained with the paper's losses under CLIP (section 3.1 and
3.2), or with score distillation of the composite if a diffusion model is given instead of CLIP. Because a network makes
the layer, not each texel separately, it is smooth and follows the shapes of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.editor import EditorResult
from editors.core.model_pictures import check_model_picture
from editors.core.source import EditSource
from editors.diffusion.backend.clip_model import ClipModel, compute_self_similarity, load_clip, spherical_distance
from editors.diffusion.backend.diffusers_model import Images, load_model
from editors.diffusion.backend.noise_schedule import Latents
from editors.diffusion.backend.settings import DiffusionEditor
from editors.diffusion.backend.weights import WeightsSource
from editors.diffusion.common.canvas import join_canvases, open_canvases, split_joined_picture
from editors.diffusion.common.score_distillation import DistillationPrompts, draw_time, make_score
from editors.diffusion.methods.sds import ScoreObjective
from editors.options.distillation import Text2LiveOptions
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing

# Prompts are embedded as the mean over these: a single sentence depends much on its wording (Radford et al., 2021).
TEMPLATES = ("{}.", "a photo of {}.", "an image of {}.", "a picture of {}.", "a bright photo of {}.", "{} in a scene.")
SCREENS = ("{} over a green screen.", "{} in front of a green screen.")


@dataclass(frozen=True)
class PaintedLayerSettings:
    """Settings of the network that paints a layer, and of its losses; as published, for videos."""

    max_scales: int = 7  # of the network
    max_channels: int = 128  # of its convolutions
    skip_channels: int = 4  # of its connections at each scale
    n_views: int = 6  # crops per step that CLIP looks at
    min_view: float = 0.8  # of a side: no crop is smaller
    mirror_share: float = 0.5  # of the crops are mirrored
    screen_color: tuple[float, float, float] = (0.0, 177 / 255, 64 / 255)  # green
    composition_weight: float = 1.0  # of this loss under CLIP
    screen_weight: float = 1.0  # of this loss under CLIP
    structure_weight: float = 3.0  # of this loss under CLIP, where the user names none
    opacity_weight: float = 0.01  # of the mean opacity in the sparsity loss
    painted_weight: float = 0.005  # of the count of painted pixels in the sparsity loss
    painted_slope: float = 5.0  # of the sigmoid that counts them
    clip_multiple: int = 8  # sides of a canvas that only CLIP looks at


DEFAULTS = PaintedLayerSettings()


@dataclass(frozen=True, kw_only=True)
class Text2Live(Text2LiveOptions, DiffusionEditor):
    """Paint over a layer with a network that is trained for this edit: Text2LIVE (Bar-Tal et al., 2022)."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Paints over the region of each layer.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model that cannot be used, or nothing to edit (exit 3).
        """
        if self.clip_model:
            clip = load_clip(WeightsSource(self.clip_model, self.device, self.unsafe_weights))
            structure = DEFAULTS.structure_weight if self.structure is None else self.structure
            terms = make_clip_loss(clip, self.prompt, self.source_prompt, structure)
            judge = LayerCritic(terms, clip.device, clip.side, DEFAULTS.clip_multiple)
        else:
            model = load_model(self.weights_source(), report)
            with torch.no_grad():
                words = DistillationPrompts(self.prompt, self.negative, self.source_prompt)
                score = make_score(model, self.variant, words, self.guidance)
            objective = ScoreObjective(model.encode_images, score, model.schedule, needs_source=self.variant == "dds")
            terms = make_score_loss(objective, self.structure or 0.0, max(1.0, self.guidance))
            judge = LayerCritic(terms, model.device, model.trained_side, model.side_multiple, model.notes)
        regions = {layer: source.read_region(layer) for layer in source.layers}
        side = self.side or judge.side
        canvases = open_canvases(source.pictures, regions, side, judge.multiple, self.feather)
        image, region = (part.to(judge.device) for part in join_canvases(canvases, judge.multiple))
        painting = GeneratorTraining(self.steps, self.rate, self.sparsity, self.seed)
        layer = train_layer(image, region, judge.compute_loss, painting, report)
        painted = PaintedLayer(layer[:, :3], layer[:, 3:] * region, image)
        check_model_picture(painted.composite_over(image), image, region)
        parts = split_joined_picture(layer.cpu(), canvases, judge.multiple)
        overlays = {canvas.layer: canvas.make_rgba_overlay(part) for canvas, part in zip(canvases, parts, strict=True)}
        return EditorResult(overlays, judge.notes)


@dataclass(frozen=True)
class PaintedLayer:
    """Holds a layer that the network paints over a picture.

    Attributes:
        color: RGB in [0, 1].
        alpha: opacity in [0, 1]; 0 outside the region.
        source: the picture below, RGB in [0, 1].
    """

    color: Images
    alpha: Float[Tensor, "n 1 height width"]
    source: Images

    def composite_over(self, below: Float[Tensor, "#n 3 #height #width"]) -> Images:
        """Composites the layer over a picture."""
        return self.alpha * self.color + (1 - self.alpha) * below


LayerLoss = Callable[
    [PaintedLayer, float, torch.Generator], Float[Tensor, ""]
]  # a layer, the share of the run done -> a loss


@dataclass(frozen=True)
class LayerCritic:
    """Holds the losses of the layer, and the device, side and multiple (in pixels) of their pictures."""

    compute_loss: LayerLoss
    device: torch.device
    side: int
    multiple: int
    notes: tuple[str, ...] = ()


def make_clip_loss(
    clip: ClipModel, prompt: str, source_prompt: str, structure: float, settings: PaintedLayerSettings = DEFAULTS
) -> LayerLoss:
    """Makes the losses under CLIP: composition, screen and structure (the paper's eq. 2 to 5).

    Args:
        clip: the model.
        prompt: what the composite should show.
        source_prompt: what the picture below shows; empty leaves out the directional loss.
        structure: weight of the structure loss.
        settings: weights of the other losses, views and screen.
    """
    wanted, screen = _embed_prompt(clip, prompt, TEMPLATES), _embed_prompt(clip, prompt, SCREENS)
    direction = wanted - _embed_prompt(clip, source_prompt, TEMPLATES) if source_prompt.strip() else None

    def compute_loss(layer: PaintedLayer, done: float, generator: torch.Generator) -> Tensor:
        """Computes the loss of a layer under CLIP.

        Args:
            layer: the layer over its source.
            done: share of the run done, 0 to 1; not read.
            generator: source of random numbers.
        """
        green = torch.tensor(settings.screen_color, device=layer.alpha.device)[None, :, None, None]
        stacked = torch.cat([layer.source, layer.composite_over(layer.source), layer.composite_over(green)], dim=1)
        before, after, on_green = draw_views(stacked, clip.side, generator, settings).split(3, dim=1)
        features = clip.encode_images(after)
        composition = spherical_distance(features, wanted).mean()
        if direction is not None:
            composition = (
                composition + spherical_distance(features - clip.encode_images(before).detach(), direction).mean()
            )
        total = settings.composition_weight * composition
        total = total + settings.screen_weight * spherical_distance(clip.encode_images(on_green), screen).mean()
        return total + structure * structure_loss(clip.encode_patches(before), clip.encode_patches(after))

    return compute_loss


def make_score_loss(objective: ScoreObjective, structure: float, scale: float) -> LayerLoss:
    """Makes the losses under a diffusion model: score distillation of the composite, and structure of its latents.

    Args:
        objective: the objective of score distillation.
        structure: weight of the structure loss.
        scale: divisor of the score's gradient.
    """

    def compute_loss(layer: PaintedLayer, done: float, generator: torch.Generator) -> Tensor:
        """Computes the loss of a layer under a diffusion model.

        Args:
            layer: the layer over its source.
            done: share of the run done, 0 to 1.
            generator: source of random numbers.
        """
        composed = layer.composite_over(layer.source)
        time = draw_time(objective.schedule, done, True, generator)
        total = objective.compute_loss(composed, layer.source, time, generator) / scale
        if structure > 0:
            total = total + structure * structure_loss(
                _latent_tokens(objective.encode(layer.source)), _latent_tokens(objective.encode(composed))
            )
        return total

    return compute_loss


def structure_loss(before: Float[Tensor, "n t w"], after: Float[Tensor, "n t w"]) -> Float[Tensor, ""]:
    """Computes the mean squared change of the self-similarity of tokens, over all pairs (eq. 4 of the paper).

    Args:
        before: tokens of the picture below.
        after: tokens of the composite.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
        >>> structure_loss(tokens, 3 * tokens).item()
        0.0
    """
    return (compute_self_similarity(after) - compute_self_similarity(before.detach())).square().mean()


def sparsity_loss(
    alpha: Float[Tensor, "n 1 height width"], settings: PaintedLayerSettings = DEFAULTS
) -> Float[Tensor, ""]:
    """Computes the mean opacity and a soft share of painted pixels, weighted (eq. 6 of the paper).

    Args:
        alpha: opacity of the layer, in [0, 1].
        settings: weights of the two, and slope of the sigmoid.

    Example:
        >>> sparsity_loss(torch.zeros(1, 1, 4, 4)).item()
        0.0
    """
    loss = settings.opacity_weight * alpha.mean()
    return loss + settings.painted_weight * (2 * torch.sigmoid(settings.painted_slope * alpha) - 1).mean()


class LayerGenerator(torch.nn.Module):
    """Maps a picture to colors and opacity: convolutions with a skip connection at every scale.

    Args:
        side: shorter side of the pictures in pixels; small pictures get fewer scales and channels.
        settings: sizes of the network.
    """

    axes: Tensor

    def __init__(self, side: int, settings: PaintedLayerSettings = DEFAULTS) -> None:
        super().__init__()
        power = max(2, int(math.log2(side)))
        channels = min(settings.max_channels, 2**power)
        body: torch.nn.Module = torch.nn.Identity()
        for scale in reversed(range(min(settings.max_scales, power - 1))):
            body = _Scale(3 if scale == 0 else channels, channels, settings.skip_channels, body)
        self.body, self.out = body, torch.nn.Conv2d(channels, 4, 1)
        # How red, green and blue vary together in photographs (Olah et al., Feature Visualization, 2017): brightness
        # first
        axes = torch.tensor(((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03)))
        self.register_buffer("axes", axes / axes.norm(dim=0).max())

    def forward(self, picture: Images) -> Float[Tensor, "n 4 height width"]:
        """Computes RGB and opacity, in (0, 1)."""
        output = self.out(self.body(2 * picture - 1))
        color = torch.einsum("rc,nchw->nrhw", self.axes, output[:, :3])
        return torch.cat([color, output[:, 3:]], dim=1).sigmoid()


@dataclass(frozen=True)
class GeneratorTraining:
    """Holds steps and learning rate of Adam, the weight of the sparsity loss, and the seed of all random numbers."""

    steps: int
    rate: float
    sparsity: float
    seed: int = 0


def train_layer(
    image: Images,
    region: Float[Tensor, "#n 1 height width"],
    compute_loss: LayerLoss,
    training: GeneratorTraining,
    report: ProgressReporter = report_nothing,
    settings: PaintedLayerSettings = DEFAULTS,
) -> Float[Tensor, "n 4 height width"]:
    """Trains a network for this picture, and returns the RGBA layer that it paints.

    Args:
        image: the picture, RGB in [0, 1].
        region: 1 where the layer may be opaque, else 0.
        compute_loss: the losses of the layer on the picture.
        training: steps, rate, sparsity and seed.
        report: called with the progress.
        settings: settings of the network and of the sparsity loss.

    Returns:
        Straight RGBA in [0, 1], not yet limited to the region.
    """
    generator = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = LayerGenerator(min(image.shape[-2:]), settings).to(image.device)
    adam = torch.optim.Adam(network.parameters(), training.rate)
    for step in range(training.steps):
        rgba = network(image)
        layer = PaintedLayer(rgba[:, :3], rgba[:, 3:] * region, image)
        loss = compute_loss(layer, step / training.steps, generator)
        loss = loss + training.sparsity * sparsity_loss(layer.alpha, settings)
        adam.zero_grad()
        loss.backward()
        adam.step()
        report(Progress("painting", step + 1, training.steps))
    return network(image).detach()


def draw_views(
    pictures: Float[Tensor, "1 channels height width"],
    side: int,
    generator: torch.Generator,
    settings: PaintedLayerSettings = DEFAULTS,
) -> Float[Tensor, "views channels side side"]:
    """Draws random crops of a picture, stretched to a square, some of them mirrored; the first is the entire picture.

    Args:
        pictures: the picture, with any number of channels.
        side: side of the crops, in pixels.
        generator: random generator of their positions.
        settings: number of crops, and their smallest size.
    """
    height, width = pictures.shape[-2:]
    crops = []
    for index in range(settings.n_views):
        share, down, right, mirrored = torch.rand(4, generator=generator).tolist()
        part = 1.0 if index == 0 else settings.min_view + (1 - settings.min_view) * share
        rows, columns = max(1, round(part * height)), max(1, round(part * width))
        top, left = round(down * (height - rows)), round(right * (width - columns))
        crop = pictures[..., top : top + rows, left : left + columns]
        crop = torch.nn.functional.interpolate(crop, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        crops.append(crop.flip(-1) if index and mirrored < settings.mirror_share else crop)
    return torch.cat(crops)


class _Scale(torch.nn.Module):
    """Runs one scale of the network: the inner scales at half the size, joined by a skip connection."""

    def __init__(self, inputs: int, channels: int, skip_channels: int, inner: torch.nn.Module) -> None:
        super().__init__()
        self.skip = _make_convolution(inputs, skip_channels, 1)
        self.down = torch.nn.Sequential(
            _make_convolution(inputs, channels, 3, 2), _make_convolution(channels, channels, 3)
        )
        self.inner = inner
        self.up = torch.nn.Sequential(
            _make_convolution(channels + skip_channels, channels, 3), _make_convolution(channels, channels, 1)
        )

    def forward(self, picture: Tensor) -> Tensor:
        deep = self.inner(self.down(picture))
        large = torch.nn.functional.interpolate(deep, picture.shape[-2:], mode="bilinear")
        return self.up(torch.cat([self.skip(picture), large], dim=1))


def _make_convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Any:
    """Makes a convolution with its normalization and activation."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="replicate"),
        torch.nn.GroupNorm(1, outputs),
        torch.nn.LeakyReLU(0.2),
    )


def _embed_prompt(clip: ClipModel, prompt: str, templates: tuple[str, ...]) -> Float[Tensor, "1 features"]:
    mean = clip.encode_texts([template.format(prompt) for template in templates]).mean(dim=0, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)


def _latent_tokens(latents: Latents) -> Float[Tensor, "n tokens channels"]:
    """Converts latents to at most 16 x 16 tokens, because the number of pairs grows quadratically."""
    height, width = latents.shape[-2:]
    return torch.nn.functional.adaptive_avg_pool2d(latents, (min(16, height), min(16, width))).flatten(2).mT
