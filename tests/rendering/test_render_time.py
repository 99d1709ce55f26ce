"""Renderings in another time: whole frames stay as they are, in-between ones fit, sound and metadata are as asked."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editors.api import edit
from editors.effects.remove import Remove
from neural_fields.core.errors import UserError
from neural_fields.data.video.io import probe_video, source_frames
from neural_fields.edits.arrangement import Arrangement
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.render_planar import render
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def frames_of(path: Path) -> list[np.ndarray]:
    facts = probe_video(path)
    return list(source_frames(facts, range(facts.frame_count)))


def test_half_the_speed_shows_every_frame_as_it_is_and_one_between(run: Run, true_run: TrueRun, tmp_path: Path) -> None:
    (path,) = render(run, RenderOptions(out=tmp_path / "slow.mkv", codec="ffv1", speed="1/2"))
    shown, clip = frames_of(path), true_run.clip
    assert probe_video(path).rate == 24 and len(shown) in (2 * clip.count - 1, 2 * clip.count)
    for t in range(clip.count):
        assert np.array_equal(shown[2 * t], clip.frames[t])
    between = shown[11].astype(float)
    halves = [np.abs(between - clip.frames[t]).mean() for t in (5, 6)]
    apart = np.abs(clip.frames[5].astype(float) - clip.frames[6]).mean()
    assert 0.2 * apart < min(halves) and max(halves) < apart


def test_a_frozen_frame_stands_still_and_a_rate_keeps_the_length(run: Run, true_run: TrueRun, tmp_path: Path) -> None:
    frozen = RenderOptions(out=tmp_path / "still.mkv", codec="ffv1", freeze=("5:0.25",))
    shown = frames_of(render(run, frozen)[0])
    assert len(shown) == true_run.clip.count + 6
    assert all(np.array_equal(frame, true_run.clip.frames[5]) for frame in shown[5:12])
    (path,) = render(run, RenderOptions(out=tmp_path / "film.mkv", codec="ffv1", rate="48"))
    facts = probe_video(path)
    assert facts.rate == 48
    assert abs(facts.timestamps[-1] - Fraction(11, 24)) <= Fraction(1, 48)


def test_slow_motion_of_an_edit_is_slow_motion_of_the_edited_video(run: Run, true_run: TrueRun, tmp_path: Path) -> None:
    edit(run, editor=Remove())
    whole = frames_of(render(run, RenderOptions(out=tmp_path / "edit.mkv", codec="ffv1"))[0])
    slow = frames_of(render(run, RenderOptions(out=tmp_path / "slow.mkv", codec="ffv1", speed="0.5"))[0])
    assert all(np.array_equal(slow[2 * t], whole[t]) for t in range(true_run.clip.count))
    middle = np.abs(slow[9].astype(float) - true_run.clip.frames[4]).mean()
    assert np.abs(slow[9].astype(float) - whole[4]).mean() < middle  # the object does not come back between frames


@pytest.mark.parametrize(
    "options", [{"speed": "0"}, {"speed": "x"}, {"rate": "-3"}, {"freeze": ("99:1",)}, {"freeze": ("1",)}]
)
def test_a_time_that_cannot_be_is_refused_and_nothing_is_written(run: Run, options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        render(run, RenderOptions(**options))
    with pytest.raises(UserError, match="source's time"):
        render(run, RenderOptions(what="layers", speed="0.5"))
    assert not run.renders.exists() or not any(run.renders.iterdir())


def test_a_rendering_says_what_made_it_unless_told_not_to(run: Run, tmp_path: Path) -> None:
    import av

    edit(run, editor=Remove())
    found: list[str | None] = []
    for name, metadata in (("with.mp4", True), ("without.mp4", False)):
        render(run, RenderOptions(out=tmp_path / name, metadata=metadata))
        with av.open(str(tmp_path / name)) as film:
            found.append(film.metadata.get("comment"))
    assert found[0] is not None
    assert json.loads(found[0])["edits"][0]["edit"] == "0001-remove"
    assert str(run.path) not in found[0] and found[1] is None


def test_a_range_that_shows_no_edit_is_the_sources_and_is_said(
    run: Run, true_run: TrueRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(run, editor=Remove(), arrangement=Arrangement(end=3))
    (path,) = render(run, RenderOptions(out=tmp_path / "late.mkv", codec="ffv1", frames="6:9"))
    assert all(np.array_equal(*pair) for pair in zip(frames_of(path), true_run.clip.frames[6:9], strict=True))
    assert "none of the frames 6 to 8 shows an edit (0001-remove)" in caplog.text
    caplog.clear()
    render(run, RenderOptions(out=tmp_path / "early.mkv", codec="ffv1", frames="2:9"))
    assert "shows an edit" not in caplog.text
