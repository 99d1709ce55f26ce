"""One function is every `unwrap edit`: from a command and from Python, from files, arrays and functions."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from editors import edit
from editors.cli.main import main
from editors.core.editor import Editor, EditorResult, PlanarEditor
from editors.editors_table import EDITORS, SCENE_EDITORS, find_editor_class
from editors.effects.adjust import Adjust
from editors.volume.base import VolumeEditor
from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import Progress
from neural_fields.edits.payloads import read_paint
from neural_fields.imaging.notebook_pictures import make_gallery
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.open_runs.scene_run import SceneRun
from neural_fields.runs.run import Run
from neural_fields.volume.background import SceneBounds
from neural_fields.volume.config import VolumeConfig
from neural_fields.volume.record import VolumeRecord
from tests.support import tiny_scene as tiny
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow
LAYERS = ("foreground", "background")


@pytest.fixture
def copies(true_run: TrueRun, tmp_path: Path) -> Iterator[Run]:
    """Yields one copy of the run after another."""

    def copy() -> Iterator[Run]:
        for number in count():
            yield Run.open(shutil.copytree(true_run.run.path, tmp_path / f"run{number}"))

    return copy()


@pytest.fixture
def run(copies: Iterator[Run]) -> PlanarRun:
    return require_planar(next(copies), "the test")


@pytest.fixture
def scene_run(tmp_path: Path) -> SceneRun:
    """An open run of the scene in closed form, filmed in 250x200."""
    source = tiny.tiny_source(size=(250, 200))
    record = VolumeRecord(
        source=tmp_path / "gone",
        preset="test",
        quality="draft",
        config=VolumeConfig(),
        size=(250, 200),
        bounds=SceneBounds((0.0, 0.0, 1.0), 5.0),
        cameras=source.cameras,
        times=source.times,
        held_out=(),
        motion=source.motion,
        switches=(),
        seed=0,
    )
    opened = SceneRun(Run(tmp_path), {})
    vars(opened).update(record=record, _loaded=(source.scene, None))
    return opened


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small picture with colors of its own."""
    path = tmp_path / "tile.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)
    return path


