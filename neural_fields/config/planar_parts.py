"""Settings of the parts of a planar model: each kind of mapping, texture, opacity and gain with its defaults.

Lengths called "pixels" are pixels of the frames at the size of the training; times are steps at `final` quality. This
module imports no heavy package; `config` combines the parts and re-exports them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class GridMappingConfig:
    """A homography per frame plus a smooth residual grid per frame, both initialized from optical flow."""

    kind: ClassVar[str] = "grid"
    cell: float = 8.0  # pixels between the knots of the residual grid
    learning_rate: float = 0.25  # pixels a step
    flow_size: int = 480  # pixels on the longer side at which flow is computed: enough for geometry, flat memory

    def __post_init__(self) -> None:
        require_valid(self.cell >= 2, "cell must be at least 2 pixels")
        require_valid(self.flow_size >= 64, "flow_size must be at least 64 pixels")


@dataclass(frozen=True)
class SplineMappingConfig:
    """A homography along a spline in time and a spline grid of bounded displacements (Deformable Sprites)."""

    kind: ClassVar[str] = "spline"
    time_step: int = 2  # frames between knots
    cell: float = 16.0  # pixels between the knots of the displacements
    max_shift: float = 0.1  # uv units; half the longer side of a frame is 1
    motion_rate: float = 5e-4  # learning rate of the homography's parameters
    learning_rate: float = 1e-3  # of the displacements, before they are bounded
    flow_size: int = 480  # pixels on the longer side at which flow is computed

    def __post_init__(self) -> None:
        require_valid(self.time_step >= 1, "time_step must be at least 1 frame")
        require_valid(self.cell >= 2, "cell must be at least 2 pixels")
        require_valid(self.max_shift > 0, "max_shift must be above 0")
        require_valid(self.flow_size >= 64, "flow_size must be at least 64 pixels")


@dataclass(frozen=True)
class MlpMappingConfig:
    """A plain MLP of (x, y, t) without encoding, warmed up to a scaled identity (Layered Neural Atlases)."""

    kind: ClassVar[str] = "mlp"
    layers: tuple[int, ...] = (6, 4)  # foreground layers, background (the first serves every foreground layer)
    width: int = 256
    uv_scale: float = 0.8  # the warm-up target is uv_scale * (x, y)
    background_uv_scale: float = 0.0  # the same for the background; 0: as uv_scale
    warm_up: int = 100  # warm-up steps for each frame
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        require_valid(len(self.layers) == 2, "layers takes two numbers: front layers, background")
        require_valid(min(self.layers) >= 1 and self.width >= 1, "layers and width must be at least 1")
        require_valid(0 < self.uv_scale < 1, "uv_scale must lie between 0 and 1: the network cannot reach beyond 1")
        require_valid(
            0 <= self.background_uv_scale < 1, "background_uv_scale must lie between 0 and 1 (0: as uv_scale)"
        )
        require_valid(self.warm_up >= 0, "warm_up must not be negative")


@dataclass(frozen=True)
class HashMappingConfig:
    """Identity plus a hash-grid deformation whose levels are released during training (CoDeF, section 3.2)."""

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
        require_valid(min(self.width, self.hidden_layers) >= 1, "width and hidden_layers must be at least 1")
        require_valid(0 <= self.release[0] <= self.release[1], "release takes two steps, the earlier one first")


@dataclass(frozen=True)
class HomographyMlpMappingConfig:
    """A network t -> homography, one for all charts, and a sine network of displacements for each chart (NaRCan)."""

    kind: ClassVar[str] = "homography_mlp"
    homography_width: int = 256
    homography_layers: int = 2  # hidden layers between the first and the last
    pretrain: int = 3000  # steps that teach the homographies before the training, which leaves them as they are
    width: int = 256
    hidden_layers: int = 5  # between the first sine layer and the last linear one
    omega: float = 30.0  # radians a unit: frequency of a sine layer
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        require_valid(min(self.homography_width, self.width) >= 1, "homography_width and width must be at least 1")
        require_valid(
            min(self.homography_layers, self.hidden_layers, self.pretrain) >= 0,
            "homography_layers, hidden_layers and pretrain must not be negative",
        )
        require_valid(self.omega > 0, "omega must be above 0")


@dataclass(frozen=True)
class ImageTextureConfig:
    """One image per layer, initialized in closed form as the weighted mean of the frames it is visible in."""

    kind: ClassVar[str] = "image"
    density: float = 1.25  # texels a pixel where the layer appears largest
    max_megatexels: float = 16.0
    learning_rate: float = 0.012

    def __post_init__(self) -> None:
        require_valid(min(self.density, self.max_megatexels) > 0, "density and max_megatexels must be above 0")


@dataclass(frozen=True)
class MlpTextureConfig:
    """One MLP for all layers, each in its own quadrant of the unit square (Layered Neural Atlases)."""

    kind: ClassVar[str] = "mlp"
    layers: int = 8
    width: int = 256
    octaves: int = 10
    skips: tuple[int, ...] = (4, 7)  # layers, counted from 0, that read the input again
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        require_valid(min(self.layers, self.width, self.octaves) >= 1, "layers, width and octaves must be at least 1")
        require_valid(
            all(0 < skip < self.layers for skip in self.skips),
            f"skips must lie between 1 and {self.layers - 1}, the last of the layers",
        )


@dataclass(frozen=True)
class HashTextureConfig:
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
        require_valid(min(self.width, self.hidden_layers) >= 1, "width and hidden_layers must be at least 1")
        require_valid(self.margin >= 0, "margin must not be negative")


@dataclass(frozen=True)
class SirenTextureConfig:
    """A network of sines per layer (NaRCan)."""

    kind: ClassVar[str] = "siren"
    width: int = 256
    hidden_layers: int = 5  # between the first sine layer and the last linear one
    omega: float = 30.0  # radians a unit: frequency of a sine layer
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        require_valid(self.width >= 1 and self.hidden_layers >= 0, "width must be at least 1, hidden_layers at least 0")
        require_valid(self.omega > 0, "omega must be above 0")


@dataclass(frozen=True)
class HashNetworkConfig:
    """A hash grid over [-1, 1] on each axis and a small network behind it (Hashing Neural Video Decomposition)."""

    levels: int = 16
    features: int = 2
    log2_table: int = 15
    base_resolution: int = 16
    growth: float = 1.25
    width: int = 64
    layers: int = 4  # of the network, the last one included
    learning_rate: float = 1e-4  # of the network
    table_learning_rate: float = 1e-2

    def __post_init__(self) -> None:
        require_valid(min(self.width, self.layers) >= 1, "width and layers must be at least 1")


@dataclass(frozen=True)
class BoundedHashTextureConfig(HashNetworkConfig):
    """A two-dimensional `HashNetwork` per layer, colors from 0 to 1 by tanh."""

    kind: ClassVar[str] = "bounded_hash"


@dataclass(frozen=True)
class HashOpacityConfig(HashNetworkConfig):
    """A `HashNetwork` of (x, y, t)."""

    kind: ClassVar[str] = "hash"


@dataclass(frozen=True)
class WindowOpacityConfig:
    """Layers are time windows of the clip (charts), one after the other, each fading into the next (NaRCan)."""

    kind: ClassVar[str] = "window"
    segments: int = 3  # number of charts; fewer where the clip has less than two frames for each
    overlap: int = 10  # frames that two charts share; fewer where charts are shorter

    def __post_init__(self) -> None:
        require_valid(self.segments >= 1, "segments must be at least 1")
        require_valid(self.overlap >= 0, "overlap must not be negative")


@dataclass(frozen=True)
class PixelOpacityConfig:
    """A logit per pixel, frame and layer, initialized from the masks."""

    kind: ClassVar[str] = "pixel"
    max_megapixels: float = 25.0  # of all frames together; longer clips get a coarser grid
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        require_valid(self.max_megapixels > 0, "max_megapixels must be above 0")


@dataclass(frozen=True)
class MlpOpacityConfig:
    """An MLP of (x, y, t) with Fourier features (Layered Neural Atlases)."""

    kind: ClassVar[str] = "mlp"
    layers: int = 8
    width: int = 256
    octaves: int = 5
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        require_valid(min(self.layers, self.width, self.octaves) >= 1, "layers, width and octaves must be at least 1")


@dataclass(frozen=True)
class MaskOpacityConfig:
    """The given masks as they are, without soft edges (CoDeF)."""

    kind: ClassVar[str] = "mask"


@dataclass(frozen=True)
class GridGainConfig:
    """A smooth multiplicative lighting gain on a coarse grid over (x, y, t)."""

    kind: ClassVar[str] = "grid"
    cell: float = 16.0  # pixels between knots
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        require_valid(self.cell >= 2, "cell must be at least 2 pixels")


@dataclass(frozen=True)
class HashGainConfig(HashNetworkConfig):
    """A `HashNetwork` of (u, v, t) per layer: light that sticks to the canonical image and changes with time."""

    kind: ClassVar[str] = "hash"


@dataclass(frozen=True)
class NoGainConfig:
    """No gain: the texture's color is the layer's color."""

    kind: ClassVar[str] = "none"


def require_valid(holds: bool, message: str) -> None:
    """Raises `ValueError` for settings that cannot be meant; the loader puts the dotted path before the message."""
    if not holds:
        raise ValueError(message)
