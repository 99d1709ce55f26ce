"""The editors of `unwrap edit RUN --editor NAME`: each name leads to a class whose fields are the command's flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from editors.cli.arrange import ArrangementOptions
from editors.inputs.file_kinds import DOCUMENT_SUFFIXES
from neural_fields.config.volume import VOLUME_KIND
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.suggestions import nearest_word
from neural_fields.runs.run import Run, read_run_yaml

EDITORS = {
    "sds": "editors.diffusion.methods.sds.Sds",
    "text2live": "editors.diffusion.methods.text2live.Text2Live",
    "inpaint": "editors.diffusion.methods.inpaint.Inpaint",
    "img2img": "editors.diffusion.methods.img2img.Img2Img",
    "controlnet": "editors.diffusion.methods.controlnet.ControlNet",
    "videdit": "editors.diffusion.methods.videdit.VidEdit",
    "mediated": "editors.diffusion.methods.mediated.Mediated",
    "stablevideo": "editors.diffusion.methods.stablevideo.StableVideo",
    "tokenflow": "editors.diffusion.methods.tokenflow.TokenFlow",
    "instruct": "editors.diffusion.methods.instruct.Instruct",
    "pnp": "editors.diffusion.methods.pnp.PlugAndPlay",
    "p2p": "editors.diffusion.methods.p2p.PromptToPrompt",
    "shape": "editors.effects.shape.ShapeEdit",
    "shape_aware": "editors.diffusion.methods.shape_aware.ShapeAware",
    "dynvideo_e": "editors.volume.dynvideo_e.DynVideoE",
    "volume_style": "editors.volume.style.VolumeStyle",
    "place": "editors.effects.place.Place",
    "drag": "editors.effects.drag.Drag",
    "style": "editors.effects.style.Style",
    "adjust": "editors.effects.adjust.Adjust",
    "lift": "editors.effects.python_function.Lift",
    "remove": "editors.effects.remove.Remove",
    "replace": "editors.effects.replace.Replace",
}
SCENE_EDITORS = {
    "remove": "editors.volume.remove_replace.RemovePart",
    "replace": "editors.volume.remove_replace.ReplacePart",
}


@dataclass(frozen=True, kw_only=True)
class EditByEditorCommand(ArrangementOptions):
    """Let an editor make an edit."""

    run: Positional[Path]
    """The run's folder."""
    editor: str
    """The editor's name."""
    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The layers to edit, made together (default: the front one; of replace the back one, of place what it is on)."""
    mask: Path | None = None
    """A picture, bright where the edit may go, of the shape of the layer's canonical picture."""
    name: str | None = None
    """Name of the edit (default: that of the editor)."""
    json: bool = False
    """Print one JSON object."""


def make_editor_command(words: Sequence[str]) -> type | None:
    """Makes the command that takes the settings of the editor named on a command line; None where none is named.

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
    kind = find_editor_class(name, is_scene=_is_scene(words))
    settings: Any = Annotated[kind, tyro.conf.arg(name="")]
    made = make_dataclass("MakeEdit", [("settings", settings)], bases=(EditByEditorCommand,), frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    return made


def find_editor_class(name: str, is_scene: bool = False) -> type:
    """Finds the class of an editor; some names mean another one on a 3D scene.

    Raises:
        UserError: there is no such editor (exit 2).
    """
    if name not in EDITORS:
        guess = nearest_word(name, EDITORS)
        raise UserError(
            ExitCode.USAGE,
            f"there is no editor {name!r}",
            why=f"did you mean {guess}?" if guess else f"the editors are: {', '.join(sorted(EDITORS))}",
            fix=f"unwrap edit RUN --editor {guess or 'inpaint'} --help",
        )
    module, _, kind = (SCENE_EDITORS if is_scene and name in SCENE_EDITORS else EDITORS)[name].rpartition(".")
    return getattr(import_module(module), kind)


def check_edit_command(command: Any) -> None:
    """Refuses an `unwrap edit` without an editor that does not say what it takes.

    Raises:
        UserError: nothing to take, or several things at once (exit 2).
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
    is_document = bool(images) and images[0].suffix.lower() in DOCUMENT_SUFFIXES
    if images and command.layer is None and not frame and not is_document:
        raise UserError(
            ExitCode.USAGE,
            "is the picture a canonical picture or a frame?",
            why="an edit needs --layer NAME, or --frame K, or both",
            fix=f"{line} {images[0]} --layer NAME",
        )


def _is_scene(words: Sequence[str]) -> bool:
    """Tells whether the run that a command line names is of a 3D scene."""
    try:
        return len(words) > 1 and read_run_yaml(Run(Path(words[1]))).get("kind") == VOLUME_KIND
    except UserError:
        return False  # what is wrong with the run is said when the command opens it
