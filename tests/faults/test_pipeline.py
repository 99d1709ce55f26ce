"""What a program that calls Unwrap needs: figures as JSON, parts of a clip, room known before and freed after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editors.api import edit
from editors.cli.main import main
from editors.demo import make_clip_metadata
from neural_fields.api import evaluate, render
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import Progress
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.io import probe_video, write_video
from neural_fields.open_runs.opening import require_planar
from neural_fields.planar.config import PlanarConfig
from neural_fields.rendering.options import RenderOptions
from neural_fields.runs.cleanup import free_space, measure_size
from neural_fields.runs.run import Run
from neural_fields.training import estimate
from neural_fields.training.estimate import estimate_training
from neural_fields.training.options import TrainOptions
from neural_fields.training.previews_planar import save_previews
from neural_fields.training.train import train
from neural_fields.training.train_planar import plan_training

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six frames that saved several checkpoints on its way."""
    home = tmp_path_factory.mktemp("pipeline")
    clip = make_demo_clip(6, 96, 54)
    write_video(home / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    line = f"train {home}/clip.mkv --out {home}/run --masks none --size 54p --training.steps 3"
    assert main([*line.split(), "--training.checkpoint_every", "1"]) == 0
    return home / "run"


def test_p4_a_finished_run_keeps_one_checkpoint_and_gives_back_what_it_does_not_need(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = Run(run)
    assert [path.name for path in files.checkpoints.iterdir()] == ["000003"]
    assert not files.cache.exists() and free_space(run, remove=False).freed_bytes == 0  # cut at the end of the training
    psnr = evaluate(run)["psnr"]  # decodes the frames again, and keeps them
    before, cache = measure_size(run), measure_size(files.cache)
    assert cache > 0
    found = free_space(run, remove=False)
    assert found.freed_bytes == cache and files.cache.is_dir()

    capsys.readouterr()
    assert main(["gc", str(run), "--json"]) == 0
    (freed,) = json.loads(capsys.readouterr().out)["runs"]
    assert freed["freed_bytes"] >= cache and not files.cache.exists()
    assert freed["left_bytes"] <= before - cache + 4096  # the file of the lock
    assert np.isclose(evaluate(run)["psnr"], psnr)  # frames are decoded again


def test_u19_previews_are_checkered_where_no_frame_shows_the_layer(run: Path, tmp_path: Path) -> None:
    found = require_planar(run, "this test")
    frames = found.video.frames
    clip = ClipDataset(frames, LayerMasks((), np.zeros((0, *frames.shape[:3]), bool)), None)
    save_previews(Run(tmp_path), found.model, clip)
    picture = np.asarray(Image.open(tmp_path / "previews" / "background.png").convert("RGB")).astype(int)
    # The camera pans: of the plane's corners some are never seen, the middle always is.
    is_checker = (np.abs(picture - 204).max(-1) <= 2) | (np.abs(picture - 153).max(-1) <= 2)
    ends = (slice(8), slice(-8, None))
    assert max(is_checker[rows, columns].mean() for rows in ends for columns in ends) > 0.9
    height, width = is_checker.shape
    middle = np.s_[height // 3 : -height // 3, width // 3 : -width // 3]
    assert is_checker[middle].mean() < 0.1 and picture[middle].std() > 5


def test_p2_a_part_a_still_and_numbers_of_its_own_can_be_rendered(run: Path, tmp_path: Path) -> None:
    opened = require_planar(run, "this test")
    edit(opened, editor="adjust", hue=90.0, layer="background")
    (whole,) = render(run, RenderOptions(out=tmp_path / "whole", codec="png"))
    (part,) = render(run, RenderOptions(out=tmp_path / "part", codec="png", frames="2:5"))
    assert [path.name for path in sorted(part.iterdir())] == ["00002.png", "00003.png", "00004.png"]
    for path in part.iterdir():
        assert path.read_bytes() == (whole / path.name).read_bytes()
    options = RenderOptions(out=tmp_path / "numbered", codec="png", frames="2:4", start_number=1001)
    assert [path.name for path in sorted(render(run, options)[0].iterdir())] == ["01001.png", "01002.png"]

    (still,) = render(run, RenderOptions(out=tmp_path / "still.png", frames="3"))
    pixels = np.asarray(Image.open(still).convert("RGB"))
    assert np.array_equal(pixels, np.asarray(Image.open(whole / "00003.png").convert("RGB")))
    for what in ("reconstruction", "compare", "layers"):
        files = render(run, RenderOptions(out=tmp_path / f"{what}.mkv", codec="ffv1", frames="4:", what=what))
        assert [probe_video(file).frame_count for file in files] == [2] * len(files)

    for given in ("9", "3:3", "0:6:2", "x"):
        with pytest.raises(UserError):
            render(run, RenderOptions(out=tmp_path / "no.mp4", frames=given))
    with pytest.raises(UserError, match="one frame is a picture"):
        render(run, RenderOptions(out=tmp_path / "no.mp4", frames="3"))
    with pytest.raises(UserError, match="another timing"):
        render(run, RenderOptions(out=tmp_path / "no.mp4", frames="3:5", speed="1/2"))


def test_p3_a_training_says_before_what_it_takes_and_is_refused_where_there_is_no_room(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    video, out = str(run.parent / "clip.mkv"), run.parent / "never"
    line = ["train", video, "--out", str(out), "--size", "54p", "--dry-run", "--json"]
    capsys.readouterr()
    assert main(line) == 0 and not out.exists()
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] == 6 and found["size"] == [96, 54] and found["seconds"] > 0
    # What is kept is at least what can be counted, the opacity of a layer, and on the way there are frames as well.
    samples_mib = 6 * 96 * 54 / 2**20
    assert found["kept_mib"] > 4 * samples_mib and found["disk_mib"] > found["kept_mib"] + 3 * samples_mib
    # The stages add up, and make the plan of a new training. Without --size a run goes on at its own.
    assert sum(found["stage_seconds"].values()) == pytest.approx(found["seconds"], abs=0.2)
    plans: list[Progress] = []
    options = TrainOptions(out, size="54p", seconds=1000.0)
    assert plan_training(video, options, plans.append).estimate.stage_seconds == plans[1].plan
    assert plan_training(video, replace(options, out=run, size="auto")).options.size == "96x54"
    # Twice the pixels cost twice the space; without a time limit, small trainings look at larger frames for a while.
    metadata = probe_video(video)
    small, whole = (
        estimate_training(metadata, TrainOptions(size=size, seconds=1000.0), PlanarConfig())
        for size in ("48x54", "96x54")
    )
    assert small.disk_mib < estimate_training(metadata, TrainOptions(size="48x54"), PlanarConfig()).disk_mib
    assert whole.disk_mib == pytest.approx(2 * small.disk_mib, abs=0.2)

    monkeypatch.setattr(estimate, "measure_free_memory", lambda: 100.0)
    assert main([*line[:-2], "--masks", "none"]) == ExitCode.NO_ROOM and not out.exists()
    assert "not enough memory" in capsys.readouterr().err


def test_p1_programs_get_the_figures_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["train", str(run.parent / "clip.mkv"), "--out", str(run), "--masks", "none", "--size", "54p"]
    capsys.readouterr()
    assert main([*line, "--training.steps", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["finished"] and found["step"] == found["steps"] == 3
    assert found["psnr"] > 10 and found["verdict"] in ("good", "care", "bad") and found["train_seconds"] > 0
    assert Path(found["report"]).is_file()

    # So do the commands that change the stack, and the one that renders.
    edit(run, editor="adjust", saturation=0.5, layer="background", name="gray")
    shown = []
    for words in (["arrange", "gray", "--opacity", "0.5"], ["undo"], ["redo"], ["edits"]):
        assert main([words[0], str(run), *words[1:], "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0]["edit"].endswith("-gray") and shown[0]["opacity"] == 0.5
    assert [found["done"] for found in shown[1:3]] == ["undone", "redone"] and shown[1]["operation"] == "set"
    assert shown[3]["edits"][-1]["opacity"] == 0.5
    assert main(["render", str(run), "--frames", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == [Path(found["files"][0]).stat().st_size]


def test_u09_u10_a_time_budget_that_leaves_few_steps_is_said_and_every_stage_counts(run: Path, tmp_path: Path) -> None:
    options = TrainOptions(
        tmp_path / "short",
        size="54p",
        masks=("none",),
        seconds=0.2,
        overrides={"training.solver": "adam", "training.steps": 100_000},
    )
    reports: list[Progress] = []
    result = train(run.parent / "clip.mkv", options, reports.append)
    assert any(one.note.startswith("--seconds 0.2 leaves few steps") for one in reports)
    for stage, least in {"reading": 6, "flow": 5, "geometry": 6, "textures": 12, "baking": 12, "report": 6}.items():
        shares = [one.share for one in reports if one.stage == stage and not one.note]
        assert len(shares) >= least and shares == sorted(shares) and shares[-1] > 0.9, (stage, shares)
    assert 0 < result.step < 20
    (note,) = [note for note in result.notes if "steps fit" in note]
    assert note.startswith(f"only {result.step} of 100000 steps fit into --seconds 0.2") and "--size" in note
