"""Writes the JSON schemas in this folder: `.venv/bin/python docs/schemas/make.py`.

They are made from the dataclasses that the program reads the files into; a test compares them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from neural_fields.atlas.canonical import CanonicalSidecar  # noqa: E402
from neural_fields.config.json_schema import build_json_schema  # noqa: E402
from neural_fields.config.presets import VOLUME_KIND  # noqa: E402
from neural_fields.edits.record import EditRecord  # noqa: E402
from neural_fields.planar.config import PlanarConfig  # noqa: E402
from neural_fields.volume.config import VolumeConfig  # noqa: E402


def build_schemas() -> dict[str, dict[str, Any]]:
    """Builds all schemas, by the names of their files."""
    return {
        "planar.json": build_json_schema(PlanarConfig, "A config of a planar model: a preset, or a file for --config"),
        "volume.json": build_json_schema(
            VolumeConfig, "A config of a 3D scene: a preset, or a file for --config", {"kind": VOLUME_KIND}
        ),
        "edit.json": build_json_schema(EditRecord, "edit.json in the folder of an edit"),
        "canonical.json": build_json_schema(CanonicalSidecar, "canonical/<layer>.json of a run"),
    }


def format_schema(schema: dict[str, Any]) -> str:
    """Returns the text of the file that holds a schema."""
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for name, schema in build_schemas().items():
        (HERE / name).write_text(format_schema(schema), encoding="utf-8")
