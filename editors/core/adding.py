"""Adds what an editor made to the stack of edits of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from editors.core.editor import Editor, EditorResult
from editors.core.nonsense import check_finite_array
from editors.core.stack import add_edit, add_scene_edit
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.read_stack import Edit
from neural_fields.edits.record import EditOrigin
from neural_fields.open_runs.base import OpenRun
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.runs.locking import MAX_WAIT_S, lock_run


def add_result(
    run: OpenRun, editor: Editor[Any], result: EditorResult, name: str, arrangement: Arrangement | None = None
) -> Edit:
    """Puts what an editor made on the stack of a run; paint and shapes are propagated to all charts of their layers.

    Args:
        run: the open run.
        editor: the editor, whose settings edit.json keeps.
        result: what the editor returned.
        name: name of the edit.
        arrangement: when the edit is shown, and how it is blended. Not available for 3D scenes.

    Returns:
        The edit on the stack.

    Raises:
        UserError: nothing to add, or values that are no numbers (exit 3), no space left on the disk (exit 4), or
            another process writes to the run (exit 6).
    """
    for layer, overlay in result.overlays.items():
        check_finite_array(overlay.rgba, f"{editor.title}, on the layer {layer},")
    for layer, shape in result.shapes.items():
        check_finite_array(shape.field, f"{editor.title}, on the layer {layer},")
    for weight in result.weights.values():
        check_finite_array(weight, editor.title)
    overlays, effects, carried = result.overlays, result.effects, list[str]()
    if isinstance(run, PlanarRun) and run.maps.charts:
        from editors.core.chart_propagation import carry_to_charts
        from editors.core.shape_propagation import carry_shapes_to_charts

        overlays, carried = carry_to_charts(run, overlays)
        shapes, notes = carry_shapes_to_charts(run, result.shapes)
        effects, carried = replace(effects, carried_shapes=shapes), [*carried, *notes]
    own = (*result.notes, *(note for overlay in overlays.values() for note in overlay.notes))
    origin = EditOrigin(
        editor=editor.name,
        sources=result.sources,
        frames=result.frames,
        settings=editor.describe_settings(),
        notes=tuple(dict.fromkeys([*own, *carried])),
        details=result.details,
    )
    with lock_run(run.files, MAX_WAIT_S):
        if isinstance(run, PlanarRun):
            made = add_edit(run.files, name, overlays, origin, result.shapes, effects, arrangement)
        else:
            made = add_scene_edit(run.files, name, result.weights, origin, result.parts, result.effects.hidden)
    run.refresh_edits()
    return made
