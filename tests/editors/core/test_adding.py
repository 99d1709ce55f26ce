"""What an editor made is put on the stack: on all charts of its layers, with all notes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from editors import edit
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.chart import Chart
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from tests.support.true_run import TrueRun

pytestmark = pytest.mark.slow


def test_an_edit_of_a_layer_with_charts_is_propagated_before_it_is_written(
    true_run: TrueRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = require_planar(shutil.copytree(true_run.run.path, tmp_path / "run"), "the test")
    chart = Chart("foreground", 0, run.frame_count - 1, run.maps.boxes[0])
    vars(run)["maps"] = replace(run.maps, charts=((chart,),))

    def also_behind(run: PlanarRun, overlays: Mapping[str, Overlay]) -> tuple[dict[str, Overlay], list[str]]:
        glaze = Overlay(np.full((8, 8, 4), 0.5, np.float32), run.maps.boxes[1])
        return {**overlays, "background": glaze}, ["propagated"]

    monkeypatch.setattr("editors.core.chart_propagation.carry_to_charts", also_behind)
    made = edit(run, editor=lambda picture: 1 - picture, layer="foreground")
    assert made.edit.layers == ("foreground", "background") and made.notes == ("propagated",)
    assert run.edit(made.edit.name).record.origin.notes == made.notes
