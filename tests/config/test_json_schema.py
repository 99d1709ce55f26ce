"""The JSON schemas in docs/schemas: up to date, and true of what the program ships, writes and refuses."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from jsonschema import Draft7Validator

from editors.core.stack import EditEffects, add_edit
from neural_fields.atlas.canonical import CanonicalImage, Overlay, export_canonical
from neural_fields.config.json_schema import build_json_schema, describe_fields
from neural_fields.config.plain_yaml import load_yaml
from neural_fields.core.box import Box
from neural_fields.imaging.grade import Grade
from neural_fields.runs.run import Run

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "docs" / "schemas"
BOX = Box(-1.0, -0.5, 1.0, 0.5)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_schemas", SCHEMAS / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    Draft7Validator.check_schema(schema)
    return schema


def find_errors(schema: dict[str, Any], value: Any) -> list[str]:
    return [error.message for error in Draft7Validator(schema).iter_errors(value)]


def test_the_files_are_what_the_script_writes(maker: ModuleType) -> None:
    built = maker.build_schemas()
    assert sorted(built) == sorted(path.name for path in SCHEMAS.glob("*.json"))
    for name, schema in built.items():
        text = (SCHEMAS / name).read_text(encoding="utf-8")
        assert text == maker.format_schema(schema), f"run docs/schemas/make.py: {name} is out of date"


@pytest.mark.parametrize("preset", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_preset_is_valid_and_a_misspelled_one_is_not(preset: Path) -> None:
    values = load_yaml(preset)
    schema = read_schema("volume.json" if values.get("kind") == "volume" else "planar.json")
    assert find_errors(schema, values) == []
    assert find_errors(schema, values | {"trainin": {}})
    assert find_errors(schema, values | {"training": {"checkpoint_every": "often"}})


def test_a_kind_that_is_left_out_is_the_one_of_the_default_and_others_are_named() -> None:
    schema = read_schema("planar.json")
    assert not find_errors(schema, {"mapping": {"cell": 4}})
    assert find_errors(schema, {"mapping": {"warm_up": 4}})
    assert not find_errors(schema, {"mapping": {"kind": "mlp", "warm_up": 4}})
    assert find_errors(schema, {"mapping": {"kind": "mlp", "cell": 4}})


def test_every_setting_of_the_losses_is_explained() -> None:
    terms = read_schema("planar.json")["definitions"]["LossWeights"]["properties"]
    assert [name for name, schema in terms.items() if "description" not in schema] == []
    assert terms["color"]["default"] == 0.0 and terms["color"]["type"] == "number"


def test_what_an_edit_writes_is_valid(tmp_path: Path) -> None:
    paint = Overlay(np.ones((4, 8, 4), np.float32), BOX)
    effects = EditEffects(grades={"background": Grade(hue=9.0)}, masks={"background": paint}, hidden=("foreground",))
    edit = add_edit(Run.create(tmp_path / "run"), "all", {"background": paint}, effects=effects)
    written = json.loads((edit.folder / "edit.json").read_text())
    assert find_errors(read_schema("edit.json"), written) == []
    assert find_errors(read_schema("edit.json"), written | {"schema": 2})
    written["overlays"]["background"]["box"].pop()
    assert find_errors(read_schema("edit.json"), written)


def test_what_the_export_of_a_canonical_picture_writes_is_valid(tmp_path: Path) -> None:
    image = CanonicalImage(np.ones((2, 3, 4), np.float32), BOX, "background")
    for number, seen in enumerate((None, np.ones((2, 3), np.int64))):
        export_canonical(tmp_path / str(number), image, seen)
        written = json.loads((tmp_path / str(number) / "background.json").read_text())
        assert find_errors(read_schema("canonical.json"), written) == []


@dataclass(frozen=True)
class Base:
    """A base.

    Attributes:
        first, second: from the section,
            over two lines.
        unknown: names no field, which harms nothing.
    """

    first: int
    second: int = 2


@dataclass(frozen=True)
class Explained(Base):
    """Shows the ways to explain a field."""

    kind: ClassVar[str] = "explained"
    third: Literal["a", "b"] = "a"  # behind it
    # before it
    fourth: tuple[float, ...] = field(default_factory=tuple)
    fifth: int | None = None
    """Below it,
    over two lines."""
    sixth: str = ""


def test_fields_are_explained_by_comments_docstrings_and_sections() -> None:
    assert describe_fields(Explained) == {
        "first": "from the section, over two lines.",
        "second": "from the section, over two lines.",
        "third": "behind it",
        "fourth": "before it",
        "fifth": "Below it, over two lines.",
    }


def test_a_schema_has_types_defaults_and_required_keys() -> None:
    schema = build_json_schema(Explained, "A title", {"paper": "x"})
    assert schema["title"] == "A title" and schema["required"] == ["paper", "first"]
    assert schema["properties"]["third"] == {"enum": ["a", "b"], "default": "a", "description": "behind it"}
    assert schema["properties"]["fifth"]["type"] == ["integer", "null"]
    assert find_errors(schema, {"paper": "x", "first": 1, "kind": "explained", "fourth": [1, 2.5]}) == []
    for wrong in ({"kind": "other"}, {"fourth": ["x"]}, {"third": "c"}, {"sixth": None}, {"seventh": 1}):
        assert find_errors(schema, {"paper": "x", "first": 1} | wrong)
