"""The config of a planar training in run.yaml: what its model is built from. Rendering an edit does not read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neural_fields.config.loader import from_mapping
from neural_fields.core.errors import UserError
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.record import damaged_record_error
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class RecordedConfig:
    """Holds the key `config` of run.yaml."""

    config: PlanarConfig


def parse_recorded_config(run: Run, values: Mapping[str, Any]) -> PlanarConfig:
    """Parses the config that run.yaml holds.

    Args:
        run: whose run.yaml it is; errors name it.
        values: of run.yaml.

    Raises:
        UserError: it is not what `unwrap train` writes (exit 5).
    """
    try:
        return from_mapping(RecordedConfig, {key: values[key] for key in values if key == "config"}).config
    except UserError as error:
        raise damaged_record_error(run, error) from error
