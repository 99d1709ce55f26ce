"""The first walk of somebody new: help, wrong words, wrong paths, the list of edits, names of renders, comparisons."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from editors.cli.editor_examples import EXAMPLES, SCENE_EXAMPLES
from editors.cli.main import COMMANDS, HANDLERS, format_command_list, main, parse_command
from editors.cli.synonyms import SYNONYMS
from editors.core.stack import add_edit
from editors.editors_table import EDITORS, SCENE_EDITORS, find_editor_class
from neural_fields.atlas.canonical import Overlay
from neural_fields.cli.command_line import list_required
from neural_fields.cli.export import EXPORTS
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError, explain_system_error
from neural_fields.core.suggestions import nearest_path
from neural_fields.data.video.io import read_video
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.read_stack import find_edit, list_edits
from neural_fields.rendering.comparison import add_caption, caption_height, show_difference, wipe
from neural_fields.rendering.options import RenderOptions
from neural_fields.rendering.render_planar import render
from neural_fields.runs.output_name import next_version
from neural_fields.runs.run import Run
from tests.support.true_run import TrueRun

ROOT = Path(__file__).resolve().parents[2]


def said(line: str, capsys: pytest.CaptureFixture[str], code: ExitCode = ExitCode.USAGE) -> str:
    """What a line that is refused prints: one error in the usual form."""
    capsys.readouterr()
    assert main(line.split()) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("error: ") == 1 and "  try   " in err
    assert "╭" not in err and "Errno" not in err
    return err


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to work in, with a run in it."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs/clip")
    return tmp_path


def make_run(folder: Path) -> Run:
    """A folder that looks like a run of a video, with one layer; no command gets as far as to open it."""
    (folder / "maps").mkdir(parents=True)
    (folder / "run.yaml").write_text("schema: 1\n")
    (folder / "maps/maps.json").write_text(json.dumps({"layers": ["foreground", "background"]}))
    (folder / "canonical").mkdir()
    for layer in ("foreground", "background"):
        (folder / f"canonical/{layer}.json").touch()
    return Run.open(folder)


def add(run: Run, name: str, **arrangement: object) -> None:
    """Puts a small edit on the stack."""
    paint = Overlay(np.ones((4, 4, 4), np.float32), Box(-1.0, -1.0, 1.0, 1.0))
    add_edit(run, name, {"foreground": paint}, arrangement=Arrangement(**arrangement))  # type: ignore[arg-type]


# --- words of the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("train clip.mp4 --quality high", ("--quality high", "draft, normal, final", "--quality normal")),
        ("train clip.mp4 --seconds 2m", ("--seconds 2m", "a number", "--seconds 120")),
        ("train clip.mp4 --seconds 0,5", ("--seconds 0,5", "--seconds 0.5")),
        ("train clip.mp4 --seconds nan", ("--seconds nan", "a number")),
        ("train clip.mp4 --seconds", ("--seconds has no value",)),
        ("train", ("VIDEO is missing", "unwrap train clip.mp4")),
        ("train --seed 1_0 clip.mp4", ("--seed 1_0", "a whole number")),
        ("arrange runs/clip", ("EDIT is missing", "RUN, EDIT")),
        ("edit runs/clip a.png --frame abc", ("--frame abc", "a whole number")),
        ("edit runs/clip a.png --blend mulitply", ("did you mean multiply?",)),
        ("render runs/clip out.mp4", ("unknown argument out.mp4", "did you mean --out?")),
        ("completion tcsh", ("SHELL", "bash, zsh, fish")),
    ],
)
def test_f44_refusals_in_the_usual_form(line: str, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(line, capsys)
    assert all(part in shown for part in parts), shown
    assert f"unwrap {line.split()[0]}" in shown


def test_f44_an_empty_path_is_a_variable_that_is_not_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", ""]) == ExitCode.USAGE  # unwrap render "$RUN"
    assert "RUN is empty" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENOENT, errno.EMFILE, errno.EIO])
def test_f44_system_errors_have_the_usual_form(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(command: object, extra: list[str]) -> int:
        raise OSError(number, os.strerror(number), "runs/clip/renders")

    monkeypatch.setitem(HANDLERS, COMMANDS["doctor"], refuse)
    shown = said("doctor", capsys, ExitCode.BAD_INPUT)
    assert "error: runs/clip/renders " in shown and "  where runs/clip/renders" in shown
    assert f"  why   {os.strerror(number)}" in shown
    assert explain_system_error(OSError(errno.ENOSPC, "No space left", "x")).code == ExitCode.NO_ROOM


def test_u11_the_editor_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = said("edit runs/clip --editor drag --frm 3", capsys)
    assert "unknown option --frm" in shown and "did you mean --frame?" in shown
    assert "where unwrap edit RUN --editor drag" in shown
    assert "try   unwrap edit RUN --editor drag --help" in shown
    shown = said("edit runs/clip --editor drag --xyzzy 3", capsys)
    assert "--hold" in shown and "--run" not in shown
    assert "--model is missing" in said("edit runs/clip --editor inpaint --prompt x", capsys)


def test_u11_the_help_of_edit_lists_every_editor_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["edit", "--help"])
    shown = capsys.readouterr().out
    for name in {*EDITORS, *SCENE_EDITORS}:
        assert re.search(rf"^  {name} +[A-Z].{{20}}", shown, flags=re.MULTILINE), name


def test_u12_a_picture_is_always_image(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("place", "replace"):
        command, extra = parse_command(["edit", "runs/clip", "--editor", name, "--image", "logo.png"])
        assert command.settings.image == Path("logo.png") and not extra


# --- help -----------------------------------------------------------------------------------------------------------


def test_u13_the_help_begins_with_train_edit_and_render() -> None:
    rows = re.findall(r"^  ([a-z]+)  +(\S.*)", format_command_list(), flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(COMMANDS)
    assert [name for name, _ in rows[:3]] == ["train", "edit", "render"]
    assert all(sentence[0].isupper() for _, sentence in rows)


@pytest.mark.parametrize("name", [*COMMANDS, "edit --editor place", "edit r --editor sds", "export r stmap"])
def test_u13_help_is_plain_and_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    shown = capsys.readouterr().out
    for word in ("{None}", "FLOAT", " INT ", " STR", "PATH ", "(default: None)", "(default: False)", "(default: )"):
        assert word not in shown.replace("[NAME=]PATH", ""), word
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    assert not re.search(r"\(default:[^()]*\)\.? \(default", text)
    examples = re.findall(r"^  (unwrap .*|eval .*)$", shown, flags=re.MULTILINE)
    assert len(examples) >= (3 if name in COMMANDS else 1)


def test_u13_examples_of_the_help_are_lines_that_the_program_takes(
    tmp_path: Path,
) -> None:
    (tmp_path / "runs/scene").mkdir()
    (tmp_path / "runs/scene/run.yaml").write_text("schema: 1\nkind: volume\n")
    lines = [line for kind in COMMANDS.values() for line in kind.examples if line.startswith("unwrap")]  # type: ignore[attr-defined]
    for line in lines:
        if line.startswith("unwrap export") or "--editor" in line:
            continue
        _, extra = parse_command(shlex.split(line.partition(" > ")[0])[1:])
        assert not extra, line
    # Those of editors and exports are in the documentation, whose commands tests/project/test_docs.py parses.
    pages = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    pages = " ".join(pages.replace("\\\n", " ").split())
    for name, some in [*EXAMPLES.items(), *SCENE_EXAMPLES.items()]:
        assert some and all(f"--editor {name} {rest}".strip() in pages for rest in some if name != "unwrapped"), name
    assert set(EXAMPLES) == set(EDITORS) and set(SCENE_EXAMPLES) == set(SCENE_EDITORS)


def test_u13_what_an_editor_needs_is_known_by_name() -> None:
    assert list_required(find_editor_class("inpaint")) == ["--model", "--prompt"]


# --- guessed commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("fit clip.mp4", "unwrap train clip.mp4"),
        ("report runs/clip", "unwrap eval runs/clip --html"),
        ("list runs/clip", "unwrap edits runs/clip"),
        ("preview runs/clip", "unwrap watch runs/clip"),
        ("segment clip.mp4", "unwrap mask clip.mp4"),
        ("status runs/clip", "unwrap info runs/clip"),
        ("rm runs/clip", "unwrap undo runs/clip"),
        ("remove runs/clip", "unwrap edit runs/clip --editor remove"),
        ("matte runs/clip", "unwrap export runs/clip matte"),
        ("compare runs/clip", "unwrap render runs/clip --what compare"),
        ("trian clip.mp4", "unwrap train clip.mp4"),
        ("--json train clip.mp4", "unwrap train --json clip.mp4"),
        ("fit", "unwrap train VIDEO"),
        ("export canonical runs/clip", "unwrap export runs/clip canonical"),
    ],
)
def test_u25_guesses_get_the_line_that_is_meant(line: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"  try   {meant}\n" in said(line, capsys)


def test_u25_a_window_is_said_not_to_be_there_and_a_path_gets_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my clip.mp4").touch()
    assert "there is no window" in said("studio runs/clip", capsys)
    assert "try   unwrap info runs/clip" in said("runs/clip", capsys)
    assert main(["my clip.mp4"]) == ExitCode.USAGE
    assert "try   unwrap train 'my clip.mp4'" in capsys.readouterr().err


def test_u25_every_synonym_leads_to_a_line_that_exists_and_hides_no_command() -> None:
    words = [word for others in SYNONYMS.values() for word in others.split()]
    assert len(words) == len(set(words)) and not set(words) & {*COMMANDS, *EXPORTS, *EDITORS}
    for line in SYNONYMS:
        words = line.replace("{}", {"arrange": "x y", "capture": "x y --cameras z"}.get(line.split()[0], "x")).split()
        if words[0] == "export":
            assert words[2] in EXPORTS
        elif "--editor" in words:
            assert words[words.index("--editor") + 1] in EDITORS
        else:
            command, extra = parse_command(words)
            assert command is not None and not extra, line


def test_u25_help_and_version_are_words_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["help", "train"])
    assert stopped.value.code == 0 and "usage: unwrap train" in capsys.readouterr().out
    assert main(["version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


# --- answers before anything heavy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("train clip.mvk", "unwrap train clip.mkv"),
        ("train clip.mkv --masks mask/car", "unwrap train clip.mkv --masks masks/car"),
        ("train clip.mkv --config mien.yaml", "unwrap train clip.mkv --config mine.yaml"),
        ("train clip.mkv --object car --frame 0 --stroke strok.png", "--stroke stroke.png"),
        ("info clp.mkv", "unwrap info clip.mkv"),
        ("render runs/clp", "unwrap render runs/clip"),
        ("render clip.mkv", "unwrap render runs/clip"),
        ("edits clip", "unwrap edits runs/clip"),
        ("edit runs/clip paintd.png --layer foreground", "unwrap edit runs/clip painted.png --layer foreground"),
        ("edit runs/clip painted.png --layer foregroud", "unwrap edit runs/clip painted.png --layer foreground"),
        ("edit runs/clp --editor adjust", "unwrap edit runs/clip --editor adjust"),
        ("export runs/clp stmap", "unwrap export runs/clip stmap"),
        ("render runs/clip --edit lgo", "unwrap edits runs/clip"),
        ("render runs/clip --out painted.png", "add -y to replace it"),
        ("render runs/clip --pose arms.json", "check the name"),
    ],
)
def test_s1_wrong_names_get_the_right_line(
    line: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--edit " in line:
        add(Run.open("runs/clip"), "logo")
    (tmp_path / "masks/car").mkdir(parents=True)
    for name in ("clip.mkv", "painted.png", "mine.yaml", "stroke.png"):
        (tmp_path / name).write_text("x")
    shown = said(line, capsys, ExitCode.BAD_INPUT)
    assert meant in shown


@pytest.mark.parametrize(
    "line",
    [
        "train nowhere.mp4",
        "train clip.mp4 --quality high",
        "info nowhere.mp4",
        "edit runs/clip nowhere.png --layer foreground",
        "edit runs/clip --editor drga",
        "edit --help",
        "render nowhere",
        "render runs/clip --edit logos",
        "render runs/clip --out runs/clip/run.yaml",
        "export nowhere stmap",
        "edits runs/clip",
        "arrange runs/clip logo --opacity 0.5",
        "undo runs/clip",
        "redo runs/clip",
        "watch nowhere",
        "fit clip.mp4",
        "completion bash",
    ],
)
def test_s1_light_answers_come_without_torch(line: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """All lines run in one process, started once; a module that was imported would still be there."""
    found = imported_after(tmp_path_factory)
    assert found[line] == "light", line


def imported_after(factory: pytest.TempPathFactory) -> dict[str, str]:
    """Whether torch was there after each line of the test above."""
    if not _IMPORTED:
        home = factory.mktemp("light")
        add(make_run(home / "runs/clip"), "logo")
        lines = next(mark.args[1] for mark in test_s1_light_answers_come_without_torch.pytestmark)  # type: ignore[attr-defined]
        program = (
            "import sys, json\nfrom editors.cli.main import main\nfor line in json.loads(sys.argv[1]):\n"
            "    try: main(line.split())\n    except SystemExit: pass\n"
            "    print('AFTER', line, '=', 'heavy' if 'torch' in sys.modules else 'light')\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program, json.dumps(lines)],
            cwd=home, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        _IMPORTED.update(re.findall(r"^AFTER (.*) = (\w+)$", done.stdout, flags=re.MULTILINE))
    return _IMPORTED


_IMPORTED: dict[str, str] = {}


def test_s1_the_nearest_path_may_differ_in_several_folders(tmp_path: Path) -> None:
    (tmp_path / "footage/car").mkdir(parents=True)
    (tmp_path / "footage/car/take1.mp4").touch()
    assert nearest_path(tmp_path / "fotage/car/tak1.mp4") == tmp_path / "footage/car/take1.mp4"
    assert nearest_path(tmp_path / "footage/car/take1.mp4") is None
    assert nearest_path(tmp_path / "zzzzzz/car") is None


# --- edits ----------------------------------------------------------------------------------------------------------


def test_u16_a_second_name_gets_a_number(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("place", "Place", "x" * 60, "x" * 60):
        add(run, name)
    assert [edit.name for edit in list_edits(run)] == ["place", "place-2", "x" * 40, "x" * 36 + "-2"]
    assert find_edit(list_edits(run), "place", run).number == 1
    assert main(["undo", str(run.path)]) == 0
    add(run, "x" * 60)  # the undone one is gone for good: its name is free again
    names = [edit.name for edit in list_edits(run) if edit.active]
    assert names == ["place", "place-2", "x" * 40, "x" * 36 + "-2"]


def test_u16_an_ambiguous_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    for name in ("logo", "logo-2", "1"):
        add(run, name)
    os.rename(run.edits / "0002-logo-2", run.edits / "0002-logo")  # as a run of an older program has it
    journal = run.edits / "journal.jsonl"
    journal.write_text(journal.read_text().replace("0002-logo-2", "0002-logo"))
    with pytest.raises(UserError, match="'logo' means 2 edits") as problem:
        find_edit(list_edits(run), "logo", run)
    assert "0001-logo and 0002-logo" in problem.value.why
    with pytest.raises(UserError, match="'1' means 2 edits"):  # the number of one, the name of another
        find_edit(list_edits(run), "1", run)
    assert find_edit(list_edits(run), "0001-logo", run).number == 1
    shown = said(f"arrange {run.path} logo --opacity 0.5", capsys, ExitCode.BAD_INPUT)
    assert f"try   unwrap arrange {run.path} 0002-logo --opacity 0.5" in shown


def test_u20_edits_are_a_table_lowest_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    add(run, "sea")
    add(run, "日本", start=24, fade_in=12, opacity=0.5, blend="multiply")
    add(run, "last")
    assert main(["undo", str(run.path)]) == 0
    capsys.readouterr()
    assert main(["edits", str(run.path)]) == 0
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert " ".join(head.split()) == "# name editor layers frames fades opacity blend state made from"
    assert rows[0].split() == ["1", "sea", "foreground", "all", "100%", "normal", "shown"]
    assert " ".join(rows[1].split()) == "2 日本 foreground from frame 24 in 12 50% multiply shown"
    assert rows[2].split()[-1] == "undone" and "last line is on top" in err
    assert rows[1].index("foreground") == rows[0].index("foreground") - 2  # two letters of two columns each


# --- renders --------------------------------------------------------------------------------------------------------


def test_u17_renders_are_versions(tmp_path: Path) -> None:
    assert next_version(tmp_path / "renders", "clip") == tmp_path / "renders/clip_v001"
    for name in ("clip_v001.mp4", "clip_v009", "clip_compare_v044.mp4", "clip_v2.txt", "my_clip_v070.mp4"):
        (tmp_path / name).touch()
    assert next_version(tmp_path, "clip").name == "clip_v010"
    assert next_version(tmp_path, "clip_compare").name == "clip_compare_v045"
    (tmp_path / "clip_layers_v001-turtle.mp4").touch()
    assert next_version(tmp_path, "clip_layers").name == "clip_layers_v002"


@pytest.mark.slow
def test_u22_captions_wipe_and_difference(true_run: TrueRun, tmp_path: Path) -> None:
    shutil.copytree(true_run.run.path, tmp_path / "run")
    run, clip = Run.open(tmp_path / "run"), true_run.clip
    height, width, strip = clip.height, clip.width, caption_height(clip.height)
    paint = Overlay(np.tile(np.array([1, 0, 1, 1], np.float32), (8, 8, 1)), Box(-1.0, -1.0, 1.0, 1.0))
    add_edit(run, "all pink", {"background": paint})
    shown = {}
    for what in ("edit", "wipe", "difference"):
        (path,) = render(run, RenderOptions(what=what, codec="ffv1", frames="4:9"))
        assert path.name == {"edit": "clip_v001.mkv"}.get(what, f"clip_{what}_v001.mkv")
        shown[what] = np.asarray(read_video(path, tmp_path / what).frames)
    assert render(run, RenderOptions(codec="ffv1", frames="4:5"))[0].name == "clip_v002.mkv"
    source, edited = clip.frames[4:9], shown["edit"]
    assert shown["wipe"].shape == shown["difference"].shape == (5, height + strip, width, 3)
    for t, share in enumerate(np.arange(4, 9) / (clip.count - 1)):
        picture, edge = shown["wipe"][t, strip:], round(width * (1 - share))
        assert np.array_equal(picture[:, : edge - 1], source[t][:, : edge - 1])
        assert np.array_equal(picture[:, edge + 1 :], edited[t][:, edge + 1 :])
        assert (picture[:, edge - 1 : edge + 1] == 255).all()
    apart = np.abs(source.astype(int) - edited.astype(int))
    assert np.array_equal(shown["difference"][:, strip:], (4 * apart).clip(0, 255))


def test_u22_a_caption_stands_above_the_picture_and_covers_nothing() -> None:
    picture = np.full((90, 120, 3), 200, np.uint8)
    for text in ("source", "difference of source and reconstruction, x4"):
        made = add_caption(picture, text)
        strip = caption_height(90)
        assert np.array_equal(made[strip:], picture)
        assert made[:strip].max() > 180 and made[:strip, 0].max() < 60  # letters, and room at the sides
    assert np.array_equal(wipe(picture, picture // 2, 0.0), picture)
    assert np.array_equal(wipe(picture, picture // 2, 1.0), picture // 2)
    assert (show_difference(picture, picture - 30) == 120).all()


# --- words ----------------------------------------------------------------------------------------------------------


@cache
def texts(*patterns: str) -> dict[str, str]:
    """The files of the two packages and the documentation, on one line each."""
    found = [path for pattern in patterns for path in ROOT.glob(pattern) if path.name != "faults.md"]
    return {str(path.relative_to(ROOT)): " ".join(path.read_text(encoding="utf-8").split()) for path in found}


EVERYTHING = ("neural_fields/**/*.py", "editors/**/*.py", "docs/**/*.md", "README.md", "CONTRIBUTING.md")


def test_u07_all_is_installed_from_the_checkout() -> None:
    """No package index has Unwrap: nothing names it as if one did."""
    for name, text in texts(*EVERYTHING).items():
        assert not re.search(r"install[^.`\"]* '?unwrap-video", text), name
    assert "make setup" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_u27_the_readme_is_for_people_who_edit_video() -> None:
    """Install and the three commands come before everything else; figures are on a page of their own."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1000
    assert text.index("make setup") < text.index("unwrap train") < 2500
    assert "|---" not in text.split("unwrap render")[0]


