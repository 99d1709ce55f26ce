"""Whatever a user gives: one clear error with its exit status, no traceback, and nothing of theirs is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from editors.cli.main import main
from neural_fields.core.errors import ExitCode
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.io import probe_video
from neural_fields.training import train_planar

pytestmark = pytest.mark.slow

WIDTH, HEIGHT, FRAMES = 48, 32, 6
CLIP = make_demo_clip(FRAMES, WIDTH, HEIGHT)
TRAIN = "train {home}/clip.mp4 --masks {home}/mask.npy --training.steps 4 --out run"


def encode(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())


def command(line: str, **names: object) -> int:
    """Runs one command line in this process and returns its exit status."""
    try:
        return main([word.format(**names) for word in line.split()])
    except SystemExit as stopped:
        assert isinstance(stopped.code, int)
        return stopped.code


def contents(place: Path) -> dict[str, bytes]:
    """Every file but the lock, whose text says who held it last."""
    files = (path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith("LOCK"))
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip, its mask, a finished run with one edit, and a painted canonical picture."""
    home = tmp_path_factory.mktemp("home")
    encode(home / "clip.mp4", CLIP.frames)
    np.save(home / "mask.npy", CLIP.masks[0])
    assert command(TRAIN.replace("--out run", "--out {home}/run"), home=home) == 0
    with Image.open(home / "run/canonical/foreground.png") as canonical:
        picture = np.array(canonical)
    height, width = picture.shape[:2]
    picture[height // 3 : height // 2, width // 3 : width // 2] = (255, 0, 0, 255)
    Image.fromarray(picture).save(home / "painted.png")
    assert command("edit {home}/run {home}/painted.png --layer foreground --name logo", home=home) == 0
    return home


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a copy of the run; the clip and the mask stay at home."""
    shutil.copytree(home / "run", tmp_path / "run")
    shutil.copy(home / "painted.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- how things get broken ------------------------------------------------------------------------------------------


def text(name: str, content: str) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        (place / name).write_text(content)

    return apply


def cut(name: str, source: str = "", share: float = 0.6) -> Callable[[Path], None]:
    """A file without its end: of `source` at a format of its own, or of the file itself."""

    def apply(place: Path) -> None:
        if source:
            encode(place / source, CLIP.frames)
            data = (place / source).read_bytes()
            (place / source).unlink()
        else:
            data = (place / name).read_bytes()
        (place / name).write_bytes(data[: int(len(data) * share)])

    return apply


def flip(pattern: str) -> Callable[[Path], None]:
    """One bit in the middle of a file."""

    def apply(place: Path) -> None:
        (path,) = place.glob(pattern)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return apply


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        before = (place / name).read_text()
        assert old in before
        (place / name).write_text(before.replace(old, new))

    return apply


def gone(name: str) -> Callable[[Path], None]:
    def apply(place: Path) -> None:
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def pictures(name: str, frames: np.ndarray, but: dict[int, np.ndarray | None] | None = None) -> Callable[[Path], None]:
    """A folder of numbered pictures; some of them missing (None) or other ones."""

    def apply(place: Path) -> None:
        (place / name).mkdir()
        for number, frame in enumerate(frames):
            shown = (but or {}).get(number, frame)
            if shown is not None:
                Image.fromarray(shown).save(place / name / f"{number:05d}.png")

    return apply


def broken_picture(place: Path) -> None:
    pictures("frames", CLIP.frames)(place)
    cut("frames/00004.png")(place)


def broken_pristine(place: Path) -> None:
    (path,) = place.glob("run/canonical/pristine/foreground-*")
    cut(str(path.relative_to(place)))(place)


def without_pictures(place: Path) -> None:
    encoded = av.open(str(place / "noframes.mp4"), "w")
    stream = encoded.add_stream("libx264", rate=10)
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoded.start_encoding()
    encoded.close()


def flow_with_nan(place: Path) -> None:
    for name in ("forward", "backward"):
        (place / "flow" / name).mkdir(parents=True)
        for number in range(FRAMES - 1):
            flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
            if (name, number) == ("forward", 3):
                flow[7, 9] = np.nan
            np.save(place / "flow" / name / f"{number:05d}.npy", flow)


def bomb(place: Path) -> None:
    """A picture of a few hundred bytes that says it has 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    (place / "bomb.png").write_bytes(data)


def other_aspect(place: Path) -> None:
    with Image.open(place / "painted.png") as picture:
        picture.crop((0, 0, picture.width // 2, picture.height)).save(place / "half.png")


def not_painted(place: Path) -> None:
    shutil.copy(place / "run/canonical/foreground.png", place / "same.png")


def painted_over(place: Path) -> None:
    """The overlay of the edit replaced by another picture."""
    (path,) = place.glob("run/edits/0001-logo/*.png")
    Image.new("RGBA", (43, 45), (1, 2, 3, 255)).save(path)


def another_source(place: Path) -> None:
    encode(place / "clop.mp4", CLIP.frames[::-1])
    record = (place / "run/run.yaml").read_text().splitlines()
    lines = [f"video: {place / 'clop.mp4'}" if line.startswith("video:") else line for line in record]
    (place / "run/run.yaml").write_text("\n".join(lines))


def nothing(place: Path) -> None:
    pass


MASKS = (CLIP.masks[0] * 255).astype(np.uint8)
BAD, DAMAGED, USAGE, UNSAFE = ExitCode.BAD_INPUT, ExitCode.DAMAGED_RUN, ExitCode.USAGE, ExitCode.UNSAFE_FILE


@dataclass(frozen=True)
class Row:
    """One way to go wrong: a command, its exit status, words of its error, and what has to be broken first."""

    name: str
    line: str
    code: ExitCode
    says: tuple[str, ...]
    arrange: Callable[[Path], None] = nothing


FIT = "train {home}/clip.mp4 "
OTHER = TRAIN.replace("--out run", "--out other")

VIDEOS = [
    Row("missing video", "train nowhere.mp4", BAD, ("there is no file or folder nowhere.mp4", "try")),
    Row("empty video", "train empty.mp4", BAD, ("empty (0 bytes)", "empty.mp4", "try"), text("empty.mp4", "")),
    Row("text called mp4", "train text.mp4", BAD, ("text.mp4", "try"), text("text.mp4", "not a video\n" * 99)),
    Row("mp4 without index", "train cut.mp4", BAD, ("cut.mp4", "try"), cut("cut.mp4", "whole.mp4")),
    Row("cut mkv", "train cut.mkv", BAD, ("cut short", "cut.mkv", "bytes"), cut("cut.mkv", "whole.mkv")),
    Row("video without frames", "train noframes.mp4", BAD, ("no video", "noframes.mp4"), without_pictures),
    Row("empty folder", "train frames", BAD, ("no pictures", "frames"), pictures("frames", CLIP.frames[:0])),
    Row(
        "folder with a gap", "train frames", BAD, ("missing", "'00002.png' and '00004.png'"),
        pictures("frames", CLIP.frames, {3: None}),
    ),
    Row(
        "folder of mixed sizes", "train frames", BAD, ("'00002.png' is 48x20", "48x32"),
        pictures("frames", CLIP.frames, {2: CLIP.frames[0, :20]}),
    ),
    Row(
        "broken picture in a folder", "train frames", BAD, ("00004.png",),
        broken_picture,
    ),
    Row("frames that are not there", FIT + "--frames 3:99", BAD, ("3:99", "frames 0 to 5", "--frames 0:6")),
    Row("no frame range", FIT + "--frames a:b", BAD, ("'a:b'", "A:B")),
    Row("no size", FIT + "--size huge", BAD, ("'huge'", "240p", "--size 480p")),
    Row("no time at all", FIT + "--seconds 0", BAD, ("--seconds 0", "--seconds 90")),
    Row("unknown facts", "info nowhere.mp4", BAD, ("nowhere.mp4",)),
]  # fmt: skip

MASKS_AND_FLOW = [
    Row("missing masks", FIT + "--masks nowhere", BAD, ("nowhere", "--masks auto")),
    Row(
        "too few masks", FIT + "--masks masks", BAD, ("5 masks", "6 frames", "frames 5", "--frames 0:5"),
        pictures("masks", MASKS[:5]),
    ),
    Row(
        "a mask of another aspect", FIT + "--masks masks", BAD, ("00002.png", "48x20", "48x32"),
        pictures("masks", MASKS, {2: MASKS[2][:20]}),
    ),
    Row("inverted masks", FIT + "--masks masks", BAD, ("inverted", "masks"), pictures("masks", 255 - MASKS)),
    Row("empty masks", FIT + "--masks masks", BAD, ("empty", "masks"), pictures("masks", 0 * MASKS)),
    Row("auto beside a mask", FIT + "--masks auto --masks {home}/mask.npy", BAD, ("'auto'", "alone")),
    Row("a name that is no layer", FIT + "--masks a/b={home}/mask.npy", BAD, ("a/b",)),
    Row(
        "NaN in a flow file", FIT + "--flow flow", BAD,
        ("00003.npy", "NaN", "row 7, column 9", "pair 3 to 4", "--flow dis"), flow_with_nan,
    ),
    Row("unknown flow", FIT + "--flow optical", BAD, ("optical", "raft", "--flow dis")),
    Row("masks that do not fit the run", "eval run --masks {home}/mask.npy --masks {home}/mask.npy", BAD,
        ("2 masks", "1 ")),
]  # fmt: skip

CONFIGS = [
    Row(
        "wrong key", FIT + "--config my.yaml", BAD, ("mapping.cel", "did you mean 'cell'", "my.yaml"),
        text("my.yaml", "mapping: {kind: grid, cel: 8}\n"),
    ),
    Row(
        "wrong kind", FIT + "--config my.yaml", BAD, ("mapping.kind", "'gird'", "did you mean 'grid'"),
        text("my.yaml", "mapping: {kind: gird}\n"),
    ),
    Row(
        "wrong type", FIT + "--config my.yaml", BAD, ("training.steps", "whole number", "'many'"),
        text("my.yaml", "training: {steps: many}\n"),
    ),
    Row("no YAML", FIT + "--config my.yaml", BAD, ("my.yaml:2",), text("my.yaml", "mapping: [1\n")),
    Row(
        "YAML that builds objects", FIT + "--config my.yaml", UNSAFE, ("my.yaml:1", "not allowed"),
        text("my.yaml", "paper: !!python/object/apply:os.system [ls]\n"),
    ),
    Row("unknown preset", FIT + "--config atals", BAD, ("atals", "atlas, codef, deformable_sprites", "--config atlas")),
    Row("missing config", FIT + "--config my.yaml", BAD, ("my.yaml",)),
    Row("wrong dotted flag", FIT + "--training.step 9", BAD, ("training.step", "did you mean 'steps'")),
    Row("wrong dotted group", FIT + "--trainin.steps 9", BAD, ("trainin", "did you mean 'training'")),
    Row("wrong dotted value", FIT + "--training.steps=few", BAD, ("training.steps", "'few'")),
    Row("a density of nothing", FIT + "--texture.density 0", BAD, ("texture", "density", "above 0")),
    Row("no pixels a step", FIT + "--training.frame-pixels 0", BAD, ("training", "frame_pixels must be above 0")),
    Row("a negative seed", FIT + "--seed -1", BAD, ("--seed -1", "--seed 0")),
    Row("wrong flag", FIT + "--qualiti final", USAGE, ("--qualiti", "did you mean --quality?")),
    Row("dotted flag elsewhere", "render run --training.steps 3", USAGE, ("--training.steps", "unwrap render")),
    Row("wrong flag elsewhere", "edits run --jsn", USAGE, ("--jsn", "did you mean --json?")),
    Row("wrong command", "rendr run", USAGE, ("rendr", "did you mean render?")),
]  # fmt: skip

PICTURES = [
    Row("missing picture", "edit run nowhere.png --layer foreground", BAD, ("nowhere.png", "try")),
    Row("empty picture", "edit run a.png --layer foreground", BAD, ("a.png is empty",), text("a.png", "")),
    Row("text called png", "edit run a.png --layer foreground", BAD, ("a.png", "PNG, JPEG"), text("a.png", "hello")),
    Row("cut picture", "edit run painted.png --layer foreground", BAD, ("painted.png", "damaged"), cut("painted.png")),
    Row("another aspect", "edit run half.png --layer foreground", BAD, ("half.png", "cropped or stretched"),
        other_aspect),
    Row("decompression bomb", "edit run bomb.png --layer foreground", UNSAFE, ("bomb.png", "pixel"), bomb),
    Row("bomb for a frame", "edit run bomb.png --frame 2", UNSAFE, ("bomb.png", "pixel"), bomb),
    Row("nothing painted", "edit run same.png --layer foreground", BAD, ("no change found", "same.png"), not_painted),
    Row(
        "unknown layer", "edit run painted.png --layer fish", BAD,
        ("'fish'", "foreground, background", "--layer foreground"),
    ),
    Row("unknown frame", "edit run painted.png --frame 99", BAD, ("frame 99", "0 to 5", "--frame 5")),
    Row("frame before the first", "edit run painted.png --frame -1", BAD, ("frame -1", "--frame 0")),
    Row("no layer, no frame", "edit run painted.png", BAD, ("--layer foreground", "--frame K")),
    Row("unknown edit", "render run --edit logos", BAD, ("'logos'", "0001-logo")),
    Row("nothing to redo", "redo run", BAD, ("no edit to bring back",)),
]  # fmt: skip

RUNS = [
    Row("missing run", "render nowhere", BAD, ("nowhere", "does not exist", "unwrap train")),
    Row("a folder that is no run", "render other", BAD, ("other is not a run",), pictures("other", CLIP.frames[:1])),
    Row("a folder in use for something else", OTHER, BAD, ("not empty", "00000.png"),
        pictures("other", CLIP.frames[:1])),
    Row("a file in the place of the run", OTHER.replace("other", "painted.png"), BAD, ("painted.png is a file",)),
    Row("flipped bit in the only checkpoint", TRAIN, DAMAGED, ("000004", "SHA-256", "checkpoints-damaged"),
        flip("run/checkpoints/*/model.safetensors")),
    Row("the same, evaluating", "eval run", DAMAGED, ("000004", "SHA-256"),
        flip("run/checkpoints/*/state.safetensors")),
    Row("no checkpoint", "eval run", DAMAGED, ("no checkpoint", "unwrap train"), gone("run/checkpoints")),
    Row("run.yaml that is no YAML", "render run", DAMAGED, ("run.yaml:2",), text("run/run.yaml", "schema: [1\n")),
    Row("run.yaml without facts", TRAIN, DAMAGED, ("run.yaml is damaged", "video"),
        text("run/run.yaml", "schema: 1\n")),
    Row("run.yaml with a broken range", "info run", DAMAGED, ("run.yaml is damaged", "'x'"),
        replaced("run/run.yaml", "frames: 0:6:1", "frames: x")),
    Row("run.yaml with a broken config", "eval run", DAMAGED, ("run.yaml is damaged", "mapping.kind", "'fish'"),
        replaced("run/run.yaml", "kind: grid\n    cell: 8", "kind: fish\n    cell: 8")),
    Row("run.yaml of a newer version", "info run", DAMAGED, ("newer unwrap",),
        replaced("run/run.yaml", "schema: 1", "schema: 99")),
    Row("missing run.yaml", "render run", DAMAGED, ("run.yaml",), gone("run/run.yaml")),
    Row("source.json that is no JSON", "render run", DAMAGED, ("source.json is damaged",),
        text("run/source.json", "{")),
    Row("source.json without facts", "render run", DAMAGED, ("source.json is damaged", "train again"),
        text("run/source.json", "{}")),
    Row("cut map", "render run", DAMAGED, ("weight.bin", "train again"), cut("run/maps/weight.bin")),
    Row("missing map", "edit run painted.png --layer foreground", DAMAGED, ("uv-background.bin",),
        gone("run/maps/uv-background.bin")),
    Row("missing maps", "render run", DAMAGED, ("no baked maps", "unwrap train"), gone("run/maps")),
    Row("broken facts of the maps", "render run", DAMAGED, ("maps.json",), text("run/maps/maps.json", "[]")),
    Row("changed overlay of an edit", "render run", DAMAGED, ("0001-logo", "not the file that was added"),
        painted_over),
    Row("missing overlay of an edit", "edits run", DAMAGED, ("0001-logo", "foreground.png is missing"),
        gone("run/edits/0001-logo/foreground.png")),
    Row("broken edit.json", "edits run", DAMAGED, ("0001-logo",), text("run/edits/0001-logo/edit.json", "{}")),
    Row("broken journal", "undo run", DAMAGED, ("journal.jsonl", "line 1"), text("run/edits/journal.jsonl", "?\n?\n")),
    Row("broken facts of a canonical picture", "edit run painted.png --layer foreground", DAMAGED, ("foreground.json",),
        text("run/canonical/foreground.json", "{}")),
    Row("broken canonical picture", "edit run painted.png --layer foreground", DAMAGED, ("pristine", "damaged"),
        broken_pristine),
    Row("other settings", TRAIN + " --seed 3", BAD, ("begun with other settings: seed", "--out run-2")),
    Row("another video", TRAIN.replace("{home}/clip.mp4", "clop.mp4"), BAD, ("other settings: another video",),
        lambda place: encode(place / "clop.mp4", CLIP.frames[::-1])),
    Row("other masks", TRAIN.replace("{home}/mask.npy", "none"), BAD, ("begun with other settings: masks",)),
    Row("other config", TRAIN + " --mapping.cell 6", BAD, ("begun with other settings: config.mapping",)),
    Row("the source is gone", "render run", BAD, ("clop.mp4 is not there any more", "'video'"),
        replaced("run/run.yaml", "clip.mp4", "clop.mp4")),
    Row("the source is gone, by frame", "edit run painted.png --frame 2", BAD, ("clop.mp4 is not there any more",),
        replaced("run/run.yaml", "clip.mp4", "clop.mp4")),
    Row("another video in the place of the source", "eval run", BAD, ("clop.mp4 is not the video",), another_source),
    Row("the output exists", "render run --out painted.png --codec png", BAD, ("painted.png",)),
    Row("an ending that cannot hold the video", "render run --out a.xyz", BAD, ("a.xyz", ".mp4", "--out a.mp4")),
    Row("another ending than the codec's", "render run --out a.mp4 --codec ffv1", BAD, ("a.mp4", "--out a.mkv")),
    Row("an output size of two pixels", "render run --size 2x2", BAD, ("2x2",)),
]  # fmt: skip

ROWS = [*VIDEOS, *MASKS_AND_FLOW, *CONFIGS, *PICTURES, *RUNS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input_gets_one_clear_error_and_loses_nothing(
    row: Row, place: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row.arrange(place)
    before = contents(place)
    code = command(row.line, home=home)
    out, err = capsys.readouterr()
    assert code == row.code, err
    assert err.count("error: ") == 1 and "Traceback" not in err and "bug:" not in err
    shown = err[err.index("error: ") :]
    assert all(words in shown for words in row.says), shown
    assert "  where " in shown or "  why " in shown
    assert out == ""  # stdout is data, and there is none
    after = contents(place)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if "unwrap-part" in name]


def test_a_failed_train_leaves_no_run_that_looks_like_one(place: Path, home: Path) -> None:
    for row in [*VIDEOS, *CONFIGS]:
        if row.line.startswith("train"):
            row.arrange(place) if not (place / row.line.split()[1]).exists() else None
            command(row.line, home=home)
    assert not list(place.glob("runs/*/run.yaml"))


@pytest.mark.parametrize("line", ["render run", "train nowhere.mp4", "edit run nowhere.png --layer foreground"])
def test_debug_shows_where_an_error_came_from(line: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(place / "run/maps")
    assert command(line + " --debug") in (BAD, DAMAGED)
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and "error: " in err


def test_what_is_no_users_mistake_is_called_a_bug(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("neural_fields.edits.read_stack.list_edits", lambda run: 1 / 0)
    assert command("edits run") == ExitCode.BUG
    err = capsys.readouterr().err
    assert "bug: ZeroDivisionError" in err and "--debug" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "damage", ["run/source.json", "run/maps", "run/maps/weight.bin", "run/canonical", "run/checkpoints"]
)
def test_training_again_mends_what_can_be_made_again(damage: str, place: Path, home: Path) -> None:
    before = contents(place / "run/edits")
    gone(damage)(place)
    assert command(TRAIN, home=home) == 0
    assert contents(place / "run/edits") == before
    assert command("render run --out after.mp4") == 0
    assert probe_video(place / "after.mp4").frame_count == FRAMES


def test_the_checkpoint_before_a_damaged_one_is_used_and_said(
    place: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = TRAIN.replace("steps 4", "steps 6") + " --training.checkpoint-every 5"
    # As after a training that was stopped: only a finished one gives up its earlier checkpoint.
    monkeypatch.setattr(train_planar, "remove_older_checkpoints", lambda run: [])
    assert command(line, home=home) == 0
    flip("run/checkpoints/000006/model.safetensors")(place)
    capsys.readouterr()
    assert command(line, home=home) == 0
    assert "checkpoint 000006 is damaged" in capsys.readouterr().err


# --- input that is unusual and works --------------------------------------------------------------------------------


def test_one_frame_works_as_a_still(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode(place / "one.mp4", CLIP.frames[:1])
    assert command("train one.mp4 --training.steps 2 --out one") == 0
    assert "one frame" in capsys.readouterr().err
    assert command("render one --what reconstruction --out shown.mp4") == 0
    assert probe_video(place / "shown.mp4").frame_count == 1
    assert command("eval one --json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["warp_error"] is None


def test_odd_sizes_work_and_stay_odd(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures("odd", CLIP.frames[:, :31, :47])(place)
    assert command("train odd --masks none --training.steps 2 --out run-odd") == 0
    assert "24 frames a second" in capsys.readouterr().err
    assert command("render run-odd --what reconstruction --out shown.mp4") == 0
    facts = probe_video(place / "shown.mp4")
    assert (facts.width, facts.height, facts.frame_count) == (47, 31, FRAMES)
    assert "note: " in capsys.readouterr().err


# --- the disk is full -----------------------------------------------------------------------------------------------


def full(*args: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def assert_no_room_and_nothing_lost(line: str, place: Path, home: Path, err: Callable[[], str]) -> None:
    before = contents(place)
    assert command(line, home=home) == ExitCode.NO_ROOM
    shown = err()
    assert "error: " in shown and "Traceback" not in shown
    after = contents(place)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if "unwrap-part" in name]


@pytest.mark.parametrize(
    "line", ["edit run painted.png --layer foreground", "render run", "render run --codec png --out frames"]
)
def test_a_full_disk_stops_a_command_and_loses_nothing(
    line: str, place: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "fsync", full)  # where a full disk shows at the latest
    assert_no_room_and_nothing_lost(line, place, home, lambda: capsys.readouterr().err)


def test_a_disk_that_fills_up_while_training_keeps_the_earlier_checkpoint(
    place: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda *args: full() if list(place.glob("new/checkpoints/0*")) else write(*args))
    line = OTHER.replace("other", "new") + " --training.checkpoint-every 2"
    assert command(line, home=home) == ExitCode.NO_ROOM
    err = capsys.readouterr().err
    assert "is full" in err and "new/checkpoints" in err
    assert [path.name for path in (place / "new/checkpoints").iterdir()] == ["000002"]
    monkeypatch.setattr(os, "write", write)
    assert command(line, home=home) == 0
    assert "2/4" not in capsys.readouterr().err  # it went on from step 2


def test_too_little_room_is_found_before_the_work_begins(
    place: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(place)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert_no_room_and_nothing_lost(OTHER.replace("other", "new"), place, home, lambda: capsys.readouterr().err)


# --- two processes --------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from neural_fields.runs.locking import lock_run
from neural_fields.runs.run import Run
with lock_run(Run(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_another_process_writes_is_refused_until_that_process_is_gone(
    place: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(Path(__file__).resolve().parents[2])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "run"],
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before = contents(place)
        for line in (TRAIN, "edit run painted.png --layer foreground", "undo run"):
            assert command(line, home=home) == ExitCode.LOCKED
            err = capsys.readouterr().err
            assert "in use" in err and f"process {holder.pid} on " in err
            assert contents(place) == before
        for line in ("info run", "edits run", "render run"):  # reading needs no lock
            assert command(line) == 0
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert command(TRAIN, home=home) == 0


def test_windows_is_told_where_the_program_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["doctor"]) == ExitCode.USAGE
    assert "WSL 2" in capsys.readouterr().err
