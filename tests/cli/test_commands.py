"""The commands one after the other, as a person would give them, on tiny clips whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from editors.api import edit
from editors.cli.main import COMMANDS, main
from neural_fields.cli.commands import list_flags
from neural_fields.core.errors import UserError
from neural_fields.core.progress import Progress
from neural_fields.data.synthetic.planar_clips import SyntheticClip, make_demo_clip, make_translation_clip
from neural_fields.data.video.io import probe_video, read_video
from neural_fields.evaluation.evaluate_planar import evaluate
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.render_planar import render
from neural_fields.runs.run import Run
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEIGHT, FRAMES, RATE = 64, 36, 6, Fraction(30000, 1001)
EVAL_KEYS = {
    "psnr", "ssim", "psnr_per_frame", "psnr_per_layer", "alpha_iou", "warp_error", "train_seconds", "steps", "peak_mib",
}  # fmt: skip


def encode(path: Path, frames: np.ndarray, sound: bool = False) -> None:
    """A clip in H.264 at 30000/1001 frames a second, with a tone of its length."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv444p"
        tone = file.add_stream("aac", rate=16000) if sound else None
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
        if tone is not None:
            wave = np.sin(np.arange(3072, dtype=np.float32) / 9)[None] / 4
            part = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            part.sample_rate = 16000
            file.mux([*tone.encode(part), *tone.encode()])


def command(line: str, **names: object) -> int:
    """Runs one command line in this process and returns its exit status."""
    return main([word.format(**names) for word in line.split()])


def result(line: str, capsys: pytest.CaptureFixture[str], **names: object) -> dict:
    """The JSON object that a command prints."""
    capsys.readouterr()
    assert command(line, **names) == 0
    return json.loads(capsys.readouterr().out)


