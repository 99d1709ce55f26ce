"""Editing a run from Python: what `unwrap edit` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from editors.base import Editor, Report, Source, quiet
from editors.carry import carry
from editors.frame import frame_maps, lift_frame
from editors.image import overlay_from_canonical
from editors.stack import add_edit, add_scene_edit
from editors.volume.edit import VolumeEditor, VolumeSource
from neural_fields import canonical
from neural_fields.baking import Maps
from neural_fields.canonical import Overlay
from neural_fields.data.capture_folder import read_capture
from neural_fields.data.video import source_frames
from neural_fields.edits import Edit
from neural_fields.errors import bad_input
from neural_fields.locking import lock
from neural_fields.output import source_facts
from neural_fields.pictures import Picture, read_picture
from neural_fields.run import Run
from neural_fields.volume_run import is_volume_run, load_scene, read_record, require_planar, with_edits


@dataclass(frozen=True)
class Made:
    """An edit that was added, and what the user should know about it."""

    edit: Edit
    notes: tuple[str, ...]


def edit(
    run: Run | str | Path,
    image: str | Path,
    *,
    layer: str | None = None,
    frame: int | None = None,
    name: str | None = None,
) -> Made:
    """Adds an edit to a run's stack: a painted canonical picture of `layer`, or a painted `frame` of the video.

    Args:
        image: a picture in any common format, of the aspect of the canonical picture or of the frame.
        layer: the layer it belongs to; with `frame` it may be left out, then the layer that shows most is taken.
        frame: number of the frame in the source video, 0 is the first.
        name: of the edit; by default that of the picture.

    Raises:
        UserError: unknown layer or frame, a picture that does not fit or shows no change, a damaged run.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    require_planar(run, "a painted picture")
    maps = Maps.open(run)
    if layer is not None:
        _check_layer(run, maps, layer)
    painted = read_picture(image, max_pixels=_most_pixels(run, maps, layer if frame is None else None))
    if frame is not None:
        overlays = dict(_from_frame(run, maps, painted, frame, layer))
    elif layer is not None:
        base = canonical.base_for(run.canonical, layer, painted)
        overlays = {layer: overlay_from_canonical(painted, base)}
    else:
        raise ValueError("an edit needs a layer, a frame, or both")
    overlays, carried = carry(run, maps, overlays)
    notes = tuple(dict.fromkeys([*(note for overlay in overlays.values() for note in overlay.notes), *carried]))
    facts = {
        "editor": "image" if frame is None else "frame",
        "source": {"file": Path(image).name, "sha256": painted.sha256},
        "frame": frame,
        "notes": list(notes),
    }
    with lock(run):
        return Made(add_edit(run, name or Path(image).stem, overlays, facts), notes)


