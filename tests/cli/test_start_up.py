"""What a command loads: nothing that computes for help, mistakes and lists; no torch where baked maps are enough."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
from PIL import Image

from editors.cli.main import COMMANDS
from editors.editors_table import EDITORS, SCENE_EDITORS, find_editor_class, find_options_class
from neural_fields.cli.export import EXPORTS, find_export_class
from neural_fields.export.exporter_options import OPTIONS
from neural_fields.runs.run import Run

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import contextlib, io, json, sys
from editors.cli.main import main
packages, lines = json.loads(sys.argv[1])
for words in lines:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([words, code or 0, sorted(set(packages) & sys.modules.keys()), said.getvalue()[-300:]]))
"""


def run_lines(packages: list[str], lines: dict[str, int]) -> list[str]:
    """The lines that end otherwise than said, or after which one of the packages is loaded; one process for all."""
    given = json.dumps([packages, [line.split() for line in lines]])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given], capture_output=True, text=True, timeout=120, cwd=ROOT, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(lines)
    ends = zip(lines.values(), found, strict=True)
    return [f"{' '.join(words)}: {code}, {loaded}: {said}" for end, (words, code, loaded, said) in ends
            if code != end or loaded]  # fmt: skip


def test_help_mistakes_and_lists_load_no_package_that_computes(moving_run: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(moving_run.path, run)
    lines = {"--help": 0, "--version": 0, **{f"{name} --help": 0 for name in COMMANDS}}
    lines |= {f"edit {run} --editor {name} --help": 0 for name in (*EDITORS, *SCENE_EDITORS)}
    lines |= {f"export {run} {name} --help": 0 for name in EXPORTS}
    lines |= {f"edit {run} --editor {name} --no-such-option 3": 2 for name in (*EDITORS, "dynvideo_e")}
    lines |= {f"export {run} {name} --no-such-option": 2 for name in EXPORTS}
    lines |= {
        f"edit {run} --editor drag --frame two": 2,
        f"edit {run} --editor sds --model m --prompt dots --steps 0": 2,
        f"edit {run} --editor style --weights {run}/run.yaml --side 3": 3,
        f"edit {run} --editor nothing": 2,
        f"edit {run} p.png": 3,
        f"edit {run} --editor adjust --layer sky": 3,
        f"render {run} --edit nothing": 3,
        f"render {run} --codec h246": 2,
        f"export {run} psd": 2,
        f"info {tmp_path}/nothing.mp4": 3,
        "train": 2,
        "rendr": 2,
        f"info {run}": 0,
        f"edits {run}": 0,
        f"undo {run}": 3,
        f"redo {run}": 3,
        f"arrange {run} 1 --opacity 0.5": 3,
    }
    assert not run_lines(["torch", "numpy", "scipy", "cv2", "av"], lines)


def test_what_baked_maps_and_pictures_are_enough_for_is_done_without_torch(moving_run: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(moving_run.path, run)
    with Image.open(run / "canonical" / "foreground.png") as exported:
        pixels = np.array(exported)
    pixels[2:9, 3:11] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "painted.png")
    clip = moving_run.path.parent / "clip.mkv"
    lines = [
        f"info {clip}",
        f"edit {run} {tmp_path}/painted.png --layer foreground",
        f"edit {run} --editor adjust --hue 90 --layer background",
        f"arrange {run} 2 --opacity 0.5",
        f"frame {run} 2 --out {tmp_path}/frame.png",
        f"render {run} --out {tmp_path}/edited.mkv --codec ffv1",
        *(f"export {run} {what}" for what in ("canonical", "stmap", "matte", "layers", "unwrapped")),
        f"edits {run} --json",
        f"undo {run}",
        f"redo {run}",
    ]
    assert not run_lines(["torch"], dict.fromkeys(lines, 0))


def test_the_settings_that_are_read_first_are_those_of_the_class_that_does_the_work() -> None:
    names = [(name, False) for name in EDITORS] + [(name, True) for name in SCENE_EDITORS]
    pairs = [
        (find_editor_class(name, is_scene=is_scene), find_options_class(name, is_scene=is_scene))
        for name, is_scene in names
    ]
    assert OPTIONS.keys() == EXPORTS.keys()
    pairs += [(find_export_class(name), options) for name, options in OPTIONS.items()]
    for kind, options in pairs:
        assert issubclass(kind, options) and kind.name == options.name, kind
        assert {(entry.name, repr(entry.default)) for entry in fields(kind)} == {
            (entry.name, repr(entry.default)) for entry in fields(options)
        }, kind