def decoded(path: Path, cache: Path) -> np.ndarray:
    return np.asarray(read_video(path, cache / "seen").frames).astype(np.float32)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips with a finished run each: a turtle over a sea floor, and a floor that moves by (2, 1) pixels."""
    home = tmp_path_factory.mktemp("home")
    turtle = make_demo_clip(FRAMES, WIDTH, HEIGHT)
    encode(home / "turtle.mp4", turtle.frames, sound=True)
    np.save(home / "mask.npy", turtle.masks[0])
    line = "train {home}/turtle.mp4 --masks turtle={home}/mask.npy --training.steps 12 --out {home}/turtle"
    assert command(line, home=home) == 0
    encode(home / "floor.mp4", moving_floor().frames)
    assert command("train {home}/floor.mp4 --masks none --training.steps 20 --out {home}/floor", home=home) == 0
    return home


def moving_floor() -> SyntheticClip:
    return make_translation_clip(FRAMES, WIDTH, HEIGHT, velocity=(2, 1))


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in with copies of both runs."""
    for name in ("turtle", "floor"):
        shutil.copytree(home / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paint(source: Path, target: Path, box: tuple[int, int, int, int], rgb: tuple[int, int, int]) -> None:
    """A copy of a picture with a filled rectangle (left, top, right, bottom) on it."""
    with Image.open(source) as picture:
        painted = picture.copy()
    painted.paste((*rgb, 255)[: len(painted.getbands())], box)
    painted.save(target)


def paint_middle(run: Path, layer: str, target: Path) -> None:
    with Image.open(run / f"canonical/{layer}.png") as picture:
        width, height = picture.size
    box = (width // 3, height // 3, 2 * width // 3, 2 * height // 3)
    paint(run / f"canonical/{layer}.png", target, box, (255, 0, 255))


# --- the main job ---------------------------------------------------------------------------------------------------


def test_train_edit_render_gives_a_video_like_its_source_but_for_the_edit(
    place: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint_middle(place / "turtle", "turtle", place / "painted.png")
    made = result("edit turtle painted.png --layer turtle --json", capsys)
    assert made == {"edit": "0001-painted", "layers": ["turtle"], "notes": []}
    assert command("render turtle") == 0
    shown = capsys.readouterr().out.strip()
    assert shown == "turtle/renders/turtle_v001.mp4"
    source, output = probe_video(home / "turtle.mp4"), probe_video(place / shown)
    for name in ("width", "height", "frame_count", "rate", "timestamps"):
        assert getattr(output, name) == getattr(source, name), name
    assert [track.codec for track in output.sound] == ["aac"]
    before, after = decoded(home / "turtle.mp4", place), decoded(place / shown, place)
    changed = (after[..., 0] - after[..., 1] > 120) & (after[..., 2] - after[..., 1] > 120)
    assert (changed.sum((1, 2)) > 20).all()  # magenta in every frame
    mask = np.load(home / "mask.npy")
    assert (changed & ~mask).sum() < 0.1 * changed.sum()
    far = ~mask
    for _ in range(3):  # away from the turtle, coding is all that changes
        far[:, 1:-1, 1:-1] &= far[:, :-2, 1:-1] & far[:, 2:, 1:-1] & far[:, 1:-1, :-2] & far[:, 1:-1, 2:]
    assert np.abs(after - before)[far].mean() < 6


def test_untouched_pixels_are_the_sources_in_a_lossless_rendering(place: Path, home: Path) -> None:
    paint_middle(place / "turtle", "turtle", place / "painted.png")
    assert command("edit turtle painted.png --layer turtle") == 0
    assert command("render turtle --codec ffv1 --out out.mkv") == 0
    before, after = decoded(home / "turtle.mp4", place), decoded(place / "out.mkv", place)
    same = (before == after).all(-1)
    assert 0.5 < same.mean() < 0.999
    # Outlines are soft: next to one, a little of the object shows in a pixel of the background.
    near = np.stack([cv2.dilate(m.astype(np.uint8), np.ones((9, 9), np.uint8)) for m in np.load(home / "mask.npy")])
    assert same[near == 0].all()


def test_the_edit_stack_steps_back_and_forward(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint_middle(place / "turtle", "turtle", place / "one.png")
    paint_middle(place / "turtle", "background", place / "two.png")
    assert command("edit turtle one.png --layer turtle") == 0
    assert command("edit turtle two.png --layer background --name sea") == 0

    def active() -> list[bool]:
        return [row["active"] for row in result("edits turtle --json", capsys)["edits"]]

    assert active() == [True, True]
    assert command("undo turtle") == 0 and "undone: 0002-sea" in capsys.readouterr().out
    assert active() == [True, False]
    assert result("info turtle --json", capsys)["edits"] == ["0001-one", "0002-sea (undone)"]
    assert command("edits turtle") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:4] for row in rows[1:]] == [["1", "one", "image", "turtle"], ["2", "sea", "image", "background"]]
    assert [row[-2] for row in rows[1:]] == ["shown", "undone"]
    assert command("redo turtle") == 0 and "redone: 0002-sea" in capsys.readouterr().out
    assert active() == [True, True]
    assert command("render turtle") == 0
    assert capsys.readouterr().out.strip() == "turtle/renders/turtle_v001.mp4"
    assert command("render turtle --edit sea --codec ffv1 --out sea.mkv") == 0
    assert command("render turtle --edit 1 --codec ffv1 --out one.mkv") == 0
    one, sea = decoded(place / "one.mkv", place), decoded(place / "sea.mkv", place)
    assert np.abs(one - sea).max() > 100


def test_an_edit_of_one_frame_appears_in_the_others_where_the_motion_puts_it(place: Path, home: Path) -> None:
    frames = decoded(home / "floor.mp4", place)
    Image.fromarray(frames[2].astype(np.uint8)).save(place / "frame.png")
    paint(place / "frame.png", place / "painted.png", (20, 12, 30, 20), (255, 0, 255))
    assert command("edit floor painted.png --frame 2") == 0
    assert command("render floor --codec ffv1 --out out.mkv") == 0
    change = np.abs(decoded(place / "out.mkv", place) - frames).sum(-1)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for t in range(FRAMES):
        center = np.array([(change[t] * x).sum(), (change[t] * y).sum()]) / change[t].sum()
        # The floor moves by (2, 1) pixels a frame; the middle of the paint lies at (25, 16) in frame 2.
        assert np.abs(center - [25 + 2 * (t - 2), 16 + (t - 2)]).max() < 0.35
    inside = decoded(place / "out.mkv", place)[2, 13:19, 21:29]
    assert np.abs(inside - [255, 0, 255]).max() < 12


def test_an_edit_of_a_canonical_picture_appears_where_the_motion_puts_it(place: Path, home: Path) -> None:
    width, height = json.loads((place / "floor/canonical/background.json").read_text())["size"]
    box = (width // 3, height // 3, width // 3 + 12, height // 3 + 10)
    paint(place / "floor/canonical/background.png", place / "painted.png", box, (255, 0, 255))
    assert command("edit floor painted.png --layer background") == 0
    assert command("render floor --codec ffv1 --out out.mkv") == 0
    change = np.abs(decoded(place / "out.mkv", place) - decoded(home / "floor.mp4", place)).sum(-1)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centers = [np.array([(c * x).sum(), (c * y).sum()]) / c.sum() for c in change]
    steps = np.diff(centers, axis=0)
    assert np.abs(steps - [2, 1]).max() < 0.35


# --- what else render can do ----------------------------------------------------------------------------------------


def test_the_reconstruction_looks_like_the_source(place: Path, home: Path) -> None:
    assert command("render floor --what reconstruction --codec ffv1 --out out.mkv") == 0
    error = (decoded(place / "out.mkv", place) - decoded(home / "floor.mp4", place)) ** 2
    assert 10 * np.log10(255**2 / error.mean()) > 30


def test_compare_shows_source_reconstruction_and_edit_side_by_side(place: Path, home: Path) -> None:
    assert command("render turtle --what compare --out two.mp4") == 0
    paint_middle(place / "turtle", "turtle", place / "painted.png")
    assert command("edit turtle painted.png --layer turtle") == 0
    assert command("render turtle --what compare --codec ffv1 --out three.mkv") == 0
    assert (probe_video(place / "two.mp4").width, probe_video(place / "three.mkv").width) == (2 * WIDTH, 3 * WIDTH)
    three = decoded(place / "three.mkv", place)
    assert np.array_equal(three[:, -HEIGHT:, :WIDTH], decoded(home / "turtle.mp4", place))  # below the captions


def test_layers_are_written_one_by_one_with_alpha_where_the_codec_has_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("render turtle --what layers --codec png --out layers") == 0
    assert capsys.readouterr().out.split() == ["layers-turtle", "layers-background"]
    with Image.open(sorted((place / "layers-turtle").iterdir())[2]) as picture:
        assert picture.mode == "RGBA" and picture.size == (WIDTH, HEIGHT)
        alpha = np.array(picture)[..., 3] / 255
    with Image.open(sorted((place / "layers-background").iterdir())[2]) as picture:
        assert np.abs(alpha + np.array(picture)[..., 3] / 255 - 1).max() < 0.01
    assert command("render turtle --what layers") == 0
    assert {path.name for path in (place / "turtle/renders").iterdir()} == {
        "turtle_layers_v001-turtle.mp4",
        "turtle_layers_v001-background.mp4",
    }


def test_an_output_is_kept_unless_its_replacement_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "out.mp4").write_text("mine")
    assert command("render floor --what reconstruction --out out.mp4") == 3
    assert "-y" in capsys.readouterr().err and (place / "out.mp4").read_text() == "mine"
    assert command("render floor --what reconstruction --out out.mp4 -y") == 0
    assert probe_video(place / "out.mp4").frame_count == FRAMES


def test_a_rendering_at_another_size_shows_the_edit_at_the_same_place(place: Path, home: Path) -> None:
    paint_middle(place / "floor", "background", place / "painted.png")
    assert command("edit floor painted.png --layer background") == 0
    assert command("render floor --codec ffv1 --out same.mkv") == 0
    assert command("render floor --codec ffv1 --size 128x72 --out large.mkv") == 0
    small, large = decoded(place / "same.mkv", place), decoded(place / "large.mkv", place)
    assert large.shape[1:3] == (72, 128)
    halved = large.reshape(FRAMES, HEIGHT, 2, WIDTH, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 8


# --- train ----------------------------------------------------------------------------------------------------------


def test_a_finished_run_says_so_and_stays_as_it_is(place: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def list_files() -> dict[Path, int]:
        files = (place / "floor").rglob("*")
        return {path: path.stat().st_mtime_ns for path in files if not path.name.startswith("LOCK")}

    before = list_files()
    line = "train {home}/floor.mp4 --masks none --training.steps 20 --out floor"
    assert command(line, home=home) == 0
    assert "is finished: 20 of 20 steps" in capsys.readouterr().err
    assert list_files() == before  # no frame was decoded
    facts = result(line + " --json", capsys, home=home)
    counted = {name: facts[name] for name in ("run", "step", "steps", "finished")}
    assert counted == {"run": "floor", "step": 20, "steps": 20, "finished": True}
    assert facts["psnr"] > 20 and facts["report"] == "floor/report.html"


def test_a_range_of_frames_is_trained_on_rendered_and_addressed_by_the_sources_numbers(
    place: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "train {home}/floor.mp4 --masks none --frames 1:6:2 --training.steps 4 --out part"
    assert command(line, home=home) == 0
    source = probe_video(home / "floor.mp4")
    frames = decoded(home / "floor.mp4", place)
    assert command("render part --what compare --codec ffv1 --out out.mkv") == 0
    assert np.array_equal(decoded(place / "out.mkv", place)[:, -HEIGHT:, :WIDTH], frames[1:6:2])
    times = [source.timestamps[i] for i in (1, 3, 5)]
    shown = probe_video(place / "out.mkv").timestamps
    assert [float(t - shown[0]) for t in shown] == pytest.approx([float(t - times[0]) for t in times], abs=1e-3)
    Image.fromarray(frames[3].astype(np.uint8)).save(place / "frame.png")
    paint(place / "frame.png", place / "painted.png", (20, 12, 30, 20), (255, 0, 255))
    capsys.readouterr()
    assert command("edit part painted.png --frame 2") == 3
    assert "one in 2" in capsys.readouterr().err
    assert command("edit part painted.png --frame 3") == 0
    assert command("render part --codec ffv1 --out edited.mkv") == 0
    assert np.abs(decoded(place / "edited.mkv", place)[1, 13:19, 21:29] - [255, 0, 255]).max() < 15


def test_the_folder_that_one_stands_in_is_a_video_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "my frames").mkdir()
    monkeypatch.chdir(place / "my frames")
    for number, frame in enumerate(moving_floor().frames[:2]):
        Image.fromarray(frame).save(f"{number}.png")
    assert command("train . --training.steps 2") == 0
    captured = capsys.readouterr()
    assert captured.out == "runs/my frames\n"
    assert "unwrap render 'runs/my frames'" in captured.err  # a line that can be pasted


def test_a_training_at_a_smaller_size_is_rendered_at_the_size_of_the_source(place: Path, home: Path) -> None:
    assert command("train {home}/floor.mp4 --masks none --size 32x18 --training.steps 4 --out small", home=home) == 0
    assert command("render small --what reconstruction --out out.mp4") == 0
    facts = probe_video(place / "out.mp4")
    assert (facts.width, facts.height) == (WIDTH, HEIGHT)


def test_a_shim_at_the_root_is_the_command(place: Path, home: Path) -> None:
    line = [
        sys.executable,
        str(ROOT / "train.py"),
        str(home / "floor.mp4"),
        "--masks",
        "none",
        "--training.steps",
        "20",
    ]
    done = subprocess.run([*line, "--out", "shim"], capture_output=True, text=True, timeout=120, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "shim\n"  # stdout is data, the talk is on stderr
    for name in ("maps/uv-background.bin", "canonical/background.png"):
        assert (place / "shim" / name).read_bytes() == (place / "floor" / name).read_bytes()


# --- eval, info, doctor ---------------------------------------------------------------------------------------------


def test_eval_prints_one_object_with_every_figure(place: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = result("eval turtle --masks {home}/mask.npy --json", capsys, home=home)
    assert facts.keys() >= EVAL_KEYS
    assert facts["psnr"] > 25 and 0.7 < facts["ssim"] <= 1 and facts["steps"] == 12
    assert len(facts["psnr_per_frame"]) == FRAMES and set(facts["psnr_per_layer"]) == {"turtle", "background"}
    assert facts["alpha_iou"]["turtle"] > 0.9
    assert facts["train_seconds"] > 0 and facts["peak_mib"] > 100 and facts["warp_error"] > 0
    assert result("eval turtle --json", capsys)["alpha_iou"] is None
    assert command("eval turtle") == 0
    assert any(line.split()[:1] == ["psnr"] for line in capsys.readouterr().out.splitlines())


def test_eval_writes_the_report_and_says_where(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "turtle/report.html").unlink()  # that of train
    report = result("eval turtle --html --json", capsys)["report"]
    assert report["path"] == "turtle/report.html" and report["verdict"] in ("good", "care", "bad")
    assert report["reasons"] and set(report["layers"]) == {"turtle", "background"}
    assert report["title"].encode() in (place / report["path"]).read_bytes()
    assert command("eval turtle --html") == 0
    assert f"{report['path']}  {report['title']}" in capsys.readouterr().out


def test_info_tells_of_a_video_and_of_a_run(place: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = result("info {home}/turtle.mp4 --json", capsys, home=home)
    assert (video["width"], video["height"], video["frame_count"]) == (WIDTH, HEIGHT, FRAMES)
    assert video["rate"] == "30000/1001" and video["sound"][0].startswith("aac")
    run = result("info turtle --json", capsys)
    assert run["steps"] == 12 and run["layers"] == ["background", "turtle"] and run["frames"] == f"0:{FRAMES}:1"
    assert command("info turtle") == 0
    assert "atlas" in capsys.readouterr().out


def test_doctor_names_versions_and_back_ends(capsys: pytest.CaptureFixture[str]) -> None:
    facts = result("doctor --json", capsys)
    assert {"unwrap", "python", "torch", "device", "hash grid", "fit"} <= facts.keys()
    assert facts["fit"].startswith("numba ")
    assert command("doctor") == 0
    assert "unwrap" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(f"{name} --help")
    assert stopped.value.code == 0
    assert "usage: unwrap" in capsys.readouterr().out


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--version") == 0
    assert capsys.readouterr().out.count(".") == 2


# --- from Python ----------------------------------------------------------------------------------------------------


def test_the_same_verbs_from_python(place: Path, home: Path) -> None:
    seen: list[Progress] = []
    options = TrainOptions(out=place / "api", masks=("none",), overrides={"training.steps": 6})
    fitted = train(home / "floor.mp4", options, seen.append)
    assert (fitted.step, fitted.total, fitted.exit_code) == (6, 6, 0)
    assert {"reading", "flow", "geometry", "training", "baking"} <= {progress.stage for progress in seen}
    paint_middle(fitted.run.path, "background", place / "painted.png")
    made = edit(fitted.run, place / "painted.png", layer="background", name="My logo!")
    assert made.edit.folder.name == "0001-my-logo" and made.edit.layers == ("background",)
    (path,) = render(Run.open(fitted.run.path), RenderOptions(out=place / "out.mp4"))
    assert path == place / "out.mp4" and probe_video(path).frame_count == FRAMES
    assert evaluate(fitted.run)["psnr"] > 25
    with pytest.raises(UserError, match="neither a layer nor a frame"):
        edit(fitted.run, place / "painted.png")


def test_no_editor_has_a_setting_of_a_name_that_all_edits_have() -> None:
    from editors.cli.editors import EditByEditorCommand
    from editors.editors_table import EDITORS, SCENE_EDITORS, find_editor_class

    common = {entry.name for entry in dataclasses.fields(EditByEditorCommand)}
    kinds = [find_editor_class(name) for name in EDITORS]
    for kind in [*kinds, *(find_editor_class(name, is_scene=True) for name in SCENE_EDITORS)]:
        assert not {entry.name for entry in dataclasses.fields(kind)} & common, kind.name


@pytest.mark.parametrize("name", ["capture", "train", "render", "eval", "export", "edit"])
def test_the_flags_that_an_error_can_suggest_are_those_of_the_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = re.findall(r"^ {,4}(?:-\w, )?(--[a-z][\w-]*)", capsys.readouterr().out, flags=re.MULTILINE)
    assert sorted(shown) == sorted(set(list_flags(COMMANDS[name])))
