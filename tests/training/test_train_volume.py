"""3D scenes from the command line: train, continue, measure, render, and what is refused."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editors import edit
from editors.cli.main import main
from editors.core.history import undo
from editors.core.stack import add_scene_edit
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.capture.bones_json import write_bones
from neural_fields.data.capture.capture_folder import read_capture, write_capture
from neural_fields.data.capture.skeleton import Skeleton, SkeletonMotion
from neural_fields.data.capture.transforms_json import read_transforms
from neural_fields.data.synthetic.scene import make_walking_scene
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.record import EditOrigin
from neural_fields.open_runs.opening import require_scene
from neural_fields.open_runs.scene_run import SceneRun
from neural_fields.rendering.render_volume import composite_edit, place_orbit_cameras
from neural_fields.runs.run import Run, append_metrics, read_metrics
from neural_fields.training.loop import StepRecord, train_steps
from neural_fields.training.scene_task import SceneTask
from neural_fields.volume.config import load_volume_config, training_stages
from neural_fields.volume.ray_batches import RayBatch
from neural_fields.volume.record import choose_held_out_views

pytestmark = pytest.mark.slow

SHORT = (
    "--training.background_steps", "[6, 6, 6]", "--training.person_steps", "[6, 6, 6]",
    "--training.joint_steps", "[3, 3, 3]", "--training.rays", "128", "--training.person_rays", "128",
    "--background.n_levels", "4", "--background.log2_table", "10", "--background.finest", "64",
    "--background.proposal_resolution", "24", "--person.n_levels", "4", "--person.log2_table", "10",
    "--person.voxels", "24", "--person.width", "32",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volume") / "scene"
    write_capture(folder, make_walking_scene(count=6, size=(32, 24), switches=(3,)).capture)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    path = folder.parent / "run"
    words = ("--config", "hosnerf", "--size", "source", "--out", str(path), "--training.holdout", "3", *SHORT)
    assert main(["train", str(folder), *words]) == 0
    return Run.open(path)


def test_a_finished_training_says_so_and_does_nothing(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--config", "hosnerf", "--size", "source", "--out", str(run.path), "--training.holdout", "3", *SHORT)
    assert main(["train", str(folder), *words]) == 0
    assert "is finished: 15 of 15 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--terms.mask", "0.5"], "config.terms"),
        (["--person.width", "16", "--background.width", "16"], "config.background, config.person"),
        (["--seed", "1"], "seed"),
        (["--training.holdout", "2"], "held_out"),
        (["--size", "24x18"], "size"),
    ],
)
def test_a_scene_is_not_continued_with_other_settings(
    run: Run, folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = ["--config", "hosnerf", "--size", "source", "--out", str(run.path), "--training.holdout", "3", *SHORT]
    before = run.run_yaml.read_bytes()
    assert main(["train", str(folder), *begun, *words]) == 3
    assert f"was begun with other settings: {said}\n" in capsys.readouterr().err
    assert run.run_yaml.read_bytes() == before


def test_quality_and_how_often_to_save_may_change_on_the_way(
    run: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = ["--config", "hosnerf", "--size", "source", "--out", str(run.path), "--training.holdout", "3", *SHORT]
    assert main(["train", str(folder), *begun, "--quality", "draft", "--training.checkpoint-every", "7"]) == 0
    assert "is finished: 15 of 15 steps" in capsys.readouterr().err


def test_a_training_without_steps_leaves_a_scene_that_can_be_trained_further(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(folder), "--config", "hosnerf", "--size", "source", "--out", str(tmp_path / "run")]
    none = [word.replace("6, 6, 6", "0, 0, 0").replace("3, 3, 3", "0, 0, 0") for word in SHORT]
    assert main([*words, *none]) == 0
    assert "has no steps" in capsys.readouterr().err
    assert require_scene(tmp_path / "run", "the test").step == 0
    assert main([*words, *none]) == 0
    assert "is finished: 0 of 0 steps" in capsys.readouterr().err
    assert main([*words, *none, "--training.background_steps", "[2, 2, 2]"]) == 0
    assert require_scene(tmp_path / "run", "the test").step == 2


def test_stages_come_one_after_the_other_and_only_the_first_without_a_person() -> None:
    training = load_volume_config("hosnerf").training
    both, alone = training_stages(training, "draft", True), training_stages(training, "draft", False)
    assert [stage.name for stage in both] == ["background", "person", "joint"]
    assert all(one.last == other.first for one, other in pairwise(both))
    assert [stage.name for stage in alone] == ["background"]


def test_stopped_and_continued_is_the_same_as_never_stopped(folder: Path, run: Run, tmp_path: Path) -> None:
    record, capture = require_scene(run, "the test").record, read_capture(folder)

    def trained(path: Path, stops: tuple[int, ...]) -> dict[str, torch.Tensor]:
        own = Run.create(path)
        for last in stops:
            task, asked = SceneTask(record, capture, torch.device("cpu")), itertools.count()
            list(train_steps(task, own, stop=partial(trained_enough, asked, last)))
        return {name: value.clone() for name, value in task.model.state_dict().items()}

    def trained_enough(asked: Iterator[int], steps: int) -> bool:
        return next(asked) == steps

    whole, broken = trained(tmp_path / "one", (-1,)), trained(tmp_path / "two", (4, 5, -1))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())


def test_fewer_rays_are_drawn_where_memory_runs_out_also_when_continued(
    folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, capture = require_scene(run, "the test").record, read_capture(folder)
    own, counts = Run.create(tmp_path / "run"), []

    def trained(limit: int, until: int) -> list[StepRecord]:
        task = SceneTask(record, capture, torch.device("cpu"))
        draw, done = task.training.pixels.draw_background, list[StepRecord]()

        def limited(count: int, generator: torch.Generator) -> RayBatch:
            counts.append(count)
            if count > limit:
                raise torch.OutOfMemoryError("no room")
            return draw(count, generator)

        monkeypatch.setattr(task.training.pixels, "draw_background", limited)
        for step in train_steps(task, own, stop=lambda: len(done) == until):
            done.append(step)
        return done

    first, second = trained(40, 2)
    assert counts == [128, 64, 32, 32]
    assert first.notes == tuple(f"out of memory: the batch is now 1/{divisor} of its size" for divisor in (2, 4))
    assert second.notes == () and all(np.isfinite(list(step.terms.values())).all() for step in (first, second))
    counts.clear()
    trained(40, 1)
    assert counts == [32]
    counts.clear()
    with pytest.raises(UserError, match="not enough memory") as error:
        trained(0, 1)
    assert error.value.code == ExitCode.NO_ROOM and counts == [32, 16, 8, 4, 2, 1]


def test_the_time_of_a_continued_training_counts_all_its_sessions(run: Run, folder: Path, tmp_path: Path) -> None:
    own = Run(tmp_path / "copy")
    shutil.copytree(run.path, own.path)
    append_metrics(own, {"event": "stopped", "train_seconds": 1000.0})
    words = ("--config", "hosnerf", "--size", "source", "--out", str(own.path), "--training.holdout", "3", *SHORT)
    assert main(["train", str(folder), *words, "--training.joint_steps", "[4, 4, 4]"]) == 0
    last = read_metrics(own)[-1]
    assert last["event"] == "finished" and last["steps"] == 16 and 1000 < last["train_seconds"] < 1600


def test_views_left_out_are_measured_apart(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_held_out_views(6, 3) == (1, 4) and choose_held_out_views(6, 0) == ()
    assert main(["eval", str(run.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["held_out"] == [1, 4] and len(found["psnr_per_frame"]) == 6
    held = np.mean([found["psnr_per_frame"][view] for view in (1, 4)])
    assert found["psnr_held_out"] == pytest.approx(held, abs=1e-3)
    assert found["psnr"] > 5 and found["psnr_person"] > 5


def shown_pictures(opened: SceneRun) -> dict[str, np.ndarray]:
    """The pictures of a run in a notebook, by the names below them."""
    found = re.findall(r'base64,([^"]+)" alt="([^"]+)"', opened._repr_html_())
    return {name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data, name in found}


def test_a_scene_shows_itself_in_a_notebook_with_and_without_its_previews(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    own = Run(tmp_path / "copy")
    shutil.copytree(run.path, own.path)
    pictures = shown_pictures(require_scene(own, "the test"))
    assert list(pictures) == ["filmed", "scene", "background", "person", "depth"]
    assert np.abs(pictures["filmed"] - read_capture(folder).frames[3].astype(int)).max() <= 1
    shutil.rmtree(own.previews)
    rendered = shown_pictures(require_scene(own, "the test"))
    assert list(rendered) == ["scene", "depth"]
    for name, picture in rendered.items():
        assert np.abs(picture - pictures[name].astype(int)).max() <= 1, name
    shutil.rmtree(own.checkpoints)
    nothing = require_scene(own, "the test")
    assert not shown_pictures(nothing) and str(own.path) in nothing._repr_html_()


def test_renders_the_filmed_views_other_cameras_frozen_time_and_poses(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = require_scene(run, "the test").record
    assert record.motion is not None
    cameras = tmp_path / "transforms.json"
    cameras.write_bytes((run.scene / "transforms.json").read_bytes())
    bones = tmp_path / "up.json"
    write_bones(bones, SkeletonMotion(record.motion.skeleton, record.motion.transforms[:2]))
    wanted = {
        "reconstruction": [],
        "depth": ["--what", "depth"],
        "orbit": ["--camera", "orbit", "--time", "2", "--size", "16x16"],
        "file": ["--camera", str(cameras), "--size", "48x36"],
        "pose": ["--pose", str(bones)],
    }
    for name, words in wanted.items():
        out = tmp_path / name
        kind = [] if "--what" in words else ["--what", "reconstruction"]
        assert main(["render", str(run.path), "--out", str(out), "--codec", "png", *kind, *words]) == 0, name
        count = {"orbit": 60, "pose": 2}.get(name, 6)
        assert len(list(out.glob("*.png"))) == count, name
    assert main(["render", str(run.path), "--what", "layers", "--codec", "png", "--out", str(tmp_path / "parts")]) == 0
    assert {path.name for path in tmp_path.glob("parts-*")} == {"parts-background", "parts-person"}


def test_an_orbit_looks_at_the_person_from_all_around(run: Run) -> None:
    record = require_scene(run, "the test").record
    cameras = place_orbit_cameras(record, 12)
    assert record.motion is not None
    middle = np.mean([record.motion.compute_joint_positions(t).mean(axis=0) for t in range(6)], axis=0)
    for camera in cameras:
        pixel, depth, _ = camera.project_points(middle[None])
        assert np.abs(pixel[0] - camera.center).max() < 1e-6 and depth[0] > 0
    places = np.stack([camera.position for camera in cameras])
    assert np.linalg.norm(places.mean(axis=0) - middle) < np.linalg.norm(places - middle, axis=1).max()
    assert np.ptp(np.linalg.norm(places - middle, axis=1)) < 1e-6


def test_what_an_edit_does_not_change_stays_the_sources() -> None:
    torch.manual_seed(0)
    filmed, plain = np.random.default_rng(0).random((2, 5, 6, 3)).astype(np.float32)
    edited = plain.copy()
    edited[2, 3] += 0.5
    result = composite_edit(filmed, plain, edited)
    changed = np.zeros((5, 6), bool)
    changed[2, 3] = True
    assert np.array_equal(result[~changed], filmed[~changed])
    assert np.allclose(result[2, 3], edited[2, 3])


def test_edits_of_a_scene_are_weights_on_the_same_stack(run: Run, folder: Path, tmp_path: Path) -> None:
    own = Run(tmp_path / "copy")
    shutil.copytree(run.path, own.path)
    opened = require_scene(own, "the test")
    scene = opened.scene
    name = "background.sky_color.bias"
    value = torch.full_like(scene.state_dict()[name], 3.0)
    add_scene_edit(own, "sky", {name: value.numpy()}, EditOrigin(editor="test"), parts=("background",))
    add_scene_edit(own, "gone", {}, EditOrigin(editor="test"), hidden=("person",))
    edited, parts = opened.apply_edits()
    assert torch.equal(edited.state_dict()[name], value) and parts == {"background"}
    assert not torch.equal(scene.state_dict()[name], value)
    undo(own)
    opened.refresh_edits()
    assert opened.apply_edits()[1] == {"background", "person"}
    assert main(["render", str(own.path), "--out", str(tmp_path / "edit.mp4")]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--time", "99"], "there are 6 moments"),
        (["--camera", "nowhere.json"], "nowhere.json"),
        (["--pose", "OTHER"], "other bones"),
        ([], "no edit to render"),
    ],
)
def test_renderings_that_cannot_be_are_refused(
    run: Run, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    skeleton = Skeleton(("hip", "head"), (-1, 0), np.array([[0.0, 0, 0], [0, 0, 1]]))
    write_bones(other, SkeletonMotion(skeleton, np.tile(np.eye(4), (1, 2, 1, 1))))
    kind = ["--what", "reconstruction"] if words else []
    assert main(["render", str(run.path), *kind, *(str(other) if word == "OTHER" else word for word in words)]) == 3
    assert said in capsys.readouterr().err


def test_planar_presets_and_flags_on_a_scene_are_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(folder), "--out", str(tmp_path / "one")]) == 3
    assert "--config hosnerf" in capsys.readouterr().err
    assert main(["train", str(folder), "--config", "hosnerf", "--frames", "0:3", "--out", str(tmp_path / "two")]) == 3
    assert "--frames" in capsys.readouterr().err
    assert not (tmp_path / "one").exists() and not (tmp_path / "two").exists()


def test_a_run_keeps_the_cameras_and_bones_it_was_trained_on(run: Run, folder: Path) -> None:
    record, capture = require_scene(run, "the test").record, read_capture(folder)
    assert capture.motion is not None and record.motion is not None
    assert np.allclose(record.motion.transforms, capture.motion.transforms)
    assert len(read_transforms(run.scene / "transforms.json")) == 6
    for one, other in zip(record.cameras, capture.cameras, strict=True):
        assert np.allclose(one.pose, other.pose) and np.allclose(one.focal, other.focal)
    assert record.switches == (3,) and record.state_count == 2


def test_editors_of_scenes_and_of_pictures_are_not_mixed_up(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "copy"
    shutil.copytree(run.path, own)
    assert main(["edit", str(own), "--editor", "remove"]) == 0
    assert "0001-remove" in capsys.readouterr().out
    assert require_scene(own, "the test").apply_edits()[1] == {"background"}
    assert main(["render", str(own), "--what", "compare", "--out", str(tmp_path / "both.mp4")]) == 0
    capsys.readouterr()
    assert main(["edit", str(own), "--editor", "remove", "--layer", "person"]) == 3
    assert "no part of a 3D scene" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be arranged"):
        edit(own, editor="remove", arrangement=Arrangement(opacity=0.5))
    with pytest.raises(UserError, match="needs the canonical pictures of a video"):
        edit(own, editor="adjust", exposure=1.0)
    removal = edit(own, editor="remove", part="background").edit.record.removal
    assert removal is not None and removal.layers == ("background",)
    points = ("--editor", "shape", "--frame", "0", "--points", "1,1>2,2")
    assert main(["edit", str(own), *points]) in (2, 3)
    picture = tmp_path / "painted.png"
    Image.new("RGB", (48, 36)).save(picture)
    capsys.readouterr()
    assert main(["edit", str(own), str(picture), "--layer", "person"]) == 3
    assert "3D scene" in capsys.readouterr().err
