"""A fit that is stopped, by whatever means, goes on as if it had never been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from editors.cli.main import main
from neural_fields.cli.progress_display import PlainLines
from neural_fields.core.errors import ExitCode
from neural_fields.core.progress import Progress
from neural_fields.data.capture.capture_folder import write_capture
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.synthetic.scene import make_walking_scene
from neural_fields.data.video.io import probe_video
from neural_fields.imaging.image_io import encode_png
from neural_fields.runs.checkpoints import load_latest_checkpoint
from neural_fields.runs.run import Run
from tests.support.small_pictures import draw_small_canonical_images

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEPS = 9
TRAIN = "train {home}/frames --masks {home}/mask.npy --training.checkpoint-every 2 --training.steps 9 --out {out}"
LNA = (
    " --config lna --mapping.layers [3,3] --mapping.width 16 --mapping.warm-up 4 --texture.layers 3 --texture.width 16"
    " --texture.skips [1] --opacity.layers 3 --opacity.width 16 --training.pixels 200"
)
CODEF = (
    " --config codef --mapping.levels 3 --mapping.log2-table 8 --mapping.width 8 --mapping.hidden-layers 2"
    " --texture.levels 4 --texture.log2-table 9 --texture.width 16"
)
SCENE = (
    "train {home}/scene --config hosnerf --size source --out {out} --training.holdout 3 --training.checkpoint-every 2"
    " --training.background-steps [3,3,3] --training.person-steps [3,3,3] --training.joint-steps [3,3,3]"
    " --training.rays 64 --training.person-rays 64"
    " --background.n-levels 4 --background.log2-table 10 --background.finest 64 --background.proposal-resolution 24"
    " --person.n-levels 4 --person.log2-table 10 --person.voxels 24 --person.width 32"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip as pictures, with its mask, and a fit of it that nothing interrupted."""
    home = tmp_path_factory.mktemp("home")
    clip = make_demo_clip(6, 48, 32)
    (home / "frames").mkdir()
    for number, frame in enumerate(clip.frames):
        (home / "frames" / f"{number:05d}.png").write_bytes(encode_png(frame.astype(np.float32) / 255))
    np.save(home / "mask.npy", clip.masks[0])
    assert train(home, home / "whole") == 0
    return home


def train(home: Path, out: Path, more: str = "") -> int:
    return main([word.format(home=home, out=out) for word in (TRAIN + more).split()])


@pytest.fixture(scope="module")
def scene_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of a person, and a training of it that nothing interrupted."""
    home = tmp_path_factory.mktemp("scene")
    write_capture(home / "scene", make_walking_scene(count=6, size=(32, 24), switches=(3,)).capture)
    assert train_scene(home, home / "whole") == 0
    return home


def train_scene(home: Path, out: Path, more: str = "") -> int:
    return main([word.format(home=home, out=out) for word in (SCENE + more).split()])


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None], stage: str = "training") -> None:
    """Lets something happen when a command first reports `step` of a stage, or a later one."""
    reached: list[Progress] = []

    def watch(lines: PlainLines, progress: Progress) -> None:
        if progress.name == stage and progress.done >= step and not progress.note and not reached:
            reached.append(progress)
            act()

    monkeypatch.setattr(PlainLines, "__call__", watch)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer memory of the newest checkpoint."""
    checkpoint = load_latest_checkpoint(Run(run))
    assert checkpoint is not None and checkpoint.step == STEPS
    return {**checkpoint.model, **{f"state.{name}": value for name, value in checkpoint.state.items()}}


def assert_same_weights(run: Path, whole: Path) -> None:
    mine, expected = weights(run), weights(whole)
    assert mine.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(mine[name], expected[name])] == []


def assert_same_end(run: Path, whole: Path) -> None:
    assert_same_weights(run, whole)
    for name in ("uv-foreground.bin", "weight.bin"):
        assert (run / "maps" / name).read_bytes() == (whole / "maps" / name).read_bytes()
    for path in (whole / "canonical").glob("*.png"):
        assert (run / "canonical" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("number", "code", "step"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED, 1),
        (signal.SIGTERM, ExitCode.TERMINATED, 4),
        (signal.SIGTERM, ExitCode.TERMINATED, 5),
    ],
)
def test_a_signal_saves_and_the_same_command_ends_with_the_same_weights(
    number: int, code: ExitCode, step: int, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, lambda: signal.raise_signal(number))
        assert train(home, run) == code
    assert f"saved at step {step} of {STEPS}; the same command continues" in capsys.readouterr().err
    checkpoint = load_latest_checkpoint(Run(run))
    assert checkpoint is not None and checkpoint.step == step
    assert train(home, run) == 0
    assert_same_end(run, home / "whole")


