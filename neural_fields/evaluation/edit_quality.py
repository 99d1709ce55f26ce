"""Measures an edit in the rendered video: the share of untouched pixels, and the temporal consistency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from neural_fields.core.errors import bad_input
from neural_fields.data.flow.compute import FlowField, resize_mask, resize_vectors
from neural_fields.evaluation import metrics
from neural_fields.open_runs.planar_run import PlanarRun
from neural_fields.rendering.render_planar import open_passes


@dataclass(frozen=True)
class EditedFrame:
    """Holds a frame before and after an edit.

    Attributes:
        source, edited: RGB at the size of the source.
        reach_mask: where the edit may have changed something: its overlay is not transparent and its layer is visible
            there, with the pixel around that interpolation reaches.
    """

    source: UInt8[np.ndarray, "height width 3"]
    edited: UInt8[np.ndarray, "height width 3"]
    reach_mask: Bool[np.ndarray, "height width"]


def render_edited_frames(run: PlanarRun, names: Sequence[str] = ()) -> Iterator[EditedFrame]:
    """Renders the frames of a run with its active edits, or with those named.

    Raises:
        UserError: there is no such edit, a damaged run, or the source is gone.
    """
    renderer = open_passes(run, run.active_edits(names))
    if not renderer.changes_something:
        raise bad_input(
            "there is no edit to measure", where=str(run.files.edits), fix=f"unwrap edit {run.path} IMAGE --layer NAME"
        )
    for t, source in enumerate(run.iterate_frames()):
        edited = renderer.render_frame(t, source)
        reach = renderer.affected_mask(t, (source.shape[1], source.shape[0]))
        reach = cv2.dilate(reach.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        yield EditedFrame(source, edited, reach)


def measure_edit(run: PlanarRun, names: Sequence[str] = ()) -> dict[str, Any]:
    """Measures the untouched pixels and the temporal consistency of an edit.

    Returns:
        `edited_share`: of the pixels of all frames, how many the edit reaches; `changed_outside`: of the others, how
        many differ from the source in any bit; `change_outside`: by how much they differ, in levels of 255;
        `warp_error` and `source_warp_error`: mean squared difference of neighboring frames along the source's flow,
        over the whole frame, and `..._inside` only a few pixels inside the edit's outline: at outlines the flow is
        wrong by parts of a pixel, so an edit that stands out more from what is behind it has a larger error there,
        however steady it is; `warp_error_ratio` and `warp_error_ratio_inside`: edited over source.

    Raises:
        UserError: as `edited_frames`.
    """
    size, flow = run.record.size, run.flow
    reached = outside = changed = 0
    difference, errors = 0.0, _EditWarpErrors(flow, size)
    for frame in render_edited_frames(run, names):
        delta = cv2.absdiff(frame.source, frame.edited)[~frame.reach_mask]
        reached, outside = reached + int(frame.reach_mask.sum()), outside + len(delta)
        changed += int((delta.max(axis=-1, initial=0) > 0).sum()) if len(delta) else 0
        difference += float(delta.sum()) / 3
        errors.add(frame)
    return {
        "edited_share": reached / max(1, reached + outside),
        "changed_outside": changed / max(1, outside),
        "change_outside": difference / max(1, outside),
        **errors.to_json(),
    }


class _EditWarpErrors:
    """Warp errors of the source and of the edited video, added up frame by frame.

    Args:
        flow: None for a clip of one frame.
        size: (width, height) at which frames are compared.
    """

    def __init__(self, flow: FlowField | None, size: tuple[int, int]) -> None:
        self._flow, self._size = flow, size
        self._errors = {(whose, part): metrics.WarpError() for part in ("", "_inside") for whose in ("", "source_")}
        self._pair = 0
        self._previous: tuple[dict[str, np.ndarray], np.ndarray] | None = None  # the last frames, and the edit's inside

    def add(self, frame: EditedFrame) -> None:
        """Adds the next frame of the clip."""
        if self._flow is None:
            return
        shown = {"": frame.edited, "source_": frame.source}
        shown = {whose: cv2.resize(rgb, self._size, interpolation=cv2.INTER_AREA) for whose, rgb in shown.items()}
        if self._previous is not None:
            previous, inside = self._previous
            flow = resize_vectors(self._flow.forward[self._pair], self._size)
            ok = resize_mask(self._flow.forward_ok[self._pair], self._size)
            where = {"": ok, "_inside": ok & inside}
            for (whose, part), error in self._errors.items():
                error.add(previous[whose], shown[whose], flow, where[part])
            self._pair += 1
        # The source's flow is trusted for the edit from some pixels inside its outline; the frame's border is none.
        rim = 4  # pixels of the source
        window = np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)
        inside = cv2.erode(frame.reach_mask.astype(np.uint8), window, borderValue=1) > 0
        self._previous = shown, resize_mask(inside, self._size)

    def to_json(self) -> dict[str, float | None]:
        """Returns the errors, and the ratios of edited to source, as `measure_edit` names them."""
        if self._flow is None:
            return dict.fromkeys(("warp_error", "source_warp_error", "warp_error_ratio"))
        values = {f"{whose}warp_error{part}": error.value for (whose, part), error in self._errors.items()}
        for part in ("", "_inside"):
            edited, source = values[f"warp_error{part}"], values[f"source_warp_error{part}"]
            values[f"warp_error_ratio{part}"] = edited / source if edited is not None and source else None
        return values
