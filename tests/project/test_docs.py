"""The documentation against the program: commands parse, tables hold what there is, links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import neural_fields.data.synthetic.planar_clips as synthetic
from editors.cli.editors import EditByEditorCommand
from editors.cli.main import COMMANDS, parse_command
from editors.editors_table import EDITORS, SCENE_EDITORS, find_editor_class
from neural_fields.cli.commands import TrainCommand, list_flags, parse_overrides
from neural_fields.cli.export import EXPORTS, find_export_class
from neural_fields.config.presets import is_volume_config
from neural_fields.core.errors import ExitCode
from neural_fields.data.video.encode import CODECS
from neural_fields.planar.config import PlanarConfig, load_planar_config
from neural_fields.volume.config import load_volume_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
}
PRESETS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
SCRIPTS = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "docs").rglob("*.py")])


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def shown_commands() -> list[tuple[str, str]]:
    """(page, command line) of every `unwrap ...` in an indented block, and in a sentence where it has arguments."""
    found = []
    for page, text in PAGES.items():
        blocks = re.findall(r"(?:^    .*\n)+", text + "\n", flags=re.MULTILINE)
        for line in "".join(blocks).replace("\\\n", " ").splitlines():
            found += [(page, part.strip()) for part in line.split("&&") if part.strip().startswith("unwrap ")]
        if page != "docs/design.md":  # its table has brackets for what may be left out
            found += [(page, code) for code in re.findall(r"`(unwrap \w+ [^`\n]+)`", without_fences(text))]
    return found


def options(command: type) -> set[str]:
    """The flags of a command, or of the settings of an editor or export."""
    return set(list_flags(command)) - {"--help"}


@cache
def every_flag() -> frozenset[str]:
    """The flags of all commands, editors and exports."""
    classes = [*COMMANDS.values(), EditByEditorCommand, *(find_export_class(name) for name in EXPORTS)]
    classes += [find_editor_class(name) for name in EDITORS]
    classes += [find_editor_class(name, is_scene=True) for name in SCENE_EDITORS]
    return frozenset({"--help", "--version", "--debug"}.union(*(options(command) for command in classes)))


def python_sources() -> list[tuple[str, str]]:
    blocks = [
        (f"{page} {number}", block)
        for page, text in PAGES.items()
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    ]
    return blocks + [(path.name, path.read_text(encoding="utf-8")) for path in SCRIPTS]


def section(page: str, title: str) -> str:
    """The text of a page from a heading to the next."""
    text = PAGES[page].split(title, 1)[1]
    return re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(text: str) -> list[str]:
    """The first cell of each row of the tables, and what stands before the colon in the items of the lists."""
    rows = re.findall(r"^\| *([^|]*)\||^- (.+?)(?: \(default|: )", text, flags=re.MULTILINE)
    return [(cell or item).strip() for cell, item in rows]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_a_command_that_is_shown_is_one_that_the_program_takes(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "scene").mkdir(parents=True)  # some editors have another namesake for a 3D scene
    (tmp_path / "runs" / "scene" / "run.yaml").write_text("schema: 1\nkind: volume\n")
    shutil.copy(ROOT / "configs" / "atlas.yaml", tmp_path / "mine.yaml")  # stands for a config of the reader's own
    monkeypatch.chdir(tmp_path)
    command, extra = parse_command(shlex.split(line, comments=True)[1:])
    if isinstance(command, TrainCommand):
        load = load_volume_config if is_volume_config(command.options.config) else load_planar_config
        load(command.options.config, parse_overrides(extra))  # dotted settings exist and fit the preset
    else:
        assert not extra


def test_there_are_commands_to_check() -> None:
    shown = {line.split()[1] for _, line in shown_commands()}
    assert shown == set(COMMANDS)
    assert {page for page, _ in shown_commands()} >= {"README.md", "docs/quickstart.md", "docs/presets/codef.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/design.md"])
def test_commands_and_options_inside_sentences_exist(page: str) -> None:
    """The design names what is still to come; all other pages speak of what there is."""
    known = every_flag()
    for code in re.findall(r"`([^`\n]+)`", without_fences(PAGES[page])):
        if match := re.match(r"unwrap ([a-z]+)", code):
            assert match[1] in COMMANDS, code
        if not code.startswith((".venv", "make", "python")):
            for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", code):
                assert flag in known or "." in flag, code


@pytest.mark.parametrize(
    ("title", "command"),
    [
        ("## `unwrap train", "train"),
        ("## `unwrap mask", "mask"),
        ("## `unwrap edit RUN IMAGE", "edit"),
        ("## `unwrap render", "render"),
        ("## `unwrap watch", "watch"),
        ("## `unwrap export", "export"),
        ("## `unwrap eval", "eval"),
    ],
)
def test_the_page_of_commands_has_every_option(title: str, command: str) -> None:
    shown = {
        flag for cell in first_cells(section("docs/commands.md", title)) for flag in re.findall(r"`(--[\w-]+)", cell)
    }
    assert shown == options(COMMANDS[command])


def test_the_table_of_exit_codes_is_the_programs() -> None:
    cells = first_cells(section("docs/commands.md", "## Exit codes"))
    assert [int(cell) for cell in cells if cell.isdigit()] == [int(code) for code in ExitCode]


def test_the_table_of_codecs_is_the_programs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+)\| (yes|no)", section("docs/video.md", "## Out"), flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == list(CODECS)
    for name, files, alpha in rows:
        assert tuple(re.findall(r"`(\.\w+)`", files)) == CODECS[name].suffixes
        assert (alpha == "yes") == (CODECS[name].alpha_pixels is not None)


# --- presets --------------------------------------------------------------------------------------------------------


def test_the_table_of_presets_is_what_configs_holds() -> None:
    cells = first_cells(section("docs/presets.md", "# Presets"))
    assert sorted(name for cell in cells for name in re.findall(r"^\[`(\w+)`\]", cell)) == PRESETS


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_page_that_says_how_long_it_takes_and_where_it_fails(preset: str) -> None:
    text = PAGES[f"docs/presets/{preset}.md"]
    for title in ("## What it is made of", "## How long it takes", "## Where it fails"):
        assert title in text


def test_the_page_of_the_default_preset_has_the_weight_of_every_term() -> None:
    shown = re.findall(r"^\| [^|]+ \| ([\d.]+) \|$", PAGES["docs/presets/atlas.md"], flags=re.MULTILINE)
    weights = [
        weight for weight in vars(load_planar_config("atlas").terms).values() if isinstance(weight, float) and weight
    ]
    assert sorted(map(float, shown)) == sorted(weights)


# --- links and pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(PAGES[page])):
        place, _, anchor = target.partition("#")
        assert "://" not in place, f"{target}: the documentation stands alone"
        found = (ROOT / page).parent / place if place else ROOT / page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], target


def test_every_page_and_picture_is_reached_from_the_readme() -> None:
    reached, waiting = {ROOT / "README.md"}, [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        for target in re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8")):
            found = (page.parent / target).resolve()
            if found not in reached and found.exists():
                reached.add(found)
                waiting += [found] if found.suffix == ".md" else []
    pictures = {path for path in (ROOT / "docs" / "pictures").iterdir() if path.suffix in (".png", ".webp")}
    assert not ({ROOT / page for page in PAGES} | pictures) - reached


def test_pictures_are_small() -> None:
    pictures = ROOT / "docs" / "pictures"
    for path in (ROOT / "docs").rglob("*.png"):
        assert path.stat().st_size < (150_000 if path.name.startswith("how-") else 600_000), path.name
    assert sum(path.stat().st_size for path in pictures.glob("how-*.png")) < 1_000_000
    assert (pictures / "demo.webp").stat().st_size < 2_000_000


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page: str) -> None:
    assert [line for line in PAGES[page].splitlines() if len(line) >= 120] == []


# --- the site -------------------------------------------------------------------------------------------------------


def pages_in_navigation(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from pages_in_navigation(part)


def test_every_page_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    shown = list(pages_in_navigation(site["nav"]))
    assert len(shown) == len(set(shown))
    written = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert written <= set(shown)
    assert {"index.md", "CONTRIBUTING.md", "CHANGELOG.md", "api/index.md"} <= set(shown)


def test_every_generated_page_is_in_the_navigation_and_holds_what_the_program_has() -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed: make docs")
    pages = runpy.run_path(str(ROOT / "docs" / "site_pages.py"))
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    shown = {page for page in pages_in_navigation(site["nav"]) if f"docs/{page}" not in PAGES}
    reference = pages["make_reference_pages"]()
    assert shown == {*pages["CHECKOUT_PAGES"], *pages["EXAMPLES"], *reference}
    text = "\n".join(reference.values())
    for path in [*EDITORS.values(), *SCENE_EDITORS.values(), *EXPORTS.values()]:
        assert f"::: {path}\n" in text, path
    assert f"::: {PlanarConfig.__module__}.PlanarConfig\n" in text


def test_every_term_of_the_glossary_is_one_sentence_with_a_link() -> None:
    terms = re.findall(r"^- \*\*(.*?)(?=^- |^#|\Z)", PAGES["docs/glossary.md"], flags=re.MULTILINE | re.DOTALL)
    assert len(terms) > 40
    for term in terms:
        assert re.search(r"\]\([^)]+\)\)\.$", term.strip()), term


# --- Python ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "source"), python_sources(), ids=lambda value: value if len(value) < 60 else "")
def test_python_that_is_shown_uses_names_and_arguments_that_exist(name: str, source: str) -> None:
    tree = ast.parse(source, name)
    ours = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("neural_fields", "editors"):
            ours.update({alias.name: getattr(import_module(node.module or ""), alias.name) for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ours:
            known = set(inspect.signature(ours[node.func.id]).parameters)
            chosen = [word.value for word in node.keywords if word.arg == "editor"]
            if "settings" in known and chosen and isinstance(chosen[0], ast.Constant):  # of `edit(..., editor="place")`
                is_scene = "runs/scene" in ast.unparse(node)
                known |= {field.name for field in fields(find_editor_class(str(chosen[0].value), is_scene=is_scene))}
            assert {word.arg for word in node.keywords} <= known, ast.unparse(node)


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = synthetic.make_demo_clip(frames=8, width=128, height=72)
    monkeypatch.setattr(synthetic, "make_demo_clip", lambda **size: small)
    for script in sorted((ROOT / "examples").glob("*.py")):
        monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
        runpy.run_path(str(script), run_name="__main__")
    assert "edited.mp4: the fit has" in capsys.readouterr().out
    assert {"edited.mp4", "painted-frame.mp4"} <= {path.name for path in tmp_path.iterdir()}


def test_tests_that_the_page_of_faults_names_exist() -> None:
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", PAGES["docs/faults.md"]))
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(named) > 60 and named <= {name for source in sources for name in re.findall(r"def (test_\w+)", source)}
