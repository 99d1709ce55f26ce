"""An open run: what is read and how often, the errors of damaged runs, and what scripts ask it for."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import editors.api
import editors.core.adding
from editors.cli.main import main
from editors.core.history import undo
from editors.core.stack import add_edit
from neural_fields import open_run as public_open_run
from neural_fields.api import render
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.uv_extrapolation import DEFAULTS as EXTRAPOLATION
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.edits.record import EditOrigin
from neural_fields.export.base import export_run
from neural_fields.export.maps.stmap import STMapExporter
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures.canonical import CanonicalExporter
from neural_fields.open_runs.opening import open_run, require_planar, require_scene
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.options import RenderOptions
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

# --- what is read, and how often ------------------------------------------------------------------------------------

_counting: Counter[str] | None = None


def _count_opened(event: str, values: tuple[Any, ...]) -> None:
    """Counts the files that are opened to be read: every way to open one ends here."""
    if _counting is None or event != "open" or not isinstance(values[0], str | os.PathLike):
        return
    if values[2] & (os.O_WRONLY | os.O_RDWR) == 0:
        path = Path(os.fspath(values[0]))
        _counting[f"{path.parent.name}/{path.name}" if path.name == "edit.json" else path.name] += 1


sys.addaudithook(_count_opened)


@contextmanager
def counted_reads() -> Iterator[Counter[str]]:
    """Counts by name how often files are opened to be read; an edit.json with the name of its folder."""
    global _counting
    found: Counter[str] = Counter()
    _counting = found
    try:
        yield found
    finally:
        _counting = None


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    """A copy of the exact run with two edits, of which one is undone."""
    shutil.copytree(true_run.run.path, tmp_path / "run")
    files = Run(tmp_path / "run")
    for name in ("logo", "sign"):
        overlay = Overlay(np.full((8, 8, 4), 0.5, np.float32), Box(-0.3, -0.3, 0.3, 0.3))
        add_edit(files, name, {"background": overlay}, EditOrigin(editor="image"))
    undo(files)
    return files


ONCE = ("run.yaml", "source.json", "maps.json", "journal.jsonl", "0001-logo/edit.json", "0002-sign/edit.json")


def test_a_render_reads_run_yaml_and_the_stack_of_edits_once(run: Run, tmp_path: Path) -> None:
    with counted_reads() as reads:
        (video,) = render(run.path, RenderOptions(out=tmp_path / "edited.mkv", codec="ffv1"))
    assert video.is_file()
    assert {name: reads[name] for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert reads["foreground.json"] == reads["background.json"] == 1


@pytest.mark.parametrize("exporter", [CanonicalExporter(format="ora"), STMapExporter(every=6)])
def test_an_export_reads_run_yaml_and_the_stack_of_edits_once(run: Run, exporter: Any, tmp_path: Path) -> None:
    with counted_reads() as reads:
        export_run(run.path, exporter, ExportOptions(out=tmp_path / "out"))
    assert {name: reads[name] for name in ONCE} == dict.fromkeys(ONCE, 1)


def test_an_editor_reads_run_yaml_and_the_stack_of_edits_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before: dict[str, int] = {}

    def add_and_look(*given: Any) -> Any:
        before.update(reads)
        return add_edit(*given)

    monkeypatch.setattr(editors.core.adding, "add_edit", add_and_look)
    with counted_reads() as reads:
        made = editors.api.edit(run.path, editor=lambda picture: 1 - picture, layer="foreground").edit
    read = [name for name in ONCE if name not in ("source.json",)]
    assert {name: before[name] for name in read} == dict.fromkeys(read, 1)
    # Written, it reads what is its own, and the end of the journal.
    assert made.active and reads[f"{made.folder.name}/edit.json"] == 1
    assert {name: reads[name] for name in read if name != "journal.jsonl"} == {
        name: 1 for name in read if name != "journal.jsonl"
    }


@pytest.mark.parametrize("words", [["--editor", "adjust", "--exposure", "1"], ["PICTURE", "--layer", "foreground"]])
def test_a_command_that_edits_reads_run_yaml_once(run: Run, words: list[str], tmp_path: Path) -> None:
    painted = np.asarray(Image.open(run.canonical / "foreground.png").convert("RGB")).copy()
    painted[: len(painted) // 2] = (220, 30, 40)
    Image.fromarray(painted).save(tmp_path / "painted.png")
    words = [str(tmp_path / "painted.png") if word == "PICTURE" else word for word in words]
    with counted_reads() as reads:
        assert main(["edit", str(run.path), *words]) == ExitCode.OK
    assert reads["run.yaml"] == 1 and max(reads[name] for name in ("source.json", "maps.json")) <= 1


def test_everything_in_an_open_run_is_read_when_it_is_first_asked_for_and_then_kept(run: Run) -> None:
    with counted_reads() as reads:
        opened = require_planar(run.path, "the test")
        assert reads["run.yaml"] == 1 and sum(reads.values()) == 1
        for _ in range(2):
            _ = opened.record, opened.metadata, opened.maps, opened.canonicals, opened.edits, opened.video
            _ = opened.model, opened.canonical("foreground"), opened.flow, opened.active_edits(), opened.edit("logo")
    assert {name: reads[name] for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert reads["foreground.json"] == reads["model.safetensors"] == 1
    assert opened.flow is opened.flow and opened.canonical("foreground") is opened.canonicals["foreground"]


def test_an_open_run_is_passed_on_as_it_is(run: Run) -> None:
    opened = open_run(run.path)
    assert open_run(opened) is opened and require_planar(opened, "the test") is opened
    assert isinstance(public_open_run(str(run.path)), PlanarRun)


# --- edits ----------------------------------------------------------------------------------------------------------


def test_edits_are_found_by_name_and_read_again_after_a_write(run: Run) -> None:
    opened = open_run(run.path)
    assert [edit.name for edit in opened.edits] == ["logo", "sign"]
    assert [edit.name for edit in opened.active_edits()] == ["logo"]
    assert [edit.name for edit in opened.active_edits(["sign", "0001-logo"])] == ["logo", "sign"]
    assert opened.edit("2").name == opened.edit("0002").name == opened.edit("sign").name == "sign"
    with pytest.raises(UserError, match="there is no edit 'star'") as caught:
        opened.edit("star")
    assert caught.value.code == ExitCode.BAD_INPUT and "0001-logo, 0002-sign" in caught.value.why
    undo(run)
    assert len(opened.active_edits()) == 1, "what is open stays as it was read"
    opened.refresh_edits()
    assert opened.active_edits() == []


def test_an_edit_from_python_shows_in_the_run_that_it_was_given(run: Run) -> None:
    opened = require_planar(run.path, "the test")
    assert len(opened.edits) == 2
    made = editors.api.edit(opened, editor=lambda picture: 1 - picture, layer="foreground").edit
    assert opened.edits[-1] == made and opened.active_edits()[-1] == made
    assert editors.api.undo(opened).edit.name == made.name and not opened.edits[-1].active
    assert editors.api.redo(opened).edit.name == made.name and opened.edits[-1].active


# --- layers, frames and positions -----------------------------------------------------------------------------------


def test_an_unknown_layer_is_refused_in_one_way(run: Run) -> None:
    opened = require_planar(run.path, "the test")
    assert [opened.require_layer(name) for name in opened.layers] == [0, 1]
    assert opened.select_layers(()) == [0, 1] and opened.select_layers(("background",)) == [1]
    for ask in (opened.require_layer, opened.canonical, lambda name: opened.select_layers(("background", name))):
        with pytest.raises(UserError) as caught:
            ask("sky")
        assert caught.value.code == ExitCode.BAD_INPUT and caught.value.what == "there is no layer 'sky'"
        assert "front to back: foreground, background" in caught.value.why
        assert caught.value.fix == "--layer foreground"


def test_frames_are_given_by_their_number_in_the_source(run: Run, true_run: TrueRun) -> None:
    opened = require_planar(run.path, "the test")
    assert opened.frames == range(12) and opened.frame_count == 12 and opened.source_size == (192, 108)
    assert (opened.read_frame(5) == true_run.clip.frames[5]).all()
    assert all((one == other).all() for one, other in zip(opened.iterate_frames(), true_run.clip.frames, strict=True))
    place = np.zeros((1, 2))
    for ask in (
        opened.read_frame,
        opened.require_frame,
        lambda number: opened.frame_to_canonical("background", number, place),
        lambda number: opened.canonical_to_frame("background", number, place),
    ):
        with pytest.raises(UserError, match="frame 12 is not part of this run") as caught:
            ask(12)
        assert caught.value.code == ExitCode.BAD_INPUT and caught.value.fix == "--frame 11"


def test_a_run_of_every_third_frame_counts_frames_as_the_source_does(run: Run) -> None:
    text = run.run_yaml.read_text()
    run.run_yaml.write_text(text.replace("0:12:1", "1:12:3"))
    opened = require_planar(run.path, "the test")
    assert opened.frames == range(1, 12, 3) and opened.require_frame(7) == 2
    with pytest.raises(UserError, match="frame 6 is not part") as caught:
        opened.require_frame(6)
    assert "1 to 10, one in 3, of the source" in caught.value.why and caught.value.fix == "--frame 7"


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frame=st.integers(0, 11), layer=st.sampled_from(["foreground", "background"]), seed=st.integers(0, 9999))
def test_pixels_are_found_again_where_their_places_in_the_canonical_picture_lie(
    true_run: TrueRun, frame: int, layer: str, seed: int
) -> None:
    opened = _open_once(true_run.run)
    xy = np.random.default_rng(seed).uniform(0.5, np.array(opened.source_size) - 0.5, (32, 2))
    there = opened.frame_to_canonical(layer, frame, xy)
    back = opened.canonical_to_frame(layer, frame, there.uv)
    shown = there.weight >= 0.9  # elsewhere the frame hardly shows the layer, and its map is continued
    assert back.visible[shown].all()
    off = np.linalg.norm(back.pixels - xy, axis=1)[shown]
    assert (off <= back.error[shown] + EXTRAPOLATION.max_error_px).all()
    assert layer == "foreground" or (shown.any() and np.median(off) < 0.05), "pixels of the source"
    image = opened.canonical(layer)
    texels = coords.uv_to_texels(torch.from_numpy(there.uv), image.box, *image.size).numpy()
    assert (texels == there.texels).all()


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frame=st.integers(0, 11), seed=st.integers(0, 9999))
def test_places_in_the_canonical_picture_are_found_again_from_the_frame_that_shows_them(
    true_run: TrueRun, frame: int, seed: int
) -> None:
    opened = _open_once(true_run.run)
    image = opened.canonical("background")
    corner, size = np.array([image.box.u0, image.box.v0]), np.array([image.box.width, image.box.height])
    uv = corner + size * np.random.default_rng(seed).uniform(size=(32, 2))
    there = opened.canonical_to_frame("background", frame, uv)
    assert there.visible.any()
    back = opened.frame_to_canonical("background", frame, there.pixels[there.visible])
    assert (np.linalg.norm(back.uv - uv[there.visible], axis=1) <= size[0] / image.size[0]).all(), "a texel"


_OPENED: dict[Path, PlanarRun] = {}


def _open_once(run: Run) -> PlanarRun:
    return _OPENED.setdefault(run.path, require_planar(run, "the test"))


# --- what is damaged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("break_run", "ask", "code", "what"),
    [
        (lambda run: shutil.rmtree(run.path), lambda run: run, ExitCode.BAD_INPUT, "does not exist"),
        (lambda run: run.run_yaml.write_text("- 1"), lambda run: run, ExitCode.DAMAGED_RUN, "run.yaml"),
        (lambda run: run.run_yaml.write_text("schema: 1"), lambda run: run.record, ExitCode.DAMAGED_RUN, "run.yaml"),
        (lambda run: run.source_json.write_text("{}"), lambda run: run.metadata, ExitCode.DAMAGED_RUN, "source.json"),
        (lambda run: shutil.rmtree(run.maps), lambda run: run.maps, ExitCode.DAMAGED_RUN, "no baked maps"),
        (
            lambda run: (run.canonical / "foreground.json").unlink(),
            lambda run: run.canonical("foreground"),
            ExitCode.DAMAGED_RUN,
            "foreground.json",
        ),
        (
            lambda run: (run.edits / "0001-logo" / "edit.json").write_text("{"),
            lambda run: run.edits,
            ExitCode.DAMAGED_RUN,
            "0001-logo",
        ),
        (lambda run: shutil.rmtree(run.checkpoints), lambda run: run.model, ExitCode.DAMAGED_RUN, "checkpoint"),
    ],
)
def test_what_is_damaged_is_refused_by_name_when_it_is_asked_for(
    run: Run, break_run: Any, ask: Any, code: ExitCode, what: str
) -> None:
    break_run(run)
    with pytest.raises(UserError) as caught:
        ask(open_run(run.path))
    assert caught.value.code == code and what in str(caught.value)


def test_a_source_that_is_gone_stops_what_needs_it_and_nothing_else(run: Run, tmp_path: Path) -> None:
    text = run.run_yaml.read_text()
    run.run_yaml.write_text(text.replace("clip.mkv", "gone.mkv"))
    opened = require_planar(run.path, "the test")
    for ask in (lambda: opened.metadata, lambda: opened.video, lambda: opened.read_frame(0)):
        with pytest.raises(UserError, match=r"the source video gone\.mkv is not there any more") as caught:
            ask()
        assert caught.value.code == ExitCode.BAD_INPUT
    assert opened.stored_metadata.width == 192 and opened.maps.layers == ("foreground", "background")
    export_run(opened, CanonicalExporter(format="png"), ExportOptions(out=tmp_path / "out"))


def test_a_run_of_the_other_family_is_refused_with_what_needs_it(run: Run) -> None:
    with pytest.raises(UserError, match="the test needs a 3D scene") as caught:
        require_scene(run.path, "the test")
    assert caught.value.code == ExitCode.BAD_INPUT and caught.value.fix.startswith("unwrap train")
