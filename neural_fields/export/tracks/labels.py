"""Propagates labels of one frame to all frames of a run: label maps, and masks of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write, write_json, write_synced
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.export.base import Target
from neural_fields.export.exporter_options import LabelsOptions
from neural_fields.export.tracks.label_files import LabelMap, encode_mask, read_labels, resize_labels
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.open_runs.provenance import build_provenance

Classes = Int[np.ndarray, "height width"]


@dataclass(frozen=True, kw_only=True)
class LabelsExporter(LabelsOptions):
    """Propagate a label picture from one frame to all frames."""

    def __call__(self, target: Target, report: ProgressReporter) -> Sequence[str]:
        """Propagates the labels and writes them.

        Raises:
            UserError: no picture, a picture that cannot be used, or a frame that the run does not have (exit 3).
        """
        if self.labels is None:
            raise bad_input("no label picture is given", fix="--labels FILE.png --frame 0")
        run = target.run
        t, size = run.frame_count // 2 if self.frame is None else run.require_frame(self.frame), run.source_size
        picture = read_labels(self.labels, size)
        labels = resize_labels(picture.classes, size)
        named = np.unique(labels[labels > 0]).tolist() if self.masks else []
        max_masks = 256  # folders
        if len(named) > max_masks:
            raise bad_input(
                f"{len(named)} classes would be {len(named)} folders of masks",
                why=f"at most {max_masks} are written",
                fix="leave out --masks",
            )
        counts = np.zeros((run.frame_count, len(picture.values)), np.int64)
        for index, classes in enumerate(propagate_labels(run, picture, t)):
            report(Progress("labels", index + 1, run.frame_count))
            counts[index] = np.bincount(classes.ravel(), minlength=counts.shape[1])
            file = f"{target.frame_numbers[index]:05d}.png"
            _write_file(target.folder / file, picture.encode_png(classes))
            for number in named:
                _write_file(target.folder / "masks" / picture.class_name(number) / file, encode_mask(classes == number))

        # What labels.json says of the picture and its classes.
        frames = target.frame_numbers
        described = []
        for number in range(len(picture.values)):
            folder = {"masks": f"masks/{picture.class_name(number)}"} if number in named else {}
            described.append(
                {
                    "value": picture.values[number].tolist(),
                    "color": picture.class_color(number),
                    "pixels": int(counts[t, number]),
                    "pixels_in_all_frames": int(counts[:, number].sum()),
                    **folder,
                }
            )
        content: dict[str, Any] = {
            "schema": 1,
            "labels": picture.source,
            "sha256": picture.sha256,
            "mode": picture.mode,
            "bits": picture.bits_per_channel,
            "width": size[0],
            "height": size[1],
            "frames": [frames.start, frames.stop, frames.step],
            "frame": frames[t],
            "classes": described,
        }
        made = build_provenance(run, "labels", frame=run.frames[t]) if target.metadata else {}
        write_json(target.folder / "labels.json", {**content, **made})

        notes = []
        if len(picture.values) > 64:
            notes.append(
                f"{len(picture.values)} classes: where edges are soft, each of their shades is one; "
                "draw labels without antialiasing"
            )
        lost = []  # classes that no other frame has
        for number in np.flatnonzero(counts[t]).tolist():
            if number and counts[:, number].sum() == counts[t, number]:
                lost.append(number)
        if lost and len(counts) > 1:
            names = ", ".join(picture.class_name(number) for number in lost[:5]) + (" ..." if len(lost) > 5 else "")
            notes.append(f"too small for the size of the run, or never seen again: {names}")
        return notes


def propagate_labels(run: PlanarRun, picture: LabelMap, t: int) -> Iterator[Classes]:
    """Propagates the classes of frame `t` of the run to every frame, at the size of the source.

    Frame `t` keeps the given labels. The other frames sample their baked maps, so that labels have the same outlines as
    edits.

    Args:
        run: with its model, source and baked maps.
        picture: the labels of frame `t`.
        t: index of the frame in the run.

    Yields:
        The class of each pixel, frame by frame.
    """
    from neural_fields.tracking.labels import compute_label_planes

    size, maps = run.source_size, run.maps
    planes = compute_label_planes(run.model, resize_labels(picture.classes, maps.size), t, run.chart_flow)
    for index in range(run.frame_count):
        if index == t:
            yield resize_labels(picture.classes, size)
            continue
        seen = maps.read_weights(index, size).argmax(axis=0)
        classes = np.zeros(seen.shape, np.int32)
        for layer, plane in enumerate(planes[index]):
            own = seen == layer
            if own.any():
                classes[own] = plane.sample_labels(maps.read_uv(index, layer, size)[own])
        yield classes


def _write_file(path: Path, data: bytes) -> None:
    """Writes a file atomically."""
    with atomic_write(path) as part:
        write_synced(part, data)
