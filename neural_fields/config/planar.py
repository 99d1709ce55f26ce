"""Settings of planar training: defaults here, what a method changes in `configs/<preset>.yaml`, experiments as flags.

Lengths called "pixels" are pixels of the frames at the size of the training; times are steps at `final` quality and
are scaled to the number of steps of the others (`scale_steps`). This module imports no heavy package.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from neural_fields.config.loader import from_mapping, load_yaml, nest_keys, to_mapping
from neural_fields.config.planar_parts import (
    BoundedHashTextureConfig,
    GridGainConfig,
    GridMappingConfig,
    HashGainConfig,
    HashMappingConfig,
    HashNetworkConfig,
    HashOpacityConfig,
    HashTextureConfig,
    HomographyMlpMappingConfig,
    ImageTextureConfig,
    MaskOpacityConfig,
    MlpMappingConfig,
    MlpOpacityConfig,
    MlpTextureConfig,
    NoGainConfig,
    PixelOpacityConfig,
    SirenTextureConfig,
    SplineMappingConfig,
    WindowOpacityConfig,
    require_valid,
)
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.suggestions import nearest_word

__all__ = [
    "BoundedHashTextureConfig",
    "GridGainConfig",
    "GridMappingConfig",
    "HashGainConfig",
    "HashMappingConfig",
    "HashNetworkConfig",
    "HashOpacityConfig",
    "HashTextureConfig",
    "HomographyMlpMappingConfig",
    "ImageTextureConfig",
    "LossWeights",
    "MaskOpacityConfig",
    "MlpMappingConfig",
    "MlpOpacityConfig",
    "MlpTextureConfig",
    "NoGainConfig",
    "PixelOpacityConfig",
    "PlanarConfig",
    "Quality",
    "SirenTextureConfig",
    "SplineMappingConfig",
    "TrainingConfig",
    "WindowOpacityConfig",
    "all_presets",
    "count_steps",
    "frames_per_step",
    "load_planar_config",
    "planar_config_to_mapping",
    "planar_presets",
    "preset_folder",
    "preset_path",
    "scale_steps",
]
Quality = Literal["draft", "normal", "final"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms; a term of weight 0 is not computed. `..._until` is the step at which a term ends.

    Squared colors are averaged over points and over the three channels; lengths are pixels unless it says otherwise.
    """

    color: float = 0.0  # mean squared error of the color
    color_l1: float = 0.0  # mean absolute error of each layer's own color where it is visible at all; layers are added
    gradient: float = 0.0  # mean squared error of the forward differences of the color, x and y added
    sobel: float = 0.0  # mean absolute error of the gray Sobel gradients, each layer where it is visible
    mask: float = 0.0  # binary cross-entropy of the opacities against the masks
    mask_until: int = 0  # 0: to the end
    sparsity: float = 0.0  # squared color of front layers where they are transparent
    rigidity: float = 0.0  # departure of the mapping's Jacobian from a rotation, over 1 pixel
    global_rigidity: tuple[float, ...] = ()  # the same over 100 pixels: front layers, background
    global_rigidity_until: int = 0  # 0: to the end
    flow: float = 0.0  # distance in the canonical of the points that optical flow matches
    flow_l1: float = 0.0  # the same, forward only, mean of |du| and |dv| in widths and heights of the frame
    decisive_opacity: float = 0.0  # mean of -log of the largest weight: a pixel belongs to one layer
    alpha_flow: float = 0.0  # change of opacity along the flow
    background_color: float = 0.0  # color error of a layer where it is hidden, so that hidden texels stay natural
    residual_jacobian: float = 0.0  # mean size of the derivatives of the residual by x, y and t
    residual_smoothness: float = 0.0  # squared differences of the residual grid in pixels
    residual_anchor: float = 0.0  # squared distance of the residual grid from its start in pixels
    texture_smoothness: float = 0.0  # squared differences of neighboring texels
    gain_size: float = 0.0  # squared logarithm of the gain
    gain_smoothness: float = 0.0  # squared differences of the logarithm of the gain
    composite_l1: float = 0.0  # mean absolute error of the color
    laplacian: float = 0.0  # mean absolute error of the levels of a Laplacian pyramid of the color, levels added
    contrast: float = 0.0  # mean product of the colors that different layers have at a point
    opacity_from: int = 0  # step from which colors move the opacity; before, only terms that are about masks do
    gain_deviation: float = 0.0  # squared difference of the gain from 1
    gain_consistency: float = 0.0  # where a texel is out of view, its gain has the pattern it had in view, and is flat

    def __post_init__(self) -> None:
        require_valid(
            len(self.global_rigidity) in (0, 2), "global_rigidity takes two numbers: front layers, background"
        )

    @property
    def uses_flow(self) -> bool:
        """Whether a term uses optical flow."""
        return bool(self.flow or self.flow_l1 or self.alpha_flow)


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the training loop: what a step samples and how many steps there are."""

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
            require_valid(getattr(self, name) > 0, f"{name} must be above 0")
        require_valid(self.steps >= 0, "steps must not be negative")


@dataclass(frozen=True)
class PlanarConfig:
    """A planar model and its training."""

    paper: str = ""  # the publication that a preset follows
    region: bool = False  # one region of a frame is tracked, which `--roi` names
    mapping: (
        GridMappingConfig | SplineMappingConfig | MlpMappingConfig | HashMappingConfig | HomographyMlpMappingConfig
    ) = field(default_factory=GridMappingConfig)
    texture: (
        ImageTextureConfig | MlpTextureConfig | HashTextureConfig | BoundedHashTextureConfig | SirenTextureConfig
    ) = field(default_factory=ImageTextureConfig)
    opacity: PixelOpacityConfig | MlpOpacityConfig | MaskOpacityConfig | HashOpacityConfig | WindowOpacityConfig = (
        field(default_factory=PixelOpacityConfig)
    )
    gain: GridGainConfig | HashGainConfig | NoGainConfig = field(default_factory=GridGainConfig)
    terms: LossWeights = field(default_factory=LossWeights)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        terms, mapping, opacity, gain = self.terms, self.mapping, self.opacity, self.gain
        if self.training.batch == "pixels":  # scattered pixels, without their neighbors
            for name, part in (("opacity", opacity), ("mapping", mapping), ("gain", gain)):
                require_valid(
                    not isinstance(part, PixelOpacityConfig | GridMappingConfig | GridGainConfig),
                    f"{name} kind {part.kind} needs training.batch: frames (it is trained a frame at a time)",
                )
            require_valid(not terms.sobel, "terms.sobel needs training.batch: frames")
            require_valid(not terms.laplacian, "terms.laplacian needs training.batch: frames")

        # Terms that compare different points need parts that are functions of any point.
        pairwise = {
            "gradient": terms.gradient,
            "rigidity": terms.rigidity,
            "global_rigidity": any(terms.global_rigidity),
            "flow": terms.flow,
            "flow_l1": terms.flow_l1,
        }
        for name, weight in pairwise.items():
            require_valid(
                not weight or not isinstance(mapping, GridMappingConfig),
                f"terms.{name} needs mapping kind mlp or hash (residual_smoothness is what kind grid takes)",
            )
        for name, weight in (("gradient", terms.gradient), ("alpha_flow", terms.alpha_flow)):
            require_valid(
                not weight or not isinstance(opacity, PixelOpacityConfig),
                f"terms.{name} needs opacity kind mlp or mask",
            )

        # Terms that are about one kind of part.
        require_valid(
            not terms.gradient or not isinstance(gain, GridGainConfig), "terms.gradient needs gain kind none or hash"
        )
        require_valid(
            not terms.gain_deviation or not isinstance(gain, NoGainConfig),
            "terms.gain_deviation needs gain kind grid or hash",
        )
        require_valid(
            not terms.gain_consistency or isinstance(gain, HashGainConfig),
            "terms.gain_consistency needs gain kind hash",
        )
        require_valid(
            not (terms.gain_size or terms.gain_smoothness) or not isinstance(gain, HashGainConfig),
            "terms.gain_size and terms.gain_smoothness need gain kind grid (gain_deviation is what kind hash takes)",
        )
        require_valid(
            not terms.color_l1 or isinstance(opacity, MaskOpacityConfig | WindowOpacityConfig),
            "terms.color_l1 needs opacity kind mask or window, which say where a layer is visible at all",
        )
        require_valid(
            not terms.residual_jacobian or isinstance(mapping, HomographyMlpMappingConfig),
            "terms.residual_jacobian needs mapping kind homography_mlp",
        )
        require_valid(
            not terms.residual_smoothness or isinstance(mapping, GridMappingConfig),
            "terms.residual_smoothness needs mapping kind grid",
        )
        require_valid(
            not isinstance(self.texture, MlpTextureConfig | BoundedHashTextureConfig)
            or isinstance(mapping, MlpMappingConfig),
            f"texture kind {self.texture.kind} needs mapping kind mlp, whose uv stay inside the layer's square",
        )


def count_steps(training: TrainingConfig, quality: Quality, frame_count: int, pixels_per_frame: int) -> int:
    """Returns the number of steps that training takes.

    Args:
        training: settings of the loop.
        quality: "draft", "normal" or "final".
        frame_count: frames of the clip.
        pixels_per_frame: width times height of a frame.
    """
    if training.steps:
        return training.steps
    index = ("draft", "normal", "final").index(quality)
    if any(training.quality_steps):
        return training.quality_steps[index]
    frames_a_step = frames_per_step(training, frame_count, pixels_per_frame)
    return -(-training.passes[index] * frame_count // frames_a_step)


def frames_per_step(training: TrainingConfig, frame_count: int, pixels_per_frame: int) -> int:
    """Returns how many whole frames one step samples: at least one, at most all."""
    return max(1, min(frame_count, round(training.frame_pixels / pixels_per_frame)))


def scale_steps(config: PlanarConfig, total: int) -> PlanarConfig:
    """Returns the config for a training of `total` steps instead of the number at `final` quality.

    A release is scaled with the steps. An `..._until` stays, but comes at the latest after a quarter of the training:
    what these terms teach in the beginning takes its steps, and a training that scaled them down would swap its
    layers. So do the steps that teach homographies.
    """
    final = config.training.quality_steps[2]
    if not final or final == total:
        return config
    quarter = -(-total // 4)
    terms = replace(
        config.terms,
        mask_until=min(config.terms.mask_until, quarter),
        global_rigidity_until=min(config.terms.global_rigidity_until, quarter),
        opacity_from=round(config.terms.opacity_from * total / final),
    )
    mapping = config.mapping
    if isinstance(mapping, HashMappingConfig):
        begin, end = mapping.release
        mapping = replace(mapping, release=(round(begin * total / final), round(end * total / final)))
    if isinstance(mapping, HomographyMlpMappingConfig):
        mapping = replace(mapping, pretrain=min(mapping.pretrain, quarter))
    return replace(config, terms=terms, mapping=mapping)


def preset_folder() -> Path:
    """Returns the folder of the presets: inside an installed package, or `configs/` of a source checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def all_presets() -> list[str]:
    """Lists the names of the presets that come with the program."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def planar_presets() -> list[str]:
    """Lists the presets of planar models; the others are of 3D scenes."""
    return [name for name in all_presets() if "kind" not in load_yaml(preset_folder() / f"{name}.yaml")]


def preset_path(name: str) -> Path:
    """Returns the file of a preset.

    Raises:
        UserError: there is no preset of that name.
    """
    path = preset_folder() / f"{name}.yaml"
    if name in all_presets():
        return path
    guess = nearest_word(name, all_presets())
    raise UserError(
        ExitCode.BAD_INPUT,
        f"no preset is called '{name}'",
        why=f"presets: {', '.join(all_presets())}; anything else must be a .yaml file",
        fix=f"--config {guess or 'atlas'}",
    )


def load_planar_config(name: str, overrides: dict[str, object] | None = None) -> PlanarConfig:
    """Loads the config of a preset or of a YAML file, with dotted overrides ({"training.steps": 50}) on top.

    Raises:
        UserError: an unknown preset or key (the nearest is named), a wrong type, a contradiction.
    """
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file else preset_path(name)
    values = load_yaml(path)
    if values.get("kind") == "volume":
        raise UserError(
            ExitCode.BAD_INPUT,
            f"'{name}' is for a 3D scene",
            where=str(path),
            why="a planar model of a video was asked for",
            fix=f"unwrap train SCENE --config {name}, where SCENE is a folder with a transforms.json",
        )
    config = from_mapping(PlanarConfig, values, where=str(path))
    return (
        from_mapping(PlanarConfig, nest_keys(overrides), base=config, where="the command line") if overrides else config
    )


def planar_config_to_mapping(config: PlanarConfig) -> dict[str, Any]:
    """Converts the config to plain values for run.yaml."""
    return to_mapping(config)
