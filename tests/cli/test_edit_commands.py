"""The commands around edits, as typed: arranging, listing, exporting; what is refused leaves everything as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from editors.cli.main import main
from neural_fields.core.errors import ExitCode
from neural_fields.imaging.image_io import encode_png, read_picture
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun


def list_files(run: Run) -> list[Path]:
    """Lists what a run holds besides its locks."""
    return sorted(path.relative_to(run.path) for path in run.path.rglob("*") if not path.name.startswith("LOCK"))


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture
def painted(run: Run, tmp_path: Path) -> Path:
    rgba = read_picture(run.canonical / "foreground.png").rgba.copy()
    middle = rgba.shape[0] // 2
    rgba[middle - 6 : middle + 6, middle - 6 : middle + 6] = (0.9, 0.1, 0.2, 1)
    (tmp_path / "painted.png").write_bytes(encode_png(rgba))
    return tmp_path / "painted.png"


def listed(run: Run, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["edits", str(run.path), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["edits"]


def test_an_edit_lies_as_its_flags_say_and_as_it_is_arranged(
    run: Run, painted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--layer", "foreground", "--start", "2", "--end", "0.3s", "--fade-in", "2", "--opacity", "0.5"]
    assert main(["edit", str(run.path), str(painted), *flags]) == 0
    assert main(["edit", str(run.path), "--editor", "adjust", "--hue", "90", "--blend", "normal"]) == 0
    first, second = listed(run, capsys)
    plain = {"edit": "0001-painted", "layers": ["foreground"], "active": True, "opacity": 0.5}
    assert first == {**plain, "start": 2, "end": 7, "fade_in": 2}
    assert main(["arrange", str(run.path), "painted", "--always", "--blend", "screen", "--top"]) == 0
    assert [edit["edit"] for edit in listed(run, capsys)] == [second["edit"], "0001-painted"]
    assert listed(run, capsys)[1] == {**plain, "blend": "screen"}
    assert main(["undo", str(run.path)]) == 0
    assert "undone: change to 0001-painted" in capsys.readouterr().out
    assert listed(run, capsys) == [first, second]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["edit", "RUN"], ExitCode.USAGE),
        (["edit", "RUN", "PICTURE", "--frames", "folder"], ExitCode.USAGE),
        (["edit", "RUN", "PICTURE", "PICTURE", "--frame", "1"], ExitCode.USAGE),
        (["edit", "RUN", "PICTURE", "PICTURE", "--frame", "1", "--frame", "1"], ExitCode.USAGE),
        (["edit", "RUN", "PICTURE", "--layer", "foreground", "--start", "5", "--end", "2"], ExitCode.BAD_INPUT),
        (["edit", "RUN", "PICTURE", "--layer", "foreground", "--start", "soon"], ExitCode.BAD_INPUT),
        (["edit", "RUN", "PICTURE", "--layer", "foreground", "--fade-in", "3"], ExitCode.BAD_INPUT),
        (["edit", "RUN", "PICTURE", "--layer", "nobody"], ExitCode.BAD_INPUT),
        (["edit", "RUN", "--unwrapped", "nothing.mkv"], ExitCode.BAD_INPUT),
        (["arrange", "RUN", "nothing", "--opacity", "0.5"], ExitCode.BAD_INPUT),
        (["arrange", "RUN", "1", "--top", "--bottom"], ExitCode.USAGE),
        (["export", "RUN", "movie"], ExitCode.USAGE),
        (["export", "RUN", "matte", "--layer", "nobody"], ExitCode.BAD_INPUT),
        (["watch", "RUN", "--size", "7"], ExitCode.USAGE),
        (["render", "RUN", "--speed", "nought"], ExitCode.BAD_INPUT),
    ],
)
def test_what_is_refused_is_one_error_and_leaves_the_run_as_it_was(
    run: Run, painted: Path, words: list[str], code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list_files(run)
    names = {"RUN": str(run.path), "PICTURE": str(painted)}
    assert main([names.get(word, word) for word in words]) == code
    assert capsys.readouterr().err.count("error:") == 1
    assert list_files(run) == before


def test_an_export_goes_where_it_is_told_and_not_over_what_is_there(run: Run, tmp_path: Path) -> None:
    words = ["export", str(run.path), "matte", "--layer", "foreground", "--every", "6", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    files = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"foreground.0000.png", "foreground.0006.png", "README.txt"}
    kept = (tmp_path / "out" / "README.txt").stat().st_ino
    assert main(words) == ExitCode.BAD_INPUT
    assert (tmp_path / "out" / "README.txt").stat().st_ino == kept
    assert main([*words, "-y"]) == 0


def test_marks_of_two_frames_typed_at_once_make_one_edit(run: Run, true_run: TrueRun, tmp_path: Path) -> None:
    clip = true_run.clip
    for t in (2, 9):
        frame = clip.frames[t].astype(np.float32) / 255
        frame[10:20, 10:20] = (0.9, 0.1, 0.1)
        (tmp_path / f"f{t}.png").write_bytes(encode_png(frame))
    pictures = [str(tmp_path / "f2.png"), str(tmp_path / "f9.png")]
    assert main(["edit", str(run.path), *pictures, "--frame", "2", "--frame", "9", "--name", "both"]) == 0
    facts = json.loads((run.edits / "0001-both" / "edit.json").read_text())
    assert facts["origin"]["frames"] == [2, 9] and list(facts["placed"]) == ["background"]
