"""The editors of `unwrap edit RUN --editor NAME`: each name leads to a class whose fields are the command's flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from neural_fields.config_loader import nearest
from neural_fields.errors import ExitCode, UserError

EDITORS = {
    "sds": "editors.diffusion.sds.Sds",
    "text2live": "editors.diffusion.text2live.Text2Live",
    "inpaint": "editors.diffusion.inpaint.Inpaint",
    "img2img": "editors.diffusion.img2img.Img2Img",
    "controlnet": "editors.diffusion.controlnet.ControlNet",
    "videdit": "editors.diffusion.videdit.VidEdit",
    "mediated": "editors.diffusion.mediated.Mediated",
    "stablevideo": "editors.diffusion.stablevideo.StableVideo",
    "tokenflow": "editors.diffusion.tokenflow.TokenFlow",
    "instruct": "editors.diffusion.instruct.Instruct",
    "pnp": "editors.diffusion.pnp.PlugAndPlay",
    "p2p": "editors.diffusion.p2p.PromptToPrompt",
    "shape": "editors.shape.ShapeEdit",
    "shape_aware": "editors.diffusion.shape_aware.ShapeAware",
    "dynvideo_e": "editors.volume.dynvideo_e.DynVideoE",
    "volume_style": "editors.volume.style.VolumeStyle",
    "place": "editors.place.Place",
    "drag": "editors.drag.Drag",
    "style": "editors.style.Style",
    "adjust": "editors.adjust.Adjust",
    "lift": "editors.function.Lift",
    "remove": "editors.remove.Remove",
    "replace": "editors.replace.Replace",
}
OF_SCENES = {
    "remove": "editors.volume.whole.Remove",
    "replace": "editors.volume.whole.Replace",
}


@dataclass(frozen=True, kw_only=True)
class MakeEdit:
    """Let an editor make an edit."""

    run: Positional[Path]
    """The run's folder."""
    editor: str
    """The editor's name."""
    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The layers to edit, made together so that they agree (default: the front one)."""
    mask: Path | None = None
    """A picture, bright where the edit may go, of the shape of the layer's canonical picture."""
    name: str | None = None
    """Name of the edit (default: that of the editor)."""
    json: bool = False
    """Print one JSON object."""


def command_of(words: Sequence[str]) -> type | None:
    """The command that takes the settings of the editor named on a command line; None where none is named.

    Raises:
        UserError: there is no such editor (exit 2).
    """
    name = _named(words)
    if name is None:
        return None
    kind = editor_kind(name)
    settings: Any = Annotated[kind, tyro.conf.arg(name="")]
    made = make_dataclass("MakeEdit", [("settings", settings)], bases=(MakeEdit,), frozen=True, kw_only=True)
    made.__doc__ = kind.__doc__
    return made


def editor_kind(name: str) -> type:
    """The class of an editor.

    Raises:
        UserError: there is no such editor (exit 2).
    """
    if name not in EDITORS:
        guess = nearest(name, EDITORS)
        raise UserError(
            ExitCode.USAGE,
            f"there is no editor {name!r}",
            why=f"did you mean {guess}?" if guess else f"the editors are: {', '.join(sorted(EDITORS))}",
            fix=f"unwrap edit RUN --editor {guess or 'inpaint'} --help",
        )
    module, _, kind = EDITORS[name].rpartition(".")
    return getattr(import_module(module), kind)


def _named(words: Sequence[str]) -> str | None:
    for index, word in enumerate(words):
        if word.startswith("--editor="):
            return word.partition("=")[2]
        if word == "--editor":
            return words[index + 1] if index + 1 < len(words) else ""
    return None
