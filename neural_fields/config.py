"""Every setting of a fit: defaults here, what a method changes in `configs/<preset>.yaml`, experiments as flags.

Lengths called "pixels" are pixels of the frames at the size of the fit; times are steps of the `final` quality and are
fitted to the number of steps for the others (`scale_steps`). This module imports no heavy package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from neural_fields.config_loader import from_mapping, load_yaml, nearest, nest, to_mapping
from neural_fields.config_parts import (
    BoundedHashTexture,
    GridGain,
    GridMapping,
    HashGain,
    HashMapping,
    HashNetwork,
    HashOpacity,
    HashTexture,
    HomographyMlpMapping,
    ImageTexture,
    MaskOpacity,
    MlpMapping,
    MlpOpacity,
    MlpTexture,
    NoGain,
    PixelOpacity,
    SirenTexture,
    SplineMapping,
    WindowOpacity,
    require,
)
from neural_fields.errors import ExitCode, UserError

__all__ = [
    "BoundedHashTexture",
    "Config",
    "GridGain",
    "GridMapping",
    "HashGain",
    "HashMapping",
    "HashNetwork",
    "HashOpacity",
    "HashTexture",
    "HomographyMlpMapping",
    "ImageTexture",
    "MaskOpacity",
    "MlpMapping",
    "MlpOpacity",
    "MlpTexture",
    "NoGain",
    "PixelOpacity",
    "Quality",
    "SirenTexture",
    "SplineMapping",
    "Terms",
    "Training",
    "WindowOpacity",
    "all_presets",
    "config_to_mapping",
    "frames_per_step",
    "load_config",
    "preset_folder",
    "preset_names",
    "preset_path",
    "scale_steps",
    "steps_for",
]
Quality = Literal["draft", "normal", "final"]


@dataclass(frozen=True)
class Terms:
    """Weights of the loss terms; a term of weight 0 is not computed. `..._until` is the step at which a term ends.

    Squared colours are averaged over points and over the three channels; lengths are pixels unless it says otherwise.
    """

    color: float = 0.0  # mean squared error of the colour
    color_l1: float = 0.0  # mean absolute error of each layer's own colour where it is seen at all; layers are added
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
    decisive_opacity: float = 0.0  # mean of -log of the largest weight: a pixel belongs to one layer
    alpha_flow: float = 0.0  # change of opacity along the flow
    background_color: float = 0.0  # colour error of a layer where it is not seen, so that unseen texels stay natural
    residual_jacobian: float = 0.0  # mean size of the derivatives of the residual by x, y and t
    residual_smoothness: float = 0.0  # squared differences of the residual grid in pixels
    residual_anchor: float = 0.0  # squared distance of the residual grid from its start in pixels
    texture_smoothness: float = 0.0  # squared differences of neighbouring texels
    gain_size: float = 0.0  # squared logarithm of the gain
    gain_smoothness: float = 0.0  # squared differences of the logarithm of the gain
    composite_l1: float = 0.0  # mean absolute error of the colour
    laplacian: float = 0.0  # mean absolute error of the levels of a Laplacian pyramid of the colour, levels added
    contrast: float = 0.0  # mean product of the colours that different layers have at a point
    opacity_from: int = 0  # step from which colours move the opacity; before, only terms that are about masks do
    gain_deviation: float = 0.0  # squared difference of the gain from 1
    gain_consistency: float = 0.0  # where a texel is out of view, its gain has the pattern it had in view, and is flat

    def __post_init__(self) -> None:
        require(len(self.global_rigidity) in (0, 2), "global_rigidity takes two numbers: front layers, background")

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
    passes: tuple[int, int, int] = (10, 40, 120)  # visits to each frame at draft, normal, final, with batch: frames
    steps: int = 0  # steps at any quality; 0 takes them from `passes` or `quality_steps`
    quality_steps: tuple[int, int, int] = (0, 0, 0)  # steps at draft, normal, final; 0 0 0 takes `passes`
    # halving: at 1/4, 1/2 and 3/4 of the run; tenths: a tenth at 0.16, again at 0.64 and at 0.8 (NaRCan)
    schedule: Literal["cosine", "constant", "halving", "tenths"] = "cosine"
    checkpoint_every: int = 500  # steps
    preview_every: int = 500  # steps

    def __post_init__(self) -> None:
        for name in ("pixels", "frame_pixels", "checkpoint_every", "preview_every"):
            require(getattr(self, name) > 0, f"{name} must be above 0")
        require(self.steps >= 0, "steps must not be negative")


@dataclass(frozen=True)
class Config:
    """A planar model and how it is fitted."""

    paper: str = ""  # the publication that a preset follows
    region: bool = False  # one region of a frame is followed, which `--roi` names
    mapping: GridMapping | SplineMapping | MlpMapping | HashMapping | HomographyMlpMapping = field(
        default_factory=GridMapping
    )
    texture: ImageTexture | MlpTexture | HashTexture | BoundedHashTexture | SirenTexture = field(
        default_factory=ImageTexture
    )
    opacity: PixelOpacity | MlpOpacity | MaskOpacity | HashOpacity | WindowOpacity = field(default_factory=PixelOpacity)
    gain: GridGain | HashGain | NoGain = field(default_factory=GridGain)
    terms: Terms = field(default_factory=Terms)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        for message in (*_batch_contradictions(self), *_term_contradictions(self)):
            raise ValueError(message)
        require(
            not isinstance(self.texture, MlpTexture | BoundedHashTexture) or isinstance(self.mapping, MlpMapping),
            f"texture kind {self.texture.kind} needs mapping kind mlp, whose uv stay inside the layer's square",
        )


def _batch_contradictions(config: Config) -> Iterator[str]:
    """What cannot be trained on scattered pixels."""
    if config.training.batch == "frames":
        return
    for part in ("opacity", "mapping", "gain"):
        chosen = getattr(config, part)
        if isinstance(chosen, (PixelOpacity, GridMapping, GridGain)):
            yield f"{part} kind {chosen.kind} needs training.batch: frames (it is trained a frame at a time)"
    for name in ("sobel", "laplacian"):
        if getattr(config.terms, name):
            yield f"terms.{name} needs training.batch: frames"


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
        yield "terms.gradient needs gain kind none or hash"
    if terms.gain_deviation and isinstance(config.gain, NoGain):
        yield "terms.gain_deviation needs gain kind grid or hash"
    if terms.gain_consistency and not isinstance(config.gain, HashGain):
        yield "terms.gain_consistency needs gain kind hash"
    if (terms.gain_size or terms.gain_smoothness) and isinstance(config.gain, HashGain):
        yield "terms.gain_size and terms.gain_smoothness need gain kind grid (gain_deviation is what kind hash takes)"
    if terms.color_l1 and not isinstance(config.opacity, MaskOpacity | WindowOpacity):
        yield "terms.color_l1 needs opacity kind mask or window, which say where a layer is seen at all"
    if terms.residual_jacobian and not isinstance(config.mapping, HomographyMlpMapping):
        yield "terms.residual_jacobian needs mapping kind homography_mlp"
    if terms.residual_smoothness and not isinstance(config.mapping, GridMapping):
        yield "terms.residual_smoothness needs mapping kind grid"


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
    these terms teach in the beginning takes its steps, and a fit that scaled them down would swap its layers. So do the
    steps that teach homographies.
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
        opacity_from=scaled(config.terms.opacity_from),
    )
    mapping = config.mapping
    if isinstance(mapping, HashMapping):
        begin, end = mapping.release
        mapping = replace(mapping, release=(scaled(begin), scaled(end)))
    if isinstance(mapping, HomographyMlpMapping):
        mapping = replace(mapping, pretrain=within_a_quarter(mapping.pretrain))
    return replace(config, terms=terms, mapping=mapping)


def preset_folder() -> Path:
    """Where the presets lie: inside an installed package, or `configs/` of a source checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def all_presets() -> list[str]:
    """The names of the presets that come with the program."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def preset_names() -> list[str]:
    """Those of planar models; the others are of scenes in space."""
    return [name for name in all_presets() if "kind" not in load_yaml(preset_folder() / f"{name}.yaml")]


def preset_path(name: str) -> Path:
    """The file of a preset.

    Raises:
        UserError: there is no preset of that name.
    """
    path = preset_folder() / f"{name}.yaml"
    if name in all_presets():
        return path
    guess = nearest(name, all_presets())
    raise UserError(
        ExitCode.BAD_INPUT,
        f"no preset is called '{name}'",
        why=f"presets: {', '.join(all_presets())}; anything else must be a .yaml file",
        fix=f"--config {guess or 'atlas'}",
    )


def load_config(name: str, overrides: dict[str, object] | None = None) -> Config:
    """The config of a preset or of a YAML file, with dotted overrides ({"training.steps": 50}) on top.

    Raises:
        UserError: an unknown preset or key (the nearest is named), a wrong type, a contradiction.
    """
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file else preset_path(name)
    values = load_yaml(path)
    if values.get("kind") == "volume":
        raise UserError(
            ExitCode.BAD_INPUT,
            f"'{name}' fits a scene in space",
            where=str(path),
            why="still pictures of a video were asked for",
            fix=f"unwrap train SCENE --config {name}, where SCENE is a folder with a transforms.json",
        )
    config = from_mapping(Config, values, where=str(path))
    return from_mapping(Config, nest(overrides), base=config, where="the command line") if overrides else config


def config_to_mapping(config: Config) -> dict[str, Any]:
    """The config as plain values for run.yaml."""
    return to_mapping(config)
