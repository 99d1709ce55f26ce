"""Editing a run from Python: what `unwrap edit` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from editors.core.editor import Editor, Report, report_nothing
from editors.core.source import EditSource
from editors.core.stack import EditEffects, add_edit, add_scene_edit
from editors.inputs.canonical_picture import overlay_from_canonical, overlay_from_whole_picture
from editors.inputs.chart_propagation import carry_to_charts
from editors.inputs.document import is_document, read_document_overlays
from editors.inputs.sizes import compute_pixel_limit
from editors.volume.base import VolumeEditor, VolumeSource
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core.errors import bad_input
from neural_fields.core.files import sha256_file
from neural_fields.data.capture.capture_folder import read_capture
from neural_fields.edits.arrangement import Arrangement
from neural_fields.edits.read_stack import Edit
from neural_fields.imaging.image_io import read_picture
from neural_fields.runs.kind import is_volume_run, require_planar
from neural_fields.runs.locking import lock_run
from neural_fields.runs.run import Run
from neural_fields.runs.source import read_source_metadata
from neural_fields.volume.record import apply_edits, load_scene, read_record


@dataclass(frozen=True)
class EditResult:
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
) -> EditResult:
    """Adds an edit to a run's stack: a painted canonical picture of `layer`, or a painted `frame` of the video.

    Args:
        run: the run, or its folder.
        image: a picture in any common format, of the aspect of the canonical picture or of the frame; or an .ora or
            .psd document that `unwrap export RUN canonical` wrote.
        layer: the layer it belongs to; with `frame` and documents it may be left out, then it is found out.
        frame: number of the frame in the source video, 0 is the first.
        upscaled: the picture is an enlarged canonical picture that is shown as a whole, not only what was painted.
        name: of the edit; by default that of the picture.
        arrangement: when it is shown, and how it is blended.

    Raises:
        UserError: unknown layer or frame or neither, a picture that does not fit or shows no change, a damaged run.
    """
    run, maps = _open_planar(run, "a painted picture", () if layer is None else (layer,))
    if is_document(Path(image)) and frame is None:
        overlays = dict(read_document_overlays(run, maps, Path(image), layer))
        metadata = _describe_file("document", Path(image))
        return _add_overlays(run, maps, overlays, metadata, name or Path(image).stem, arrangement)
    if layer is None and frame is None:
        raise bad_input(
            "the edit names neither a layer nor a frame",
            where=str(image),
            why="a picture does not tell whether it was painted on a canonical picture or on a frame",
            fix=f"edit(run, image, layer={maps.layers[0]!r}), or frame=0",
        )
    painted = read_picture(image, max_pixels=_find_pixel_limit(run, layer if frame is None else None))
    if frame is not None:
        from editors.inputs.painted_frames import lift_frames

        overlays = dict(lift_frames(run, maps, {frame: painted}, layer))
    else:
        assert layer is not None, "without a frame there is a layer"
        base = canonical.find_base_version(run.canonical, layer, painted)
        overlays = {
            layer: overlay_from_whole_picture(painted, base) if upscaled else overlay_from_canonical(painted, base)
        }
    metadata = {
        "editor": "image" if frame is None else "frame",
        "source": {"file": Path(image).name, "sha256": painted.sha256},
        "frame": frame,
    }
    return _add_overlays(run, maps, overlays, metadata, name or Path(image).stem, arrangement)


def edit_painted_frames(
    run: Run | str | Path,
    painted: Mapping[int, str | Path],
    *,
    layer: str | None = None,
    name: str | None = None,
    arrangement: Arrangement | None = None,
) -> EditResult:
    """Adds one edit from several painted frames of the video: they are lifted, and merged where they overlap.

    Args:
        run: the run, or its folder.
        painted: pictures by the number of their frame in the source, 0 is the first.
        layer: the layer that takes the change; by default the one that shows most under each.
        name: of the edit; by default that of the first picture.
        arrangement: when it is shown, and how it is blended.

    Raises:
        UserError: as `edit`.
    """
    run, maps = _open_planar(run, "a painted picture", () if layer is None else (layer,))
    most = _find_pixel_limit(run, None)
    from editors.inputs.painted_frames import lift_frames

    pictures = {frame: read_picture(path, max_pixels=most) for frame, path in sorted(painted.items())}
    overlays = dict(lift_frames(run, maps, pictures, layer))
    files = [{"file": Path(painted[frame]).name, "sha256": picture.sha256} for frame, picture in pictures.items()]
    metadata = {"editor": "frame", "source": files, "frame": list(pictures)}
    first = Path(painted[next(iter(pictures))]).stem
    return _add_overlays(run, maps, overlays, metadata, name or first, arrangement)


def edit_unwrapped(
    run: Run | str | Path,
    video: str | Path,
    *,
    layer: str | None = None,
    name: str | None = None,
    arrangement: Arrangement | None = None,
    report: Report = report_nothing,
) -> EditResult:
    """Adds an edit of the flat clip that `unwrap export RUN unwrapped` wrote: what was changed, frame by frame.

    Args:
        run: the run, or its folder.
        video: the edited clip, a file or a folder of numbered pictures.
        layer: the layer it shows; by default it is found out.
        name: of the edit; by default that of the clip.
        arrangement: when it is shown, and how it is blended.
        report: told what is going on.

    Raises:
        UserError: a clip of another size or length, or one that shows no change.
    """
    run, maps = _open_planar(run, "an unwrapped clip", () if layer is None else (layer,))
    from editors.inputs.unwrapped_clip import read_unwrapped_paint

    found, moving = read_unwrapped_paint(run, maps, Path(video), layer, report)
    metadata = _describe_file("unwrapped", Path(video)) | {"notes": list(moving.notes)}
    with lock_run(run):
        painted = EditEffects(moving={found: moving}, lit=False)  # a flat frame has the light already
        made = add_edit(run, name or Path(video).stem, {}, metadata, effects=painted, arrangement=arrangement)
    return EditResult(made, moving.notes)


def _add_overlays(
    run: Run,
    maps: Maps,
    overlays: Mapping[str, Overlay],
    metadata: Mapping[str, Any],
    name: str,
    arrangement: Arrangement | None,
) -> EditResult:
    """Adds the edit of some overlays, carried to all parts of their layers."""
    overlays, carried = carry_to_charts(run, maps, overlays)
    notes = tuple(dict.fromkeys([*(note for overlay in overlays.values() for note in overlay.notes), *carried]))
    with lock_run(run):
        return EditResult(
            add_edit(run, name, overlays, {**metadata, "notes": list(notes)}, arrangement=arrangement), notes
        )


def _describe_file(editor: str, path: Path) -> dict[str, Any]:
    """Returns what edit.json keeps of the file that an edit came from."""
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
    report: Report = report_nothing,
) -> EditResult:
    """Adds the edit that an editor makes to a run's stack.

    Args:
        run: the run, or its folder.
        editor: an editor with its settings, such as `Inpaint(model=..., prompt="blue dots")`.
        layers: the layers it edits; by default the front one, unless the editor starts with others.
        mask: a picture, bright where the edit may go, of the shape of the layer's canonical picture.
        name: of the edit; by default that of the editor.
        arrangement: when it is shown, and how it is blended; not for 3D scenes.
        report: told what is going on.

    Raises:
        UserError: unknown layer, a mask that does not fit, what the editor cannot do, a damaged run.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    if isinstance(editor, VolumeEditor):
        return _edit_scene(run, editor, (*layers, *([str(mask)] if mask else [])), name, arrangement, report)
    run, maps = _open_planar(run, f"the editor {editor.name}", layers)
    usual = {"back": maps.layers[-1:], "all": maps.layers}.get(getattr(editor, "starts_with", ""), maps.layers[:1])
    chosen = tuple(layer for layer in maps.layers if layer in layers) or usual
    if mask is not None and len(chosen) > 1:
        raise bad_input("one mask for several layers", why="a mask belongs to one picture", fix=f"--layer {chosen[0]}")
    result = editor(EditSource(run, maps, chosen, None if mask is None else Path(mask)), report)
    overlays, carried = carry_to_charts(run, maps, result.overlays)
    own = (*result.notes, *(note for overlay in overlays.values() for note in overlay.notes))
    notes = tuple(dict.fromkeys([*own, *carried]))
    metadata = {"editor": editor.name, "settings": _plain_settings(editor), "notes": list(notes), **result.metadata}
    with lock_run(run):
        made = add_edit(run, name or editor.name, overlays, metadata, result.shapes, result.effects, arrangement)
    return EditResult(made, notes)


