"""Edits a run from Python. Every form of `unwrap edit` calls these functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from editors.core import stack
from editors.core.editor import Editor
from editors.core.stack import StackChange, add_edit, add_scene_edit
from editors.editors_table import find_editor_class, make_editor
from editors.effects.painted import PaintedCanonical, PaintedDocument, PaintedFrames
from editors.effects.python_function import LiftFunction
from editors.inputs.chart_propagation import carry_to_charts
from editors.inputs.document import is_document
from editors.inputs.picture_input import PictureInput
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter, report_nothing
from neural_fields.core.suggestions import nearest_word
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.read_stack import Edit
from neural_fields.edits.record import EditOrigin
from neural_fields.imaging.notebook_pictures import make_gallery
from neural_fields.open_runs.base import OpenRun
from neural_fields.open_runs.opening import open_run, require_planar
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.open_runs.scene_run import SceneRun
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.locking import lock_run
from neural_fields.runs.run import Run


@dataclass(frozen=True)
class EditResult:
    """Holds an edit that was added, with notes for the user.

    Attributes:
        edit: the edit on the stack.
        notes: what the user should know, one sentence each.
        run: the open run that the edit was added to.
    """

    edit: Edit
    notes: tuple[str, ...]
    run: OpenRun = field(repr=False)

    def _repr_html_(self) -> str:
        """Shows a frame before and after the edit in a notebook: the middle one of the frames that show it."""
        title = " · ".join([self.edit.folder.name, *self.notes])
        if not isinstance(self.run, PlanarRun):
            return make_gallery({}, title)
        below = list(takewhile(lambda other: other.folder != self.edit.folder, self.run.active_edits()))
        frames = self.run.frames
        shown = [number for number in frames if self.edit.arrangement.strength_at(number) > 0] or frames
        number, pictures = shown[len(shown) // 2], {}
        source = self.run.read_frame(number)
        for name, edits in ((f"frame {number}, before", below), ("after", [*below, self.edit])):
            rendered = open_passes(self.run, edits).render_frame(frames.index(number), source)
            pictures[name] = rendered.astype(np.float32) / 255
        return make_gallery(pictures, title)


def edit(
    run: OpenRun | Run | Path | str,
    image: PictureInput | Mapping[int, PictureInput] | None = None,
    *,
    editor: str | Editor[Any] | type[Editor[Any]] | Callable[[Any], Any] | None = None,
    layer: str | None = None,
    layers: Sequence[str] = (),
    frame: int | None = None,
    mask: PictureInput | None = None,
    name: str | None = None,
    arrangement: Arrangement | None = None,
    upscaled: bool = False,
    report: ProgressReporter = report_nothing,
    **settings: Any,
) -> EditResult:
    """Adds an edit to a run's stack, painted by hand or made by an editor.

    A picture or mask is a file, an array (uint8 or float in [0, 1], [height, width, 3 or 4]), a PIL picture, or a
    function that gets the picture to paint on (float in [0, 1]) and returns the painted one.

    Args:
        run: an open run, or the path of its folder.
        image: the painted picture: the canonical picture of a `layer`, a `frame` of the video, a mapping from frame
            numbers to pictures, or the path of an .ora or .psd document that `unwrap export RUN canonical` wrote.
        editor: the name, the class or an instance of an editor, or a function that maps the picture of a layer
            (float32 [height, width, 3] in [0, 1]) to a picture of the same shape. "frames" and "unwrapped" take videos
            that another program edited.
        layer: the layer to edit, or the layer that was painted.
        layers: several layers, which an editor edits together. Defaults to the layers that the editor starts with; for
            painted frames and documents the layer is detected.
        frame: number of the painted frame in the source video, 0 is the first. Some editors have a setting of this
            name.
        mask: for an editor: a picture of the shape of the layer's canonical picture, bright where the edit may go.
        name: name of the edit. Defaults to the name of the picture or of the editor.
        arrangement: when the edit is shown, and how it is blended. Not available for 3D scenes.
        upscaled: whether `image` is an enlarged canonical picture that replaces the old one, unchanged parts included.
        report: called with the progress.
        **settings: settings of the editor, by the names that its command line flags have.

    Returns:
        The edit, with notes for the user.

    Raises:
        UserError: an unknown editor, setting, layer or frame; a picture of the wrong shape, or one without a change.

    Example:
        edit("runs/bear", "painted.png", layer="foreground")
        edit("runs/bear", {0: "first.png", 40: "second.png"})
        edit("runs/bear", lambda rgba: rgba * [1, 0.6, 0.6, 1], layer="background")
        edit("runs/bear", editor="inpaint", model="models/sd15", prompt="blue dots", mask="mask.png")
    """
    opened = open_run(run)
    named = (*((layer,) if layer is not None else ()), *layers)
    chosen = _choose_editor(opened, image, editor, named, frame, mask, upscaled, settings)
    source = chosen.open_source(opened, named, mask)
    if isinstance(opened, SceneRun) and (arrangement or Arrangement()) != Arrangement():
        what = "an edit of a 3D scene cannot be arranged in time or blended"
        raise bad_input(what, where=str(opened.path), fix="leave out --opacity, --blend, --start, --end and fades")

    result = chosen.edit(source, report)
    overlays, carried = result.overlays, list[str]()
    if isinstance(opened, PlanarRun) and opened.maps.charts:
        overlays, carried = carry_to_charts(opened, result.overlays)
    own = (*result.notes, *(note for overlay in overlays.values() for note in overlay.notes))
    origin = EditOrigin(
        editor=chosen.name,
        sources=result.sources,
        frames=result.frames,
        settings=chosen.describe_settings(),
        notes=tuple(dict.fromkeys([*own, *carried])),
        details=result.details,
    )
    name = name or chosen.edit_name
    with lock_run(opened.files):
        if isinstance(opened, PlanarRun):
            made = add_edit(opened.files, name, overlays, origin, result.shapes, result.effects, arrangement)
        else:
            made = add_scene_edit(opened.files, name, result.weights, origin, result.parts, result.effects.hidden)
    opened.refresh_edits()
    return EditResult(made, origin.notes, opened)


def undo(run: OpenRun | Run | Path | str) -> StackChange:
    """Undoes the last step: an edit that was added, or a change of an edit's arrangement. Everything stays on disk.

    Args:
        run: an open run, or the path of its folder.

    Returns:
        The edit, and the operation that was undone.

    Raises:
        UserError: nothing to undo (exit 3), or another process writes to the run (exit 6).
    """
    opened = open_run(run)
    with lock_run(opened.files):
        change = stack.undo(opened.files)
    opened.refresh_edits()
    return change


def redo(run: OpenRun | Run | Path | str) -> StackChange:
    """Redoes the step that was undone last.

    Args:
        run: an open run, or the path of its folder.

    Returns:
        The edit, and the operation that was redone.

    Raises:
        UserError: nothing to redo (exit 3), or another process writes to the run (exit 6).
    """
    opened = open_run(run)
    with lock_run(opened.files):
        change = stack.redo(opened.files)
    opened.refresh_edits()
    return change


def _choose_editor(
    run: OpenRun,
    image: PictureInput | Mapping[int, PictureInput] | None,
    editor: str | Editor[Any] | type[Editor[Any]] | Callable[[Any], Any] | None,
    layers: Sequence[str],
    frame: int | None,
    mask: PictureInput | None,
    upscaled: bool,
    settings: Mapping[str, object],
) -> Editor[Any]:
    """Chooses the editor for the arguments of `edit`. Each kind of painted picture has its own editor."""
    if isinstance(editor, str | type):
        kind = find_editor_class(editor, is_scene=isinstance(run, SceneRun)) if isinstance(editor, str) else editor
        own = {"image": image, "frame": frame}  # some editors have settings of these names
        return make_editor(kind, {**settings, **{key: value for key, value in own.items() if value is not None}})
    if editor is not None:
        if settings or image is not None or frame is not None:
            given = next(iter(settings), "image" if image is not None else "frame")
            why = "an editor that is an object or a function has its settings already"
            raise bad_input(f"{given} is given beside an editor", why=why, fix="edit(run, editor=NAME, ...)")
        return LiftFunction(function=editor) if callable(editor) else editor

    planar = require_planar(run, "a painted picture")
    if settings or mask is not None:
        given = next(iter(settings), "mask")
        guess = nearest_word(given, ("layer", "layers", "frame", "name", "arrangement", "upscaled", "report"))
        why = f"did you mean {guess}?" if guess and given != "mask" else ""
        what = f"{given} belongs to an editor, and none is named"
        raise bad_input(what, why=why, fix=f"edit(run, editor=NAME, {given}=...)")
    if image is None or (isinstance(image, Mapping) and not image):
        why = "an edit is a picture, or made by an editor"
        raise bad_input("what is the edit?", why=why, fix=f"edit(run, 'painted.png', layer={planar.layers[0]!r})")
    if len(layers) > 1:
        raise bad_input("one painted picture for several layers", fix=f"layer={layers[0]!r}")
    if isinstance(image, Mapping):
        return PaintedFrames(images=image)
    if frame is not None:
        return PaintedFrames(images={frame: image})
    if isinstance(image, str | Path) and is_document(Path(image)):
        return PaintedDocument(document=Path(image))
    if not layers:
        raise bad_input(
            "the edit names neither a layer nor a frame",
            where=str(image) if isinstance(image, str | Path) else "",
            why="a picture does not tell whether it was painted on a canonical picture or on a frame",
            fix=f"edit(run, image, layer={planar.layers[0]!r}), or frame=0",
        )
    return PaintedCanonical(image=image, upscaled=upscaled)
