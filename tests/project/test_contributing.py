"""CONTRIBUTING and the design keep their word: the samples run as they stand, the answers name files that exist."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neural_fields.data.dataset import ClipDataset
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.edits.read_stack import list_edits
from neural_fields.planar.appearance.image_texture import ImageTextureConfig
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import load_planar_config
from neural_fields.planar.losses.loss import LossInputs
from neural_fields.planar.losses.objective import accumulate_gradients, sample_batch
from neural_fields.runs.run import Run
from neural_fields.training.initialize import initialize_model, plan_model

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EDITOR, EXPORTER, LOSS, TEXTURE = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def run(moving_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(moving_run.path, tmp_path / "runs" / "clip")
    return Run.open(tmp_path / "runs" / "clip")


def execute(source: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.path.parents[1])
    exec(compile(source, "CONTRIBUTING.md", "exec", dont_inherit=True), {"__name__": "contributing"})


def test_the_editor_of_the_guide_makes_an_edit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(EDITOR, run, monkeypatch)
    (made,) = list_edits(run)
    assert made.layers == ("foreground",)


def test_the_exporter_of_the_guide_writes_its_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(EXPORTER, run, monkeypatch)
    written = (run.exports / "boxes" / "boxes.txt").read_text(encoding="utf-8")
    assert [line.split()[0] for line in written.splitlines()] == ["foreground", "background"]


def define(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "contributing"}
    exec(compile(source, "CONTRIBUTING.md", "exec", dont_inherit=True), names)
    return names


def test_the_loss_and_the_texture_of_the_guide_train_a_model() -> None:
    loss, texture = define(LOSS)["SATURATION"], define(TEXTURE)["FlatTextureConfig"]()
    frames = np.random.default_rng(0).integers(0, 256, (2, 18, 32, 3), dtype=np.uint8)
    clip = ClipDataset(frames, LayerMasks((), np.zeros((0, 2, 18, 32), bool)), None)
    config = load_planar_config("atlas", {"terms.texture_smoothness": 0.0})
    plan = plan_model(config, clip)
    parts = build_model(config, plan.shape)
    textures = texture.build(plan.shape)
    model = PlanarModel(plan.shape, [*parts.mappings], textures, [*parts.gains], parts.opacity, config.terms)
    initialize_model(model, plan, clip)
    with torch.no_grad():
        for group in model.textures[0].param_groups():
            group["params"][0].copy_(torch.tensor([0.2, 0.5, 0.8]))
    batch = clip.draw_frames(1, 0, 0)
    samples = sample_batch(model, batch)
    value = loss.compute(LossInputs(model, config.terms, batch, samples, samples, []))
    assert float(value.detach()) == pytest.approx(0.06, abs=1e-6)  # the mean of 0.3^2, 0 and 0.3^2
    accumulate_gradients(model, batch, 0)
    (group,) = model.textures[0].param_groups()
    assert float(group["params"][0].grad.abs().sum()) > 0


def test_the_preset_of_the_guide_is_a_config(tmp_path: Path) -> None:
    (preset,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(preset, encoding="utf-8")
    config = load_planar_config(str(tmp_path / "mine.yaml"))
    assert config.texture == ImageTextureConfig(density=0.5) and config.terms.flow == 5


def test_files_that_the_guide_and_the_answers_of_the_design_name_exist() -> None:
    named = re.findall(r"`((?:neural_fields|editors|tests|docs|configs|benchmarks)/[\w/]*(?:\.\w+)?)`", TEXT)
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2:4] for line in design[design.index("## 17.") :].splitlines() if line.startswith("| W")]
    for folders, files in rows:
        homes = re.findall(r"`([^`]+/)`", folders)
        names = re.findall(r"`([\w/]+\.py)`", files)
        assert homes and names, folders
        named += homes + [name if "/" in name else homes[0] + name for name in names]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert len(rows) >= 20 and not missing, textwrap.shorten(str(missing), 400)
