"""The kinds of textures, opacities and gains that a config can name."""

from __future__ import annotations

from neural_fields.planar.appearance.bounded_hash_texture import BoundedHashTextureConfig
from neural_fields.planar.appearance.gain import NoGainConfig
from neural_fields.planar.appearance.grid_gain import GridGainConfig
from neural_fields.planar.appearance.hash_gain import HashGainConfig
from neural_fields.planar.appearance.hash_opacity import HashOpacityConfig
from neural_fields.planar.appearance.hash_texture import HashTextureConfig
from neural_fields.planar.appearance.image_texture import ImageTextureConfig
from neural_fields.planar.appearance.mask_opacity import MaskOpacityConfig
from neural_fields.planar.appearance.mlp_opacity import MlpOpacityConfig
from neural_fields.planar.appearance.mlp_texture import MlpTextureConfig
from neural_fields.planar.appearance.pixel_opacity import PixelOpacityConfig
from neural_fields.planar.appearance.siren_texture import SirenTextureConfig
from neural_fields.planar.appearance.window_opacity import WindowOpacityConfig

TextureKind = ImageTextureConfig | MlpTextureConfig | HashTextureConfig | BoundedHashTextureConfig | SirenTextureConfig
OpacityKind = PixelOpacityConfig | MlpOpacityConfig | MaskOpacityConfig | HashOpacityConfig | WindowOpacityConfig
GainKind = GridGainConfig | HashGainConfig | NoGainConfig
