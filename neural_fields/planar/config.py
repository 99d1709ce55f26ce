"""Settings of planar training: defaults are here, presets in `configs/<preset>.yaml` and flags change them.

The settings of the parts are beside the parts (`mappings/`, `appearance/`), the weights of losses beside the losses
(`losses/`). Lengths called "pixels" are pixels of the frames at the size of the training; times are steps at `final`
quality and are scaled to the number of steps of the others (`scale_steps`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from neural_fields.config.loader import from_mapping, nest_keys, to_mapping
from neural_fields.config.presets import Quality, find_config_file, load_config_values, require_valid
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.planar.appearance.grid_gain import GridGainConfig
from neural_fields.planar.appearance.image_texture import ImageTextureConfig
from neural_fields.planar.appearance.kinds import GainKind, OpacityKind, TextureKind
from neural_fields.planar.appearance.pixel_opacity import PixelOpacityConfig
from neural_fields.planar.losses.loss import list_kinds
from neural_fields.planar.losses.table import LOSSES, LossWeights
from neural_fields.planar.mappings.grid import GridMappingConfig
from neural_fields.planar.mappings.kinds import MappingKind
from neural_fields.planar.mappings.mapping import PointFunction

# The losses that `planar/gauss_newton` solves for.
SOLVED = {
    "color",
    "mask",
    "residual_smoothness",
    "residual_anchor",
    "texture_smoothness",
    "gain_size",
    "gain_smoothness",
}
FRAMES_PER_SOLVED_STEP = 4


@dataclass(frozen=True)
class TrainingConfig:
    """Sets how a model is fitted, what a training step samples, and the number of steps."""

    # adam: steps along gradients; gauss_newton: passes that solve for the tables of grid, image, pixel and grid parts
    solver: Literal["adam", "gauss_newton"] = "adam"
    batch: Literal["frames", "pixels"] = "frames"  # a step samples whole frames, or random pixels of the clip
    pixels: int = 10_000  # points a step, with batch: pixels
    frame_pixels: int = 220_000  # about this many pixels of whole frames a step, with batch: frames; at least one frame
    passes: tuple[int, int, int] = (10, 40, 120)  # visits to each frame at draft, normal, final, with batch: frames
    min_gain: float = 0.02  # dB; with gauss_newton, a pass that brings less and
    min_move: float = 0.02  # moves points by fewer pixels (root mean square) is the last one
    steps: int = 0  # steps at any quality; 0 takes them from `passes` or `quality_steps`
    quality_steps: tuple[int, int, int] = (0, 0, 0)  # steps at draft, normal, final; 0 0 0 takes `passes`
    # halving: at 1/4, 1/2 and 3/4 of the run; tenths: a tenth at 0.16, again at 0.64 and at 0.8 (NaRCan)
    schedule: Literal["cosine", "constant", "halving", "tenths"] = "cosine"
    checkpoint_every: int = 500  # steps between checkpoints
    preview_every: int = 500  # steps between previews

    def __post_init__(self) -> None:
        for name in ("pixels", "frame_pixels", "checkpoint_every", "preview_every"):
            require_valid(getattr(self, name) > 0, f"{name} must be above 0")
        require_valid(self.steps >= 0, "steps must not be negative")


@dataclass(frozen=True)
class PlanarConfig:
    """Describes a planar model and its training: the content of a preset's YAML file.

    Example:
        >>> config = PlanarConfig()
        >>> config.mapping.kind, config.texture.kind, config.opacity.kind, config.gain.kind
        ('grid', 'image', 'pixel', 'grid')
    """

    paper: str = ""  # the publication that a preset follows
    region: bool = False  # the model tracks one region of a frame, which `--roi` names
    mapping: MappingKind = field(default_factory=GridMappingConfig)  # from points of the video to canonical planes
    texture: TextureKind = field(default_factory=ImageTextureConfig)  # the colors of canonical planes
    opacity: OpacityKind = field(default_factory=PixelOpacityConfig)  # the alphas of the front layers
    gain: GainKind = field(default_factory=GridGainConfig)  # shading on top of the textures
    terms: LossWeights = field(default_factory=LossWeights)  # the weights of the losses
    training: TrainingConfig = field(default_factory=TrainingConfig)  # batches, number of steps, schedule

    def __post_init__(self) -> None:
        parts = {"mapping": self.mapping, "texture": self.texture, "opacity": self.opacity, "gain": self.gain}
        whole_frames = self.training.batch == "frames"
        for name in ("opacity", "mapping", "gain"):
            require_valid(
                whole_frames or isinstance(parts[name], PointFunction),
                f"{name} kind {parts[name].kind} needs training.batch: frames (it is trained a frame at a time)",
            )
        require_valid(
            isinstance(self.mapping, self.texture.mappings),
            f"texture kind {self.texture.kind} needs mapping kind {list_kinds('mapping', self.texture.mappings)}",
        )
        for loss in LOSSES:
            unmet = loss.explain_unmet_need(parts, whole_frames) if loss.weigh(self.terms) else ""
            require_valid(not unmet, unmet)
        require_valid(
            self.training.solver == "adam" or self._is_solvable(parts),
            "training.solver gauss_newton needs training.batch frames, mapping kind grid, texture kind image, "
            f"opacity kind pixel, gain kind grid, terms.color, and of the others only {', '.join(sorted(SOLVED))} "
            "(training.solver adam fits everything)",
        )

    def _is_solvable(self, parts: Mapping[str, object]) -> bool:
        """Tells whether the parts are tables and the losses those that `planar/gauss_newton` solves for."""
        active = {loss.name for loss in LOSSES if loss.weigh(self.terms)}
        kinds = (
            ("mapping", GridMappingConfig),
            ("texture", ImageTextureConfig),
            ("opacity", PixelOpacityConfig),
            ("gain", GridGainConfig),
        )
        return (
            self.training.batch == "frames"
            and "color" in active <= SOLVED
            and not (self.terms.mask_until or self.terms.opacity_from)  # the same losses at every step
            and all(type(parts[name]) is kind for name, kind in kinds)
        )


def count_steps(training: TrainingConfig, quality: Quality, frame_count: int, pixels_per_frame: int) -> int:
    """Computes the number of steps of a training.

    Args:
        training: settings of the training.
        quality: "draft", "normal" or "final".
        frame_count: number of frames of the clip.
        pixels_per_frame: width times height of a frame at the training size.

    Returns:
        The number of steps.

    Example:
        >>> count_steps(TrainingConfig(), "normal", frame_count=48, pixels_per_frame=110_000)
        960
    """
    if training.steps:
        return training.steps
    index = ("draft", "normal", "final").index(quality)
    if any(training.quality_steps):
        return training.quality_steps[index]
    frames_a_step = frames_per_step(training, frame_count, pixels_per_frame)
    if training.solver == "gauss_newton":
        return training.passes[index] * -(-frame_count // frames_a_step)
    return -(-training.passes[index] * frame_count // frames_a_step)


def frames_per_step(training: TrainingConfig, frame_count: int, pixels_per_frame: int) -> int:
    """Computes the number of whole frames that a step samples: at least one, at most all.

    Args:
        training: settings of the training.
        frame_count: number of frames of the clip.
        pixels_per_frame: width times height of a frame at the training size.

    Example:
        >>> frames_per_step(TrainingConfig(frame_pixels=220_000), frame_count=48, pixels_per_frame=110_000)
        2
    """
    if training.solver == "gauss_newton":
        return min(frame_count, FRAMES_PER_SOLVED_STEP)
    return max(1, min(frame_count, round(training.frame_pixels / pixels_per_frame)))


def scale_steps(config: PlanarConfig, total: int) -> PlanarConfig:
    """Adapts a config to the number of steps of a training.

    Args:
        config: its times in steps are those of `final` quality.
        total: number of steps of the training.

    Returns:
        The config with its times scaled to `total` steps.
    """
    final = config.training.quality_steps[2]
    if not final or final == total:
        return config
    mapping = cast(MappingKind, config.mapping.scale_steps(total, final))
    return replace(config, terms=config.terms.scale_steps(total, final), mapping=mapping)


def load_planar_config(name: str, overrides: dict[str, object] | None = None) -> PlanarConfig:
    """Loads the config of a preset or of a YAML file.

    Args:
        name: the name of a preset, or a path that ends in .yaml or .yml.
        overrides: values that replace those of the file, by dotted name.

    Returns:
        The checked config.

    Raises:
        UserError: an unknown preset or key (the nearest is named), a wrong type, or a contradiction (exit 3).

    Example:
        >>> load_planar_config("codef", {"training.steps": 50}).training.steps
        50
        >>> load_planar_config("atlas", {"texture.densty": 2.0})
        Traceback (most recent call last):
        ...
        neural_fields.core.errors.UserError: error: texture.densty: unknown key...
    """
    path, values = find_config_file(name), load_config_values(name)
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
    """Converts a config to plain values for run.yaml, which `from_mapping` reads back."""
    return to_mapping(config)
