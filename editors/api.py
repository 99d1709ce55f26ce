"""Edits a run from Python. Every form of `unwrap edit` calls these functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from editors.core import history
from editors.core.adding import add_result
from editors.core.editor import Editor, EditorChoice
from editors.core.history import StackChange
from editors.editors_table import resolve_editor
from editors.effects.painted import choose_painted_editor
from editors.inputs.picture_input import PictureInput
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import ProgressReporter, report_nothing
from neural_fields.core.suggestions import nearest_word
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.read_stack import Edit
from neural_fields.imaging.notebook_pictures import make_gallery
from neural_fields.open_runs.base import OpenRun
from neural_fields.open_runs.opening import open_run, require_planar, require_scene
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.open_runs.scene_run import SceneRun
from neural_fields.rendering.render_planar import open_passes
from neural_fields.runs.locking import MAX_WAIT_S, lock_run
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
        """Shows the run before and after the edit in a notebook: a frame of the video, or a view of the 3D scene."""
        below = list(takewhile(lambda other: other.folder != self.edit.folder, self.run.active_edits()))
        stacks = (below, [*below, self.edit])
        pictures: list[Float[np.ndarray, "height width 3"]] = []
        if isinstance(self.run, PlanarRun):
            # The middle one of the frames that show the edit.
            frames, arrangement = self.run.frames, self.edit.arrangement
            shown = [number for number in frames if arrangement.strength_at(number) > 0] or frames
            number = shown[len(shown) // 2]
            name, source, t = f"frame {number}", self.run.read_frame(number), frames.index(number)
            for edits in stacks:
                pictures.append(open_passes(self.run, edits).render_frame(t, source).astype(np.float32) / 255)
        else:
            from neural_fields.volume.record import apply_edits

            # The middle one of the filmed views, small.
            scene_run, max_height_px = require_scene(self.run, "the edit of a scene"), 160
            record = scene_run.record
            view = len(record.cameras) // 2
            name, camera, moments = f"view {view}", record.cameras[view], record.make_moments()
            height = min(max_height_px, camera.height)
            camera = camera.resize(max(1, round(camera.width * height / camera.height)), height)
            for edits in stacks:
                scene, parts = apply_edits(scene_run.scene, edits)
                view_rendered = scene.render_view(camera, record.times[view], moments, parts=parts)
                pictures.append(view_rendered.color.numpy())
        before, after = pictures
        title = " · ".join([self.edit.folder.name, *self.notes])
        return make_gallery({f"{name}, before": before, "after": after}, title)


def edit(
    run: OpenRun | Run | Path | str,
    image: PictureInput | Mapping[int, PictureInput] | None = None,
    *,
    editor: EditorChoice | None = None,
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
        frame: number of the painted frame in the source video. Some editors have a setting of this
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
    made = add_result(opened, chosen, result, name or chosen.edit_name, arrangement)
    return EditResult(made, made.record.origin.notes, opened)


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
    with lock_run(opened.files, MAX_WAIT_S):
        change = history.undo(opened.files)
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
    with lock_run(opened.files, MAX_WAIT_S):
        change = history.redo(opened.files)
    opened.refresh_edits()
    return change


def _choose_editor(
    run: OpenRun,
    image: PictureInput | Mapping[int, PictureInput] | None,
    editor: EditorChoice | None,
    layers: Sequence[str],
    frame: int | None,
    mask: PictureInput | None,
    upscaled: bool,
    settings: Mapping[str, object],
) -> Editor[Any]:
    """Chooses the editor for the arguments of `edit`: the one that is named, or the one for a painted picture."""
    if editor is not None:
        own = {"image": image, "frame": frame}  # some editors have settings of these names
        given = {**settings, **{key: value for key, value in own.items() if value is not None}}
        return resolve_editor(editor, given, is_scene=isinstance(run, SceneRun))
    planar = require_planar(run, "a painted picture")
    if settings or mask is not None:
        stray = next(iter(settings), "mask")
        guess = nearest_word(stray, ("layer", "layers", "frame", "name", "arrangement", "upscaled", "report"))
        why = f"did you mean {guess}?" if guess and stray != "mask" else ""
        what = f"{stray} belongs to an editor, and none is named"
        raise bad_input(what, why=why, fix=f"edit(run, editor=NAME, {stray}=...)")
    return choose_painted_editor(planar, image, layers, frame, upscaled=upscaled)
