"""The editors by name, as `unwrap edit RUN --editor NAME` and `editors.edit(run, editor=NAME)` know them.

Each name stands for a class, which is imported on first use. Some names stand for another editor on a 3D scene. The
settings of an editor are a class of their own where the editor needs packages that take long to import: the command
line reads them, and says what is wrong with them, without those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neural_fields.config.loader import from_mapping
from neural_fields.core.class_paths import import_class, read_docstring
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


OPTIONS = {  # of the classes above that have them apart
    "sds": "editors.options.distillation.SdsOptions",
    "text2live": "editors.options.distillation.Text2LiveOptions",
    "inpaint": "editors.options.regions.InpaintOptions",
    "img2img": "editors.options.regions.Img2ImgOptions",
    "controlnet": "editors.options.regions.ControlNetOptions",
    "videdit": "editors.options.regions.VidEditOptions",
    "mediated": "editors.options.keyframes.MediatedOptions",
    "stablevideo": "editors.options.keyframes.StableVideoOptions",
    "tokenflow": "editors.options.keyframes.TokenFlowOptions",
    "instruct": "editors.options.diffusion.InstructOptions",
    "pnp": "editors.options.feature_injection.PlugAndPlayOptions",
    "p2p": "editors.options.feature_injection.PromptToPromptOptions",
    "shape": "editors.options.effects.ShapeOptions",
    "shape_aware": "editors.options.distillation.ShapeAwareOptions",
    "place": "editors.options.effects.PlaceOptions",
    "drag": "editors.options.effects.DragOptions",
    "style": "editors.options.effects.StyleOptions",
    "adjust": "editors.options.effects.AdjustOptions",
    "lift": "editors.options.effects.LiftOptions",
    "remove": "editors.options.effects.RemoveOptions",
    "replace": "editors.options.effects.ReplaceOptions",
    "frames": "editors.options.effects.EditedFramesOptions",
    "unwrapped": "editors.options.effects.UnwrappedOptions",
}
SCENE_OPTIONS = {
    "dynvideo_e": "editors.options.scenes.DynVideoEOptions",
    "volume_style": "editors.options.scenes.VolumeStyleOptions",
    "remove": "editors.options.scenes.RemovePartOptions",
    "replace": "editors.options.scenes.ReplacePartOptions",
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
    texts = {name: read_docstring(path) for name, path in {**SCENE_EDITORS, **EDITORS}.items()}
    return {name: " ".join(texts[name].split("\n\n")[0].split()) for name in sorted(texts)}


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
    return import_class(find_editor_path(name, is_scene=is_scene))


def find_editor_path(name: str, *, is_scene: bool = False) -> str:
    """Finds module and class of an editor, joined by a dot; arguments and errors are those of `find_editor_class`."""
    require_editor(name)
    first, second = (SCENE_EDITORS, EDITORS) if is_scene else (EDITORS, SCENE_EDITORS)
    return first.get(name) or second[name]


def find_options_class(name: str, *, is_scene: bool = False) -> type[Any]:
    """Finds the class whose fields are the settings of an editor: without its work, where that is a class of its own.

    Args:
        name: name of the editor.
        is_scene: whether the run to edit is a 3D scene, as for `find_editor_class`.

    Raises:
        UserError: an unknown name (exit 2); the message suggests the nearest one.

    Example:
        >>> find_options_class("adjust").__name__
        'AdjustOptions'
    """
    path = find_editor_path(name, is_scene=is_scene)
    options = SCENE_OPTIONS if SCENE_EDITORS.get(name) == path else OPTIONS
    return import_class(options.get(name, path))


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
