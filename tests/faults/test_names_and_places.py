"""Names in any script, file names that are not UTF-8, and runs that move with their video."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from editors.api import edit
from editors.core.history import arrange_edit
from editors.demo import make_clip_metadata
from neural_fields.api import evaluate, render
from neural_fields.core.errors import UserError
from neural_fields.data.masks.layer_names import check_layer_name
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.io import probe_video, write_video
from neural_fields.edits.record import clean_name
from neural_fields.export.base import export_run
from neural_fields.export.maps.stmap import STMapExporter
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.options import RenderOptions
from neural_fields.training.options import TrainOptions
from neural_fields.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video, whose name is not UTF-8, and its run."""
    folder = tmp_path_factory.mktemp("names") / "project"
    folder.mkdir()
    video = folder / os.fsdecode(b"caf\xe9 100%.mkv")
    clip = make_demo_clip(4, 96, 54)
    write_video(video, clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    options = TrainOptions(
        folder / os.fsdecode(b"caf\xe9 100%"), size="54p", masks=("none",), overrides={"training.steps": 1}
    )
    train(video, options)
    return folder


def paint(run_path: Path, name: str) -> Path:
    # OpenCV crashes on names that are not UTF-8.
    data = np.frombuffer((run_path / "canonical" / "background.png").read_bytes(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    picture[20:40, 30:60] = (0, 0, 255, 255)
    path = run_path.parent / name
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return path


def test_f17_names_keep_their_script_and_are_found_as_they_were_given(project: Path) -> None:
    run = require_planar(next(path for path in project.iterdir() if path.is_dir()), "this test")
    assert edit(run, paint(run.path, "ロゴ.png"), layer="background").edit.name == "ロゴ"
    made = edit(run, paint(run.path, "x.png"), layer="background", name="Überschrift, 2. Versuch")
    assert made.edit.folder.name.endswith("-überschrift-2-versuch")
    arrange_edit(run.files, "Überschrift, 2. Versuch", {"opacity": 0.5})
    run.refresh_edits()
    assert run.edit("überschrift-2-versuch").arrangement.opacity == 0.5
    assert clean_name("नमस्ते दुनिया") == "नमस्ते-दुनिया"  # vowel signs are marks, not letters
    check_layer_name("名前", where="--masks", fix="")
    for name in ("a b", "../a", "a%", "-a", "é" * 60):
        with pytest.raises(UserError, match="cannot name a layer"):
            check_layer_name(name, where="--masks", fix="")


def test_file_names_that_are_not_utf_8_work_everywhere(project: Path) -> None:
    run = require_planar(next(path for path in project.iterdir() if path.is_dir()), "this test")
    assert os.fsencode(run.record.video).endswith(b"caf\xe9 100%.mkv")
    assert run.files.report.is_file()
    edit(run, paint(run.path, os.fsdecode(b"p\xe9.png")), layer="background")
    (written,) = render(run, RenderOptions(out=run.path.parent / os.fsdecode(b"\xe9.mkv"), codec="ffv1"))
    assert probe_video(written).frame_count == 4
    assert evaluate(run)["frames"] == 4  # which reads a checkpoint
    export_run(run, STMapExporter())  # OpenEXR takes only names in UTF-8
    # Printed on a terminal that is strict about its encoding.
    program = "import sys; from editors.cli.main import main; sys.exit(main())"
    line = [sys.executable, "-c", program, "edits", os.fspath(run.path)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    shown = subprocess.run(line, env=environment, capture_output=True, check=False)
    assert shown.returncode == 0, shown.stderr


def test_s5_and_u24_a_run_moves_with_its_video(project: Path, tmp_path: Path) -> None:
    before = require_planar(next(path for path in project.iterdir() if path.is_dir()), "this test")
    frame = before.read_frame(2)
    moved = tmp_path / "elsewhere"
    shutil.copytree(project, moved)
    hidden = before.record.video.with_suffix(".away")
    before.record.video.rename(hidden)
    try:
        run = require_planar(moved / before.path.name, "this test")
        assert run.record.video == moved / before.record.video.name
        assert np.array_equal(run.read_frame(2), frame)

        # Another video of that name is not taken for it.
        run.record.video.write_bytes(run.record.video.read_bytes() + b"\0")
        again = require_planar(run.path, "this test")
        with pytest.raises(UserError, match="is not there any more"):
            again.read_frame(2)
    finally:
        hidden.rename(before.record.video)