@pytest.mark.parametrize("stage", ["flow", "masks", "geometry", "baking"])
def test_a_signal_before_or_after_the_steps_is_no_loss_either(stage: str, home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, {"flow": 1, "baking": 1}.get(stage, 0), lambda: signal.raise_signal(signal.SIGINT), stage)
        assert train(home, run) == ExitCode.INTERRUPTED
    assert train(home, run) == 0
    assert_same_end(run, home / "whole")


def test_an_interrupted_rendering_leaves_no_half_video(home: Path, tmp_path: Path) -> None:
    line = ["render", str(home / "whole"), "--what", "reconstruction", "--out", str(tmp_path / "out.mp4")]
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGINT), "rendering")
        assert main(line) == ExitCode.INTERRUPTED
    assert list(tmp_path.iterdir()) == []
    assert main(line) == 0


@pytest.mark.parametrize("preset", [LNA, CODEF], ids=["lna", "codef"])
def test_presets_of_networks_resume_bit_for_bit_too(
    preset: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_small_canonical_images(monkeypatch)
    assert train(home, tmp_path / "whole", preset) == 0
    for step in (3, 6):
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, step, lambda: signal.raise_signal(signal.SIGINT))
            assert train(home, tmp_path / "run", preset) == ExitCode.INTERRUPTED
    assert train(home, tmp_path / "run", preset) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_stopping_after_every_single_step_ends_with_the_same_weights(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in range(1, STEPS):
        with pytest.MonkeyPatch.context() as patch:
            at_step(patch, step, lambda: signal.raise_signal(signal.SIGINT))
            assert train(home, run) == ExitCode.INTERRUPTED
    assert train(home, run) == 0
    assert_same_end(run, home / "whole")


def test_a_scene_stopped_at_random_steps_ends_with_the_same_files(
    scene_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for step in sorted(random.Random(8).sample(range(1, STEPS), 3)):  # 3, 4 and 8: one in each stage
        with pytest.MonkeyPatch.context() as patch:
            stage = ("background", "person", "joint")[(step - 1) // 3]
            at_step(patch, step, lambda: signal.raise_signal(signal.SIGTERM), stage)
            assert train_scene(scene_home, run) == ExitCode.TERMINATED
        assert f"saved at step {step} of {STEPS}" in capsys.readouterr().err
    assert train_scene(scene_home, run) == 0
    assert_same_weights(run, scene_home / "whole")
    for name in ("run.yaml", "scene/transforms.json", "scene/bones.json", "previews/scene.png"):
        assert (run / name).read_bytes() == (scene_home / "whole" / name).read_bytes(), name


def test_a_time_limit_leaves_a_scene_that_can_be_trained_further(
    scene_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_scene(scene_home, run, " --seconds 3 --json --training.joint-steps [100000,100000,100000]") == 0
    info = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 6 < info["step"] < 100_006 and info["steps"] == 100_006 and not info["finished"]
    checkpoint = load_latest_checkpoint(Run(run))
    assert checkpoint is not None and checkpoint.step == info["step"]


def test_an_error_in_the_middle_loses_no_more_than_the_steps_since_the_checkpoint(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def fail() -> None:
        raise OSError(5, "the disk was pulled out")

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 5, fail)
        assert train(home, run) == ExitCode.BAD_INPUT
    checkpoint = load_latest_checkpoint(Run(run))
    assert checkpoint is not None and checkpoint.step == 4
    assert train(home, run) == 0
    assert_same_end(run, home / "whole")


def test_a_run_without_its_cache_resumes_to_the_same_weights(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        assert train(home, run) == ExitCode.INTERRUPTED
    shutil.rmtree(run / "cache")
    assert train(home, run) == 0
    assert_same_end(run, home / "whole")


def test_killed_at_random_moments_trainings_of_both_families_end_with_the_same_files() -> None:
    # One process for both: starting it takes longer than the trainings.
    code = f"""if True:
        import sys
        sys.path.append({str(ROOT / "benchmarks")!r})
        import resume
        for words in (["--kills", "1", "--steps", "10"], ["--kills", "1", "--steps", "10", "--scene"]):
            sys.argv[1:] = [*words, "--seed", "3"]
            assert resume.main() == 0, words
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 of 1 equal bit for bit") == 2


def test_a_time_limit_stops_well_and_keeps_a_result_that_renders(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = " --seconds 2.5 --json --training.steps 1000000"
    assert train(home, run, more) == 0
    info = json.loads(capsys.readouterr().out)
    assert 0 < info["step"] < 1_000_000 and not info["finished"]
    assert main(["render", str(run), "--what", "reconstruction", "--out", str(tmp_path / "out.mp4")]) == 0
    assert probe_video(tmp_path / "out.mp4").frame_count == 6
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == info["step"]


def test_after_a_finished_training_more_steps_can_be_asked_for(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(home, run) == 0
    assert train(home, run) == 0
    assert "is finished: 9 of 9 steps" in capsys.readouterr().err
    assert train(home, run, " --training.steps 12 --json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 12
    assert (run / "maps/maps.json").read_text().find('"step": 12') > 0
    assert os.listdir(run / "canonical/pristine")
