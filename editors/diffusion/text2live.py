"""Text2LIVE (Bar-Tal et al., ECCV 2022): a small network is trained, for this edit alone, to paint over a picture.

The network sees the picture and returns colours and opacity. It is trained under CLIP with the paper's losses (section
3.1 and 3.2), or under score distillation of the composed picture, where a diffusion model is at hand and CLIP is not.
Because a network makes the layer, and not each texel for itself, it is smooth, and it follows the picture's own shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from editors.base import EditorResult, Report, Source, quiet
from editors.diffusion.canvas import apart, open_canvases, side_by_side
from editors.diffusion.clip import Clip, load_clip, self_similarity, spherical
from editors.diffusion.distillation import Variant, Words, draw_time, score_of
from editors.diffusion.schedule import Latents
from editors.diffusion.sds import Objective
from editors.diffusion.settings import Prompted, wrong_setting
from editors.diffusion.weights import Weights
from editors.diffusion.wrapper import Images, load_model

MOST_SCALES, MOST_CHANNELS, SKIP_CHANNELS = 7, 128, 4  # of the network, as published
VIEWS, LEAST_VIEW = 6, 0.8  # crops a step that CLIP looks at, and the least share of a side that they have
GREEN = (0.0, 177 / 255, 64 / 255)  # of the screen
COMPOSITION, SCREEN, STRUCTURE = 1.0, 1.0, 3.0  # weights of these losses under CLIP, as published for videos
OPAQUE, PAINTED = 0.01, 0.005  # weights of the two parts of the sparsity loss
MULTIPLE = 8  # sides of a canvas that only CLIP looks at
# Prompts are embedded as the mean over these: a single sentence depends much on its wording (Radford et al., 2021).
TEMPLATES = ("{}.", "a photo of {}.", "an image of {}.", "a picture of {}.", "a bright photo of {}.", "{} in a scene.")
SCREENS = ("{} over a green screen.", "{} in front of a green screen.")
# How red, green and blue vary together in photographs (Olah et al., Feature Visualization, 2017): brightness first.
COLOUR_AXES = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))


@dataclass(frozen=True, kw_only=True)
class Text2Live(Prompted):
    """A layer over the picture, painted by a network that is trained for it (Bar-Tal et al., 2022)."""

    name: ClassVar[str] = "text2live"

    model: str = ""
    """A text-to-image model that takes CLIP's place (score distillation of the result)."""
    clip_model: str = ""
    """A folder of a CLIP model, or its name on the hub."""
    source_prompt: str = ""
    """What the layer shows now, such as "a swan": the edit then follows the difference of the two prompts."""
    steps: int = 300
    """Steps of training; the paper takes 1000 for a picture."""
    variant: Variant = "sds"
    """Kind of score distillation with --model: sds, csd, nfsd or dds."""
    structure: float | None = None
    """How strongly the layout of the picture is kept (default: 3 under CLIP, 0 under --model)."""
    sparsity: float = 0.1
    """How strongly opacity is held back: more paints less."""
    rate: float = 2.5e-3
    """Learning rate of Adam."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.model) == bool(self.clip_model):
            why = "the layer is trained under a CLIP or under a text-to-image model: name one of the two"
            raise wrong_setting("clip-model", self.clip_model, why, "--clip-model FOLDER, or --model FOLDER")
        for flag, value in (("structure", self.structure), ("sparsity", self.sparsity)):
            if value is not None and not 0 <= value < math.inf:
                raise wrong_setting(flag, value, "it is 0 or more", f"--{flag} 1")
        if not 0 < self.rate < math.inf:
            raise wrong_setting("rate", self.rate, "it is above 0", "--rate 0.0025")

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """A layer over the region of each layer."""
        judge = self._clip() if self.clip_model else self._model()
        regions = {layer: source.region(layer) for layer in source.layers}
        side = self.side or judge.side
        canvases = open_canvases(source.pictures, regions, side, judge.multiple, self.feather)
        image, region = (part.to(judge.device) for part in side_by_side(canvases, judge.multiple))
        painting = Painting(self.steps, self.rate, self.sparsity, self.seed)
        layer = paint(image, region, judge.terms, painting, report)
        parts = apart(layer.cpu(), canvases, judge.multiple)
        overlays = {canvas.layer: canvas.overlay_rgba(part) for canvas, part in zip(canvases, parts, strict=True)}
        return EditorResult(overlays, judge.notes)

    def _clip(self) -> Judge:
        clip = load_clip(Weights(self.clip_model, self.device, self.unsafe_weights))
        terms = clip_terms(
            clip, self.prompt, self.source_prompt, STRUCTURE if self.structure is None else self.structure
        )
        return Judge(terms, clip.device, clip.side, MULTIPLE)

    def _model(self) -> Judge:
        model = load_model(self.weights())
        with torch.no_grad():
            words = Words(self.prompt, self.negative, self.source_prompt)
            score = score_of(model, self.variant, words, self.guidance)
        objective = Objective(model.encode, score, model.schedule, compares=self.variant == "dds")
        terms = score_terms(objective, self.structure or 0.0, max(1.0, self.guidance))
        return Judge(terms, model.device, model.size, model.multiple, model.notes)


@dataclass(frozen=True)
class Layer:
    """What the network paints over a picture.

    Attributes:
        colour: RGB in [0, 1].
        alpha: opacity in [0, 1], none outside the region.
        source: the picture below.
    """

    colour: Images
    alpha: Float[Tensor, "n 1 height width"]
    source: Images

    def over(self, below: Float[Tensor, "#n 3 #height #width"]) -> Images:
        """The layer painted over a picture."""
        return self.alpha * self.colour + (1 - self.alpha) * below


Terms = Callable[[Layer, float, torch.Generator], Float[Tensor, ""]]  # a layer, the share of the run done -> a loss


@dataclass(frozen=True)
class Judge:
    """What the layer is trained under: the losses, and the device, side and multiple of the pictures they look at."""

    terms: Terms
    device: torch.device
    side: int
    multiple: int
    notes: tuple[str, ...] = ()


def clip_terms(clip: Clip, prompt: str, source_prompt: str, structure: float) -> Terms:
    """The losses under CLIP: composition, screen and structure (the paper's eq. 2 to 5).

    Args:
        prompt: what the composed picture shows.
        source_prompt: what the picture below shows; empty leaves out the direction from one to the other.
        structure: weight of the structure loss; that of the others is 1.
    """
    wanted, screen = _embedded(clip, prompt, TEMPLATES), _embedded(clip, prompt, SCREENS)
    turn = wanted - _embedded(clip, source_prompt, TEMPLATES) if source_prompt.strip() else None

    def loss(layer: Layer, done: float, generator: torch.Generator) -> Tensor:
        green = torch.tensor(GREEN, device=layer.alpha.device)[None, :, None, None]
        stacked = torch.cat([layer.source, layer.over(layer.source), layer.over(green)], dim=1)
        before, after, on_green = views(stacked, clip.side, generator).split(3, dim=1)
        features = clip.images(after)
        composition = spherical(features, wanted).mean()
        if turn is not None:
            composition = composition + spherical(features - clip.images(before).detach(), turn).mean()
        total = COMPOSITION * composition + SCREEN * spherical(clip.images(on_green), screen).mean()
        return total + structure * structure_loss(clip.tokens(before), clip.tokens(after))

    return loss


def score_terms(objective: Objective, structure: float, scale: float) -> Terms:
    """The losses under a diffusion model: score distillation of the composed picture, and structure of its latents.

    Args:
        structure: weight of the structure loss.
        scale: the score's gradient is divided by this.
    """

    def loss(layer: Layer, done: float, generator: torch.Generator) -> Tensor:
        composed = layer.over(layer.source)
        time = draw_time(objective.schedule, done, True, generator)
        total = objective.loss(composed, layer.source, time, generator) / scale
        if structure > 0:
            total = total + structure * structure_loss(
                _latent_tokens(objective.encode(layer.source)), _latent_tokens(objective.encode(composed))
            )
        return total

    return loss


def structure_loss(before: Float[Tensor, "n t w"], after: Float[Tensor, "n t w"]) -> Float[Tensor, ""]:
    """How far the self-similarity of tokens has moved: the mean square over all pairs (the paper's eq. 4)."""
    return (self_similarity(after) - self_similarity(before.detach())).square().mean()


def sparsity_loss(alpha: Float[Tensor, "n 1 height width"]) -> Float[Tensor, ""]:
    """How much is painted: mean opacity, and a soft count of pixels that are painted at all (the paper's eq. 6)."""
    return OPAQUE * alpha.mean() + PAINTED * (2 * torch.sigmoid(5 * alpha) - 1).mean()


class Painter(torch.nn.Module):
    """A picture in, colours and opacity out: a convolutional network with a skip at every scale.

    Args:
        side: the shorter side of the pictures in pixels; a small one gets fewer scales and channels.
    """

    axes: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        power = max(2, int(math.log2(side)))
        channels = min(MOST_CHANNELS, 2**power)
        body: torch.nn.Module = torch.nn.Identity()
        for scale in reversed(range(min(MOST_SCALES, power - 1))):
            body = _Scale(3 if scale == 0 else channels, channels, body)
        self.body, self.out = body, torch.nn.Conv2d(channels, 4, 1)
        axes = torch.tensor(COLOUR_AXES)
        self.register_buffer("axes", axes / axes.norm(dim=0).max())

    def forward(self, picture: Images) -> Float[Tensor, "n 4 height width"]:
        """RGB and opacity, in (0, 1)."""
        found = self.out(self.body(2 * picture - 1))
        colour = torch.einsum("rc,nchw->nrhw", self.axes, found[:, :3])
        return torch.cat([colour, found[:, 3:]], dim=1).sigmoid()


@dataclass(frozen=True)
class Painting:
    """How the network is trained: steps and rate of Adam, weight of the sparsity loss, and the seed of all chance."""

    steps: int
    rate: float
    sparsity: float
    seed: int = 0


def paint(
    image: Images,
    region: Float[Tensor, "#n 1 height width"],
    terms: Terms,
    painting: Painting,
    report: Report = quiet,
) -> Float[Tensor, "n 4 height width"]:
    """The RGBA layer of a network trained for this picture.

    Args:
        image: in [0, 1].
        region: 1 where the layer may be opaque.
        terms: the losses on the layer and what it is painted over.

    Returns:
        Straight RGBA in [0, 1], not yet held to the region.
    """
    generator = torch.Generator().manual_seed(painting.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(painting.seed)
        network = Painter(min(image.shape[-2:])).to(image.device)
    adam = torch.optim.Adam(network.parameters(), painting.rate)
    for step in range(painting.steps):
        rgba = network(image)
        layer = Layer(rgba[:, :3], rgba[:, 3:] * region, image)
        loss = terms(layer, step / painting.steps, generator) + painting.sparsity * sparsity_loss(layer.alpha)
        adam.zero_grad()
        loss.backward()
        adam.step()
        report("painting", step + 1, painting.steps)
    return network(image).detach()


def views(
    pictures: Float[Tensor, "1 channels height width"], side: int, generator: torch.Generator
) -> Float[Tensor, "views channels side side"]:
    """Random crops of a picture, stretched to a square, half of them mirrored; the first shows all of it."""
    height, width = pictures.shape[-2:]
    found = []
    for index in range(VIEWS):
        share, down, right, mirrored = torch.rand(4, generator=generator).tolist()
        part = 1.0 if index == 0 else LEAST_VIEW + (1 - LEAST_VIEW) * share
        rows, columns = max(1, round(part * height)), max(1, round(part * width))
        top, left = round(down * (height - rows)), round(right * (width - columns))
        crop = pictures[..., top : top + rows, left : left + columns]
        crop = torch.nn.functional.interpolate(crop, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        found.append(crop.flip(-1) if index and mirrored < 0.5 else crop)
    return torch.cat(found)


class _Scale(torch.nn.Module):
    """One scale of the network: what lies below at half the size, joined by what is passed on directly."""

    def __init__(self, inputs: int, channels: int, inner: torch.nn.Module) -> None:
        super().__init__()
        self.skip = _layer(inputs, SKIP_CHANNELS, 1)
        self.down = torch.nn.Sequential(_layer(inputs, channels, 3, 2), _layer(channels, channels, 3))
        self.inner = inner
        self.up = torch.nn.Sequential(_layer(channels + SKIP_CHANNELS, channels, 3), _layer(channels, channels, 1))

    def forward(self, picture: Tensor) -> Tensor:
        deep = self.inner(self.down(picture))
        large = torch.nn.functional.interpolate(deep, picture.shape[-2:], mode="bilinear")
        return self.up(torch.cat([self.skip(picture), large], dim=1))


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1) -> Any:
    return torch.nn.Sequential(
        torch.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="replicate"),
        torch.nn.GroupNorm(1, outputs),
        torch.nn.LeakyReLU(0.2),
    )


def _embedded(clip: Clip, prompt: str, templates: tuple[str, ...]) -> Float[Tensor, "1 features"]:
    found = clip.texts([template.format(prompt) for template in templates]).mean(dim=0, keepdim=True)
    return torch.nn.functional.normalize(found, dim=-1)


def _latent_tokens(latents: Latents) -> Float[Tensor, "n tokens channels"]:
    """Latents as tokens, 16 x 16 at most: the pairs of more would be too many."""
    height, width = latents.shape[-2:]
    return torch.nn.functional.adaptive_avg_pool2d(latents, (min(16, height), min(16, width))).flatten(2).mT
