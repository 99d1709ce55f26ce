"""Parts of a video that are rendered at the same time make the same film as one rendering."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from editors.api import edit
from editors.effects.remove import Remove
from neural_fields.core.errors import UserError
from neural_fields.core.progress import Progress
from neural_fields.data.video.io import probe_video, source_frames
from neural_fields.edits.arrangement import Arrangement
from neural_fields.rendering import render_planar
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.parallel_parts import PartSettings, split_frames
from neural_fields.rendering.render_planar import render
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of twelve frames, whose renderings are split into parts of four frames."""
    shutil.copytree(true_run.run.path, tmp_path / "run")
    split = partial(split_frames, settings=PartSettings(least_frames=4))
    monkeypatch.setattr(render_planar, split_frames.__name__, split)
    return Run.open(tmp_path / "run")


def frames_of(path: Path) -> list[np.ndarray]:
    facts = probe_video(path)
    return list(source_frames(facts, range(facts.frame_count)))


def test_parts_make_the_film_of_one_rendering(run: Run, tmp_path: Path) -> None:
    edit(run, editor=Remove())
    one, three = (
        frames_of(render(run, RenderOptions(out=tmp_path / f"{jobs}.mkv", codec="ffv1", jobs=jobs))[0])
        for jobs in (1, 3)
    )
    assert len(three) == 12
    assert all(np.array_equal(*pair) for pair in zip(one, three, strict=True))


def test_encoded_parts_have_the_times_and_tags_of_one_film(run: Run, tmp_path: Path) -> None:
    edit(run, editor=Remove())
    seen: list[Progress] = []
    one = render(run, RenderOptions(out=tmp_path / "one.mp4"))[0]
    three = render(run, RenderOptions(out=tmp_path / "three.mp4", jobs=3), seen.append)[0]
    facts = [probe_video(path) for path in (one, three)]
    for name in ("timestamps", "rate", "width", "height", "color_space", "range", "primaries", "transfer", "codec"):
        assert getattr(facts[0], name) == getattr(facts[1], name), name
    for pair in zip(frames_of(one), frames_of(three), strict=True):
        assert np.abs(pair[0].astype(int) - pair[1]).mean() < 4  # parts begin with frames that are stored whole
    assert (seen[-1].done, seen[-1].total) == (12, 12)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_error_of_a_part_is_the_error_of_the_rendering(run: Run, tmp_path: Path) -> None:
    made = edit(run, editor=Remove())
    (made.edit.folder / "edit.json").write_text("{}")
    with pytest.raises(UserError):
        render(run, RenderOptions(out=tmp_path / "a.mp4", jobs=3))
    assert not (tmp_path / "a.mp4").exists()
    for jobs in (0, 1000):
        with pytest.raises(UserError, match="--jobs"):
            render(run, RenderOptions(jobs=jobs))


def test_parts_without_an_edit_are_said_only_where_no_part_has_one(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(run, editor=Remove(), arrangement=Arrangement(end=2))
    with caplog.at_level(logging.WARNING):
        render(run, RenderOptions(out=tmp_path / "a.mkv", codec="ffv1", jobs=3))
        assert "shows an edit" not in caplog.text
        render(run, RenderOptions(out=tmp_path / "b.mkv", codec="ffv1", frames="4:12", jobs=2))
    assert "none of the frames 4 to 11 shows an edit" in caplog.text
