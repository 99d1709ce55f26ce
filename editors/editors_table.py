"""The editors by name, as `unwrap edit RUN --editor NAME` and `editors.edit(run, editor=NAME)` know them.

Each name stands for a class, which is imported on first use. Some names stand for another editor on a 3D scene.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_fields.config.loader import from_mapping
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.suggestions import nearest_word

if TYPE_CHECKING:
    from editors.core.editor import Editor, EditorChoice

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
    "place": "editors.effects.place.Place",
    "drag": "editors.effects.drag.Drag",
    "style": "editors.effects.style.Style",
    "adjust": "editors.effects.adjust.Adjust",
    "lift": "editors.effects.python_function.Lift",
    "remove": "editors.effects.remove.Remove",
    "replace": "editors.effects.replace.Replace",
    "frames": "editors.effects.external_frames.Frames",
    "unwrapped": "editors.effects.painted.UnwrappedClip",
}
SCENE_EDITORS = {
    "dynvideo_e": "editors.volume.dynvideo_e.DynVideoE",
    "volume_style": "editors.volume.style.VolumeStyle",
    "remove": "editors.volume.remove_replace.RemovePart",
    "replace": "editors.volume.remove_replace.ReplacePart",
}


def require_editor(name: str) -> None:
    """Refuses the name of an editor that does not exist.

    Raises:
        UserError: an unknown name (exit 2); the message suggests the nearest one.
    """
    known = sorted({*EDITORS, *SCENE_EDITORS})
    if name not in known:
        guess = nearest_word(name, known)
        raise UserError(
            ExitCode.USAGE,
            f"there is no editor {name!r}",
            why=f"did you mean {guess}?" if guess else f"the editors are: {', '.join(known)}",
            fix=f"unwrap edit RUN --editor {guess or 'inpaint'} --help",
        )


def list_editors() -> dict[str, str]:
    """Lists the editors by name, each with a sentence: the first of its class. No editor is imported for it.

    Example:
        >>> list_editors()["remove"]
        'Remove a layer from the video and show the background behind it.'
    """
    found = {}
    for name, path in {**SCENE_EDITORS, **EDITORS}.items():
        module, _, kind = path.rpartition(".")
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None, f"{module} is a file of this program"
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        texts = [ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind]
        found[name] = " ".join((texts[0] or "").split("\n\n")[0].split())
    return dict(sorted(found.items()))


def find_editor_class(name: str, *, is_scene: bool = False) -> type[Any]:
    """Finds the class of an editor by its name.

    Args:
        name: name of the editor.
        is_scene: whether the run to edit is a 3D scene. An editor that exists only for the other family is found too;
            its error message says which runs it is for.

    Raises:
        UserError: an unknown name (exit 2); the message suggests the nearest one.

    Example:
        >>> find_editor_class("adjust").__name__
        'Adjust'
    """
    require_editor(name)
    first, second = (SCENE_EDITORS, EDITORS) if is_scene else (EDITORS, SCENE_EDITORS)
    path = first.get(name) or second[name]
    module, _, kind = path.rpartition(".")
    return getattr(import_module(module), kind)


def make_editor(kind: type[Any], settings: Mapping[str, object]) -> Any:
    """Creates an editor from its settings.

    Args:
        kind: the class of the editor.
        settings: values by field name; paths may be strings, and lists stand for tuples.

    Raises:
        UserError: an unknown setting (the message suggests the nearest one), a missing one, or an invalid value
            (exit 2 or 3).

    Example:
        >>> editor = make_editor(find_editor_class("adjust"), {"hue": 120.0, "saturation": 1.2})
        >>> editor.hue, editor.exposure
        (120.0, 0.0)
    """
    return from_mapping(kind, settings, where=f"the editor {kind.name}")


def resolve_editor(editor: EditorChoice, settings: Mapping[str, object], *, is_scene: bool = False) -> Editor[Any]:
    """Creates the editor that a program names.

    Args:
        editor: the name or the class of an editor, an editor, or a function that maps the picture of a layer (float32
            [height, width, 3] in [0, 1]) to a picture of the same shape.
        settings: values by field name; only for a name or a class.
        is_scene: whether the run to edit is a 3D scene.

    Raises:
        UserError: an unknown name (exit 2), unusable settings, or settings beside an editor that has its own (exit 3).

    Example:
        >>> resolve_editor("adjust", {"hue": 120.0}) == resolve_editor(find_editor_class("adjust")(hue=120.0), {})
        True
    """
    kind = find_editor_class(editor, is_scene=is_scene) if isinstance(editor, str) else editor
    if isinstance(kind, type):
        return make_editor(kind, settings)
    if settings:
        why = "an editor that is an object or a function has its settings already"
        raise bad_input(f"{next(iter(settings))} is given beside an editor", why=why, fix="edit(run, editor=NAME, ...)")
    if not callable(kind):
        return kind
    from editors.effects.python_function import LiftFunction

    return LiftFunction(function=kind)
