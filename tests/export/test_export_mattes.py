"""Mattes add up to one, and layers put over each other are the frame."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from editors.core.stack import EditEffects, add_edit
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.video.io import resized_frames, rgba_frames, source_frames
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.edits.shape import Deformation
from neural_fields.export.base import Exporter, export_run
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures import mattes
from neural_fields.export.pictures.mattes import LayersExporter, MatteExporter
from neural_fields.imaging.exr import read_exr
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.render_planar import open_passes
from neural_fields.rendering.unmixing import compute_over_alphas, unmix_colors
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow

NAMES = ("foreground", "background")


@pytest.fixture
def run(true_run: TrueRun, tmp_path: Path) -> Run:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def frames_of(run: Run) -> list[np.ndarray]:
    opened = require_planar(run, "the test")
    metadata, chosen = opened.metadata, opened.frames
    return list(source_frames(metadata, chosen))


def png(path: Path) -> np.ndarray:
    """A 16-bit PNG as floats, colors in the order R, G, B."""
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert found is not None and found.dtype == np.uint16
    return (found if found.ndim == 2 else cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA)) / 65535


def over(layers: list[np.ndarray], premultiplied: bool = False) -> np.ndarray:
    """Layers, front to back, put together."""
    result = np.zeros_like(layers[0][..., :3])
    for rgba in reversed(layers):
        color = rgba[..., :3] if premultiplied else rgba[..., :3] * rgba[..., 3:]
        result = color + (1 - rgba[..., 3:]) * result
    return result


def number(folder: Path, layer: str, frame: int, suffix: str = "png") -> Path:
    return folder / layer / f"{layer}.{frame:04d}.{suffix}"


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_unmixed_colors_stay_in_range_and_mix_to_the_frame(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(count, 0.4), (5, 7)).transpose(2, 0, 1).astype(np.float32)
    frame = generator.choice([0, 0.3, 1], (5, 7, 3)).astype(np.float32)
    colors = generator.normal(0.5, 1, (count, 5, 7, 3)).astype(np.float32)
    found = unmix_colors(colors, weights, frame)
    assert found.min() >= 0 and found.max() <= 1
    assert np.abs((weights[..., None] * found).sum(axis=0) - frame).max() < 1e-5


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_alphas_of_over_mix_layers_by_their_weights(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(count, 0.3), (4, 6)).transpose(2, 0, 1).astype(np.float32)
    colors = generator.random((count, 4, 6, 3)).astype(np.float32)
    rgba = [np.dstack([c, a]) for c, a in zip(colors, compute_over_alphas(weights), strict=True)]
    assert np.abs(over(rgba) - (weights[..., None] * colors).sum(axis=0)).max() < 1e-3


def test_mattes_are_the_true_opacity_and_add_up_to_one(run: Run, true_run: TrueRun, tmp_path: Path) -> None:
    export_run(run, MatteExporter(), ExportOptions(out=tmp_path / "out"))
    for t in (0, 5, 11):
        front, back = (png(number(tmp_path / "out", name, t)) for name in NAMES)
        assert np.abs(front + back - 1).max() < 1e-4
        assert np.abs(front - true_run.clip.alpha[0, t]).max() < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("size", ["source", "96x54"])
def test_layers_over_each_other_are_the_frame(run: Run, tmp_path: Path, size: str) -> None:
    export_run(run, LayersExporter(size=size), ExportOptions(out=tmp_path / "png"))
    export_run(run, LayersExporter(size=size, format="exr"), ExportOptions(out=tmp_path / "exr"))
    for t, frame in enumerate(frames_of(run)):
        if size != "source":
            frame = cv2.resize(frame, (96, 54), interpolation=cv2.INTER_AREA)
        straight = over([png(number(tmp_path / "png", name, t)) for name in NAMES])
        assert (np.rint(255 * straight) == frame).all()
        planes = [read_exr(number(tmp_path / "exr", name, t, "exr"))[0] for name in NAMES]
        linear = over([np.dstack([p[c] for c in "RGBA"]) for p in planes], premultiplied=True)
        assert np.abs(linear - frame / 255).max() < 1e-3


def test_layers_of_the_model_are_the_true_colors_where_they_are_alone(
    run: Run, true_run: TrueRun, tmp_path: Path
) -> None:
    export_run(run, LayersExporter(what="model", every=6), ExportOptions(out=tmp_path / "out"))
    shown = over([png(number(tmp_path / "out", name, 6)) for name in NAMES])
    alone = (true_run.clip.alpha[0, 6] < 0.01) | (true_run.clip.alpha[0, 6] > 0.99)
    error = (255 * shown - frames_of(run)[6])[alone]
    assert 10 * np.log10(255**2 / (error**2).mean()) > 27  # it lacks the camera's anti-aliasing


def test_the_last_layer_goes_on_behind_the_others_where_some_frame_shows_it(run: Run, true_run: TrueRun) -> None:
    out = run.path / "out"
    export_run(run, LayersExporter(every=6), ExportOptions(out=out))
    back, hidden = png(number(out, "background", 6)), true_run.clip.alpha[0, 6] > 0.999
    assert 0.2 < (back[hidden][:, 3] > 0.5).mean() < 1
    assert (back[~hidden][:, 3] == 1).all()
    clip = true_run.clip
    surface, uv = clip.surfaces[1], clip.uv[1, 6]
    x = (uv[..., 0] - surface.box.u0) / surface.box.width * surface.texture.shape[1] - 0.5
    y = (uv[..., 1] - surface.box.v0) / surface.box.height * surface.texture.shape[0] - 0.5
    truth = cv2.remap(surface.texture, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR) * clip.gain[6]
    there = hidden & (back[..., 3] > 0.99)
    assert np.abs(back[..., :3] - truth.clip(0, 1))[there].mean() < 0.03


def test_films_of_layers_are_the_frame_as_nearly_as_the_codec_can(run: Run, tmp_path: Path) -> None:
    found = export_run(run, LayersExporter(format="prores4444", every=3), ExportOptions(out=tmp_path / "out"))
    assert [path.name for path in found.paths] == ["README.txt", "background.mov", "foreground.mov"]
    films = [list(rgba_frames(tmp_path / "out" / f"{name}.mov")) for name in NAMES]
    assert [len(film) for film in films] == [4, 4]
    for t, pair in enumerate(zip(*films, strict=True)):
        error = 255 * over([rgba / 255 for rgba in pair]) - frames_of(run)[3 * t]
        assert 10 * np.log10(255**2 / (error**2).mean()) > 32


def test_a_film_of_a_matte_is_white_with_the_matte_as_alpha(run: Run, true_run: TrueRun, tmp_path: Path) -> None:
    export_run(run, MatteExporter(format="prores4444", layer=("foreground",)), ExportOptions(out=tmp_path / "out"))
    film = list(rgba_frames(tmp_path / "out" / "foreground.mov"))
    assert len(film) == 12 and not (tmp_path / "out" / "background.mov").exists()
    assert film[4][..., :3].min() > 250
    assert np.abs(film[4][..., 3] / 255 - true_run.clip.alpha[0, 4]).mean() < 0.01


def test_files_say_what_they_are(run: Run, tmp_path: Path) -> None:
    export_run(run, LayersExporter(format="exr", every=12), ExportOptions(out=tmp_path / "out"))
    _, header = read_exr(number(tmp_path / "out", "foreground", 0, "exr"))
    assert header["alpha"] == "premultiplied" and "display-referred" in header["color"] and "comment" in header
    text = " ".join((tmp_path / "out" / "README.txt").read_text().split())
    for words in ("premultiplied", "display-referred", "front to back: foreground, background", "192x108"):
        assert words in text
    export_run(run, LayersExporter(every=12), ExportOptions(out=tmp_path / "straight", metadata=False))
    assert "Alpha is straight" in " ".join((tmp_path / "straight" / "README.txt").read_text().split())
    assert b"tEXt" not in number(tmp_path / "straight", "foreground", 0).read_bytes()
    export_run(run, MatteExporter(format="exr", every=12), ExportOptions(out=tmp_path / "matte"))
    planes, _ = read_exr(number(tmp_path / "matte", "foreground", 0, "exr"))
    assert sorted(planes) == ["A", "Y"] and planes["A"].dtype == np.float32 and (planes["A"] == planes["Y"]).all()


def test_numbers_are_those_of_the_source(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream_blanks(metadata: VideoMetadata, frames: range, size: tuple[int, int]) -> Iterator[np.ndarray]:
        return (np.zeros((size[1], size[0], 3), np.uint8) for _ in frames)  # the clip has no frames 12 to 18

    monkeypatch.setattr(mattes, resized_frames.__name__, stream_blanks)
    text = run.run_yaml.read_text()
    (tmp_path / "part").mkdir()
    run.run_yaml.write_text(text.replace("0:12:1", "7:19:1"))
    found = export_run(run, MatteExporter(every=5), ExportOptions(out=tmp_path / "out"))
    names = [path.name for path in found.paths if path.parent.name == "foreground"]
    assert names == ["foreground.0007.png", "foreground.0012.png", "foreground.0017.png"]


def paint() -> Overlay:
    rgba = np.zeros((40, 40, 4), np.float32)
    rgba[10:30, 10:30] = [1, 0.2, 0.1, 0.8]
    return Overlay(rgba, Box(-0.5, -0.3, 0.5, 0.3))


def bend(run: Run) -> Deformation:
    field = np.zeros((2, 16, 16), np.float32)
    field[0, 3:-3, 3:-3] = 0.05
    return Deformation(field, Maps.open(run.maps).boxes[0])


EDITS: dict[str, Callable[[Run], Any]] = {
    "paint": lambda run: add_edit(run, "paint", {"foreground": paint()}),
    "shape": lambda run: add_edit(run, "bend", {}, shapes={"foreground": bend(run)}),
    "hidden": lambda run: add_edit(run, "gone", {}, effects=EditEffects(hidden=("foreground",))),
}


@pytest.mark.parametrize("kind", EDITS)
def test_edited_layers_over_each_other_are_the_edited_frame(run: Run, tmp_path: Path, kind: str) -> None:
    EDITS[kind](run)
    export_run(run, LayersExporter(edited=True, every=11), ExportOptions(out=tmp_path / "out"))
    changer = open_passes(require_planar(run, "the test"))
    for t in (0, 11):
        source = frames_of(run)[t]
        frame = changer.render_frame(t, source)
        assert (frame != source).any()
        layers = [png(number(tmp_path / "out", name, t)) for name in NAMES]
        assert (np.rint(255 * over(layers)) == frame).all()
        if kind == "hidden":
            assert (layers[0][..., 3] == 0).all()


@pytest.mark.parametrize(
    ("exporter", "words"),
    [
        (MatteExporter(layer=("forground",)), "there is no layer 'forground'"),
        (MatteExporter(every=0), "--every 0"),
        (LayersExporter(every=13), "--every 13"),
        (LayersExporter(size="8x8"), "8x8"),
        (LayersExporter(size="90000x90000"), "90000x90000"),
        (LayersExporter(size="big"), "big"),
        (LayersExporter(edited=True), "no edit is active"),
        (LayersExporter(edited=True, what="model"), "source's own pixels"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(run: Run, exporter: Exporter, words: str) -> None:
    with pytest.raises(UserError) as caught:
        export_run(run, exporter, ExportOptions(out=run.path / "out" / "here"))
    assert words in str(caught.value) and caught.value.code == ExitCode.BAD_INPUT
    assert not (run.path / "out").exists()


def test_a_missing_package_is_named_and_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "OpenEXR":
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="OpenEXR"):
        export_run(run, LayersExporter(format="exr"), ExportOptions(out=run.path / "out" / "here"))
    assert not (run.path / "out").exists()
