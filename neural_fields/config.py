"""Every setting of a fit: defaults here, what a method changes in `configs/<preset>.yaml`, experiments as flags.

Lengths called "pixels" are pixels of the frames at the size of the fit; times are steps of the `final` quality and are
fitted to the number of steps for the others (`scale_steps`). This module imports no heavy package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from neural_fields.config_loader import from_mapping, load_yaml, nearest, nest, to_mapping
from neural_fields.errors import ExitCode, UserError

Quality = Literal["draft", "normal", "final"]


@dataclass(frozen=True)
class GridMapping:
    """A homography per frame plus a smooth residual grid per frame, both started from optical flow."""

    kind: ClassVar[str] = "grid"
    cell: float = 8.0  # pixels between the knots of the residual grid
    learning_rate: float = 0.25  # pixels a step
    flow_size: int = 480  # pixels on the longer side at which flow is computed: enough for geometry, flat memory

    def __post_init__(self) -> None:
        _require(self.cell >= 2, "cell must be at least 2 pixels")
        _require(self.flow_size >= 64, "flow_size must be at least 64 pixels")


@dataclass(frozen=True)
class MlpMapping:
    """A plain MLP of (x, y, t) without encoding, warmed up to a scaled identity (Layered Neural Atlases)."""

    kind: ClassVar[str] = "mlp"
    layers: tuple[int, ...] = (6, 4)  # foreground layers, background (the first serves every foreground layer)
    width: int = 256
    uv_scale: float = 0.8  # the warm-up target is uv_scale * (x, y)
    warm_up: int = 100  # warm-up steps for each frame
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        _require(len(self.layers) == 2, "layers takes two numbers: front layers, background")
        _require(min(self.layers) >= 1 and self.width >= 1, "layers and width must be at least 1")
        _require(0 < self.uv_scale < 1, "uv_scale must lie between 0 and 1: the network cannot reach beyond 1")
        _require(self.warm_up >= 0, "warm_up must not be negative")


@dataclass(frozen=True)
class HashMapping:
    """Identity plus a hash-grid deformation whose levels are released over the run (CoDeF, section 3.2)."""

    kind: ClassVar[str] = "hash"
    levels: int = 16
    features: int = 2
    log2_table: int = 19
    base_resolution: int = 16
    growth: float = 1.38
    width: int = 64
    hidden_layers: int = 8
    output_scale: float = 0.2  # the network's output times this is the displacement in frame widths and heights
    release: tuple[int, int] = (4000, 8000)  # steps between which the levels come in, coarse ones first
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _require(min(self.width, self.hidden_layers) >= 1, "width and hidden_layers must be at least 1")
        _require(0 <= self.release[0] <= self.release[1], "release takes two steps, the earlier one first")


@dataclass(frozen=True)
class ImageTexture:
    """One picture per layer, started in closed form as the weighted mean of the frames it is seen in."""

    kind: ClassVar[str] = "image"
    density: float = 1.25  # texels a pixel where the layer is seen largest
    max_megatexels: float = 16.0
    learning_rate: float = 0.012

    def __post_init__(self) -> None:
        _require(min(self.density, self.max_megatexels) > 0, "density and max_megatexels must be above 0")


@dataclass(frozen=True)
class MlpTexture:
    """One MLP for all layers, each in its own quadrant of the unit square (Layered Neural Atlases)."""

    kind: ClassVar[str] = "mlp"
    layers: int = 8
    width: int = 256
    octaves: int = 10
    skips: tuple[int, ...] = (4, 7)  # layers, counted from 0, that read the input again
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        _require(min(self.layers, self.width, self.octaves) >= 1, "layers, width and octaves must be at least 1")
        _require(
            all(0 < skip < self.layers for skip in self.skips),
            f"skips must lie between 1 and {self.layers - 1}, the last of the layers",
        )


@dataclass(frozen=True)
class HashTexture:
    """A two-dimensional hash grid and a small MLP per layer (CoDeF, section 3.1)."""

    kind: ClassVar[str] = "hash"
    levels: int = 16
    features: int = 2
    log2_table: int = 19
    base_resolution: int = 16
    growth: float = 1.44
    width: int = 64
    hidden_layers: int = 2
    margin: float = 0.3  # the canonical image reaches this share of the frame beyond each side
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _require(min(self.width, self.hidden_layers) >= 1, "width and hidden_layers must be at least 1")
        _require(self.margin >= 0, "margin must not be negative")


@dataclass(frozen=True)
class PixelOpacity:
    """A logit per pixel, frame and layer, started from the masks."""

    kind: ClassVar[str] = "pixel"
    max_megapixels: float = 25.0  # of all frames together; longer clips get a coarser grid
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        _require(self.max_megapixels > 0, "max_megapixels must be above 0")


@dataclass(frozen=True)
class MlpOpacity:
    """An MLP of (x, y, t) with Fourier features (Layered Neural Atlases)."""

    kind: ClassVar[str] = "mlp"
    layers: int = 8
    width: int = 256
    octaves: int = 5
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        _require(min(self.layers, self.width, self.octaves) >= 1, "layers, width and octaves must be at least 1")


@dataclass(frozen=True)
class MaskOpacity:
    """The given masks as they are, without soft edges (CoDeF)."""

    kind: ClassVar[str] = "mask"


@dataclass(frozen=True)
class GridGain:
    """A smooth multiplicative lighting gain on a coarse grid over (x, y, t)."""

    kind: ClassVar[str] = "grid"
    cell: float = 16.0  # pixels between knots
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        _require(self.cell >= 2, "cell must be at least 2 pixels")


@dataclass(frozen=True)
class NoGain:
    """No lighting: the texture's colour is the layer's colour."""

    kind: ClassVar[str] = "none"


@dataclass(frozen=True)
class Terms:
    """Weights of the loss terms; a term of weight 0 is not computed. `..._until` is the step at which a term ends.

    Squared colours are averaged over points and over the three channels; lengths are pixels unless it says otherwise.
    """

    color: float = 0.0  # mean squared error of the colour
    gradient: float = 0.0  # mean squared error of the forward differences of the colour, x and y added
    sobel: float = 0.0  # mean absolute error of the grey Sobel gradients, each layer where it is seen
    mask: float = 0.0  # binary cross-entropy of the opacities against the masks
    mask_until: int = 0  # 0: to the end
    sparsity: float = 0.0  # squared colour of front layers where they are transparent
    rigidity: float = 0.0  # departure of the mapping's Jacobian from a rotation, over 1 pixel
    global_rigidity: tuple[float, ...] = ()  # the same over 100 pixels: front layers, background
    global_rigidity_until: int = 0  # 0: to the end
    flow: float = 0.0  # distance in the canonical of the points that optical flow matches
    flow_l1: float = 0.0  # the same, forward only, mean of |du| and |dv| in widths and heights of the frame
    alpha_flow: float = 0.0  # change of opacity along the flow
    background_color: float = 0.0  # colour error of a layer where it is not seen, so that unseen texels stay natural
    residual_smoothness: float = 0.0  # squared differences of the residual grid in pixels
    residual_anchor: float = 0.0  # squared distance of the residual grid from its start in pixels
    texture_smoothness: float = 0.0  # squared differences of neighbouring texels
    gain_size: float = 0.0  # squared logarithm of the gain
    gain_smoothness: float = 0.0  # squared differences of the logarithm of the gain

    def __post_init__(self) -> None:
        _require(len(self.global_rigidity) in (0, 2), "global_rigidity takes two numbers: front layers, background")

    @property
    def use_flow(self) -> bool:
        """Whether a term looks at optical flow."""
        return bool(self.flow or self.flow_l1 or self.alpha_flow)


@dataclass(frozen=True)
class Training:
    """The loop: what a step sees and how many steps there are."""

    batch: Literal["frames", "pixels"] = "frames"
    pixels: int = 10_000  # points a step, with batch: pixels
    frame_pixels: int = 220_000  # about this many pixels of whole frames a step, with batch: frames; at least one frame
    passes: tuple[int, int, int] = (12, 40, 120)  # visits to each frame at draft, normal, final, with batch: frames
    steps: int = 0  # steps at any quality; 0 takes them from `passes` or `quality_steps`
    quality_steps: tuple[int, int, int] = (0, 0, 0)  # steps at draft, normal, final; 0 0 0 takes `passes`
    schedule: Literal["cosine", "constant", "halving"] = "cosine"  # halving: at 1/4, 1/2 and 3/4 of the run
    checkpoint_every: int = 500  # steps
    preview_every: int = 500  # steps

    def __post_init__(self) -> None:
        for name in ("pixels", "frame_pixels", "checkpoint_every", "preview_every"):
            _require(getattr(self, name) > 0, f"{name} must be above 0")
        _require(self.steps >= 0, "steps must not be negative")


@dataclass(frozen=True)
class Config:
    """A planar model and how it is fitted."""

    paper: str = ""  # the publication that a preset follows
    mapping: GridMapping | MlpMapping | HashMapping = field(default_factory=GridMapping)
    texture: ImageTexture | MlpTexture | HashTexture = field(default_factory=ImageTexture)
    opacity: PixelOpacity | MlpOpacity | MaskOpacity = field(default_factory=PixelOpacity)
    gain: GridGain | NoGain = field(default_factory=GridGain)
    terms: Terms = field(default_factory=Terms)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        for message in (*_batch_contradictions(self), *_term_contradictions(self)):
            raise ValueError(message)
        _require(
            not isinstance(self.texture, MlpTexture) or isinstance(self.mapping, MlpMapping),
            "texture kind mlp needs mapping kind mlp, whose uv stay inside the layer's square of the shared plane",
        )


def _batch_contradictions(config: Config) -> Iterator[str]:
    """What cannot be trained on scattered pixels."""
    if config.training.batch == "frames":
        return
    for part in ("opacity", "mapping", "gain"):
        chosen = getattr(config, part)
        if isinstance(chosen, (PixelOpacity, GridMapping, GridGain)):
            yield f"{part} kind {chosen.kind} needs training.batch: frames (it is trained a frame at a time)"
    if config.terms.sobel:
        yield "terms.sobel needs training.batch: frames"


def _term_contradictions(config: Config) -> Iterator[str]:
    """Terms that look beyond the batch's own points need parts that are functions of any point."""
    terms = config.terms
    pairwise = {
        "gradient": terms.gradient,
        "rigidity": terms.rigidity,
        "global_rigidity": any(terms.global_rigidity),
        "flow": terms.flow,
        "flow_l1": terms.flow_l1,
    }
    for name in (name for name, weight in pairwise.items() if weight):
        if isinstance(config.mapping, GridMapping):
            yield f"terms.{name} needs mapping kind mlp or hash (residual_smoothness is what kind grid takes)"
    for name, weight in (("gradient", terms.gradient), ("alpha_flow", terms.alpha_flow)):
        if weight and isinstance(config.opacity, PixelOpacity):
            yield f"terms.{name} needs opacity kind mlp or mask"
    if terms.gradient and isinstance(config.gain, GridGain):
        yield "terms.gradient needs gain kind none"
    if terms.residual_smoothness and not isinstance(config.mapping, GridMapping):
        yield "terms.residual_smoothness needs mapping kind grid"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def steps_for(training: Training, quality: Quality, frame_count: int, pixels_a_frame: int) -> int:
    """How many steps a fit takes at a quality."""
    if training.steps:
        return training.steps
    index = ("draft", "normal", "final").index(quality)
    if any(training.quality_steps):
        return training.quality_steps[index]
    frames_a_step = frames_per_step(training, frame_count, pixels_a_frame)
    return -(-training.passes[index] * frame_count // frames_a_step)


def frames_per_step(training: Training, frame_count: int, pixels_a_frame: int) -> int:
    """How many whole frames one step sees: at least one, at most all."""
    return max(1, min(frame_count, round(training.frame_pixels / pixels_a_frame)))


def scale_steps(config: Config, total: int) -> Config:
    """The config for a fit of `total` steps instead of the `final` number.

    A release is scaled with the steps. An `..._until` stays, but comes at the latest after a quarter of the fit: what
    these terms teach in the beginning takes its steps, and a fit that scaled them down would swap its layers.
    """
    final = config.training.quality_steps[2]
    if not final or final == total:
        return config

    def scaled(step: int) -> int:
        return round(step * total / final)

    def within_a_quarter(step: int) -> int:
        return min(step, -(-total // 4))

    terms = replace(
        config.terms,
        mask_until=within_a_quarter(config.terms.mask_until),
        global_rigidity_until=within_a_quarter(config.terms.global_rigidity_until),
    )
    mapping = config.mapping
    if isinstance(mapping, HashMapping):
        begin, end = mapping.release
        mapping = replace(mapping, release=(scaled(begin), scaled(end)))
    return replace(config, terms=terms, mapping=mapping)


def preset_folder() -> Path:
    """Where the presets lie: inside an installed package, or `configs/` of a source checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def preset_names() -> list[str]:
    """The names of the presets that come with the program."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        UserError: there is no preset of that name.
    """
    path = preset_folder() / f"{name}.yaml"
    if name in preset_names():
        return path
    guess = nearest(name, preset_names())
    raise UserError(
        ExitCode.BAD_INPUT,
        f"no preset is called '{name}'",
        why=f"presets: {', '.join(preset_names())}; anything else must be a .yaml file",
        fix=f"--config {guess or 'atlas'}",
    )


def load_config(name: str, overrides: dict[str, object] | None = None) -> Config:
    """The config of a preset or of a YAML file, with dotted overrides ({"training.steps": 50}) on top.

    Raises:
        UserError: an unknown preset or key (the nearest is named), a wrong type, a contradiction.
    """
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file else preset_path(name)
    config = from_mapping(Config, load_yaml(path), where=str(path))
    return from_mapping(Config, nest(overrides), base=config, where="the command line") if overrides else config


def config_to_mapping(config: Config) -> dict[str, Any]:
    """The config as plain values for run.yaml."""
    return to_mapping(config)
