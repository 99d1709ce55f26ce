"""A picture that is saved is shown on a frame: the frame that rendering the edit would give, however it was saved."""

from __future__ import annotations

import io
import json
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from editors.api import edit
from editors.core import history, stack
from editors.core.stack import EditEffects
from editors.inputs.change_detection import find_local_change, find_whole_change
from editors.live import file_watching
from editors.live.file_watching import WatchSettings
from editors.live.options import WatchOptions
from editors.live.preview import PreviewSession, open_preview
from editors.live.watch import WatchUpdate, watch_pictures
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import CanonicalImage, Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.synthetic.planar_clips import SyntheticClip
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.shape import Deformation
from neural_fields.export.base import export_run
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures.canonical import CanonicalExporter
from neural_fields.imaging.alpha import to_floats
from neural_fields.imaging.documents.layered import PAINT, constant_pixels
from neural_fields.imaging.documents.openraster import read_ora, write_ora
from neural_fields.imaging.grade import Grade
from neural_fields.imaging.image_io import Picture
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.locking import lock_run
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow

RED, GREEN, BLUE = (230, 20, 40, 255), (20, 200, 60, 255), (30, 60, 220, 255)
MIDDLE = 6  # of the clip of twelve frames


@pytest.fixture(scope="module")
def home(true_run: TrueRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The true run with pictures whose sides are multiples of 16, as those of a fit are."""
    path = tmp_path_factory.mktemp("watched") / "run"
    shutil.copytree(true_run.run.path, path)
    run = Run.open(path)
    pictures = [canonical.read_pristine(run.canonical, name) for name in ("background", "foreground")]
    shutil.rmtree(run.canonical)
    for picture in pictures:
        size = tuple(-(-side // 16) * 16 for side in picture.size)
        rgba = cv2.resize(picture.rgba, size).clip(0, 1)
        canonical.export_canonical(run.canonical, replace(picture, rgba=rgba))
    return path


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Run:
    shutil.copytree(home, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture
def clip(true_run: TrueRun) -> SyntheticClip:
    return true_run.clip


def painted(run: Run, layer: str, color: tuple[int, ...] = RED, radius: int = 9) -> np.ndarray:
    """The exported picture of a layer with a disc at the place that the middle of its part of the frame shows."""
    pixels = np.asarray(Image.open(run.canonical / "pristine" / pristine_name(run, layer))).copy()
    cv2.circle(pixels, place(run, layer), radius, color, -1)
    return pixels


def pristine_name(run: Run, layer: str) -> str:
    return next(path.name for path in (run.canonical / "pristine").glob(f"{layer}-*.png"))


def place(run: Run, layer: str) -> tuple[int, int]:
    """A texel that the middle frame shows well."""
    maps = Maps.open(run.maps)
    number = maps.layers.index(layer)
    alone = (maps.read_layer_weight(MIDDLE, number, maps.size) > 0.99).astype(np.uint8)
    inside = cv2.distanceTransform(cv2.copyMakeBorder(alone, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(inside.argmax()), inside.shape)
    u, v = maps.read_uv(MIDDLE, number, maps.size)[y - 1, x - 1]
    picture = canonical.read_pristine(run.canonical, layer)
    box, (width, height) = picture.box, picture.size
    return int((u - box.u0) / box.width * width), int((v - box.v0) / box.height * height)


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def put(path: Path, data: bytes, way: str = "in place") -> None:
    """Saves a file as one program or another does."""
    part = path.with_name(f".{path.name}.kra-1234") if way == "by a rename" else path
    if way == "with a backup" and path.exists():
        path.replace(path.with_name(path.name + "~"))
    part.write_bytes(data)
    if part != path:
        part.replace(path)


class Watching:
    """A watch in another thread; its updates are waited for."""

    def __init__(
        self, run: Run, options: WatchOptions | None = None, settings: WatchSettings = file_watching.DEFAULTS
    ) -> None:
        self.run, self.options, self.settings = run, options, settings
        self.updates: queue.Queue[WatchUpdate | BaseException] = queue.Queue()
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def _follow(self) -> None:
        try:
            for update in watch_pictures(self.run, self.options, self.end.is_set, self.settings):
                self.updates.put(update)
        except BaseException as error:  # handed to the test
            self.updates.put(error)

    def __enter__(self) -> Watching:
        self.thread.start()
        self.first = self.next()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.thread.join(20)

    def next(self, patient: bool = True) -> WatchUpdate:
        """The next update; on a busy machine a save may have to be waited for."""
        found = self.updates.get(timeout=30)
        if isinstance(found, BaseException):
            raise found
        return self.next() if patient and found.kind == "waiting" else found

    def image(self) -> np.ndarray:
        return np.asarray(Image.open(self.run.previews / "watch.jpg").convert("RGB"))


@pytest.fixture
def watching(run: Run) -> Iterator[Watching]:
    with Watching(run) as found:
        assert found.first.kind == "start"
        yield found


def agree(shown: np.ndarray, wanted: np.ndarray) -> None:
    """Two frames are the same but for the rounding of a lookup from another corner."""
    difference = np.abs(shown.astype(int) - wanted)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.002


def as_jpeg(frame: np.ndarray, shown: np.ndarray) -> None:
    """A preview is a frame, as a JPEG shows it."""
    options = [cv2.IMWRITE_JPEG_QUALITY, file_watching.DEFAULTS.jpeg_quality]
    file = io.BytesIO(cv2.imencode(".jpg", frame[..., ::-1], options)[1].tobytes())
    assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), shown)


# --- what is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "below"),
    [
        ("foreground", "nothing"),
        ("background", "paint"),
        ("foreground", "multiply"),
        ("background", "grade"),
        ("foreground", "hidden"),
        ("background", "hidden"),
        ("foreground", "shape"),
        ("background", "another time"),
    ],
)
def test_the_preview_is_the_frame_that_rendering_the_edit_gives(
    run: Run, clip: SyntheticClip, tmp_path: Path, layer: str, below: str
) -> None:
    picture = canonical.read_pristine(run.canonical, "background")
    glaze = np.full((32, 32, 4), (0.2, 0.5, 0.9, 0.4), np.float32)
    under = {"background": Overlay(glaze, picture.box)}
    if below == "paint":
        stack.add_edit(run, "glaze", under)
    if below == "another time":
        stack.add_edit(run, "glaze", under, arrangement=Arrangement(start=9))
    if below == "multiply":
        stack.add_edit(run, "glaze", under, arrangement=Arrangement(blend="multiply"))
    if below == "grade":
        stack.add_edit(run, "grade", {}, effects=EditEffects(grades={"background": Grade(exposure=0.7)}))
    if below == "hidden":
        stack.add_edit(run, "gone", {}, effects=EditEffects(hidden=("foreground",)))
    if below == "shape":
        front = canonical.read_pristine(run.canonical, "foreground")
        stack.add_edit(
            run, "bent", {}, shapes={"foreground": Deformation(np.full((2, 4, 4), 0.05, np.float32), front.box)}
        )
    easel = open_preview(run)
    assert [shot.number for shot in easel.shots] == [MIDDLE]
    path = save(tmp_path / f"{layer}.png", painted(run, layer))
    found = easel.read_overlays(path, layer)
    shown = easel.render_picture(found)
    edit(run, path, layer=layer)
    wanted = open_passes(require_planar(run, "the test")).render_frame(MIDDLE, clip.frames[MIDDLE])
    agree(shown, wanted)
    assert (shown != easel.render_picture({})).any() == (below != "hidden" or layer == "background")


@pytest.mark.parametrize("tool", ["plain", "hidden colors lost", "16 bit", "flattened", "jpg", "larger"])
def test_what_a_tool_does_to_the_rest_of_a_picture_is_not_shown(
    run: Run, clip: SyntheticClip, tmp_path: Path, tool: str
) -> None:
    pixels, path = painted(run, "foreground"), tmp_path / "foreground.png"
    if tool == "hidden colors lost":
        pixels[pixels[..., 3] == 0] = 0
    image = Image.fromarray(pixels)
    if tool == "flattened":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if tool == "jpg":
        path = path.with_suffix(".jpg")
        image = image.convert("RGB")
    if tool == "larger":
        image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if tool == "jpg" else {}
    image.save(path, **options)
    if tool == "16 bit":
        cv2.imwrite(str(path), cv2.cvtColor(pixels.astype(np.uint16) * 257, cv2.COLOR_RGBA2BGRA))
    easel = open_preview(run)
    shown = easel.render_picture(easel.read_overlays(path, "foreground"))
    edit(run, path, layer="foreground")
    agree(shown, open_passes(require_planar(run, "the test")).render_frame(MIDDLE, clip.frames[MIDDLE]))
    changed = (shown != clip.frames[MIDDLE]).any(axis=-1)
    assert changed.any() and not changed[clip.alpha[0, MIDDLE] == 0].any()


def test_several_frames_stand_side_by_side_and_are_made_smaller(run: Run, clip: SyntheticClip) -> None:
    easel = open_preview(run, (0, 11), size=96)
    shown = easel.render_picture({})
    assert shown.shape == (54, 192, 3)
    small = cv2.resize(clip.frames[11], (96, 54), interpolation=cv2.INTER_AREA)
    assert np.array_equal(shown[:, 96:], small)


def test_a_picture_that_is_an_edit_already_is_not_put_on_twice(run: Run, tmp_path: Path) -> None:
    path = save(tmp_path / "foreground.png", painted(run, "foreground", (200, 20, 20, 128)))
    edit(run, path, layer="foreground")
    assert open_preview(run).read_overlays(path, "foreground") == {}


def test_a_picture_of_an_older_export_is_compared_with_that(run: Run, tmp_path: Path) -> None:
    path = save(tmp_path / "foreground.png", painted(run, "foreground"))
    newest = canonical.read_pristine(run.canonical, "foreground")
    rgba = newest.rgba.copy()
    rgba[..., :3] = 0.6 * rgba[..., :3] + 0.4
    lighter = CanonicalImage(rgba, newest.box, "foreground")
    before = open_preview(run).read_overlays(path, "foreground")["foreground"]
    canonical.export_canonical(run.canonical, lighter)
    after = open_preview(run).read_overlays(path, "foreground")["foreground"]
    assert np.array_equal(
        canonical.resample_overlay(after, newest.size, newest.box)[..., 3] > 0.5,
        canonical.resample_overlay(before, newest.size, newest.box)[..., 3] > 0.5,
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_part_of_a_picture_tells_the_same_change_as_all_of_it(seed: int) -> None:
    random = np.random.default_rng(seed)
    base = cv2.GaussianBlur(random.integers(0, 256, (300, 340, 4), dtype=np.uint8), (0, 0), 3)
    base[..., 3] = cv2.blur(np.where(np.hypot(*np.mgrid[-150:150, -170:170]) < 140, 255, 0).astype(np.uint8), (5, 5))
    pixels = base.copy()
    for _ in range(seed % 4):
        row, column, height, width = random.integers((240, 240, 1, 1), (270, 270, 40, 40))
        pixels[row : row + height, column : column + width] = random.integers(0, 256, 4)
    if seed % 3 == 0:
        pixels[40:60, 100:150] = 0  # erased
    if seed % 4 == 1:  # flattened on a color, or with the alpha dropped
        share = pixels[..., 3:] / 255 if seed % 8 == 1 else 1
        pixels[..., :3] = np.rint(pixels[..., :3] * share + 180 * (1 - share))
        pixels[..., 3] = 255
    quick, as_well = find_local_change(pixels, base), find_local_change(to_floats(pixels), to_floats(base))
    assert quick is not None and as_well is not None and quick[0] == as_well[0]
    own, change = np.zeros(base.shape, np.float32), quick[1]
    own[quick[0]] = change.rgba
    whole = find_whole_change(Picture(to_floats(pixels), had_alpha=True, lossy=False), to_floats(base))
    assert np.array_equal(change.rgba, as_well[1].rgba)
    assert np.array_equal(own, whole.rgba) and change.notes == whole.notes
    assert seed % 3 != 0 or seed % 4 == 1 or any("erased" in note for note in change.notes)


def test_a_change_of_half_of_a_picture_is_not_told_from_a_part() -> None:
    base = np.full((64, 64, 4), 255, np.uint8)
    pixels = base.copy()
    pixels[:40, :, 0] = 0
    assert find_local_change(pixels, base) is None
    assert find_local_change(pixels[:32], base) is None
    same = find_local_change(base, base)
    assert same is not None and same[0] == (slice(0, 0), slice(0, 0)) and same[1].is_empty


# --- saving ---------------------------------------------------------------------------------------------------------


def test_every_save_of_every_kind_is_shown(run: Run, clip: SyntheticClip, watching: Watching, tmp_path: Path) -> None:
    path = run.canonical / "foreground.png"
    easel = open_preview(run)
    for number, way in enumerate(["in place", "by a rename", "with a backup"] * 3):
        pixels = painted(run, "foreground", (RED, GREEN, BLUE)[number % 3], radius=4 + number)
        other = save(tmp_path / "foreground.png", pixels)
        put(path, other.read_bytes(), way)
        update = watching.next()
        assert (update.kind, update.layers) == ("painted", ("foreground",)) and update.picture == path
        as_jpeg(easel.render_picture(easel.read_overlays(other, "foreground")), watching.image())
    put(path, (run.canonical / "pristine" / pristine_name(run, "foreground")).read_bytes(), "by a rename")
    update = watching.next()
    assert (update.kind, update.layers) == ("no change", ())
    as_jpeg(clip.frames[MIDDLE], watching.image())
    assert not run.edits.exists()


def test_a_slow_save_is_waited_for_and_shown_once(run: Run, watching: Watching, tmp_path: Path) -> None:
    path = run.canonical / "background.png"
    data = save(tmp_path / "p.png", painted(run, "background")).read_bytes()
    with path.open("wb") as file:
        for piece in (data[:100], data[100:1000], data[1000:-500], data[-500:]):
            file.write(piece)
            file.flush()
            time.sleep(0.12)
    assert watching.next().kind == "painted"
    watching.end.set()
    assert watching.next().kind == "end"


def test_a_picture_that_is_saved_again_while_it_is_read_is_shown_once(
    run: Run, watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = run.canonical / "foreground.png", PreviewSession.read_overlays
    later = painted(run, "foreground", BLUE)
    saves = [save(run.path / "later.png", later).read_bytes()]

    def read_and_save(preview: PreviewSession, file: Path, layer: str | None) -> dict[str, Overlay]:
        found = read(preview, file, layer)
        if saves:
            put(path, saves.pop())
        return found

    monkeypatch.setattr(PreviewSession, "read_overlays", read_and_save)
    put(path, save(run.path / "first.png", painted(run, "foreground", RED)).read_bytes())
    assert watching.next().kind == "painted"
    as_jpeg(open_preview(run).render_picture(open_preview(run).read_overlays(path, "foreground")), watching.image())
    watching.end.set()
    assert watching.next().kind == "end"


def test_a_save_that_stops_halfway_is_said_and_the_next_one_shown(run: Run, tmp_path: Path) -> None:
    impatient = replace(file_watching.DEFAULTS, patience_s=0.05, give_up_s=0.4)
    path = run.canonical / "foreground.png"
    data = save(tmp_path / "p.png", painted(run, "foreground")).read_bytes()
    with Watching(run, settings=impatient) as watching:
        put(path, data)
        assert watching.next().kind == "painted"
        before = watching.image()
        put(path, data[: len(data) // 2])
        waiting, error = watching.next(patient=False), watching.next()
        assert waiting.kind == "waiting" and "waiting for the save" in waiting.to_lines()[0]
        assert error.kind == "error" and "damaged" in error.to_lines()[0] and len(error.to_lines()) == 1
        assert np.array_equal(watching.image(), before) and error.layers == ("foreground",)
        put(path, data)
        assert watching.next().kind == "painted"


def test_a_picture_of_another_shape_is_refused_and_watching_goes_on(
    run: Run, watching: Watching, tmp_path: Path
) -> None:
    path = run.canonical / "foreground-wide.png"
    put(path, save(tmp_path / "w.png", painted(run, "foreground")[:20]).read_bytes())
    update = watching.next()
    assert update.kind == "error" and "another shape" in update.to_lines()[0]
    put(path, save(tmp_path / "r.png", painted(run, "foreground")).read_bytes())
    assert watching.next().kind == "painted"


def test_a_picture_that_is_taken_away_is_not_shown_any_more(
    run: Run, clip: SyntheticClip, watching: Watching, tmp_path: Path
) -> None:
    path = run.canonical / "foreground_2.png"
    put(path, save(tmp_path / "p.png", painted(run, "foreground")).read_bytes())
    assert watching.next().layers == ("foreground",)
    path.unlink()
    assert (update := watching.next()).kind == "removed" and update.layers == ()
    as_jpeg(clip.frames[MIDDLE], watching.image())


def test_the_picture_of_a_layer_is_the_one_that_was_saved_last(run: Run, watching: Watching, tmp_path: Path) -> None:
    data = save(tmp_path / "p.png", painted(run, "background", GREEN)).read_bytes()
    put(run.canonical / "background (copy).png", data)
    assert watching.next().kind == "painted"
    green = watching.image()
    untouched = (run.canonical / "pristine" / pristine_name(run, "background")).read_bytes()
    put(run.canonical / "background.new.png", untouched)
    assert watching.next().kind == "no change"
    assert np.array_equal(watching.image(), green)
    put(run.canonical / "background.png", save(tmp_path / "q.png", painted(run, "background", RED)).read_bytes())
    assert watching.next().kind == "painted"
    assert not np.array_equal(watching.image(), green)


def test_a_layered_document_is_shown_too(run: Run, watching: Watching, tmp_path: Path) -> None:
    export_run(run, CanonicalExporter(format="ora"), ExportOptions(out=tmp_path / "ora"))
    document = read_ora(next((tmp_path / "ora").rglob("*foreground*.ora")), 16_000_000)
    stroke = np.zeros((*painted(run, "foreground").shape[:2], 4), np.float32)
    cv2.circle(stroke, place(run, "foreground"), 9, (1, 0, 0, 1), -1)
    layers = tuple(
        replace(layer, pixels=constant_pixels(stroke)) if layer.name == PAINT else layer for layer in document.layers
    )
    write_ora(tmp_path / "f.ora", replace(document, layers=layers))
    put(run.canonical / "foreground.ora", (tmp_path / "f.ora").read_bytes(), "by a rename")
    assert (update := watching.next()).kind == "painted" and update.layers == ("foreground",)
    write_ora(tmp_path / "g.ora", document)
    put(run.canonical / "foreground.ora", (tmp_path / "g.ora").read_bytes(), "by a rename")
    assert (update := watching.next()).kind == "no change" and update.layers == ()


def test_pictures_elsewhere_are_watched_when_they_are_given(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "elsewhere"
    home.mkdir()
    with Watching(run, WatchOptions(pictures=(f"background={home / 'sea.png'}",))) as watching:
        put(home / "other.png", b"not watched")
        put(home / "sea.png", save(tmp_path / "p.png", painted(run, "background")).read_bytes())
        update = watching.next()
        assert (update.kind, update.layers) == ("painted", ("background",))
        watching.end.set()
        last = watching.next()
        assert last.kind == "end" and last.notes == (f"unwrap edit {run.path} {home / 'sea.png'} --layer background",)
        assert "next: unwrap edit" in last.to_lines()[1]


# --- what else happens ----------------------------------------------------------------------------------------------


def test_what_is_painted_before_watching_is_shown_at_the_start(run: Run, clip: SyntheticClip) -> None:
    save(run.canonical / "background.png", painted(run, "background"))
    with lock_run(run), Watching(run) as watching:  # a fit that goes on keeps nobody from looking
        assert watching.first.layers == ("background",)
        assert np.abs(watching.image().astype(int) - clip.frames[MIDDLE]).max() > 60


def test_edits_of_the_run_are_followed(run: Run, watching: Watching, tmp_path: Path) -> None:
    path = run.canonical / "foreground.png"
    put(path, save(tmp_path / "p.png", painted(run, "foreground")).read_bytes())
    assert watching.next().layers == ("foreground",)
    shown = watching.image()
    edit(run, path, layer="foreground")
    while (update := watching.next()).layers:
        pass
    assert update.kind == "edits"
    assert np.abs(watching.image().astype(int) - shown).mean() < 0.5
    history.undo(run)
    assert watching.next().layers == ("foreground",)


def test_all_parts_of_a_layer_follow_after_the_one_that_was_painted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads((run.maps / "maps.json").read_text())
    box = dict(zip(("u0", "v0", "u1", "v1"), facts["boxes"][0], strict=True))
    charts = [{"layer": "foreground", "first": first, "last": first + 5, "box": box} for first in (0, 6)]
    (run.maps / "maps.json").write_text(json.dumps({**facts, "charts": [charts]}))

    def also_behind(run: PlanarRun, overlays: dict[str, Overlay]) -> tuple[dict[str, Overlay], list[str]]:
        glaze = np.full((8, 8, 4), (0.1, 0.9, 0.1, 1), np.float32)
        return {**overlays, "background": Overlay(glaze, run.maps.boxes[1])}, ["carried to 1 more of the 2 parts"]

    monkeypatch.setattr("editors.live.watch.carry_to_charts", also_behind)
    with Watching(run) as watching:
        path = run.canonical / "foreground.png"
        put(path, save(tmp_path / "p.png", painted(run, "foreground")).read_bytes())
        assert watching.next().kind == "painted"
        update = watching.next()
        assert update.kind == "carried" and update.notes == ("carried to 1 more of the 2 parts",)
        assert np.median(watching.image()[:, :, 1].astype(int) - watching.image()[:, :, 0]) > 80


def test_a_run_that_cannot_be_read_for_a_while_is_waited_for(run: Run, watching: Watching) -> None:
    facts = (run.maps / "maps.json").read_bytes()
    (run.maps / "maps.json").unlink()
    assert (update := watching.next()).kind == "error" and "no baked maps" in update.to_lines()[0]
    (run.maps / "maps.json").write_bytes(facts)
    assert watching.next().kind == "edits"


def test_a_place_that_the_preview_does_not_show_is_told_with_a_frame_that_does(run: Run, watching: Watching) -> None:
    maps = Maps.open(run.maps)
    picture = canonical.read_pristine(run.canonical, "background")
    seen = [shown_texels(maps, picture, t) for t in (MIDDLE, 0)]
    hidden = cv2.distanceTransform((seen[1] & ~seen[0]).astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(hidden.argmax()), hidden.shape)
    pixels = painted(run, "background", radius=0)
    pixels[:] = np.asarray(Image.open(run.canonical / "pristine" / pristine_name(run, "background")))
    cv2.circle(pixels, (int(x), int(y)), 2, RED, -1)
    save(run.canonical / "background.png", pixels)
    kinds = [watching.next() for _ in range(2)]
    assert [update.kind for update in kinds] == ["painted", "hint"]
    assert f"not seen in frame {MIDDLE}" in kinds[1].notes[0] and "--frame" in kinds[1].notes[0]


def shown_texels(maps: Maps, picture: CanonicalImage, t: int) -> np.ndarray:
    """Where a frame shows a canonical picture of the background, widened."""
    uv, box, (width, height) = maps.read_uv(t, 1, maps.size), picture.box, picture.size
    inside = maps.read_layer_weight(t, 1, maps.size) > 0
    x = ((uv[..., 0] - box.u0) / box.width * width)[inside].astype(int).clip(0, width - 1)
    y = ((uv[..., 1] - box.v0) / box.height * height)[inside].astype(int).clip(0, height - 1)
    hit = np.zeros((height, width), np.uint8)
    hit[y, x] = 1
    return cv2.dilate(hit, np.ones((5, 5), np.uint8)) > 0


def test_files_that_belong_to_no_layer_are_said_once(run: Run, watching: Watching, tmp_path: Path) -> None:
    for _ in range(2):
        put(run.canonical / "sketch.png", os.urandom(20))
        time.sleep(0.2)
    put(run.canonical / "foreground.kra", b"x")
    put(run.canonical / ".foreground.png.kra-1234", b"x")
    hints = [watching.next() for _ in range(2)]
    assert ["begin its name" in hints[0].notes[0], ".ora or .png" in hints[1].notes[0]] == [True, True]
    watching.end.set()
    assert watching.next().kind == "end"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("foreground.png", "foreground"),
        ("foreground-blue.jpg", "foreground"),
        ("foreground.new.png", "foreground"),
        ("foreground (copy).webp", "foreground"),
        ("foreground-2.ora", "foreground-2"),
        ("foregrounds.png", None),
        ("my foreground.png", None),
    ],
)
def test_a_file_belongs_to_the_layer_that_its_name_begins_with(name: str, layer: str | None) -> None:
    assert (
        file_watching.is_watched(name)
        and file_watching.find_file_layer(name, ["foreground", "foreground-2", "sky"]) == layer
    )


@pytest.mark.parametrize(
    "name",
    [
        ".foreground.png.kra-1234",
        ".foreground.png",
        "foreground.png~",
        ".goutputstream-XXXX",
        "foreground.png.tmp",
        ".unwrap-part-0a1b2c3d-12-0a1b2c3d.png",
        "foreground.json",
        "foreground-backup.png",
        "foreground.bak.png",
        "~foreground.png",
    ],
)
def test_what_programs_leave_while_they_save_is_not_watched(name: str) -> None:
    assert not file_watching.is_watched(name)


BAD: dict[str, tuple[WatchOptions, str]] = {
    "a frame beyond the end": (WatchOptions(frames=(12,)), "frame 12 is not part of this run"),
    "no such folder": (WatchOptions(pictures=("gone/foreground.png",)), "there is no folder"),
    "no picture": (WatchOptions(pictures=("foreground.kra",)), "no picture that can be watched"),
    "no layer": (WatchOptions(pictures=("sea.png",)), "does not tell which layer"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_watched_is_refused_before_anything_is_written(run: Run, case: str) -> None:
    options, words = BAD[case]
    shutil.rmtree(run.previews, ignore_errors=True)
    with pytest.raises(UserError, match=words) as caught:
        next(watch_pictures(run, options))
    assert caught.value.code == ExitCode.BAD_INPUT and caught.value.fix
    assert not run.previews.exists()


@pytest.mark.parametrize("size", [0, 63, 4097])
def test_a_preview_that_shows_nothing_or_is_too_large_is_refused(size: int) -> None:
    with pytest.raises(UserError, match="64 to 4096 pixels") as caught:
        WatchOptions(size=size)
    assert caught.value.code == ExitCode.USAGE and caught.value.fix == "--size 1280"


def test_updates_are_json_and_the_page_asks_for_nothing_from_elsewhere(run: Run, watching: Watching) -> None:
    found = json.loads(json.dumps(watching.first.to_json()))
    assert found["event"] == "start" and found["error"] is None and found["layers"] == []
    page = (run.previews / "watch.html").read_text()
    assert 'address = "watch-state.js"' in page and "{{" not in page and "http" not in page and "src=" not in page
    loose = {"watch.html", "watch.jpg", "watch-state.js"}
    names = {path.name for path in run.previews.iterdir() if "watch" in path.name}
    assert loose <= names and all(re.fullmatch(r"watch-\d{5}\.jpg", name) for name in names - loose)


def read_state(run: Run) -> dict[str, Any]:
    """What the page is told: a call of its function with one JSON object."""
    text = (run.previews / "watch-state.js").read_text()
    return dict(json.loads(text.removeprefix("showState(").rstrip().removesuffix(");")))


def test_u23_the_page_has_a_status_and_other_frames_and_says_when_the_watch_ends(run: Run, tmp_path: Path) -> None:
    (run.canonical / "foreground.png").write_bytes(b"not a picture")
    with Watching(run, settings=replace(file_watching.DEFAULTS, chooser_frames=3)) as watching:
        while (state := read_state(run))["kind"] != "error":
            watching.next()
        assert any("foreground.png" in line for line in state["lines"])
        save(run.canonical / "foreground.png", painted(run, "foreground"))
        assert watching.next().kind == "painted"
        state = read_state(run)
        assert state["kind"] == "watching" and "shown" in state["lines"][0]
        frames = {frame["number"]: frame for frame in state["frames"]}
        assert list(frames) == [0, MIDDLE, 11] and [frames[n]["asked"] for n in frames] == [False, True, False]
        # The other frames follow a moment later, with the paint on them too.
        source = require_planar(run, "this test").read_frame(11).astype(int)
        painted_pixels, until = 0, time.monotonic() + 20
        while painted_pixels < 50 and time.monotonic() < until:
            time.sleep(0.05)
            if (run.previews / frames[11]["file"]).exists():
                other = np.asarray(Image.open(run.previews / frames[11]["file"]).convert("RGB"))
                painted_pixels = int((np.abs(other - source).max(axis=-1) > 60).sum())
        assert painted_pixels >= 50
    assert read_state(run)["kind"] == "ended"
