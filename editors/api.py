"""Editing a run from Python: what `unwrap edit` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from editors.base import Editor, Report, Source, quiet
from editors.carry import carry
from editors.document import is_document, overlays_from_document
from editors.image import overlay_from_canonical, whole_picture
from editors.stack import Effects, add_edit, add_scene_edit
from editors.volume.edit import VolumeEditor, VolumeSource
from neural_fields import canonical
from neural_fields.arrangement import Arrangement
from neural_fields.baking import Maps
from neural_fields.canonical import Overlay
from neural_fields.data.capture_folder import read_capture
from neural_fields.edits import Edit
from neural_fields.errors import bad_input
from neural_fields.files import sha256_file
from neural_fields.locking import lock
from neural_fields.output import source_facts
from neural_fields.pictures import read_picture
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
    upscaled: bool = False,
    name: str | None = None,
    arrangement: Arrangement | None = None,
) -> Made:
    """Adds an edit to a run's stack: a painted canonical picture of `layer`, or a painted `frame` of the video.

    Args:
        image: a picture in any common format, of the aspect of the canonical picture or of the frame; or an .ora or
            .psd document that `unwrap export RUN canonical` wrote.
        layer: the layer it belongs to; with `frame` and documents it may be left out, then it is found out.
        frame: number of the frame in the source video, 0 is the first.
        upscaled: the picture is an enlarged canonical picture that is shown as a whole, not only what was painted.
        name: of the edit; by default that of the picture.
        arrangement: how the edit lies in time and in the mixture.

    Raises:
        UserError: unknown layer or frame, a picture that does not fit or shows no change, a damaged run.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    require_planar(run, "a painted picture")
    maps = Maps.open(run)
    if layer is not None:
        _check_layer(run, maps, layer)
    if is_document(Path(image)) and frame is None:
        overlays = dict(overlays_from_document(run, maps, Path(image), layer))
        return _added(run, maps, overlays, _from_file("document", Path(image)), name or Path(image).stem, arrangement)
    painted = read_picture(image, max_pixels=_most_pixels(run, maps, layer if frame is None else None))
    if frame is not None:
        from editors.painted_frames import lift_frames

        overlays = dict(lift_frames(run, maps, {frame: painted}, layer))
    elif layer is not None:
        base = canonical.base_for(run.canonical, layer, painted)
        overlays = {layer: (whole_picture if upscaled else overlay_from_canonical)(painted, base)}
    else:
        raise ValueError("an edit needs a layer, a frame, or both")
    facts = {
        "editor": "image" if frame is None else "frame",
        "source": {"file": Path(image).name, "sha256": painted.sha256},
        "frame": frame,
    }
    return _added(run, maps, overlays, facts, name or Path(image).stem, arrangement)


def edit_painted_frames(
    run: Run | str | Path,
    painted: Mapping[int, str | Path],
    *,
    layer: str | None = None,
    name: str | None = None,
    arrangement: Arrangement | None = None,
) -> Made:
    """Adds one edit from several painted frames of the video: they are lifted, and merged where they overlap.

    Args:
        painted: pictures by the number of their frame in the source, 0 is the first.
        layer: the layer that takes the change; by default the one that shows most under each.

    Raises:
        UserError: as `edit`.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    require_planar(run, "a painted picture")
    maps = Maps.open(run)
    if layer is not None:
        _check_layer(run, maps, layer)
    most = _most_pixels(run, maps, None)
    from editors.painted_frames import lift_frames

    pictures = {frame: read_picture(path, max_pixels=most) for frame, path in sorted(painted.items())}
    overlays = dict(lift_frames(run, maps, pictures, layer))
    files = [{"file": Path(painted[frame]).name, "sha256": picture.sha256} for frame, picture in pictures.items()]
    facts = {"editor": "frame", "source": files, "frame": list(pictures)}
    first = Path(painted[next(iter(pictures))]).stem
    return _added(run, maps, overlays, facts, name or first, arrangement)


def edit_unwrapped(
    run: Run | str | Path,
    video: str | Path,
    *,
    layer: str | None = None,
    name: str | None = None,
    arrangement: Arrangement | None = None,
    report: Report = quiet,
) -> Made:
    """Adds an edit of the flat clip that `unwrap export RUN unwrapped` wrote: what was changed, frame by frame.

    Args:
        video: the edited clip, a file or a folder of numbered pictures.
        layer: the layer it shows; by default it is found out.

    Raises:
        UserError: a clip of another size or length, or one that shows no change.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    require_planar(run, "an unwrapped clip")
    maps = Maps.open(run)
    if layer is not None:
        _check_layer(run, maps, layer)
    from editors.unwrapped import moving_from_unwrapped

    found, moving = moving_from_unwrapped(run, maps, Path(video), layer, report)
    facts = _from_file("unwrapped", Path(video)) | {"notes": list(moving.notes)}
    with lock(run):
        painted = Effects(moving={found: moving}, lit=False)  # a flat frame has the light already
        made = add_edit(run, name or Path(video).stem, {}, facts, effects=painted, arrangement=arrangement)
    return Made(made, moving.notes)


