"""Labels of one frame, carried to all frames of a run: pictures of classes, and masks of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from neural_fields.baking import Maps
from neural_fields.errors import bad_input
from neural_fields.export.base import Report, Target
from neural_fields.export.fitted import Fitted, open_fitted
from neural_fields.export.label_files import LabelPicture, mask_bytes, read_labels
from neural_fields.export.provenance import provenance
from neural_fields.files import atomic_write, write_json, write_synced
from neural_fields.labels import label_planes, resize_labels

SCHEMA = 1
MOST_MASKS = 256  # folders
MANY = 64  # classes: so many are mostly soft edges

Classes = Int[np.ndarray, "height width"]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Carry a label picture from one frame to all frames."""

    name: ClassVar[str] = "labels"

    labels: Path | None = None
    """A PNG, TIFF or BMP picture of the frame: each colour, grey value or palette index is a class."""
    frame: int | None = None
    """Number of the frame in the source that it belongs to, 0 is the first (default: the middle one)."""
    masks: bool = False
    """Also a folder of masks for each class, as `--masks NAME=FOLDER` of a fit takes them."""

    def __call__(self, target: Target, report: Report) -> Sequence[str]:
        """Carries the labels and writes them.

        Raises:
            UserError: no picture, one that cannot be used, or a frame that the run does not have (exit 3).
        """
        if self.labels is None:
            raise bad_input("no label picture is given", fix="--labels FILE.png --frame 0")
        fitted = open_fitted(target.run)
        t, size = fitted.index(self.frame), fitted.size
        picture = read_labels(self.labels, size)
        own = resize_labels(picture.classes, size)
        named = np.unique(own[own > 0]).tolist() if self.masks else []
        if len(named) > MOST_MASKS:
            raise bad_input(
                f"{len(named)} classes would be {len(named)} folders of masks",
                why=f"at most {MOST_MASKS} are written",
                fix="leave out --masks",
            )
        counts = np.zeros((len(fitted.frames), len(picture.values)), np.int64)
        for index, classes in enumerate(carried_labels(fitted, target.maps, picture, t)):
            report("labels", index + 1, len(fitted.frames))
            counts[index] = np.bincount(classes.ravel(), minlength=counts.shape[1])
            file = f"{fitted.frames[index]:05d}.png"
            _write(target.folder / file, picture.encode(classes))
            for number in named:
                _write(target.folder / "masks" / picture.name(number) / file, mask_bytes(classes == number))
        facts = _description(fitted, picture, counts, t, set(named))
        made = provenance(target.run, "labels", frame=fitted.frames[t]) if target.metadata else {}
        write_json(target.folder / "labels.json", {**facts, **made})
        return _notes(picture, counts, t)


def carried_labels(fitted: Fitted, maps: Maps, picture: LabelPicture, t: int) -> Iterator[Classes]:
    """The classes of every frame at the size of the source, given those of frame `t` of the run.

    That frame keeps what it was given. The others look up their baked maps, so that labels end where edits end.
    """
    size = fitted.size
    planes = label_planes(fitted.model, resize_labels(picture.classes, maps.size), t, fitted.flow)
    for index in range(len(fitted.frames)):
        if index == t:
            yield resize_labels(picture.classes, size)
            continue
        seen = maps.weight(index, size).argmax(axis=0)
        found = np.zeros(seen.shape, np.int32)
        for layer, plane in enumerate(planes[index]):
            own = seen == layer
            if own.any():
                found[own] = plane.at(maps.uv(index, layer, size)[own])
        yield found


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as part:
        write_synced(part, data)


def _description(
    fitted: Fitted, picture: LabelPicture, counts: Int[np.ndarray, "frames classes"], t: int, named: set[int]
) -> dict[str, Any]:
    """What labels.json says."""
    frames = fitted.frames
    classes = [
        {
            "value": picture.values[number].tolist(),
            "colour": picture.colour(number),
            "pixels": int(counts[t, number]),
            "pixels_in_all_frames": int(counts[:, number].sum()),
            **({"masks": f"masks/{picture.name(number)}"} if number in named else {}),
        }
        for number in range(len(picture.values))
    ]
    return {
        "schema": SCHEMA,
        "labels": picture.source,
        "sha256": picture.sha256,
        "mode": picture.mode,
        "bits": picture.bits,
        "width": fitted.size[0],
        "height": fitted.size[1],
        "frames": [frames.start, frames.stop, frames.step],
        "frame": frames[t],
        "classes": classes,
    }


def _notes(picture: LabelPicture, counts: Int[np.ndarray, "frames classes"], t: int) -> list[str]:
    notes = []
    if len(picture.values) > MANY:
        notes.append(
            f"{len(picture.values)} classes: where edges are soft, each of their shades is one; "
            "draw labels without antialiasing"
        )
    lost = [
        number
        for number in np.flatnonzero(counts[t]).tolist()
        if number and counts[:, number].sum() == counts[t, number]
    ]
    if lost and len(counts) > 1:
        names = ", ".join(picture.name(number) for number in lost[:5]) + (" ..." if len(lost) > 5 else "")
        notes.append(f"too small for the size of the fit, or never seen again: {names}")
    return notes
