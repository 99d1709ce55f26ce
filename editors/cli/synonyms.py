"""Words that people type instead of a command of `unwrap`, and the line that they mean."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from editors.editors_table import EDITORS
from neural_fields.cli.export import EXPORTS
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.suggestions import nearest_word
from neural_fields.runs.run import Run

NO_WINDOW = "there is no window to work in: unwrap watch shows what you paint in any image tool"

# The line that is meant; {} stands for what follows the word.
SYNONYMS = {
    "train {}": "fit learn analyze analyse process start run build create new init add import decompose reconstruct",
    "mask {}": "masks segment segmentation select roto rotoscope cutout object objects sam sam2 click points",
    "edit {}": "paint draw apply change modify",
    "edit {} --editor inpaint --model MODEL --prompt TEXT": "prompt generate diffuse diffusion",
    "edit {} --editor style --weights FILE": "stylize stylise restyle",
    "edit {} --editor place --text TEXT": "text title write",
    "edit {} --editor place --image logo.png": "insert logo overlay",
    "edit {} --editor remove": "erase hide",
    "edit {} --editor adjust": "grade color colour correct brightness",
    "frame {} 0": "still grab snapshot screenshot thumbnail",
    "edits {}": "list ls stack history log",
    "undo {}": "rm delete del revert reset back rollback",
    "redo {}": "again restore forward",
    "arrange {}": "move order reorder sort opacity blend fade set",
    "watch {}": "preview view viewer open show play live gui ui app studio window display serve scrub",
    "render {}": "encode output save video bake composite comp make finish",
    "render {} --what compare": "compare comparison diff difference wipe",
    "render {} --speed 0.5": "slowmo slow retime speed",
    "export {} canonical --format psd": "psd photoshop gimp krita ora canonicals atlas texture",
    "export {} stmap": "nuke fusion blender stmaps uv uvmap",
    "export {} matte": "mattes alpha key",
    "export {} tracks": "track tracking",
    "eval {}": "evaluate measure quality test score psnr metrics benchmark validate",
    "eval {} --html": "report html verdict",
    "gc {}": "clean cleanup clear prune purge free shrink cache",
    "info {}": "status probe metadata describe stat inspect properties",
    "doctor": "check env environment system gpu devices selftest diagnose",
    "demo": "example examples sample tutorial try quickstart",
    "capture {}": "scene cameras colmap 3d",
}


def unknown_command_error(words: Sequence[str], commands: Iterable[str]) -> UserError:
    """Makes the error for a line whose first word is no command: it shows the line that is meant.

    Args:
        words: the words of the command line.
        commands: the names of the commands.
    """
    known, word, rest = list(commands), words[0], shlex.join(words[1:])
    line = next((line for line, others in SYNONYMS.items() if word.lower() in others.split()), None)
    why = NO_WINDOW if line == "watch {}" else ""
    guess = nearest_word(word, known)
    if word.startswith("-"):
        guess = next((word for word in words if word in known), None)
        others = shlex.join([other for other in words if other != guess])
        line, why = f"{guess} {others}" if guess else None, "the command comes first, then its options"
    elif word == "batch":
        line, why = None, 'one command works on one video: for clip in *.mp4; do unwrap train "$clip"; done'
    elif line is None and word in EXPORTS:
        line = f"export {{}} {word}"
    elif line is None and word in EDITORS:
        line = f"edit {{}} --editor {word}"
    elif line is None and Path(word).exists():
        is_run = Run(Path(word)).run_yaml.exists()
        line, why = ("info" if is_run else "train") + f" {shlex.join(words)}", "a command comes first"
    elif line is None and guess is not None:
        line = f"{guess} {{}}"
    if line is None:
        return UserError(
            ExitCode.USAGE,
            f"unknown command {word}",
            why=why or f"commands: {', '.join(known)}",
            fix="unwrap --help",
        )
    place = rest or {"train": "VIDEO", "mask": "VIDEO", "capture": "FOLDER"}.get(line.split()[0], "RUN")
    meant = " ".join(line.format(place).split()) if "{}" in line else line
    name = meant.split()[0]
    return UserError(
        ExitCode.USAGE, f"unknown command {word}", why=why or f"did you mean {name}?", fix=f"unwrap {meant}"
    )
