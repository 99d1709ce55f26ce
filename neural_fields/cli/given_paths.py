"""Checks what a command line names before any heavy package is imported: files, runs, edits, layers, outputs."""

from __future__ import annotations

import json
import shlex
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from neural_fields.config.presets import find_config_file
from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.suggestions import nearest_path, nearest_word
from neural_fields.runs.run import Run

PATTERN_SIGNS = frozenset("%#*?[")  # of a path that stands for many files, or for none of this machine


@contextmanager
def suggest_line(words: Sequence[str]) -> Iterator[None]:
    """Turns the advice "NAME instead of NAME" of an error into the whole command line.

    Args:
        words: the words of the command line, without "unwrap".
    """
    try:
        yield
    except UserError as problem:
        right, _, wrong = problem.fix.partition(" instead of ")
        if wrong:
            problem.fix = shlex.join(["unwrap", *(word.replace(wrong, right) for word in words)])
        raise


def require_given(command: Any) -> None:
    """Checks that what a command names is there, and that its output is not.

    Args:
        command: the command, a dataclass; of its fields of the type Path all but `out` are read.

    Raises:
        UserError: a path, a preset, an edit or a layer that does not exist, or an output that does (exit 3).
    """
    values = dict(list_values(command))
    run = Run.open(values["run"]) if "run" in values else None
    for name, value in values.items():
        for path in value if isinstance(value, tuple) else (value,):
            if isinstance(path, Path) and name not in ("run", "out"):
                require_path(path, f"--{name.replace('_', '-')}" if name not in ("video", "path", "images") else "")
    for hint in values.get("hints", ()):
        if isinstance(getattr(hint, "file", None), Path):
            require_path(hint.file, f"--{hint.kind}")
    for mask in values.get("masks", ()) if isinstance(values.get("masks"), tuple) else ():
        name, _, rest = mask.partition("=")
        if mask != "none" and mask.partition(":")[0] != "auto" and not Path(mask).exists():
            require_path(Path(rest or name), "--masks", "--masks auto, which finds what moves")
    if isinstance(values.get("config"), str):
        require_path(find_config_file(values["config"]), "--config")
    if run is not None:
        require_edits_and_layers(run, values)
    out = values.get("out")
    if isinstance(out, Path) and values.get("overwrite") is False and out.exists():
        raise bad_input(f"{out} exists already", where="--out", fix="add -y to replace it, or use another --out")


def list_values(command: Any) -> Iterator[tuple[str, Any]]:
    """Yields name and value of the fields of a command, and of the options in it."""
    for entry in fields(command):
        value = getattr(command, entry.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from list_values(value)
        elif value is not None:
            yield entry.name, value


def require_path(path: Path, flag: str, fix: str = "check the name and the folder") -> None:
    """Refuses a path that does not exist, and suggests the one that was probably meant.

    Args:
        path: the path.
        flag: the option that names it; empty for an argument without one.
        fix: what helps if no path is like it.

    Raises:
        UserError: there is neither a file nor a folder (exit 3).
    """
    if path.exists() or PATTERN_SIGNS & set(str(path)):
        return
    if "://" in str(path) or str(path).startswith(("http:/", "https:/")):
        raise bad_input(f"{path} is an address", where=flag, why="only files are read", fix="download it first")
    guess = nearest_path(path)
    why = f"did you mean {guess}?" if guess else f"looked in {path.absolute().parent}"
    fix = f"{guess} instead of {path}" if guess else fix
    raise bad_input(f"there is no file or folder {path}", where=flag, why=why, fix=fix)


def require_edits_and_layers(run: Run, values: dict[str, Any]) -> None:
    """Refuses names of edits and layers that a run does not have.

    Args:
        run: the run.
        values: values of the command's fields, by name.

    Raises:
        UserError: an unknown or ambiguous edit, or an unknown layer (exit 3).
    """
    named = [values[name] for name in ("edit", "above", "below") if isinstance(values.get(name), str)]
    named += values["edits"] if isinstance(values.get("edits"), tuple) else ()
    if named:
        from neural_fields.edits.read_stack import find_edit, list_edits

        edits = list_edits(run)
        for name in named:
            find_edit(edits, name, run)
    asked = values.get("layer") or ()
    known = {unicodedata.normalize("NFC", path.stem) for path in run.canonical.glob("*.json")} if asked else set()
    for layer in (asked,) if isinstance(asked, str) else asked:
        if known and unicodedata.normalize("NFC", layer) not in known:
            layers = list_layer_names(run) or sorted(known)
            guess = nearest_word(layer, layers)
            why = f"the layers of this run, front to back: {', '.join(layers)}"
            why = f"did you mean {guess}? {why}" if guess else why
            fix = f"{guess} instead of {layer}" if guess else f"--layer {layers[0]}"
            raise bad_input(f"there is no layer {layer!r}", where=str(run.canonical), why=why, fix=fix)


def list_layer_names(run: Run) -> list[str]:
    """Lists the layers of a run of a video, front to back; none where its maps are not there or damaged.

    Args:
        run: the run. Who opens it says what is wrong with it.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        names = json.loads((run.maps / "maps.json").read_text(encoding="utf-8"))["layers"]
        return [unicodedata.normalize("NFC", str(name)) for name in names]
    return []
