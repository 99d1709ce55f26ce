"""CONTRIBUTING and the design keep their word: the samples run as they stand, the answers name files that exist."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

import pytest

from neural_fields.config.planar import load_planar_config
from neural_fields.edits.read_stack import list_edits
from neural_fields.runs.run import Run

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EDITOR, EXPORTER = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


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


def test_the_preset_of_the_guide_is_a_config(tmp_path: Path) -> None:
    quoted = re.search(r"printf '(.*)' > mine.yaml", TEXT)
    assert quoted is not None
    (tmp_path / "mine.yaml").write_text(quoted[1].replace("\\n", "\n"), encoding="utf-8")
    assert load_planar_config(str(tmp_path / "mine.yaml")).texture.density == 0.5  # type: ignore[union-attr]


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