def read_files(folder: Path) -> dict[str, Any]:
    """The files of an edit; edit.json as its values."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return found | {"edit.json": json.loads(found["edit.json"])}


def exported_pixels(run: PlanarRun, layer: str = "foreground") -> np.ndarray:
    """The canonical picture of a layer as a painting program opens it: RGBA in bytes."""
    return np.array(Image.open(run.files.canonical / f"{layer}.png").convert("RGBA"))


def paint(pixels: np.ndarray) -> np.ndarray:
    """Red paint in the middle of a picture."""
    painted, (height, width) = pixels.copy(), pixels.shape[:2]
    painted[height // 3 : height // 2, width // 3 : width // 2, :3] = (220, 30, 40)
    return painted


# --- commands and Python ---------------------------------------------------------------------------------------------


def commands(run: Run, picture: Path) -> dict[str, dict[str, Any]]:
    """Settings with which each editor that needs no model changes something."""
    looks = picture.parent / "looks.py"
    looks.write_text("def warm(rgb):\n    return (rgb * [1, 0.7, 0.6]).astype('float32')\n")
    return {
        "adjust": {"exposure": -1.0, "layer": "background"},
        "lift": {"function": f"{looks}:warm"},
        "place": {"image": picture, "box": "80,40,30,20", "frame": 3},
        "replace": {"image": picture, "fit": "stretch"},
        "remove": {"grow": 2.0},
        "drag": {"drag": ["94,54>97,54"], "frame": 5, "radius": 24.0},
        "shape": {"pairs": ["84,54>82,54", "100,54>103,54", "92,48>92,48"], "frame": 5},
    }


@pytest.mark.parametrize("name", ["adjust", "lift", "place", "replace", "remove", "drag", "shape"])
def test_an_editor_makes_the_same_edit_by_its_command_and_by_its_name(
    copies: Iterator[Run], picture: Path, name: str
) -> None:
    by_command, by_name = next(copies), next(copies)
    settings = commands(by_command, picture)[name]
    words = []
    for key, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{key}", str(one)]
    assert main(["edit", str(by_command.path), "--editor", name, *words]) == ExitCode.OK
    made = edit(by_name, editor=name, **settings)
    assert made.edit.record.origin.editor == name and read_files(made.edit.folder).keys() >= {"edit.json"}
    assert read_files(made.edit.folder) == read_files(by_command.edits / made.edit.folder.name)


@pytest.mark.parametrize("how", ["picture", "frame", "frames"])
def test_what_was_painted_makes_the_same_edit_by_its_command_and_from_python(
    copies: Iterator[Run], tmp_path: Path, how: str
) -> None:
    by_command, by_name = next(copies), require_planar(next(copies), "the test")
    files = {number: tmp_path / f"painted{number}.png" for number in (2, 7)}
    for number, path in files.items():
        pixels = exported_pixels(by_name) if how == "picture" else by_name.read_frame(number)
        Image.fromarray(paint(pixels)).save(path)
    first, words = (
        files[2],
        {
            "picture": [str(files[2]), "--layer", "foreground"],
            "frame": [str(files[2]), "--frame", "2"],
            "frames": [str(files[2]), str(files[7]), "--frame", "2", "--frame", "7", "--layer", "background"],
        }[how],
    )
    assert main(["edit", str(by_command.path), *words]) == ExitCode.OK
    if how == "picture":
        made = edit(by_name, first, layer="foreground")
    elif how == "frame":
        made = edit(by_name, first, frame=2)
    else:
        made = edit(by_name, files, layer="background")
    assert made.edit.folder.name == "0001-painted2"
    assert read_files(made.edit.folder) == read_files(by_command.edits / made.edit.folder.name)


def test_every_editor_says_what_it_works_on() -> None:
    for name in EDITORS:
        assert issubclass(find_editor_class(name), PlanarEditor), name
    for name in SCENE_EDITORS:
        assert issubclass(find_editor_class(name, is_scene=True), VolumeEditor), name


# --- pictures of all kinds -------------------------------------------------------------------------------------------


def test_files_arrays_pil_pictures_and_functions_make_the_same_overlay(copies: Iterator[Run], tmp_path: Path) -> None:
    run = require_planar(next(copies), "the test")
    painted = paint(exported_pixels(run))
    Image.fromarray(painted).save(tmp_path / "painted.png")
    given: dict[str, Any] = {
        "file": tmp_path / "painted.png",
        "text": str(tmp_path / "painted.png"),
        "bytes": painted,
        "pil": Image.fromarray(painted),
        "opened": Image.open(tmp_path / "painted.png"),
        "function": lambda rgba: paint(np.rint(255 * rgba).astype(np.uint8)),
        "pil function": lambda rgba: Image.fromarray(paint(np.rint(255 * rgba).astype(np.uint8))),
    }
    overlays = {
        kind: read_paint(edit(next(copies), image, layer="foreground").edit, "foreground").rgba
        for kind, image in given.items()
    }
    assert (overlays["file"][..., 3] > 0).any()
    for kind, rgba in overlays.items():
        np.testing.assert_array_equal(rgba, overlays["file"], err_msg=kind)


def test_colors_from_0_to_1_are_the_same_paint(copies: Iterator[Run]) -> None:
    run = require_planar(next(copies), "the test")
    painted = paint(exported_pixels(run))
    exact = read_paint(edit(run, painted, layer="foreground").edit, "foreground").rgba
    for values in (painted / 255, (painted / 255).astype(np.float32)):
        found = read_paint(edit(next(copies), values, layer="foreground").edit, "foreground").rgba
        np.testing.assert_allclose(found, exact, atol=1 / 255)


def test_a_function_is_called_with_the_frame_that_it_is_to_paint(run: PlanarRun) -> None:
    seen = []

    def blot(rgb: np.ndarray) -> np.ndarray:
        seen.append(rgb.copy())
        return paint(np.rint(255 * rgb).astype(np.uint8))

    made = edit(run, blot, frame=4)
    np.testing.assert_array_equal(np.rint(255 * seen[0]), run.read_frame(4))
    assert made.edit.name == "blot" and made.edit.record.origin.frames == (4,)


def test_a_mask_may_be_a_file_an_array_a_pil_picture_or_a_function(copies: Iterator[Run], tmp_path: Path) -> None:
    height, width = exported_pixels(require_planar(next(copies), "the test"), "background").shape[:2]
    mask = np.zeros((height, width, 3), np.uint8)
    mask[:, : width // 2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")

    def left(rgba: np.ndarray) -> np.ndarray:
        assert rgba.shape == (height, width, 4)
        return mask

    found = [
        read_files(edit(next(copies), editor=Adjust(exposure=-1.0), layer="background", mask=given).edit.folder)
        for given in (tmp_path / "mask.png", mask, mask / 255, Image.fromarray(mask).convert("L"), left)
    ]
    assert all(files == found[0] for files in found) and "background-mask.png" in found[0]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]"),
        (np.zeros((8, 8, 2), np.uint8), r"\[8, 8, 2\]"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.full((8, 8, 3), 200.0), "200"),
        (np.full((8, 8, 3), np.nan), "nan"),
        (lambda rgba: 1 / 0, "division by zero"),
        (lambda rgba: "painted", "of the type str"),
        (Image.new("F", (8, 8)), "mode F"),
    ],
)
def test_what_is_no_picture_is_refused_and_changes_nothing(run: PlanarRun, image: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        edit(run, image, layer="foreground")
    run.refresh_edits()
    assert error.value.code == ExitCode.BAD_INPUT and not run.edits


# --- editors ---------------------------------------------------------------------------------------------------------


def test_a_function_in_the_place_of_an_editor_is_lift(copies: Iterator[Run], picture: Path) -> None:
    settings = commands(next(copies), picture)["lift"]
    by_name = edit(next(copies), editor="lift", **settings)

    def warm(rgb: np.ndarray) -> np.ndarray:
        return (rgb * [1, 0.7, 0.6]).astype("float32")

    made = edit(next(copies), editor=warm)
    assert made.edit.record.origin.editor == "lift" and "warm" in made.edit.record.origin.settings["function"]
    np.testing.assert_array_equal(read_paint(made.edit, "foreground").rgba, read_paint(by_name.edit, "foreground").rgba)


class Half(PlanarEditor):
    """An editor of a user's own program."""

    name = "half"
    starts_with = "back"

    def edit(self, source: Any, report: Any) -> Any:
        report(Progress("halving", 1, 1))
        (layer,) = source.layers
        rgba = source.pictures[layer].rgba * np.array([0.5, 0.5, 0.5, 1], np.float32)
        return EditorResult({layer: Overlay(rgba, source.pictures[layer].box)}, notes=("halved",))


