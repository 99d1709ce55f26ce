"""`unwrap mask`, and the hints of `unwrap train`: what a person types, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import neural_fields.masking.segment_video as masking
from editors.cli.main import main, parse_command
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.masking.hints import (
    FIRST_FRAME,
    HINT_FLAGS,
    BoxHint,
    MainHint,
    MaskHint,
    PointHint,
    StrokeHint,
    TextHint,
    split_hint_words,
)
from tests.support.box_segmenter import BoxSegmenter

WIDTH, HEIGHT, FRAMES = 64, 48, 6
DOG = "--object dog --frame 2 --box 8,12,16,20"
SMALL = "--size 24p --edges hard"


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of six pictures; whatever is asked for, boxes are found as they are."""
    (tmp_path / "clip").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH + FRAMES, 3), dtype=np.uint8)
    for number in range(FRAMES):
        Image.fromarray(noise[:, number : number + WIDTH]).save(tmp_path / f"clip/{number:05d}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(masking, "choose_segmenter", lambda options: BoxSegmenter(confidence=(1, 0.2, 1, 1, 0, 0)))
    return "clip"


def command(line: str) -> int:
    return main(line.split())


# --- words ----------------------------------------------------------------------------------------------------------


def test_object_and_frame_apply_to_the_hints_after_them() -> None:
    line = (
        "--point 1,2 --object dog --frame 3 --box 1,2,3,4 --not 5,6 --frame 7 --stroke s.png "
        "--object cat --mask m.png --main --out there --text surfer"
    )
    hints, rest = split_hint_words(line.split())
    assert rest == ["--out", "there"]
    assert hints == (
        PointHint("foreground", FIRST_FRAME, 1, 2),
        BoxHint("dog", 3, 1, 2, 3, 4),
        PointHint("dog", 3, 5, 6, is_object=False),
        StrokeHint("dog", 7, Path("s.png")),
        MaskHint("cat", 7, Path("m.png")),
        MainHint("cat", 7),
        TextHint("cat", 7, "surfer"),
    )


def test_a_place_left_of_the_frame_is_a_number_and_no_option() -> None:
    assert split_hint_words(["--box", "-4,0,20,10"])[0] == (BoxHint("foreground", FIRST_FRAME, -4, 0, 20, 10),)
    assert split_hint_words(["--box=-4,0,20,10"])[0] == (BoxHint("foreground", FIRST_FRAME, -4, 0, 20, 10),)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--box 1,2,3", "--box 1,2,3"),
        ("--box 1,2,3,nan", "not a place"),
        ("--box 1,2,0,4", "is empty"),
        ("--point one,two", "--point one,two"),
        ("--frame -1 --point 1,2", "--frame -1"),
        ("--frame 1.5s --point 1,2", "--frame 1.5s"),
        ("--object a/b --point 1,2", "cannot name a layer"),
        ("--object background --point 1,2", "cannot be called"),
        ("--point 1,2 --frame 3", "no hint follows --frame 3"),
        ("--object", "--object has no value"),
        ("--main=yes", "--main has no value"),
    ],
)
def test_a_hint_that_cannot_be_read_is_named(line: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        split_hint_words(line.split())
    assert text in caught.value.what and caught.value.fix


def test_both_commands_take_hints_and_the_help_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("mask", "train"):
        parsed, extra = parse_command([name, "clip.mp4", *DOG.split(), "--frames", "0:4"])
        assert parsed.options.hints == (BoxHint("dog", 2, 8, 12, 16, 20),) and parsed.options.frames == "0:4"
        assert extra == []
        with pytest.raises(SystemExit):
            parse_command([name, "--help"])
        text = capsys.readouterr().out
        words = {
            "--object": "NAME",
            "--frame": "N",
            "--box": "X,Y,W,H",
            "--point": "X,Y",
            "--not": "X,Y",
            "--text": "TEXT",
        }
        assert all(f"{flag} {words.get(flag, 'IMAGE')}" in text for flag in HINT_FLAGS if flag != "--main")
        assert " --main " in text


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_box_gives_masks_a_contact_sheet_and_advice(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"mask clip {DOG} {SMALL}") == 0
    out, err = capsys.readouterr()
    assert out == "clip-masks\n"
    assert "dog: check frame 1\n" in err
    assert "dog: lost in frames 4-5" in err and "unwrap mask clip --object dog --frame 4 --box x,y,width,height" in err
    assert "unwrap train clip --masks clip-masks" in err
    assert Path("clip-masks/contact.png").is_file() and len(list(Path("clip-masks/dog").glob("*.png"))) == FRAMES


def test_json_has_what_a_program_needs(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"mask clip {DOG} {SMALL} --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == "clip-masks" and found["frames"] == [0, FRAMES]
    (dog,) = found["objects"]
    assert dog["name"] == "dog" and dog["check"] == [[1, 1]] and dog["lost"] == [[4, 5]] and dog["is_new"]
    assert dog["confidence"] == [1, 0.2, 1, 1, 0, 0]


def test_hints_are_listed_with_those_that_were_taken_back(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("mask clip --list") == 0
    assert "no hints" in capsys.readouterr().err
    assert command(f"mask clip {DOG} {SMALL}") == 0
    assert command(f"mask clip --object dog --frame 3 --not 50,40 {SMALL}") == 0
    assert command(f"mask clip --undo {SMALL}") == 0
    capsys.readouterr()
    assert command("mask clip --list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "dog  --frame 2 --box 8,12,16,20",
        "dog  --frame 3 --not 50,40  (undone)",
    ]
    assert command("mask clip --list --json") == 0
    found = json.loads(capsys.readouterr().out)["hints"]
    assert [hint["in_force"] for hint in found] == [True, False]


def test_a_bad_hint_is_one_error_with_its_exit_status(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"mask clip --box 99,0,4,4 {SMALL}") == ExitCode.BAD_INPUT
    assert "\nerror: --box 99,0,4,4 is outside the frame\n" in capsys.readouterr().err
    assert command(f"mask clip --undo {DOG}") == ExitCode.USAGE
    assert not Path("clip-masks").exists()


def test_hints_beside_masks_are_refused(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"train clip {DOG} --masks none") == ExitCode.BAD_INPUT
    assert "--masks none and --box 8,12,16,20 at once" in capsys.readouterr().err
    assert command(f"train clip {DOG} --config hosnerf") == ExitCode.BAD_INPUT
    assert "a 3D scene has the masks of its capture" in capsys.readouterr().err


@pytest.mark.slow
def test_training_makes_the_masks_first_and_the_run_can_be_corrected(
    clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"train clip {DOG} --training.steps 4 --out run"
    assert command(line) == 0
    assert sorted(path.name for path in Path("run/canonical").glob("*.png")) == ["background.png", "dog.png"]
    assert len(list(Path("run/masks/dog").glob("*.png"))) == FRAMES
    capsys.readouterr()
    assert command(line) == 0
    assert "is finished" in capsys.readouterr().err
    assert command("mask run --list") == 0
    assert capsys.readouterr().out == "dog  --frame 2 --box 8,12,16,20\n"
    assert command(f"mask run --object cat --frame 1 --box 40,20,12,8 {SMALL}") == 0
    assert capsys.readouterr().out == "run/masks\n"
