"""The commands of `unwrap edit RUN --editor NAME`: one for each editor, with its settings as flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from tyro.conf import Positional

from editors.cli.arrange import ArrangementOptions
from editors.cli.editor_examples import EXAMPLES, SCENE_EXAMPLES
from editors.editors_table import find_editor_path, find_options_class, require_editor
from neural_fields.config.presets import VOLUME_KIND
from neural_fields.core.class_paths import read_docstring
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.runs.run import Run, read_run_yaml


@dataclass(frozen=True, kw_only=True)
class EditByEditorCommand(ArrangementOptions):
    """Make an edit with an editor."""

    run: Positional[Path]
    """The run's folder."""
    run_values: ClassVar[Mapping[str, Any] | None] = None  # of run.yaml; None where it was not read, which is said then
    editor: str
    """The editor's name."""
    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Layers to edit together (default: the front layer; for replace the background, for place the layer under it)."""
    mask: Path | None = None
    """A picture of the shape of the layer's canonical picture, bright where the edit may go."""
    name: str | None = None
    """Name of the edit (default: the name of the editor)."""
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


def make_editor_command(words: Sequence[str]) -> type | None:
    """Makes the command for the settings of the editor that a command line names.

    Some names stand for another editor on a 3D scene, so run.yaml is read first.

    Args:
        words: the words of the command line.

    Returns:
        The class of the command; None if the line names no editor.

    Raises:
        UserError: there is no such editor (exit 2).
    """
    name = None
    for index, word in enumerate(words):
        if word.startswith("--editor="):
            name = word.partition("=")[2]
            break
        if word == "--editor":
            name = words[index + 1] if index + 1 < len(words) else ""
            break
    if name is None:
        return None
    require_editor(name)
    values = None
    if len(words) > 1 and not words[1].startswith("-"):
        with suppress(UserError):  # a run that cannot be opened is said by the command
            values = read_run_yaml(Run.open(words[1]))
    is_scene = values is not None and values.get("kind") == VOLUME_KIND
    kind = find_options_class(name, is_scene=is_scene)
    settings: Any = Annotated[kind, tyro.conf.arg(name="")]
    made = make_dataclass("MakeEdit", [("settings", settings)], bases=(EditByEditorCommand,), frozen=True, kw_only=True)
    made.__doc__ = read_docstring(find_editor_path(name, is_scene=is_scene))
    made.run_values = values  # type: ignore[attr-defined]
    made.line = f"unwrap edit RUN --editor {name}"  # type: ignore[attr-defined]
    known = SCENE_EXAMPLES if is_scene and name in SCENE_EXAMPLES else {**SCENE_EXAMPLES, **EXAMPLES}
    folder = "runs/scene" if known.get(name) is SCENE_EXAMPLES.get(name) else "runs/clip"
    line = f"unwrap edit {folder} --editor {name}"
    made.examples = tuple(f"{line} {rest}".rstrip() for rest in known[name])  # type: ignore[attr-defined]
    return made


def check_edit_command(command: Any) -> None:
    """Refuses an `unwrap edit` without an editor whose arguments do not determine the edit.

    Raises:
        UserError: no painted picture, or several kinds of them at once (exit 2).
    """
    ways = {
        "a picture": bool(command.images),
        "--frames": command.frames is not None,
        "--unwrapped": command.unwrapped is not None,
    }
    given, line = [name for name, is_given in ways.items() if is_given], f"unwrap edit {command.run}"
    if len(given) != 1:
        what = " and ".join(given) + " at once" if given else "what is the edit?"
        why = "an edit is a picture, --frames, --unwrapped, or made by --editor NAME"
        raise UserError(ExitCode.USAGE, what, why=why, fix=f"{line} painted.png --layer NAME")
    frame, images = command.frame, command.images
    if images and (frame or len(images) > 1) and len(frame) != len(images):
        what = f"{len(images)} pictures and {len(frame)} frames"
        flags = " ".join(f"--frame {k}" for k in range(len(images)))
        names = " ".join(map(str, images))
        raise UserError(
            ExitCode.USAGE, what, why="each painted frame has its own --frame", fix=f"{line} {names} {flags}"
        )
    if len(set(frame)) < len(frame):
        raise UserError(ExitCode.USAGE, "two pictures of one frame", why=f"--frame {', '.join(map(str, frame))}")