def _edit_scene(
    run: Run,
    editor: VolumeEditor,
    planar: Sequence[str],
    name: str | None,
    arrangement: Arrangement | None,
    report: Report,
) -> EditResult:
    """Adds the edit that an editor of 3D scenes makes to a run's stack.

    Args:
        run: the run.
        editor: an editor with its settings.
        planar: layers and masks that were named; a 3D scene has none.
        name: of the edit; by default that of the editor.
        arrangement: refused unless it is the default one.
        report: told what is going on.
    """
    if arrangement is not None and arrangement != Arrangement():
        raise bad_input(
            "an edit of a 3D scene cannot be arranged in time or blended",
            where=str(run.path),
            fix="leave out --opacity, --blend, --start, --end and fades",
        )
    if not is_volume_run(run):
        raise bad_input(
            f"the editor {editor.name} is for 3D scenes",
            where=str(run.path),
            why="the run has canonical pictures of a video",
            fix="unwrap train SCENE --config dynvideo_e, or an editor such as inpaint",
        )
    if planar:
        raise bad_input(
            f"{planar[0]} is no part of a 3D scene",
            where=str(run.path),
            why="its parts are the background and the person, and each editor says which it changes",
            fix="leave out --layer and --mask",
        )
    record = read_record(run)
    scene, _ = load_scene(run, record)
    edited, _ = apply_edits(run, scene)
    masks = read_capture(record.source, record.size).masks if record.source.is_dir() else None
    source = VolumeSource(edited, record.make_moments(), record.cameras, record.times, record.motion, masks)
    result = editor(source, report)
    metadata = {
        "editor": editor.name,
        "settings": _plain_settings(editor),
        "notes": list(result.notes),
        **result.metadata,
    }
    with lock_run(run):
        made = add_scene_edit(run, name or editor.name, result.weights, metadata, result.parts, result.hidden)
    return EditResult(made, result.notes)


