"""What made a file stands in it, and nothing of the machine that did."""

from __future__ import annotations

import getpass
import json
import platform
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from editors.core.stack import EditEffects, add_edit
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.files import sha256_file
from neural_fields.core.version import __version__
from neural_fields.data.video.image_sequence import insert_png_texts
from neural_fields.data.video.io import probe_video, source_frames, write_video
from neural_fields.data.video.metadata import make_metadata
from neural_fields.edits.animated_overlay import AnimatedOverlay
from neural_fields.edits.record import EditOrigin
from neural_fields.edits.shape import Deformation
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.provenance import build_provenance
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

WORDS = {"software": "unwrap 1", "comment": json.dumps({"text": 'quotes " and \\ and \u00fc', "long": "x" * 5000})}
FILES = {"h264": ("a.mp4", "a.mov", "a.mkv"), "ffv1": ("a.mkv",), "prores4444": ("a.mov",)}
CASES = [(codec, name) for codec, names in FILES.items() for name in names]


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def frames() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8))


def read_back(path: Path) -> dict[str, str]:
    """The metadata of a film, by lower-case names."""
    with av.open(str(path)) as container:
        return {key.lower(): value for key, value in container.metadata.items()}


@pytest.mark.parametrize(("codec", "name"), CASES)
def test_metadata_comes_back_from_films(tmp_path: Path, codec: str, name: str) -> None:
    path = write_video(tmp_path / name, frames(), make_metadata((64, 48), 3, Fraction(24)), codec=codec, texts=WORDS)
    found = read_back(path)
    assert found["comment"] == WORDS["comment"]
    assert found.get("software", "unwrap 1") == "unwrap 1" and (name != "a.mkv" or "software" in found)
    assert probe_video(path).frame_count == 3


@pytest.mark.parametrize(("codec", "name"), CASES)
def test_without_metadata_a_film_says_nothing_of_us(tmp_path: Path, codec: str, name: str) -> None:
    path = write_video(tmp_path / name, frames(), make_metadata((64, 48), 3, Fraction(24)), codec=codec)
    assert not {"comment", "software", "title"} & read_back(path).keys()
    assert b"unwrap" not in path.read_bytes()


def test_metadata_comes_back_from_pictures_and_leaves_their_pixels(tmp_path: Path) -> None:
    metadata = make_metadata((64, 48), 3, Fraction(24))
    path = write_video(tmp_path / "with", frames(), metadata, codec="png", texts=WORDS)
    plain = write_video(tmp_path / "without", frames(), metadata, codec="png")
    for number, frame in enumerate(frames()):
        with Image.open(path / f"{number:05d}.png") as image:
            assert image.text["Comment"] == WORDS["comment"] and image.text["Software"] == "unwrap 1"  # type: ignore[attr-defined]
            assert (np.array(image) == frame).all()
        with Image.open(plain / f"{number:05d}.png") as image:
            assert not image.text  # type: ignore[attr-defined]
    assert all((a == b).all() for a, b in zip(source_frames(probe_video(path), range(3)), frames(), strict=True))


def test_texts_beyond_latin_1_are_written_as_their_numbers() -> None:
    png = (b"\x89PNG\r\n\x1a\n" + bytes(25)) + b"rest"
    assert b"tEXtComment\0\\u6f22\\u5b57" in insert_png_texts(png, {"comment": "\u6f22\u5b57"})
    assert insert_png_texts(png, None) == png


def test_provenance_says_what_made_a_file(run: Run) -> None:
    overlay = Overlay(np.ones((8, 8, 4), np.float32), Box(-0.2, -0.2, 0.2, 0.2))
    painted = add_edit(run, "logo", {"foreground": overlay}, EditOrigin(editor="image"))
    field = np.zeros((2, 8, 8), np.float32)
    field[:, 3:5, 3:5] = 0.01
    shapes = {"foreground": Deformation(field, Maps.open(run.maps).boxes[0])}
    bent = add_edit(run, "bend", {}, EditOrigin(editor="shape"), shapes)
    moving = AnimatedOverlay(lambda: iter([np.full((48, 64, 4), 255, np.uint8)] * 12), 12, None)
    moved = add_edit(run, "sky", {}, EditOrigin(editor="replace"), effects=EditEffects(moving={"background": moving}))
    opened = require_planar(run, "the test")
    words = build_provenance(opened, "edit", opened.active_edits(), layer="foreground")
    made, record = json.loads(words["comment"]), opened.record
    assert words["software"] == f"unwrap {__version__}" and made["unwrap"] == __version__
    assert (made["what"], made["layer"], made["run"]) == ("edit", "foreground", "run")
    assert (made["preset"], made["source"]) == (record.preset, "clip.mkv")
    assert made["source_sha256"] == record.sha256
    names = [(edit["edit"], edit["editor"]) for edit in made["edits"]]
    assert names == [("0001-logo", "image"), ("0002-bend", "shape"), ("0003-sky", "replace")]
    for edit, said in zip((painted, bent, moved), made["edits"], strict=True):
        (file,) = (path for path in edit.folder.iterdir() if path.name != "edit.json")
        assert said["sha256"] == [sha256_file(file)]


def test_provenance_says_nothing_of_the_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path)
    words = build_provenance(require_planar(".", "the test"), "edit")
    text, made = " ".join(words.values()), json.loads(words["comment"])
    assert made["run"] == "run"
    assert str(run.path.parent) not in text and "/" not in text.replace("\\/", "")
    parts = text.replace('"', " ").split()
    assert getpass.getuser() not in parts and platform.node() not in parts
