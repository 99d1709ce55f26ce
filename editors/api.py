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
from editors.stack import add_edit
from neural_fields import canonical
from neural_fields.baking import Maps
from neural_fields.canonical import Overlay
from neural_fields.data.video import source_frames
from neural_fields.edits import Edit
from neural_fields.errors import bad_input
from neural_fields.locking import lock
from neural_fields.output import source_facts
from neural_fields.pictures import Picture, read_picture
from neural_fields.run import Run


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
    editor: Editor,
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
    settings = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(cast(Any, editor)).items()}
    facts = {"editor": editor.name, "settings": settings, "notes": list(notes), **result.facts}
    with lock(run):
        return Made(add_edit(run, name or editor.name, overlays, facts, result.shapes), notes)


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