def _open_planar(run: Run | str | Path, what: str, layers: Sequence[str]) -> tuple[Run, Maps]:
    """Opens a run of a video and its maps.

    Args:
        run: the run, or its folder.
        what: what needs such a run, for the message.
        layers: that the run must have.

    Raises:
        UserError: a run of a 3D scene, a damaged run, or an unknown layer.
    """
    run = run if isinstance(run, Run) else Run.open(Path(run))
    require_planar(run, what)
    maps = Maps.open(run)
    for layer in layers:
        if layer not in maps.layers:
            raise bad_input(
                f"there is no layer '{layer}'",
                where=str(run.canonical),
                why=f"the layers of this run, front to back: {', '.join(maps.layers)}",
                fix=f"--layer {maps.layers[0]}",
            )
    return run, maps


def _plain_settings(editor: Editor | VolumeEditor) -> dict[str, Any]:
    """Returns the settings of an editor as plain values."""
    return {key: str(v) if isinstance(v, Path) else v for key, v in asdict(cast(Any, editor)).items()}


def _find_pixel_limit(run: Run, layer: str | None) -> int:
    """Finds how many pixels a painted canonical picture of `layer`, or else a painted frame, may have."""
    if layer is not None:
        return compute_pixel_limit(canonical.read_pristine(run.canonical, layer).size)
    metadata, _ = read_source_metadata(run)
    return compute_pixel_limit((metadata.width, metadata.height))
