"""The kinds of mappings that a config can name."""

from __future__ import annotations

from neural_fields.planar.mappings.grid import GridMappingConfig
from neural_fields.planar.mappings.hash_deformation import HashMappingConfig
from neural_fields.planar.mappings.homography_mlp import HomographyMlpMappingConfig
from neural_fields.planar.mappings.mlp import MlpMappingConfig
from neural_fields.planar.mappings.spline import SplineMappingConfig

MappingKind = (
    GridMappingConfig | SplineMappingConfig | MlpMappingConfig | HashMappingConfig | HomographyMlpMappingConfig
)