@pytest.mark.parametrize(
    "words",
    [
        "stop well after this time", "The model shows the video wrongly", "is shown wrongly where", "memory at most",
        "how it lies in", "Change how an edit lies", "of replace the back one", "How many pixels around a point",
        "are parted by", "A text ends where its ink ends", "Settings of the config are flags", "time stands still",
        "and what they carry, in space", "are read so, and it is said", "clip that the program makes itself",
        "no object moves clearly", "The picture changes at once", "or be happy with", "Nothing asks questions",
        "Erasing is not an edit", "Fit a representation", "facts of a video", "several frames are looked at",
        "points stay put", "moves clearly on its own", "suits the model", "a canonical image",
    ],
)  # fmt: skip
def test_u29_words_that_were_asked_away_are_gone(words: str) -> None:
    assert [name for name, text in texts(*EVERYTHING).items() if words in text] == []


# --- completion -----------------------------------------------------------------------------------------------------


def test_the_shell_completes_commands_options_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    cases = {
        "re": ["render", "redo"],
        "train x --quality ": ["draft", "normal", "final"],
        "edit x --editor pl": ["place"],
        "export x st": ["stmap"],
        "render x --co": ["--codec"],
    }
    for line, expected in cases.items():
        words = ["unwrap", *line.split(" ")]
        program = f'{script}\nCOMP_WORDS=("$@"); COMP_CWORD={len(words) - 1}; _unwrap; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", program, "bash", *words], capture_output=True, text=True, timeout=60)
        assert sorted(done.stdout.split()) == sorted(expected), done.stderr
    for shell in ("zsh", "fish"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "draft normal final" in script
        if shutil.which(shell):
            checked = subprocess.run([shell, "-n", "/dev/stdin"], input=script, capture_output=True, text=True)
            assert checked.returncode == 0, checked.stderr
