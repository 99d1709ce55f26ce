"""Compiled blends equal those with OpenCV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.placed_picture import PlacedPicture
from neural_fields.core.box import Box
from neural_fields.imaging.grade import Grade
from neural_fields.rendering.base import OverlayOptions
from neural_fields.rendering.grade_pass import GradePass
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.runs.run import Run
from neural_fields.training.bake import bake_maps
from tests.rendering.test_rendering import HEIGHT, NAMES, WIDTH, noise, pictures, two_layers


@pytest.mark.parametrize("scale", [0.6, 1, 2.3])
@pytest.mark.parametrize("edited", [NAMES, NAMES[:1], NAMES[1:]])
@pytest.mark.parametrize("is_placed", [False, True])
def test_compiled_paint_equals_paint_in_steps(
    tmp_path: Path, scale: float, edited: tuple[str, ...], is_placed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_layers()
    maps, size = bake_maps(Run.create(tmp_path / "run"), model, 1), (round(scale * WIDTH), round(scale * HEIGHT))
    paint = np.random.default_rng(3).random((9, 11, 4)).astype(np.float32).repeat(6, 0).repeat(6, 1)
    overlay = Overlay(paint, Box(-0.9, -0.8, 0.8, 0.9))
    paints = {name: PlacedPicture.from_overlay(overlay) if is_placed else overlay for name in edited}
    renderer = OverlayPass(maps, pictures(model), paints, OverlayOptions(lambda t: 0.8))
    assert renderer.has_compiled_loops
    compiled = renderer.render_frame(2, noise(size))
    monkeypatch.setattr(OverlayPass, "has_compiled_loops", False)
    in_steps = renderer.render_frame(2, noise(size))
    assert np.abs(compiled.astype(int) - in_steps).max() <= 1 and (compiled != noise(size)).mean() > 0.2
    untouched = (in_steps == noise(size)).all(-1)
    assert np.array_equal(compiled[untouched], in_steps[untouched])


@pytest.mark.parametrize("scale", [0.6, 1, 2.3])
@pytest.mark.parametrize("layer", NAMES)
@pytest.mark.parametrize(
    "grade", [Grade(exposure=0.7), Grade(saturation=1.6, hue=40.0), Grade(exposure=-1.0, hue=10.0)]
)
def test_a_compiled_grade_equals_a_grade_in_steps(
    tmp_path: Path, scale: float, layer: str, grade: Grade, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_layers()
    maps, size = bake_maps(Run.create(tmp_path / "run"), model, 1), (round(scale * WIDTH), round(scale * HEIGHT))
    renderer = GradePass(maps, pictures(model), layer, grade, None, OverlayOptions(lambda t: 0.7))
    compiled = renderer.render_frame(2, noise(size))
    monkeypatch.setattr(GradePass, "has_compiled_loops", False)
    in_steps = renderer.render_frame(2, noise(size))
    # Pixels that layers share have colors between bytes: tables are linear there.
    assert np.abs(compiled.astype(int) - in_steps).max() <= 2 and (compiled != noise(size)).mean() > 0.2
    assert (np.abs(compiled.astype(int) - in_steps) > 1).mean() < 0.01


def test_a_neutral_grade_leaves_bytes_as_they_are(tmp_path: Path) -> None:
    model = two_layers()
    maps = bake_maps(Run.create(tmp_path / "run"), model, 1)
    renderer = GradePass(maps, pictures(model), "foreground", Grade(saturation=1.0 + 1e-9), None, OverlayOptions())
    alone = maps.read_weights(1, (WIDTH, HEIGHT))[0] > 0.999
    assert alone.mean() > 0.2 and np.array_equal(renderer.render_frame(1, noise())[alone], noise()[alone])
