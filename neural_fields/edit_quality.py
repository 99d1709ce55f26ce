"""How an edit behaves in the video: what it leaves untouched, and how steady it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from neural_fields import metrics
from neural_fields.baking import Maps
from neural_fields.data.flow import FlowField, resize_mask, resize_vectors
from neural_fields.data.video import source_frames
from neural_fields.errors import bad_input
from neural_fields.evaluation import read_source
from neural_fields.fit_record import read_fit_record
from neural_fields.output import open_renderer, source_facts
from neural_fields.rendering import FrameChanger
from neural_fields.report.steadiness import run_flow
from neural_fields.run import Run

RIM = 4  # pixels inside the outline of an edit from which the source's flow is trusted for it


@dataclass(frozen=True)
class EditedFrame:
    """A frame before and after an edit.

    Attributes:
        source, edited: RGB at the size of the source.
        reach: where the edit may have changed something: its overlay is not transparent and its layer is seen.
    """

    source: UInt8[np.ndarray, "height width 3"]
    edited: UInt8[np.ndarray, "height width 3"]
    reach: Bool[np.ndarray, "height width"]


def edited_frames(run: Run, names: Sequence[str] = ()) -> Iterator[EditedFrame]:
    """The frames of a run with its active edits, or those named, put on.

    Raises:
        UserError: there is no such edit, a damaged run, or the source is gone.
    """
    maps = Maps.open(run)
    renderer = open_renderer(run, maps, names)
    if not renderer.changes_something:
        raise bad_input(
            "there is no edit to measure", where=str(run.edits), fix=f"unwrap edit {run.path} IMAGE --layer NAME"
        )
    facts, chosen = source_facts(run)
    for t, source in enumerate(source_frames(facts, chosen)):
        yield EditedFrame(source, renderer.render_frame(t, source), _reach(renderer, t, source))


def measure_edit(run: Run, names: Sequence[str] = ()) -> dict[str, Any]:
    """What an edit leaves untouched and how steady it is; plain values for JSON.

    Returns:
        `edited_share`: of the pixels of all frames, how many the edit reaches; `changed_outside`: of the others, how
        many differ from the source in any bit; `change_outside`: by how much they differ, in levels of 255;
        `warp_error` and `source_warp_error`: mean squared difference of neighbouring frames along the source's flow,
        over the whole frame, and `..._inside` only a few pixels inside the edit's outline: at outlines the flow is
        wrong by parts of a pixel, so an edit that stands out more from what is behind it has a larger error there,
        however steady it is; `warp_error_ratio` and `warp_error_ratio_inside`: edited over source.

    Raises:
        UserError: as `edited_frames`.
    """
    size = read_fit_record(run).size
    flow = run_flow(run, read_fit_record(run), read_source(run).frames)
    reached = outside = changed = 0
    difference, steadiness = 0.0, _Steadiness(flow, size)
    for frame in edited_frames(run, names):
        delta = cv2.absdiff(frame.source, frame.edited)[~frame.reach]
        reached, outside = reached + int(frame.reach.sum()), outside + len(delta)
        changed += int((delta.max(axis=-1, initial=0) > 0).sum()) if len(delta) else 0
        difference += float(delta.sum()) / 3
        steadiness.add(frame)
    return {
        "edited_share": reached / max(1, reached + outside),
        "changed_outside": changed / max(1, outside),
        "change_outside": difference / max(1, outside),
        **steadiness.found(),
    }


def _reach(changer: FrameChanger, t: int, source: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Where an edit may change a frame, with the pixel around that interpolation reaches."""
    found = changer.reach(t, (source.shape[1], source.shape[0]))
    return cv2.dilate(found.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


class _Steadiness:
    """Warp errors of the source and of the edited video, added up frame by frame.

    Args:
        flow: None for a clip of one frame.
        size: (width, height) at which frames are compared.
    """

    def __init__(self, flow: FlowField | None, size: tuple[int, int]) -> None:
        self._flow, self._size = flow, size
        self._errors = {(whose, part): metrics.WarpError() for part in ("", "_inside") for whose in ("", "source_")}
        self._pair = 0
        self._before: tuple[dict[str, np.ndarray], np.ndarray] | None = None  # the last frames, and the edit's inside

    def add(self, frame: EditedFrame) -> None:
        """The next frame of the clip."""
        if self._flow is None:
            return
        shown = {"": frame.edited, "source_": frame.source}
        shown = {whose: cv2.resize(rgb, self._size, interpolation=cv2.INTER_AREA) for whose, rgb in shown.items()}
        if self._before is not None:
            before, inside = self._before
            flow = resize_vectors(self._flow.forward[self._pair], self._size)
            ok = resize_mask(self._flow.forward_ok[self._pair], self._size)
            where = {"": ok, "_inside": ok & inside}
            for (whose, part), error in self._errors.items():
                error.add(before[whose], shown[whose], flow, where[part])
            self._pair += 1
        self._before = shown, resize_mask(_well_inside(frame.reach), self._size)

    def found(self) -> dict[str, float | None]:
        """The errors, and the ratios of edited to source."""
        if self._flow is None:
            return dict.fromkeys(("warp_error", "source_warp_error", "warp_error_ratio"))
        values = {f"{whose}warp_error{part}": error.value for (whose, part), error in self._errors.items()}
        ratios = {
            f"warp_error_ratio{part}": _ratio(values[f"warp_error{part}"], values[f"source_warp_error{part}"])
            for part in ("", "_inside")
        }
        return {**values, **ratios}


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _well_inside(reach: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """What lies at least `RIM` pixels inside a region; the frame's own border is no edge of it."""
    side = 2 * RIM + 1
    return cv2.erode(reach.astype(np.uint8), np.ones((side, side), np.uint8), borderValue=1) > 0