def edit_with(
    run: Run | str | Path,
    editor: Editor | VolumeEditor,
    *,
    layers: Sequence[str] = (),
    mask: str | Path | None = None,
    name: str | None = None,
    report: Report = quiet,
) -> Made:
    """Adds the edit that an editor makes to a run's stack.

    Args:
        editor: an editor with its settings, such as `Inpaint(model=..., prompt="blue dots")`.
        layers: the layers it edits; by default the front one.
        mask: a picture, bright where the edit may go, of the shape of the layer's canonical picture.
        name: of the edit; by default that of the editor.
        report: told what is going on.

    Raises:
        UserError: unknown layer, a mask that does not fit, what the editor cannot do, a damaged run.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    if isinstance(editor, VolumeEditor):
        return _edit_scene(run, editor, (*layers, *([str(mask)] if mask else [])), name, report)
    require_planar(run, f"the editor {editor.name}")
    maps = Maps.open(run)
    for layer in layers:
        _check_layer(run, maps, layer)
    chosen = tuple(layer for layer in maps.layers if layer in layers) or maps.layers[:1]
    if mask is not None and len(chosen) > 1:
        raise bad_input("one mask for several layers", why="a mask belongs to one picture", fix=f"--layer {chosen[0]}")
    result = editor(Source(run, maps, chosen, None if mask is None else Path(mask)), report)
    overlays, carried = carry(run, maps, result.overlays)
    own = (*result.notes, *(note for overlay in overlays.values() for note in overlay.notes))
    notes = tuple(dict.fromkeys([*own, *carried]))
    facts = {"editor": editor.name, "settings": _settings(editor), "notes": list(notes), **result.facts}
    with lock(run):
        return Made(add_edit(run, name or editor.name, overlays, facts, result.shapes), notes)


def _edit_scene(run: Run, editor: VolumeEditor, planar: Sequence[str], name: str | None, report: Report) -> Made:
    """Adds the edit that an editor of scenes in space makes to a run's stack.

    Args:
        planar: layers and masks that were named, which a scene has not.
    """
    if not is_volume_run(run):
        raise bad_input(
            f"the editor {editor.name} is for scenes in space",
            where=str(run.path),
            why="the run has still pictures of a video",
            fix="unwrap train SCENE --config dynvideo_e, or an editor such as inpaint",
        )
    if planar:
        raise bad_input(
            f"{planar[0]} is no part of a scene in space",
            where=str(run.path),
            why="its parts are the background and the person, and each editor says which it changes",
            fix="leave out --layer and --mask",
        )
    record = read_record(run)
    scene, _ = load_scene(run, record)
    edited, _ = with_edits(run, scene)
    masks = read_capture(record.source, record.size).masks if record.source.is_dir() else None
    source = VolumeSource(edited, record.moments(), record.cameras, record.times, record.motion, masks)
    result = editor(source, report)
    facts = {"editor": editor.name, "settings": _settings(editor), "notes": list(result.notes), **result.facts}
    with lock(run):
        made = add_scene_edit(run, name or editor.name, result.weights, facts, result.parts, result.hidden)
    return Made(made, result.notes)


def _settings(editor: Editor | VolumeEditor) -> dict[str, Any]:
    """The settings of an editor as plain values."""
    return {key: str(v) if isinstance(v, Path) else v for key, v in asdict(cast(Any, editor)).items()}


def _check_layer(run: Run, maps: Maps, layer: str) -> None:
    """Refuses a layer that a run does not have.

    Raises:
        UserError: with the layers that there are (exit 3).
    """
    if layer not in maps.layers:
        raise bad_input(
            f"there is no layer '{layer}'",
            where=str(run.canonical),
            why=f"the layers of this run, front to back: {', '.join(maps.layers)}",
            fix=f"--layer {maps.layers[0]}",
        )


def _most_pixels(run: Run, maps: Maps, layer: str | None) -> int:
    """How large a painted picture may be: 16 times the picture it was painted on, so that bombs are refused early."""
    if layer is not None:
        width, height = canonical.pristine(run.canonical, layer).size
    else:
        facts, _ = source_facts(run)
        width, height = facts.width, facts.height
    return max(16_000_000, 16 * width * height)


def _from_frame(run: Run, maps: Maps, painted: Picture, frame: int, layer: str | None) -> dict[str, Overlay]:
    """The overlay that a painted frame of the source asks for."""
    facts, chosen = source_facts(run)
    if frame not in chosen:
        raise bad_input(
            f"frame {frame} is not part of this run",
            why=f"it was fitted to frames {chosen[0]} to {chosen[-1]}"
            + (f", every {chosen.step}th" if chosen.step > 1 else ""),
            fix=f"--frame {min(chosen, key=lambda k: abs(k - frame))}",
        )
    source = next(iter(source_frames(facts, range(frame, frame + 1))))
    pictures = {name: canonical.pristine(run.canonical, name) for name in maps.layers}
    here = frame_maps(maps, pictures, chosen.index(frame), (source.shape[1], source.shape[0]))
    return dict(lift_frame(painted, source, here, layer))