@pytest.mark.parametrize("editor", [Half, Half()])
def test_an_editor_of_ones_own_is_given_as_a_class_or_an_object(run: PlanarRun, editor: Any) -> None:
    said: list[Progress] = []
    made = edit(run, editor=editor, report=said.append)
    assert made.edit.layers == ("background",) and made.edit.name == "half" and made.notes == ("halved",)
    assert [progress.stage for progress in said] == ["halving"]
    assert [known.folder for known in run.edits] == [made.edit.folder]  # the open run knows it at once


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"editor": "inpiant"}, "did you mean inpaint"),
        ({"editor": "adjust", "exposre": 1.0}, "exposre.*did you mean 'exposure'"),
        ({"editor": "adjust", "exposure": "dark"}, "exposure.*number"),
        ({"editor": "lift"}, "function"),
        ({"editor": "adjust", "exposure": 1.0, "frame": 3}, "frame"),
        ({"editor": Adjust(exposure=1.0), "hue": 3.0}, "hue"),
        ({"editor": Adjust(exposure=1.0), "layer": "foregruond"}, "no layer"),
        ({"exposure": 1.0}, "exposure.*no"),
        ({"layr": "foreground"}, "did you mean layer"),
        ({}, "what is the edit"),
        ({"image": {}}, "what is the edit"),
        ({"image": np.zeros((8, 8, 3))}, "neither a layer nor a frame"),
        ({"image": np.zeros((8, 8, 3)), "layers": LAYERS}, "several layers"),
        ({"image": np.zeros((8, 8, 3)), "frame": 99}, "frame 99"),
        ({"editor": "dynvideo_e", "prompt": "a red coat", "model": "m"}, "is for 3D scenes"),
        ({"editor": Adjust(exposure=1.0), "layers": LAYERS, "mask": np.zeros((8, 8, 3))}, "one mask for several"),
    ],
)
def test_what_cannot_be_edited_is_refused_and_changes_nothing(run: PlanarRun, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        edit(run, **given)
    run.refresh_edits()
    assert re.search(says, str(error.value), re.DOTALL) and not run.edits


# --- notebooks -------------------------------------------------------------------------------------------------------


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def shown_pictures(html: str) -> list[np.ndarray]:
    """The pictures in the HTML of a notebook."""
    return [decode(base64.b64decode(data)) for data in re.findall(r"base64,([^\"]+)\"", html)]


def test_a_canonical_picture_shows_itself_over_a_checkerboard_where_it_is_clear() -> None:
    rgba = np.zeros((16, 32, 4), np.float32)
    rgba[:, :16, 0] = rgba[:, :16, 3] = 1
    shown = decode(CanonicalImage(rgba, Box(-1.0, -0.5, 1.0, 0.5), "foreground")._repr_png_())
    assert shown.shape == (16, 32, 3) and (shown[:, :16] == (255, 0, 0)).all()
    assert set(shown[:, 16:].ravel().tolist()) == {153, 204} and (shown[0, 16] != shown[8, 16]).all()


def test_a_run_shows_its_layers_with_their_names(run: PlanarRun) -> None:
    html = run._repr_html_()
    front, back = shown_pictures(html)
    assert html.index("foreground</figcaption>") < html.index("background</figcaption>")
    assert max(front.shape) <= 320 and max(back.shape) <= 320
    expected = run.canonical("background").rgba
    middle = expected[expected.shape[0] // 2, expected.shape[1] // 2, :3]
    assert np.abs(back[back.shape[0] // 2, back.shape[1] // 2] / 255 - middle).max() < 0.2


def test_an_edit_shows_a_frame_before_and_after_and_its_paint(run: PlanarRun) -> None:
    made = edit(run, editor=Half, name="half <b>")
    before, after = shown_pictures(made._repr_html_())
    frame = run.read_frame(run.frames[len(run.frames) // 2])
    assert before.shape == frame.shape and np.abs(before - frame.astype(int)).max() <= 1
    assert np.abs(after[0] - frame[0] / 2).mean() < 8  # the background, along the top
    (painted,) = shown_pictures(made.edit._repr_html_())
    assert max(painted.shape) <= 320 and painted.mean() > 0


def test_an_edit_of_a_scene_shows_a_view_before_and_after(scene_run: SceneRun) -> None:
    made = edit(scene_run, editor="remove", part="person", name="nobody")
    html = made._repr_html_()
    before, after = shown_pictures(html)
    assert "view 2, before" in html and html.index("0001-nobody") < html.index("view 2")
    assert before.shape == after.shape == (160, 200, 3)
    scene, camera = scene_run.scene, scene_run.record.cameras[2].resize(200, 160)
    for shown, parts in ((before, scene.parts), (after, frozenset({"background"}))):
        expected = scene.render_view(camera, 2, scene_run.record.make_moments(), parts=parts).color.numpy()
        assert np.abs(shown / 255 - expected).max() < 0.01
    assert (before != after).any()
    again = shown_pictures(edit(scene_run, editor="remove", part="background")._repr_html_())
    assert (again[0] == after).all() and (again[1] == 0).all()


def test_names_in_a_notebook_are_escaped() -> None:
    html = make_gallery({"<script>": np.zeros((2, 2, 3), np.float32)}, 'a "b" & <c>')
    assert "<script>" not in html and "&lt;script&gt;" in html and "&amp; &lt;c&gt;" in html


def test_editors_are_settings_and_cannot_be_changed() -> None:
    assert issubclass(PlanarEditor, Editor) and issubclass(VolumeEditor, Editor)
    with pytest.raises(AttributeError):
        Adjust(exposure=1.0).exposure = 2.0  # type: ignore[misc]
