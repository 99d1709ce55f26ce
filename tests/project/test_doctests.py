"""The examples in docstrings: each is run, and shows what the program prints today."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
LEAST_EXAMPLES = 25


def _name_module(path: Path) -> str:
    """Returns the dotted name of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [
    _name_module(path)
    for package in ("neural_fields", "editors")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


def _find_examples(name: str) -> list[doctest.DocTest]:
    """Finds the docstrings of a module that have examples."""
    return [found for found in doctest.DocTestFinder().find(importlib.import_module(name)) if found.examples]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    written: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for found in _find_examples(name):
        runner.run(found, out=written.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(written)
    assert list(tmp_path.iterdir()) == [], "an example leaves a file behind"


def test_there_are_enough_docstrings_with_examples():
    assert sum(len(_find_examples(name)) for name in MODULES) >= LEAST_EXAMPLES
