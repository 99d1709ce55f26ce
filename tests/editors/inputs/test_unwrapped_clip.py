"""A layer laid flat shows its texture, and what is painted on the flat clip is on the frames."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from editors.api import edit
from editors.inputs.unwrapped_clip import DEFAULTS, FrameComparison, read_unwrapped_paint
from neural_fields.atlas import canonical
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import sha256_file
from neural_fields.data.synthetic.planar_clips import PaintedMark
from neural_fields.data.video.io import probe_video, rgba_frames, source_frames, write_video
from neural_fields.evaluation.metrics import psnr
from neural_fields.export.base import export_run
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures.unwrapped import CanonicalFill, UnwrappedExporter, parse_unwrapped_size
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.render_planar import open_passes
from neural_fields.rendering.uv_space import CanonicalPlane, UnwrappedFrame
from neural_fields.runs.run import Run
from tests.support.map_arrays import load_map, save_map
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow

COLOR = np.array([0.85, 0.2, 0.3])
LAYERS = ("foreground", "background")
# The runs of all tests begin as copies of one: what is made of it is made once.
FLAT: dict[tuple[str, int], UnwrappedFrame] = {}
EXPORTED: dict[tuple[object, ...], dict[str, bytes]] = {}
Paint = Callable[[int, np.ndarray], np.ndarray]  # number and RGB of a flat frame: RGB


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@dataclass(frozen=True)
class Dot:
    """A dot that wanders over the canonical plane of a layer."""

    run: Run
    layer: str

    @cached_property
    def plane(self) -> CanonicalPlane:
        picture = canonical.read_pristine(self.run.canonical, self.layer)
        maps = Maps.open(self.run.maps)
        return CanonicalPlane(
            maps, maps.layers.index(self.layer), picture.box, parse_unwrapped_size("canonical", picture.size)
        )

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """The frames of the source."""
        opened = require_planar(self.run, "the test")
        facts, chosen = opened.metadata, opened.frames
        return list(source_frames(facts, chosen))

    def flat(self, t: int) -> UnwrappedFrame:
        """A frame laid flat, by the maps that the run began with."""
        if (self.layer, t) not in FLAT:
            FLAT[self.layer, t] = self.plane.unwrap_frame(t, self.frames[t])
        return FLAT[self.layer, t]

    @property
    def radius(self) -> float:
        return 0.12 * min(self.plane.box.width, self.plane.box.height)

    def center(self, t: int) -> tuple[float, float]:
        box = self.plane.box
        u, v = (box.u0 + box.u1) / 2, (box.v0 + box.v1) / 2
        return u + 0.01 * (t - 6) * box.width, v + 0.01 * (t - 6) * box.height

    def alpha(self, t: int, box: Box, size: tuple[int, int]) -> np.ndarray:
        """How much the dot covers of the texels of a picture of `size` over `box`."""
        u = box.u0 + (np.arange(size[0]) + 0.5) * box.width / size[0]
        v = box.v0 + (np.arange(size[1]) + 0.5) * box.height / size[1]
        off = np.hypot(*(grid - c for grid, c in zip(np.meshgrid(u, v), self.center(t), strict=True)))
        return np.clip((self.radius - off) / 0.0115 + 0.5, 0, 1)

    def paint(self, t: int, frame: np.ndarray) -> np.ndarray:
        """A flat frame with the dot on it, in the light of the frame."""
        plane = self.plane
        gain = self.flat(t).gain
        alpha = self.alpha(t, plane.box, plane.size)[..., None]
        return np.rint(255 * alpha * np.clip(COLOR * gain, 0, 1) + (1 - alpha) * frame).astype(np.uint8)

    def mark(self, t: int) -> PaintedMark:
        """The same dot for the synthetic clip."""
        (u, v), side = self.center(t), 1.3 * self.radius
        box = Box(u - side, v - side, u + side, v + side)
        picture = np.dstack([np.broadcast_to(COLOR, (256, 256, 3)), self.alpha(t, box, (256, 256))])
        return PaintedMark(picture.astype(np.float32), box, self.layer)


def flat_clip(run: Run, layer: str = "foreground", **settings: Any) -> Path:
    """An exported clip, alone in its folder but for what lies beside it."""
    folder, key = run.path / "exports" / "unwrapped", (layer, *sorted(settings.items()))
    shutil.rmtree(folder, ignore_errors=True)
    if key not in EXPORTED:
        found = export_run(run, UnwrappedExporter(layer=layer, **settings), ExportOptions(out=folder))
        EXPORTED[key] = {path.name: path.read_bytes() for path in found.paths}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in EXPORTED[key].items():
        (folder / name).write_bytes(content)
    return next(folder / name for name in EXPORTED[key] if name.endswith((".mkv", ".mov")))


def painted(run: Run, clip: Path, paint: Paint, codec: str = "ffv1", **more: Any) -> Path:
    """The clip as a program saves it that knows nothing of alpha."""
    facts = probe_video(clip)
    frames = (paint(t, frame) for t, frame in enumerate(source_frames(facts, range(facts.frame_count))))
    path = run.path.parent / f"edited-{codec}{'.mp4' if codec == 'h264' else '.mkv'}"
    return write_video(path, frames, facts, codec=codec, sound=False, overwrite=True, **more)


def test_a_flat_layer_is_its_texture_in_the_light_of_the_frame(run: Run, true_run: TrueRun) -> None:
    for layer, least in (("foreground", 25), ("background", 34)):
        dot, picture = Dot(run, layer), canonical.read_pristine(run.canonical, layer)
        texture = cv2.resize(picture.rgba[..., :3], dot.plane.size, interpolation=cv2.INTER_LINEAR)
        for t in (0, 6, 11):
            flat = dot.flat(t)
            seen = flat.visibility > 0.99
            assert seen.mean() > 0.2
            assert psnr(flat.color[seen] / 255, (texture * flat.gain)[seen].clip(0, 1)) > least


def test_every_texel_that_a_frame_shows_is_found(run: Run, true_run: TrueRun) -> None:
    dot, clip, t = Dot(run, "foreground"), true_run.clip, 7
    flat, plane = dot.flat(t), dot.plane
    box, uv = plane.box, clip.uv[0, t][clip.alpha[0, t] > 0.99]
    x = ((uv[:, 0] - box.u0) / box.width * plane.size[0]).astype(int)
    y = ((uv[:, 1] - box.v0) / box.height * plane.size[1]).astype(int)
    assert (flat.visibility[y, x] > 0.6).all()
    assert (flat.color[flat.visibility == 0] == 0).all() and (flat.visibility == 0).any()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_moving_dot_on_the_flat_clip_is_the_true_edit_of_the_video(run: Run, true_run: TrueRun, layer: str) -> None:
    dot = Dot(run, layer)
    clip = painted(run, flat_clip(run, layer), dot.paint)
    edit(run, editor="unwrapped", clip=clip)
    changer = open_passes(require_planar(run, "the test"))
    errors = []
    for t in (0, 3, 5):
        source = dot.frames[t]
        (truth,) = islice(true_run.clip.render_frames([dot.mark(t)]), t, t + 1)
        got = changer.render_frame(t, source)
        changed = (truth != source).any(axis=-1).astype(np.uint8)
        errors.append(((got.astype(float) - truth)[cv2.dilate(changed, np.ones((3, 3))) > 0] ** 2).mean())
        assert (got == source)[cv2.dilate(changed, np.ones((7, 7))) == 0].all()
    assert 10 * np.log10(255**2 / np.mean(errors)) > 32


def test_a_lossy_codec_changes_nothing_and_a_dot_in_it_only_the_dot(run: Run) -> None:
    dot, clip = Dot(run, "background"), flat_clip(run, "background", fill=True)
    with pytest.raises(UserError, match="no change found"):
        read_unwrapped_paint(require_planar(run, "the test"), painted(run, clip, lambda t, f: f, "h264", crf=23))
    plane = dot.plane
    _, moving = read_unwrapped_paint(require_planar(run, "the test"), painted(run, clip, dot.paint, "h264", crf=23))
    for t, rgba in enumerate(moving.frames()):
        truth, alpha = dot.alpha(t, plane.box, plane.size), rgba[..., 3] / 255
        around = cv2.dilate((truth > 0).astype(np.uint8), np.ones((21, 21))) > 0  # halved color planes bleed
        assert alpha[~around].max() == 0
        seen = dot.flat(t).visibility > 0.9
        assert alpha[(truth == 1) & seen].mean() > 0.97


def test_a_clip_saved_with_another_gamma_has_no_change_and_a_dot_in_it_has_its_color(run: Run) -> None:
    dot, clip = Dot(run, "background"), flat_clip(run, "background", fill=True)

    def brighten(t: int, frame: np.ndarray) -> np.ndarray:
        return np.rint(255 * (frame / 255) ** (1.8 / 2.2)).astype(np.uint8)

    opened = require_planar(run, "the test")
    with pytest.raises(UserError, match=r"no change found[\s\S]*gamma"):
        read_unwrapped_paint(opened, painted(run, clip, brighten))
    _, moving = read_unwrapped_paint(opened, painted(run, clip, lambda t, frame: brighten(t, dot.paint(t, frame))))
    _, plain = read_unwrapped_paint(opened, painted(run, clip, dot.paint))
    for rgba, expected in zip(moving.frames(), plain.frames(), strict=True):
        both = (rgba[..., 3] > 250) & (expected[..., 3] > 250)
        assert both.sum() > 0.9 * (expected[..., 3] > 250).sum()
        assert np.abs(rgba[both].astype(int) - expected[both]).max() < 12


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("kind", ["as it was", "on gray", "as pictures"])
def test_an_untouched_clip_has_no_change(run: Run, fill: bool, kind: str) -> None:
    clip = flat_clip(run, fill=fill)
    if kind == "on gray":
        rgba = list(rgba_frames(clip))
        laid = [np.rint(f[..., :3] * (f[..., 3:] / 255) + 90 * (1 - f[..., 3:] / 255)).astype(np.uint8) for f in rgba]
        clip = painted(run, clip, lambda t, frame: laid[t])
    elif kind == "as pictures":
        facts = probe_video(clip)
        clip = write_video(run.path.parent / "pictures", rgba_frames(clip), facts, codec="png")
    with pytest.raises(UserError, match="no change found") as caught:
        read_unwrapped_paint(require_planar(run, "the test"), clip, "foreground")
    assert caught.value.code == ExitCode.BAD_INPUT


def test_a_whole_clip_that_was_graded_is_found_in_a_lossy_file(run: Run) -> None:
    clip = flat_clip(run, "background")
    graded = painted(run, clip, lambda t, frame: (0.6 * frame).astype(np.uint8), "h264")
    _, moving = read_unwrapped_paint(require_planar(run, "the test"), graded)
    dot = Dot(run, "background")
    for t, rgba in enumerate(moving.frames()):
        assert (rgba[..., 3] > 127)[dot.flat(t).visibility > 0.9].mean() > 0.95


def test_frames_are_given_as_often_as_they_are_asked_for(run: Run) -> None:
    dot = Dot(run, "foreground")
    once = painted(run, flat_clip(run), lambda t, frame: dot.paint(t, frame) if t == 5 else frame)
    layer, moving = read_unwrapped_paint(require_planar(run, "the test"), once)
    assert layer == "foreground" and moving.count == 12 and moving.notes == ("1 of 12 frames were painted on",)
    for _ in range(2):
        assert [t for t, rgba in enumerate(moving.frames()) if rgba.any()] == [5]


def test_a_clip_can_have_another_size_of_the_same_shape(run: Run) -> None:
    dot, clip = Dot(run, "foreground"), flat_clip(run)
    small = [cv2.resize(dot.paint(t, f[..., :3]), (120, 120)) for t, f in enumerate(rgba_frames(clip))]
    path = write_video(run.path / "small.mkv", small, probe_video(clip), codec="ffv1", sound=False)
    _, moving = read_unwrapped_paint(require_planar(run, "the test"), path, "foreground")
    rgba = list(moving.frames())[6]
    truth = dot.alpha(6, dot.plane.box, (120, 120))
    assert rgba.shape == (120, 120, 4)
    assert (rgba[..., 3] > 127)[truth == 1].mean() > 0.95
    assert (rgba[..., 3] > 0)[truth == 0].mean() < 0.02


def test_what_lies_beside_the_clip_says_what_it_is(run: Run) -> None:
    clip = flat_clip(run, "background")
    facts = json.loads((clip.parent / "unwrapped.json").read_text())
    picture = canonical.read_pristine(run.canonical, "background")
    assert facts["layer"] == "background" and facts["frames"] == list(range(12))
    assert facts["box"] == list(picture.box.as_tuple()) and facts["size"] == [414, 230]
    assert facts["sha256"] == sha256_file(clip) and facts["file"] == "background.mkv"
    assert str(run.path.parent) not in json.dumps(facts)
    assert probe_video(clip).timestamps == require_planar(run, "the test").metadata.timestamps


def test_formats_hold_the_same_frames_with_alpha(run: Run) -> None:
    plain = np.stack(list(rgba_frames(flat_clip(run))))
    near = np.stack(list(rgba_frames(flat_clip(run, format="prores4444"))))
    assert np.abs(plain[..., 3].astype(int) - near[..., 3]).mean() < 1
    found = export_run(run, UnwrappedExporter(format="png"), ExportOptions(out=run.path / "png"))
    names = [path.name for path in found.paths]
    assert names == [*(f"{t:05d}.png" for t in range(12)), "unwrapped.json"]
    picture = cv2.cvtColor(cv2.imread(str(found.paths[3]), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    assert (picture == plain[3]).all()


def test_filled_frames_show_the_canonical_picture_where_nothing_is_seen(run: Run) -> None:
    empty, filled = (np.stack(list(rgba_frames(flat_clip(run, "background", fill=fill)))) for fill in (False, True))
    assert (empty[..., 3] == filled[..., 3]).all()
    assert (empty[..., :3] == filled[..., :3])[filled[..., 3] == 255].all()
    picture = canonical.read_pristine(run.canonical, "background").rgba
    known = cv2.resize(picture[..., 3], (414, 230)) > 0.99
    unseen = (filled[6, ..., 3] == 0) & known
    gain = Dot(run, "background").flat(6).gain
    truth = np.clip(cv2.resize(picture[..., :3], (414, 230)) * gain, 0, 1)
    assert unseen.any() and np.abs(filled[6, ..., :3] / 255 - truth)[unseen].mean() < 0.01


def test_a_layer_that_a_frame_does_not_show_is_empty_there(run: Run) -> None:
    weight = load_map(run.maps, "weight")
    weight[4, 0], weight[4, 1] = 0, 255
    save_map(run.maps, "weight", weight)
    dot = Dot(run, "foreground")
    flat = dot.plane.unwrap_frame(4, dot.frames[4])
    assert not flat.visibility.any() and not flat.color.any() and (flat.gain == 1).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer": "forground"}, "forground"),
        ({"size": "100x300"}, "another shape"),
        ({"size": "4x4"}, "4x4"),
        ({"size": "99999x99999"}, "99999x99999"),
        ({"size": "huge"}, "huge"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(run: Run, settings: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        export_run(run, UnwrappedExporter(**settings), ExportOptions(out=run.path / "out" / "here"))
    assert words in str(caught.value)
    assert not (run.path / "out").exists()


def _cut(run: Run, frames: Sequence[np.ndarray]) -> Path:
    return write_video(run.path / "bad.mkv", frames[:-1], _facts(run, len(frames) - 1), codec="ffv1")


def _stretched(run: Run, frames: Sequence[np.ndarray]) -> Path:
    return write_video(run.path / "bad.mkv", [cv2.resize(f, (200, 120)) for f in frames], _facts(run), codec="ffv1")


def _large(run: Run, frames: Sequence[np.ndarray]) -> Path:
    return write_video(run.path / "bad.mkv", [cv2.resize(f, (800, 800)) for f in frames], _facts(run), codec="ffv1")


def _with_a_gap(run: Run, frames: Sequence[np.ndarray]) -> Path:
    path = write_video(run.path / "bad", frames, _facts(run), codec="png")
    (path / "00004.png").unlink()
    return path


def _no_video(run: Run, frames: Sequence[np.ndarray]) -> Path:
    path = run.path / "bad.mkv"
    path.write_bytes(b"no video at all")
    return path


def _facts(run: Run, count: int = 12) -> Any:
    facts = require_planar(run, "the test").metadata
    return replace(facts, kind="images", frame_count=count, timestamps=facts.timestamps[:count])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_cut, "11 frames instead of 12"),
        (_stretched, "200x120"),
        (_large, "800x800"),
        (_with_a_gap, "missing"),
        (_no_video, "bad.mkv"),
        (lambda run, frames: run.path / "nothing.mkv", "nothing.mkv"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(run: Run, make: Any, words: str) -> None:
    frames = [np.zeros((180, 180, 3), np.uint8)] * 12
    before = sorted(path.name for path in run.path.iterdir())
    path = make(run, frames)
    with pytest.raises(UserError) as caught:
        read_unwrapped_paint(require_planar(run, "the test"), path, "foreground")
    assert words in str(caught.value) and caught.value.code == ExitCode.BAD_INPUT
    assert sorted(p.name for p in run.path.iterdir() if p != path) == before


def test_the_layer_of_a_clip_is_what_its_export_says_or_asked_for(run: Run) -> None:
    clip = painted(run, flat_clip(run, "background"), Dot(run, "background").paint)
    assert read_unwrapped_paint(require_planar(run, "the test"), clip)[0] == "background"
    with pytest.raises(UserError, match="forground"):
        read_unwrapped_paint(require_planar(run, "the test"), clip, "forground")
    sidecar = run.path / "exports" / "unwrapped" / "unwrapped.json"
    sidecar.write_text('{"schema": 1, "layer": "../../x"}')
    with pytest.raises(UserError, match="no layer"):
        read_unwrapped_paint(require_planar(run, "the test"), clip)
    sidecar.unlink()
    with pytest.raises(UserError, match="does not tell its layer"):
        read_unwrapped_paint(require_planar(run, "the test"), clip)


# --- one frame -------------------------------------------------------------------------------------------------------


def half_seen(columns: int = 30) -> tuple[UnwrappedFrame, CanonicalFill]:
    """A flat frame whose first columns are seen, and a picture around it: dark, and white in its last rows."""
    visibility = np.zeros((60, 90), np.float32)
    visibility[:, :columns] = 1
    color = np.random.default_rng(0).integers(40, 200, (60, 90, 3), np.uint8)
    color[visibility == 0] = 0
    behind = np.random.default_rng(1).uniform(0.1, 0.25, (60, 90, 3)).astype(np.float32)
    behind[45:] = 1
    return UnwrappedFrame(color, visibility, np.ones((60, 90, 3), np.float32)), CanonicalFill(behind)


def test_paint_next_to_what_a_frame_shows_is_kept_and_paint_far_from_it_is_not() -> None:
    flat, filling = half_seen()
    painted = flat.color.copy()
    painted[20:30, 32:40] = painted[20:30, 70:80] = 250
    found = FrameComparison(filling, False, DEFAULTS).find_paint(flat, painted)
    assert found is not None and found[0] == np.s_[20:30, 32:40]


def test_strong_paint_does_not_hide_what_the_clip_was_painted_on() -> None:
    flat, filling = half_seen()
    painted = filling.fill_frame(flat)
    painted[45:, 30:] = 0
    found = FrameComparison(filling, False, DEFAULTS).find_paint(flat, painted)
    assert found is not None and found[0] == np.s_[45:60, 30:46]


def test_a_frame_that_is_seen_nearly_everywhere_does_not_tell_what_the_clip_was_painted_on() -> None:
    comparison = FrameComparison(half_seen()[1], False, DEFAULTS)
    nearly, _ = half_seen(89)
    painted = comparison.filling.fill_frame(nearly)  # as if it had been painted like the picture around it
    assert comparison.find_paint(nearly, painted) is not None
    flat, _ = half_seen()
    assert comparison.find_paint(flat, flat.color) is None