def _added(
    run: Run,
    maps: Maps,
    overlays: Mapping[str, Overlay],
    facts: Mapping[str, Any],
    name: str,
    arrangement: Arrangement | None,
) -> Made:
    """The edit of some overlays, carried to all parts of their layers."""
    overlays, carried = carry(run, maps, overlays)
    notes = tuple(dict.fromkeys([*(note for overlay in overlays.values() for note in overlay.notes), *carried]))
    with lock(run):
        return Made(add_edit(run, name, overlays, {**facts, "notes": list(notes)}, arrangement=arrangement), notes)


def _from_file(editor: str, path: Path) -> dict[str, Any]:
    """What is kept of where an edit came from."""
    source = {"file": path.name, **({"sha256": sha256_file(path)} if path.is_file() else {})}
    return {"editor": editor, "source": source}


def edit_with(
    run: Run | str | Path,
    editor: Editor | VolumeEditor,
    *,
    layers: Sequence[str] = (),
    mask: str | Path | None = None,
    name: str | None = None,
    arrangement: Arrangement | None = None,
    report: Report = quiet,
) -> Made:
    """Adds the edit that an editor makes to a run's stack.

    Args:
        editor: an editor with its settings, such as `Inpaint(model=..., prompt="blue dots")`.
        layers: the layers it edits; by default the front one, unless the editor starts with others.
        mask: a picture, bright where the edit may go, of the shape of the layer's canonical picture.
        name: of the edit; by default that of the editor.
        arrangement: how the edit lies in time and in the mixture; not for scenes in space.
        report: told what is going on.

    Raises:
        UserError: unknown layer, a mask that does not fit, what the editor cannot do, a damaged run.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    if isinstance(editor, VolumeEditor):
        if arrangement is not None and arrangement != Arrangement():
            raise bad_input(
                "an edit of a scene in space has no place in time or in the mixture",
                where=str(run.path),
                fix="leave out --opacity, --blend, --start, --end and fades",
            )
        return _edit_scene(run, editor, (*layers, *([str(mask)] if mask else [])), name, report)
    require_planar(run, f"the editor {editor.name}")
    maps = Maps.open(run)
    for layer in layers:
        _check_layer(run, maps, layer)
    usual = {"back": maps.layers[-1:], "all": maps.layers}.get(getattr(editor, "starts_with", ""), maps.layers[:1])
    chosen = tuple(layer for layer in maps.layers if layer in layers) or usual
    if mask is not None and len(chosen) > 1:
        raise bad_input("one mask for several layers", why="a mask belongs to one picture", fix=f"--layer {chosen[0]}")
    result = editor(Source(run, maps, chosen, None if mask is None else Path(mask)), report)
    overlays, carried = carry(run, maps, result.overlays)
    own = (*result.notes, *(note for overlay in overlays.values() for note in overlay.notes))
    notes = tuple(dict.fromkeys([*own, *carried]))
    facts = {"editor": editor.name, "settings": _settings(editor), "notes": list(notes), **result.facts}
    with lock(run):
        made = add_edit(run, name or editor.name, overlays, facts, result.shapes, result.effects, arrangement)
    return Made(made, notes)


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
