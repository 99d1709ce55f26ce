"""The hint "the main thing in this frame": found once by a tiny network, kept in the folder, refused in words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import neural_fields.masking.segment_video as masking
from editors.cli.main import main, parse_command
from neural_fields.core.errors import ExitCode
from neural_fields.masking.hint_journal import read_hints
from neural_fields.masking.hints import MainHint
from neural_fields.runs.run import Run
from neural_fields.training.inputs import make_hinted_masks
from tests.support.box_segmenter import BoxSegmenter
from tests.support.tiny_onnx import write_birefnet

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: the extra `onnx`")

WIDTH, HEIGHT, FRAMES = 64, 48, 3
SWAN = "--object swan --frame 1 --main"
SETTINGS = "--size source --edges hard --main-model net"


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three dark frames, a white disc in the middle one, and the network; masks are followed as they are."""
    (tmp_path / "clip").mkdir()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(FRAMES):
        frame = np.random.default_rng(number).integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
        frame[((x - 40) ** 2 + (y - 20) ** 2 <= 144) & (number == 1)] = 255
        Image.fromarray(frame).save(tmp_path / f"clip/{number:05d}.png")
    write_birefnet(tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(masking, "choose_segmenter", lambda options: BoxSegmenter())
    return tmp_path


def command(line: str) -> int:
    return main(line.split())


def test_the_main_thing_is_found_once_and_kept(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"mask clip {SWAN} {SETTINGS}") == 0
    matte = np.asarray(Image.open("clip-masks/swan/00000.png"))
    assert matte[20, 40] == 255 and 350 < np.count_nonzero(matte) < 550, "a disc of 441 pixels"
    (hint,) = read_hints(Path("clip-masks")).hints
    assert isinstance(hint, MainHint) and hint.frame == 1 and hint.file is not None
    assert np.array_equal(np.asarray(Image.open(Path("clip-masks") / hint.file)), matte)

    shutil.rmtree("net")  # whoever looks for it again fails
    for line in (f"{SWAN} {SETTINGS}", "--undo", "--redo", SWAN):
        assert command(f"mask clip {line}") == 0, line
    assert read_hints(Path("clip-masks")).hints == (hint,)
    capsys.readouterr()
    assert command("mask clip --list") == 0
    assert capsys.readouterr().out == "swan  --frame 1 --main\n"


def test_a_frame_in_which_nothing_stands_out_is_named(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"mask clip {SWAN} {SETTINGS}") == 0
    before = Path("clip-masks/hints.jsonl").read_bytes()
    assert command(f"mask clip --object duck --frame 2 --main {SETTINGS}") == ExitCode.BAD_INPUT
    assert "error: nothing stands out in frame 2" in capsys.readouterr().err
    assert Path("clip-masks/hints.jsonl").read_bytes() == before and Path("clip-masks/swan/00000.png").is_file()


def test_without_a_network_one_is_named(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (f"mask clip {SWAN}", f"train clip {SWAN}"):
        assert command(line) == ExitCode.BAD_INPUT
        assert "--main-model onnx-community/BiRefNet_lite-ONNX" in capsys.readouterr().err
    assert command(f"mask clip {SWAN} --main-model clip") == ExitCode.BAD_INPUT
    assert "clip is not a network that finds the main thing" in capsys.readouterr().err
    assert command(f"mask clip {SWAN} --main {SETTINGS}") == ExitCode.BAD_INPUT
    assert "2 hints --main of swan in frame 1" in capsys.readouterr().err


def test_training_looks_for_it_too(clip: Path) -> None:
    parsed, extra = parse_command(f"train clip {SWAN} --main-model net".split())
    assert extra == []
    options = make_hinted_masks("clip", Run(Path("run")), parsed.options)
    assert options.hints == () and options.masks == (str(Path("run/masks")),)
    assert json.loads(Path("run/masks/masks.json").read_text())["objects"] == ["swan"]


def test_doctor_says_how_to_fetch_the_network(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("doctor") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("onnx-community")]
    assert line.startswith("onnx-community/BiRefNet_lite-ONNX  ") and "finds the main thing in a frame" in line
