"""The edit stack only grows, survives a crash at any point, and gives back exactly what was put in."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editors.core import history, stack
from neural_fields.atlas.canonical import Overlay, resample_overlay
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.edits import payloads, read_stack
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.record import EditOrigin, SourceFile, clean_name
from neural_fields.open_runs.base import OpenRun
from neural_fields.runs.run import Run

BOX = Box(-1.0, -0.5, 1.0, 0.5)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run")


def patch(
    color: tuple[float, float, float, float], rows: slice = slice(None), size: tuple[int, int] = (8, 4)
) -> Overlay:
    rgba = np.zeros((size[1], size[0], 4), np.float32)
    rgba[rows] = color
    return Overlay(rgba, BOX)


def add(run: Run, name: str) -> read_stack.Edit:
    return stack.add_edit(run, name, {"foreground": patch((1, 0, 0, 1))}, EditOrigin(editor="image"))


def states(run: Run) -> list[tuple[str, bool, bool]]:
    return [(edit.name, edit.active, edit.redoable) for edit in read_stack.list_edits(run)]


def test_an_edit_is_a_folder_with_its_facts_and_a_16_bit_overlay(run: Run) -> None:
    rgba = np.random.default_rng(0).random((4, 8, 4), dtype=np.float32)
    origin = EditOrigin(editor="image", sources=(SourceFile(file="p.png"),))
    edit = stack.add_edit(run, "My Logo!", {"foreground": Overlay(rgba, BOX, ("note",))}, origin)
    assert edit.folder == run.edits / "0001-my-logo" and edit.layers == ("foreground",)
    written = json.loads((edit.folder / "edit.json").read_text())
    assert written["origin"] == {"editor": "image", "sources": [{"file": "p.png"}]}
    assert written["overlays"]["foreground"]["notes"] == ["note"]
    back = payloads.read_paint(edit, "foreground")
    assert back.box == BOX
    np.testing.assert_allclose(back.rgba, rgba, atol=0.6 / 65535)


def test_undo_and_redo_walk_the_stack_and_nothing_is_deleted(run: Run) -> None:
    for name in ("a", "b", "c"):
        add(run, name)
    assert [history.undo(run).edit.name, history.undo(run).edit.name] == ["c", "b"]
    assert states(run) == [("a", True, False), ("b", False, True), ("c", False, True)]
    assert history.redo(run).edit.name == "b"
    add(run, "d")
    assert states(run) == [("a", True, False), ("b", True, False), ("c", False, False), ("d", True, False)]
    with pytest.raises(UserError, match="bring back"):
        history.redo(run)
    assert [path.name for path in sorted(run.edits.glob("0*"))] == ["0001-a", "0002-b", "0003-c", "0004-d"]


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["add", "undo", "redo"]), max_size=8))
def test_the_stack_equals_a_list_with_a_redo_list(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    run = Run.create(tmp_path_factory.mktemp("stack") / "run")
    active: list[int] = []
    undone: list[int] = []
    count = 0
    for step in steps:
        if step == "add":
            count += 1
            add(run, f"e{count}")
            active, undone = [*active, count], []
        elif step == "undo" and active:
            undone.append(active.pop())
            history.undo(run)
        elif step == "redo" and undone:
            active.append(undone.pop())
            history.redo(run)
        else:
            with pytest.raises(UserError):
                history.undo(run) if step == "undo" else history.redo(run)
    assert [edit.number for edit in OpenRun(run, {}).active_edits()] == active
    assert {edit.number for edit in read_stack.list_edits(run) if edit.redoable} == set(undone)


def test_a_later_edit_lies_over_an_earlier_one_and_opacity_scales_it(run: Run) -> None:
    stack.add_edit(run, "red", {"foreground": patch((1, 0, 0, 1))})
    stack.add_edit(run, "blue", {"foreground": patch((0, 0, 1, 1), slice(2, 4))}, arrangement=Arrangement(opacity=0.25))
    flat = payloads.flatten_overlays(OpenRun(run, {}).active_edits(), "foreground")
    assert flat is not None
    np.testing.assert_allclose(flat.rgba[0, 0], [1, 0, 0, 1], atol=1e-4)
    np.testing.assert_allclose(flat.rgba[3, 0], [0.75, 0, 0.25, 1], atol=1e-4)
    assert payloads.flatten_overlays(OpenRun(run, {}).active_edits(), "background") is None


def test_flatten_moves_an_overlay_to_another_box_and_size(run: Run) -> None:
    stack.add_edit(run, "red", {"foreground": patch((1, 0, 0, 1), slice(0, 2))})
    flat = payloads.flatten_overlays(OpenRun(run, {}).active_edits(), "foreground", (16, 16), Box(-1.0, -1.0, 1.0, 1.0))
    assert flat is not None
    alpha = flat.rgba[:, 8, 3]
    assert alpha[5:7].min() > 0.99 and alpha[:3].max() == 0 and alpha[9:].max() == 0
    np.testing.assert_allclose(flat.rgba[6, 8, :3], [1, 0, 0], atol=1e-4)


def test_names_choose_edits_even_undone_ones_and_an_unknown_name_lists_them(run: Run) -> None:
    add(run, "a")
    add(run, "b")
    history.undo(run)
    assert [edit.name for edit in OpenRun(run, {}).active_edits(["b", "1", "0001-a"])] == ["a", "b"]
    with pytest.raises(UserError) as caught:
        OpenRun(run, {}).active_edits(["logo"])
    assert caught.value.code == ExitCode.BAD_INPUT and "0001-a, 0002-b" in caught.value.why


def test_a_crash_between_folder_and_journal_keeps_the_edit_and_a_torn_line_is_ignored(run: Run) -> None:
    add(run, "a")
    add(run, "b")
    journal = run.edits / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][:9])
    assert [edit.name for edit in OpenRun(run, {}).active_edits()] == ["a", "b"]
    history.undo(run)
    assert [edit.name for edit in OpenRun(run, {}).active_edits()] == ["a"]
    assert journal.read_bytes().startswith(lines[0])


def test_a_failed_add_leaves_nothing_behind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    add(run, "a")

    def fail(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stack, "encode_png", fail)
    with pytest.raises(UserError) as caught:
        add(run, "b")
    assert caught.value.code == ExitCode.NO_ROOM
    assert sorted(path.name for path in run.edits.iterdir()) == ["0001-a", "journal.jsonl"]


@pytest.mark.parametrize("harm", ["no json", "bad json", "escape", "no overlay", "bit", "journal"])
def test_damage_is_reported_by_name(run: Run, harm: str) -> None:
    edit = add(run, "a")
    add(run, "b")
    record, overlay, journal = edit.folder / "edit.json", edit.folder / "foreground.png", run.edits / "journal.jsonl"
    if harm == "no json":
        record.unlink()
    elif harm == "bad json":
        record.write_text("{")
    elif harm == "escape":
        record.write_text(record.read_text().replace('"foreground.png"', '"../../secret.png"'))
    elif harm == "no overlay":
        overlay.unlink()
    elif harm == "bit":
        data = bytearray(overlay.read_bytes())
        data[len(data) // 2] ^= 4
        overlay.write_bytes(data)
    else:
        journal.write_text("nonsense\n" + journal.read_text())
    with pytest.raises(UserError) as caught:
        for found in read_stack.list_edits(run):
            payloads.read_paint(found, "foreground")
    assert caught.value.code == ExitCode.DAMAGED_RUN
    assert ("journal.jsonl" if harm == "journal" else "0001-a") in str(caught.value)


@given(st.text(max_size=60))
def test_any_name_becomes_a_safe_folder_name(name: str) -> None:
    clean = clean_name(name)
    assert clean and len(clean) <= 40 and len(clean.encode()) <= 120
    assert all(sign == "-" or unicodedata.category(sign)[0] in "LMN" for sign in clean)
    assert clean_name(clean) == clean and read_stack.parse_folder_name(f"0001-{clean}") == (1, clean)


def test_a_fine_overlay_on_a_part_is_averaged_not_skipped_through_when_it_is_fitted_to_the_whole() -> None:
    checks = np.zeros((80, 160, 4), np.float32)
    checks[..., 3] = 1
    checks[(np.indices((80, 160)).sum(0) % 2) > 0, :3] = 1
    shown = resample_overlay(Overlay(checks, Box(-0.5, -0.25, 0.5, 0.25)), (32, 16), BOX)
    np.testing.assert_allclose(shown[6:10, 12:20, :3], 0.5, atol=0.02)
