"""How edits lie: in time, in the mixture and in the stack, and that every change of it can be taken back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editors.core import history, stack
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.read_stack import list_edits
from neural_fields.open_runs.base import OpenRun
from neural_fields.runs.run import Run

BOX = Box(-1.0, -0.5, 1.0, 0.5)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run")
    for name in ("a", "b", "c"):
        stack.add_edit(run, name, {"foreground": Overlay(np.ones((4, 8, 4), np.float32), BOX)})
    return run


def order(run: Run) -> list[str]:
    return [edit.name for edit in OpenRun(run, {}).active_edits()]


@given(
    start=st.none() | st.integers(0, 50),
    length=st.none() | st.integers(0, 50),
    fades=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    frame=st.integers(0, 120),
)
def test_an_edit_shows_between_its_frames_and_nowhere_else(
    start: int | None, length: int | None, fades: tuple[int, int], frame: int
) -> None:
    end = None if length is None else (start or 0) + length
    fade_in, fade_out = fades[0] if start is not None else 0, fades[1] if end is not None else 0
    lies = Arrangement(start=start, end=end, fade_in=fade_in, fade_out=fade_out)
    strength = lies.strength_at(frame)
    outside = (start is not None and frame < start) or (end is not None and frame > end)
    assert (strength == 0) == outside
    assert 0 <= strength <= 1


def test_a_fade_of_three_frames_rises_by_quarters_and_falls_alike() -> None:
    lies = Arrangement(start=10, end=19, fade_in=3, fade_out=3)
    rising = [lies.strength_at(frame) for frame in range(9, 15)]
    assert rising == [0, 0.25, 0.5, 0.75, 1, 1]
    assert rising == [lies.strength_at(frame) for frame in reversed(range(15, 21))]


@pytest.mark.parametrize(
    "values",
    [
        {"opacity": 1.5},
        {"opacity": float("nan")},
        {"opacity": True},
        {"blend": "dissolve"},
        {"start": -1},
        {"start": 5, "end": 4},
        {"start": 1.5},
        {"fade_in": 3},
        {"end": 5, "fade_in": 3},
        {"start": 2, "fade_in": "3"},
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(run: Run, values: dict[str, Any]) -> None:
    before = (run.edits / "journal.jsonl").read_bytes()
    with pytest.raises(UserError) as caught:
        history.arrange_edit(run, "b", values)
    assert caught.value.code == ExitCode.BAD_INPUT
    assert (run.edits / "journal.jsonl").read_bytes() == before


def test_a_change_holds_and_is_taken_back_and_brought_back(run: Run) -> None:
    history.arrange_edit(run, "b", {"opacity": 0.5, "blend": "multiply"})
    history.arrange_edit(run, "b", {"start": 3, "fade_in": 2})
    wanted = Arrangement(0.5, "multiply", start=3, fade_in=2)
    assert OpenRun(run, {}).active_edits(["b"])[0].arrangement == wanted
    assert history.undo(run).operation == "set"
    assert OpenRun(run, {}).active_edits(["b"])[0].arrangement == Arrangement(0.5, "multiply")
    assert order(run) == ["a", "b", "c"]
    history.redo(run)
    assert OpenRun(run, {}).active_edits(["b"])[0].arrangement == wanted
    history.arrange_edit(run, "b", {"start": None, "fade_in": 0})
    assert OpenRun(run, {}).active_edits(["b"])[0].arrangement == Arrangement(0.5, "multiply")


def test_an_edit_moves_in_the_stack_and_back(run: Run) -> None:
    for move, wanted in [
        (("bottom", ""), ["c", "a", "b"]),
        (("above", "a"), ["a", "c", "b"]),
        (("top", ""), ["a", "b", "c"]),
        (("below", "1"), ["c", "a", "b"]),
    ]:
        history.arrange_edit(run, "c", {}, move)
        assert order(run) == wanted
    for wanted in (["a", "b", "c"], ["a", "c", "b"], ["c", "a", "b"], ["a", "b", "c"]):
        history.undo(run)
        assert order(run) == wanted
    assert history.undo(run).operation == "add"
    assert order(run) == ["a", "b"]


def test_a_place_in_the_stack_that_there_is_not_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="cannot move 'under'") as caught:
        history.arrange_edit(run, "a", {}, ("under", "b"))
    assert caught.value.code == ExitCode.BAD_INPUT and "below" in caught.value.why
    assert order(run) == ["a", "b", "c"]


def test_what_is_undone_cannot_be_arranged_and_nothing_is_no_change(run: Run) -> None:
    with pytest.raises(UserError, match="nothing to change"):
        history.arrange_edit(run, "a", {})
    with pytest.raises(UserError, match="cannot be above itself"):
        history.arrange_edit(run, "a", {}, ("above", "a"))
    history.undo(run)
    with pytest.raises(UserError, match="is undone"):
        history.arrange_edit(run, "c", {"opacity": 0.5})
    with pytest.raises(UserError, match="no edit 'z'"):
        history.arrange_edit(run, "z", {"opacity": 0.5})


def test_the_folder_of_an_edit_is_never_changed_by_arranging_it(run: Run) -> None:
    folder = OpenRun(run, {}).active_edits(["a"])[0].folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    history.arrange_edit(run, "a", {"opacity": 0.2}, ("top", ""))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_edit_keeps_the_arrangement_that_it_was_added_with(run: Run) -> None:
    overlay = {"foreground": Overlay(np.ones((4, 8, 4), np.float32), BOX)}
    timed = stack.add_edit(run, "e", overlay, arrangement=Arrangement(start=3))
    assert json.loads((timed.folder / "edit.json").read_text())["arrangement"] == {"start": 3}
    assert timed.arrangement == Arrangement(start=3)


@pytest.mark.parametrize(
    "line",
    [
        b'{"operation": "set", "edit": "0001-a", "values": {"opacity": 7}}',
        b'{"operation": "set", "edit": "0001-a", "values": {"blend": "x"}}',
        b'{"operation": "set", "edit": "0001-a", "move": ["up", ""]}',
        b'{"operation": "set", "edit": "0001-a", "values": 5}',
        b'{"operation": "burn", "edit": "0001-a"}',
        b'{"operation": "set", "edit": "0001-a", "valves": {}}',
        b"[" * 20_000,
    ],
)
def test_a_journal_that_says_what_cannot_be_is_reported(run: Run, line: bytes) -> None:
    path = run.edits / "journal.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError) as caught:
        list_edits(run)
    assert caught.value.code == ExitCode.DAMAGED_RUN
