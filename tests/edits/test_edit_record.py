"""edit.json: what is written comes back, and whatever is wrong in it is an error that names the folder and the key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editors.core import stack
from editors.core.stack import EditEffects
from neural_fields.atlas.canonical import Overlay
from neural_fields.config.loader import from_mapping, to_mapping
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.read_stack import Edit, list_edits
from neural_fields.edits.record import EditOrigin, EditRecord, RemovalRecord, SourceFile
from neural_fields.edits.shape import Deformation
from neural_fields.imaging.blend_names import BLEND_MODES
from neural_fields.imaging.grade import Grade
from neural_fields.runs.run import Run

BOX = Box(-1.0, -0.5, 1.0, 0.5)


def add_rich_edit(run: Run) -> Edit:
    """Adds an edit with one of each kind of change but the animated one, which takes a video."""
    paint = Overlay(np.full((4, 8, 4), 0.5, np.float32), BOX, ("a note",))
    return stack.add_edit(
        run,
        "rich",
        {"back ground": paint},
        EditOrigin(
            editor="test",
            sources=(SourceFile(file="p.png", sha256="0" * 64),),
            settings={"steps": 3, "mask": None},
            details={"points": [[1.0, 2.0]]},
        ),
        shapes={"foreground": Deformation(np.zeros((2, 3, 4), np.float32), BOX)},
        effects=EditEffects(
            grades={"back ground": Grade(exposure=0.5, curve=((0.0, 0.1), (1.0, 0.9)))},
            masks={"back ground": paint},
            hidden=("foreground",),
            grow=2.0,
            lit=False,
        ),
        arrangement=Arrangement(0.5, "multiply", start=2, fade_in=1),
    )


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> Edit:
    return add_rich_edit(Run.create(tmp_path_factory.mktemp("record") / "run"))


# Records as they are in files: building them inside of a strategy would check their types there, at random.
numbers = st.floats(-100, 100)
boxes = st.lists(numbers, min_size=4, max_size=4)
words = st.text(max_size=8)
texts = st.lists(words, max_size=2)
files = {"file": st.sampled_from(["a.png", "b c.png"]), "sha256": words}
sized = files | {"size": st.lists(st.integers(1, 9999), min_size=2, max_size=2)}
overlays = st.fixed_dictionaries({**sized, "box": boxes, "notes": texts})
placed = st.fixed_dictionaries(
    {
        **sized,
        "maps": st.fixed_dictionaries(files),
        "boxes": st.lists(boxes, min_size=1, max_size=3),
        "notes": texts,
    }
)
spans = st.none() | st.lists(st.integers(0, 99), min_size=2, max_size=2)
shapes = st.fixed_dictionaries({**sized, "box": boxes, "span": spans})
animations = st.fixed_dictionaries(
    {**sized, "box": st.none() | boxes, "count": st.integers(1, 99), "notes": texts},
)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
curves = st.sampled_from([[], [[0.0, 0.0], [0.5, 0.7], [1.0, 1.0]]])
grades = st.fixed_dictionaries(
    {
        "exposure": st.floats(-10, 10),
        **dict.fromkeys(("curve", "curve_red", "curve_green", "curve_blue"), curves),
        "hue": st.floats(-360, 360),
        "saturation": st.floats(0, 10),
        "blur": st.floats(0, 0.1),
        "sharpen": st.floats(0, 10),
        "radius": st.floats(1e-4, 0.1),
    }
)
arrangements = st.fixed_dictionaries(
    {
        "opacity": st.floats(0, 1),
        "blend": st.sampled_from(BLEND_MODES),
        "start": st.integers(0, 9),
        "end": st.integers(9, 99),
        "fade_in": st.integers(0, 5),
        "fade_out": st.integers(0, 5),
    }
)
sources = st.fixed_dictionaries({"file": words, "sha256": st.none() | words})
records = st.fixed_dictionaries(
    {
        "schema": st.just(1),
        "name": words,
        "arrangement": arrangements,
        "overlays": st.dictionaries(words, overlays, max_size=2),
        "frames": st.just({}),
        "placed": st.just({}) | st.fixed_dictionaries({"other layer": placed}),
        "shapes": st.dictionaries(words, shapes, max_size=2),
        "carried_shapes": st.dictionaries(words, st.lists(shapes, max_size=2), max_size=2),
        "animated": st.dictionaries(words, animations, max_size=2),
        "grades": st.dictionaries(
            words, st.fixed_dictionaries({"grade": grades, "mask": st.none() | overlays}), max_size=1
        ),
        "removal": st.fixed_dictionaries(
            {"layers": st.lists(words, min_size=1, max_size=2), "grow": st.floats(0, 9), "grain": st.booleans()},
        ),
        "weights": st.none() | st.fixed_dictionaries({**files, "parts": texts}),
        "lit": st.booleans(),
        "origin": st.fixed_dictionaries(
            {
                "editor": st.none() | words,
                "sources": st.lists(sources, max_size=2),
                "frames": st.lists(st.integers(0, 99), max_size=3),
                "settings": st.dictionaries(words, plain_values, max_size=2),
                "notes": texts,
                "details": st.dictionaries(words, plain_values, max_size=2),
            }
        ),
    }
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(records)
def test_a_record_that_is_read_is_written_as_it_was_and_read_again(written: dict[str, Any]) -> None:
    record = from_mapping(EditRecord, written)
    assert to_mapping(record) == written
    short = json.loads(json.dumps(to_mapping(record, without_defaults=True)))
    assert from_mapping(EditRecord, short) == record


def test_the_record_says_what_the_edit_does(edit: Edit) -> None:
    record = edit.record
    assert edit.layers == ("back ground", "foreground")
    assert record.grades["back ground"].grade == Grade(exposure=0.5, curve=((0.0, 0.1), (1.0, 0.9)))
    assert record.removal == RemovalRecord(layers=("foreground",), grow=2.0)
    assert record.arrangement == edit.arrangement == Arrangement(0.5, "multiply", start=2, fade_in=1)
    assert not record.lit and record.overlays["back ground"].box == BOX
    assert [file.file for file in record.files] == ["layer0.png", "foreground.safetensors", "layer0-mask.png"]
    assert record.origin.settings == {"steps": 3, "mask": None} and record.origin.details == {"points": [[1.0, 2.0]]}


@pytest.mark.parametrize(
    ("keys", "value", "why"),
    [
        ((), [], "edit.json: expected a group of keys, got []"),
        (("schema",), 2, "edit.json: schema: expected one of [1], got 2"),
        (("schema",), True, "edit.json: schema: expected one of [1], got true"),
        (("overlay",), {}, "edit.json: overlay: unknown key; did you mean 'overlays'?"),
        (("overlays", "back ground", "sha25"), "x", "sha25: unknown key; did you mean 'sha256'?"),
        (("overlays", "back ground", "sha256"), 5, "overlays.back ground.sha256: expected text, got 5"),
        (("overlays", "back ground", "box"), [0, 0, 1], "overlays.back ground.box: expected 4 items, got 3"),
        (("overlays", "back ground", "box", 2), None, "overlays.back ground.box.u1: expected a finite number"),
        (("overlays", "back ground", "size", 0), 0, "overlays.back ground: size is 0x4"),
        (("shapes", "foreground", "file"), "../x", "shapes.foreground: file is '../x', which is not the name of a"),
        (("shapes", "foreground", "file"), "x" * 5000, "is missing"),
        (("shapes", "foreground", "file"), "a\0b", "is missing"),
        (("shapes", "foreground", "file"), "\ud800", "is missing"),
        (("grades", "back ground", "grade", "hue"), 400, "grades.back ground.grade: hue is 400; it is -360 to 360"),
        (("grades", "back ground", "grade", "curve", 1), 5, "grade.curve[1]: expected a list of 2 items, got 5"),
        (("arrangement", "blend"), "multiplied", "did you mean 'multiply'?"),
        (("arrangement", "opacity"), 2, "arrangement: opacity is 2.0; it is 0 to 1"),
        (("removal", "layers"), [], "removal: layers is empty"),
        (("removal", "grow"), -1, "removal: grow is -1.0"),
        (("lit",), "no", "lit: expected true or false, got 'no'"),
        (("origin", "frames"), [1.5], "origin.frames[0]: expected a whole number, got 1.5"),
        (("origin", "settings"), None, "origin.settings: expected a group of keys, got null"),
    ],
)
def test_what_is_wrong_is_named_with_folder_and_key(
    tmp_path: Path, keys: tuple[Any, ...], value: Any, why: str
) -> None:
    run = Run.create(tmp_path / "run")
    path = add_rich_edit(run).folder / "edit.json"
    changed = json.loads(path.read_text())
    if keys:
        place = changed
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
    else:
        changed = value
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError) as caught:
        list_edits(run)
    assert caught.value.code == ExitCode.DAMAGED_RUN
    assert caught.value.what == "the edit 0001-rich is damaged" and caught.value.where == str(path.parent)
    assert why in caught.value.why


def test_an_edit_without_a_change_is_damaged(edit: Edit) -> None:
    with pytest.raises(UserError, match="it changes no layer"):
        from_mapping(EditRecord, {"schema": 1, "name": "nothing"})
    with pytest.raises(UserError, match="schema: missing"):
        from_mapping(EditRecord, {"name": "nothing"})


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


harms = plain_values | st.sampled_from([1e999, -1, 2**80, "../../x", "", ".", "x" * 300, [[]] * 4, {"file": "x"}])


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_change_of_an_edit_json_is_more_than_a_damaged_edit(edit: Edit, data: st.DataObject) -> None:
    path = edit.folder / "edit.json"
    before = path.read_bytes()
    try:
        if data.draw(st.booleans(), "of its values"):
            changed = deepcopy(json.loads(before))
            for _ in range(data.draw(st.integers(1, 2))):
                found = list(places(changed))
                container, key = found[data.draw(st.integers(0, len(found) - 1))]
                kind = data.draw(st.sampled_from(["replace", "remove", "rename"]))
                if kind == "replace":
                    container[key] = data.draw(harms)
                elif kind == "rename" and isinstance(container, dict):
                    container[data.draw(words)] = container.pop(key)
                else:
                    del container[key]
                if not changed:
                    break
            path.write_text(json.dumps(changed))
        else:
            start = data.draw(st.integers(0, len(before)))
            end = data.draw(st.integers(start, min(len(before), start + 20)))
            path.write_bytes(before[:start] + data.draw(st.binary(max_size=8)) + before[end:])
        try:
            (found_edit,) = list_edits(Run(edit.folder.parent.parent))
            assert found_edit.record.schema == 1
        except UserError as error:
            assert error.code == ExitCode.DAMAGED_RUN
            assert error.where == str(edit.folder) and error.why
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}', "NaN", "\x00", ""]
)
def test_texts_that_are_hardly_json_are_a_damaged_edit(edit: Edit, text: str) -> None:
    path = edit.folder / "edit.json"
    before = path.read_bytes()
    try:
        path.write_text(text)
        with pytest.raises(UserError) as caught:
            list_edits(Run(edit.folder.parent.parent))
    finally:
        path.write_bytes(before)
    assert caught.value.code == ExitCode.DAMAGED_RUN and caught.value.where == str(edit.folder)
