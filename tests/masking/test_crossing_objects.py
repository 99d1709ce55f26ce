"""Two objects that cross each other are told apart before, while and after one hides part of the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editors.cli.main import main
from tests.support.crossing_clip import draw_crossing_clip


def test_boxes_in_the_first_frame_give_both_objects_in_all_frames_and_which_is_in_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = draw_crossing_clip()
    monkeypatch.chdir(tmp_path)
    Path("clip").mkdir()
    for number, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(f"clip/{number:05d}.png")
    boxes = "--object square --frame 0 --box 98,32,30,30 --object disc --frame 0 --box 24,44,34,34"
    assert main(f"mask clip {boxes} --size source --edges hard --json".split()) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)["objects"]] == ["disc", "square"]
    assert (clip.square.sum((1, 2)) < 0.65 * clip.square[0].sum()).any()
    for name, truth in (("disc", clip.disc), ("square", clip.square)):
        for number, mask in enumerate(truth):
            found = np.asarray(Image.open(f"clip-masks/{name}/{number:05d}.png")) >= 128
            assert (found & mask).sum() >= 0.9 * (found | mask).sum(), (name, number)
