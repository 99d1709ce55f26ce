"""`unwrap edit --editor` and `unwrap eval --edit` as a user runs them, and measures with a known right answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from editors.cli.main import main
from editors.diffusion.common.clip_metrics import compute_all_pairs_consistency, compute_consecutive_consistency
from editors.editors_table import EDITORS, SCENE_EDITORS, find_editor_class
from neural_fields.core.errors import UserError
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.evaluation.edit_quality import measure_edit
from neural_fields.open_runs.opening import require_planar

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_models: ModuleType) -> Path:
    """A finished run of 6 frames of 96 x 64 pixels, and tiny models."""
    home = tmp_path_factory.mktemp("home")
    clip = make_demo_clip(6, 96, 64)
    (home / "frames").mkdir()
    for t, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(home / "frames" / f"{t:04d}.png")
    np.save(home / "mask.npy", clip.masks[0])
    line = ["train", str(home / "frames"), "--masks", f"turtle={home / 'mask.npy'}", "--training.steps", "12"]
    assert main([*line, "--out", str(home / "run")]) == 0
    tiny_models.stable_diffusion(home / "sd")
    tiny_models.clip(home / "clip")
    return home


@pytest.fixture
def run(home: Path, tmp_path: Path) -> str:
    shutil.copytree(home / "run", tmp_path / "run")
    return str(tmp_path / "run")


def edit(run: str, home: Path, *more: str) -> int:
    words = ["edit", run, "--editor", "inpaint", "--model", str(home / "sd"), "--steps", "2"]
    return main([*words, "--prompt", "blue dots", "--device", "cpu", *more])


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["eval", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_editor_makes_an_edit_that_renders_and_leaves_the_rest_untouched(
    run: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit(run, home, "--layer", "turtle", "--name", "dots") == 0
    assert main(["render", run]) == 0
    found = measured(capsys, run, "--edit", "dots")
    assert found["changed_outside"] == 0 and 0.02 < found["edited_share"] < 0.5
    origin = json.loads((Path(run) / "edits/0001-dots/edit.json").read_text())["origin"]
    assert origin["editor"] == "inpaint"
    assert origin["settings"]["prompt"] == "blue dots" and origin["settings"]["seed"] == 0


def test_the_same_seed_makes_the_same_edit_and_another_seed_another(run: str, home: Path) -> None:
    pictures = []
    for seed in ("1", "1", "2"):
        assert edit(run, home, "--seed", seed) == 0
        folder = sorted((Path(run) / "edits").glob("0*"))[-1]
        pictures.append((folder / "turtle.png").read_bytes())
        assert main(["undo", run]) == 0
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_mask_bounds_the_edit(run: str, home: Path, tmp_path: Path) -> None:
    with Image.open(Path(run) / "canonical/turtle.png") as picture:
        width, height = picture.size
    left = np.zeros((height, width), np.uint8)
    left[:, : width // 2] = 255
    Image.fromarray(left).save(tmp_path / "left.png")
    assert edit(run, home, "--layer", "turtle", "--mask", str(tmp_path / "left.png")) == 0
    facts = json.loads((Path(run) / "edits/0001-inpaint/edit.json").read_text())["overlays"]["turtle"]
    canonical = json.loads((Path(run) / "canonical/turtle.json").read_text())
    middle = (canonical["box"][0] + canonical["box"][2]) / 2
    with Image.open(Path(run) / "edits/0001-inpaint/turtle.png") as overlay:
        u = np.linspace(facts["box"][0], facts["box"][2], overlay.size[0])
        painted = np.asarray(overlay.convert("RGBA"))[..., 3].max(axis=0) > 0
    assert painted.any() and u[painted].max() < middle + 2 * (canonical["box"][2] - canonical["box"][0]) / width


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--layer", "cat"], 3, "there is no layer"),
        (["--mask", "missing.png"], 3, "missing.png"),
        (["--layer", "turtle", "--layer", "background", "--mask", "m.png"], 3, "one mask for several layers"),
        (["--wibble", "3"], 2, "wibble"),
        (["--steps", "many"], 2, "many"),
    ],
)
def test_what_cannot_be_edited_is_one_clear_error_and_changes_nothing(
    run: str,
    home: Path,
    words: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (16, 16), 255).save("m.png")
    try:
        status = edit(run, home, *words)
    except SystemExit as stop:  # an argument of the wrong kind is refused before the command runs
        status = int(stop.code or 0)
    assert status == code and says in capsys.readouterr().err
    assert not list((Path(run) / "edits").glob("0*"))


def test_a_misspelt_editor_is_named_right(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edit", run, "--editor", "inpiant"]) == 2
    assert "did you mean inpaint?" in capsys.readouterr().err


def test_every_editor_has_a_page_and_shows_its_settings() -> None:
    pages, homes = Path(__file__).resolve().parents[2] / "docs", {"unwrapped": "export"}
    for name in (*EDITORS, *SCENE_EDITORS):
        kind = find_editor_class(name, is_scene=name in SCENE_EDITORS)
        assert kind.name == name and (kind.__doc__ or "").strip()
        assert f"--editor {name}" in (pages / homes.get(name, "editors") / f"{name}.md").read_text(encoding="utf-8")


def test_clip_measures_come_with_those_of_the_source_and_both_consistencies(
    run: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edit(run, home) == 0
    words = ["--edit", "1", "--prompt", "blue dots", "--clip-model", str(home / "clip")]
    found = measured(capsys, run, *words, "--pickscore-model", str(home / "clip"))
    for name in ("clip_consistency_all_pairs", "clip_consistency_consecutive", "clip_text_alignment"):
        assert -1 <= found[name] <= 1.0001 and -1 <= found[f"source_{name}"] <= 1.0001
    assert np.isfinite(found["pick_score"])


@pytest.mark.parametrize("words", [["--prompt", "x"], ["--edit", "1", "--prompt", "x"], ["--edit", "nothing"]])
def test_measures_that_lack_something_say_what(run: str, home: Path, words: list[str]) -> None:
    assert edit(run, home) == 0
    assert main(["eval", run, *words]) in (2, 3)


def test_a_run_without_edits_has_nothing_to_measure(run: str) -> None:
    with pytest.raises(UserError, match="no edit to measure"):
        measure_edit(require_planar(run, "the test"))


@given(st.integers(2, 6), st.integers(0, 99))
def test_consistencies_are_the_means_of_cosines_over_pairs(count: int, seed: int) -> None:
    vectors = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))
    unit = torch.nn.functional.normalize(vectors, dim=1)
    pairs = [float(unit[i] @ unit[j]) for i in range(count) for j in range(count) if i != j]
    after = [float(unit[i] @ unit[i + 1]) for i in range(count - 1)]
    assert compute_all_pairs_consistency(unit) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert compute_consecutive_consistency(unit) == pytest.approx(sum(after) / len(after), abs=1e-5)
    assert compute_all_pairs_consistency(unit[:1]) is None and compute_consecutive_consistency(unit[:1]) is None
