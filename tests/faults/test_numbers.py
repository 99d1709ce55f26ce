"""A frame has one number everywhere: that of its picture (shot.1001.png), or in a film counted from 0."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from editors.api import edit
from editors.core.history import arrange_edit
from neural_fields.api import render
from neural_fields.core.errors import UserError
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.io import probe_video, source_frames
from neural_fields.data.video.timecode import parse_frame
from neural_fields.export.base import export_run
from neural_fields.export.tracks.tracks import TracksExporter
from neural_fields.masking.hint_journal import read_hints
from neural_fields.masking.hints import BoxHint, split_hint_words
from neural_fields.masking.options import MaskOptions
from neural_fields.masking.segment_video import segment_video
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.options import RenderOptions
from neural_fields.training.options import TrainOptions
from neural_fields.training.train import train
from tests.support.box_segmenter import BoxSegmenter


@pytest.fixture(scope="module")
def shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures, shot.1001.png to shot.1006.png."""
    folder = tmp_path_factory.mktemp("numbers") / "shot"
    folder.mkdir()
    for number, frame in enumerate(make_demo_clip(6, 96, 54).render_frames(), start=1001):
        cv2.imwrite(str(folder / f"shot.{number}.png"), np.asarray(frame)[..., ::-1])
    return folder


@pytest.mark.slow
def test_f43_pictures_keys_flags_and_messages_have_the_numbers_of_the_source(shot: Path) -> None:
    home = shot.parent
    options = TrainOptions(
        home / "run", size="54p", masks=("none",), frames="1002:1006", overrides={"training.steps": 1}
    )
    run = require_planar(train(shot, options).run, "this test")
    assert run.frames == range(1002, 1006)
    assert np.array_equal(run.read_frame(1004), cv2.imread(str(shot / "shot.1004.png"))[..., ::-1])
    with pytest.raises(UserError, match="frame 4 is not part of this run") as problem:
        run.read_frame(4)
    assert "1002 to 1005" in str(problem.value.why)

    painted = cv2.imread(str(shot / "shot.1004.png"))
    painted[10:30, 20:60] = (255, 0, 255)
    cv2.imwrite(str(home / "painted.png"), painted)
    edit(run, str(home / "painted.png"), frame=1004)
    arrange_edit(run.files, "painted", {"start": 1003, "end": 1004})
    render(run.files, RenderOptions(codec="png", out=home / "edited"))
    names = [path.name for path in sorted((home / "edited").iterdir())]
    assert names == [f"{number:05d}.png" for number in run.frames]
    changed = []
    for name, number in zip(names, run.frames, strict=True):
        source = cv2.imread(str(shot / f"shot.{number}.png"))
        changed.append(bool((cv2.imread(str(home / "edited" / name)) != source).any()))
    assert changed == [False, True, True, False]

    files = export_run(run, TracksExporter(grid=1, frame=1004)).folder
    rows = (files / "tracks.csv").read_text().split()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [1002, 1003, 1004, 1005]


def test_f43_moments_and_ranges_have_the_numbers_of_the_source(shot: Path) -> None:
    metadata = probe_video(shot)
    assert metadata.numbers == range(1001, 1007)
    assert parse_frame("1003", metadata, "--start") == parse_frame("0.1s", metadata, "--start") == 1003
    with pytest.raises(UserError, match="--start 3 is before the start") as problem:
        parse_frame("3", metadata, "--start")
    assert problem.value.fix == "--start 1001"
    (frame,) = source_frames(metadata, range(1006, 1007))
    assert np.array_equal(frame, cv2.imread(str(shot / "shot.1006.png"))[..., ::-1])


def test_f43_hints_and_mattes_have_the_numbers_of_the_source(shot: Path, tmp_path: Path) -> None:
    hints = (BoxHint("dog", 1003, 10, 10, 30, 30), *split_hint_words(["--box", "50,10,20,20"])[0])
    options = MaskOptions(tmp_path / "masks", hints=hints, size="54p", edges="hard")
    masks = segment_video(shot, options, segmenter=BoxSegmenter())
    assert [path.name for path in sorted((masks.folder / "dog").glob("*.png"))] == [
        f"0{number}.png" for number in range(1001, 1007)
    ]
    # Without a number, a hint is about the first frame.
    written = [hint for hint in read_hints(masks.folder).hints if hint.object == "foreground"]
    assert written == [BoxHint("foreground", 1001, 50, 10, 20, 20)]
