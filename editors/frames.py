"""`frames`: a video that was edited frame by frame becomes one steady edit.

What the frames show of each layer is fused into its canonical picture (`fused.py`), so that every place has one colour
in all frames. How much steadier that is, is measured along the source's flow before and after.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.base import EditorResult, Report, Source
from editors.fused import Fused, Ground, follows_light, fuse, looked_up, places_of
from editors.stack import Effects
from editors.style import check_strength
from neural_fields import canonical, metrics
from neural_fields.canonical import Overlay
from neural_fields.data.facts import VideoFacts
from neural_fields.data.flow import FlowField, resize_mask, resize_vectors
from neural_fields.data.images import is_image
from neural_fields.data.video import probe, source_frames
from neural_fields.errors import bad_input
from neural_fields.evaluation import read_source
from neural_fields.fit_record import read_fit_record
from neural_fields.output import source_facts
from neural_fields.pictures import resize
from neural_fields.rendering import How, Renderer
from neural_fields.report.steadiness import run_flow

MOST_TEXELS = 24_000_000  # of an overlay
GOAL = 0.45  # of the warp error of the frames: no more shall be left, so that it is surely halved
FAINT = 0.1  # less of what frames do not have in common is as good as none
SWIM = 0.05  # of a layer: frames that disagree on less of it are not worth telling


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Fuse a video that was edited frame by frame, by any program, into one steady edit."""

    name: ClassVar[str] = "frames"
    starts_with: ClassVar[str] = "all"

    frames: Path
    """The edited frames: a folder of numbered pictures or a video, with as many frames as the run or as its source."""
    strength: float = 1.0
    """How much of the edit is shown, above 0 and at most 1."""

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """One overlay a layer.

        Raises:
            UserError: frames that cannot be read, that are too few or too many, or of another shape (exit 3).
        """
        edited = open_edited(source, self.frames)
        flow = run_flow(source.run, read_fit_record(source.run), read_source(source.run).frames)
        before = _flicker(_reported(edited, report), flow, source.maps.size)
        grounds = [_ground(source, layer, edited.size) for layer in source.layers]
        lit = follows_light(edited.targets, source.maps, grounds, edited.size)
        found = fuse(
            edited.targets, source.maps, grounds, edited.size, lit, lambda done, total: report("fusing", done, total)
        )
        overlays, after, share = self._steady(source, grounds, found, lit, flow, before)
        notes = [*edited.notes, *_told(source.layers, found, before, after, lit, share)]
        facts = {
            "frames": {"file": self.frames.name, "sha256": edited.facts.sha256, "size": list(edited.size)},
            "warp_error_of_frames": before,
            "warp_error": after,
            "agreement": {layer: round(one.agreed, 4) for layer, one in zip(source.layers, found, strict=True)},
        }
        return EditorResult(overlays, tuple(notes), facts, effects=Effects(lit=lit))

    def _steady(
        self,
        source: Source,
        grounds: list[Ground],
        found: list[Fused],
        lit: bool,
        flow: FlowField | None,
        before: float | None,
    ) -> tuple[dict[str, Overlay], float | None, float]:
        """Overlays, their warp error, and how much they show of what not all frames have in common.

        All of it, unless that is not steady enough. A mixture's error grows with the square of the share, so that two
        errors tell how much may be shown.
        """
        overlays = self._overlays(source, grounds, found, 1.0)
        error = _flicker(_rendered(source, overlays, lit), flow, source.maps.size)
        if before is None or error is None or error <= GOAL * before:
            return overlays, error, 1.0
        overlays = self._overlays(source, grounds, found, 0.0)
        least = _flicker(_rendered(source, overlays, lit), flow, source.maps.size)
        assert least is not None, "there is a flow"
        share = math.sqrt(max(0.0, GOAL * before - least) / max(error - least, 1e-12))
        if least >= error or share < FAINT:
            return overlays, least, 0.0
        overlays = self._overlays(source, grounds, found, share)
        return overlays, _flicker(_rendered(source, overlays, lit), flow, source.maps.size), share

    def _overlays(self, source: Source, grounds: list[Ground], found: list[Fused], share: float) -> dict[str, Overlay]:
        result = {}
        for layer, ground, one in zip(source.layers, grounds, found, strict=True):
            alpha = one.seen.astype(np.float32)
            if source.mask is not None:
                alpha *= resize(source.region(layer)[..., None], ground.size)[..., 0]
            colour = np.where(alpha[..., None] > 0, one.common + share * (one.colour - one.common), 0)
            rgba = np.concatenate([colour, self.strength * alpha[..., None]], axis=-1)
            result[layer] = Overlay(rgba.astype(np.float32), ground.box)
        return result


@dataclass(frozen=True)
class EditedFrames:
    """Edited frames of a run, that are read anew for every pass.

    Attributes:
        source: the run, and the layers to edit.
        facts: of the edited frames.
        chosen: which of them belong to the frames of the run.
        size: (width, height) at which they are worked on: theirs, or that of the source if that is smaller.
        notes: what the user should know.
    """

    source: Source
    facts: VideoFacts
    chosen: range
    size: tuple[int, int]
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        for frame in source_frames(self.facts, self.chosen):
            yield _at(frame, self.size)

    def targets(self) -> Iterator[Float[np.ndarray, "height width 3"]]:
        """What the layers to edit add to each frame: all of it, or what the other layers leave."""
        others = [i for i, name in enumerate(self.source.maps.layers) if name not in self.source.layers]
        if not others:
            yield from (frame.astype(np.float32) / 255 for frame in self)
            return
        for t, (frame, plain) in enumerate(zip(self, source_frames(*source_facts(self.source.run)), strict=True)):
            yield frame.astype(np.float32) / 255 - self._added_by(others, t, _at(plain, self.size))

    def _added_by(
        self, others: list[int], t: int, frame: UInt8[np.ndarray, "height width 3"]
    ) -> Float[np.ndarray, "height width 3"]:
        """What layers that are not edited show of a frame of the source, as rendering takes it apart."""
        maps, weight = self.source.maps, self.source.maps.weight(t, self.size)
        shown = []
        for layer, name in enumerate(maps.layers):
            picture = canonical.pristine(self.source.run.canonical, name)
            places = places_of(maps, t, layer, self.size, picture.box, picture.size)
            colour = looked_up(picture.array()[..., :3], places) * maps.gain(t, layer, self.size)
            shown.append(weight[layer][..., None] * colour)
        missed = frame.astype(np.float32) / 255 - np.sum(shown, axis=0)
        return sum((shown[i] + weight[i][..., None] * missed for i in others), np.zeros_like(missed))


def open_edited(source: Source, path: Path) -> EditedFrames:
    """The edited frames in a folder or video, checked against the run without decoding them.

    Raises:
        UserError: what `Frames` raises.
    """
    if not path.exists():
        raise bad_input(f"there is no file or folder {path}", where="--frames", fix="check the spelling of the path")
    if path.is_dir():
        _check_gaps(path)
    facts = probe(path)
    had, run_frames = source_facts(source.run)
    if facts.frame_count not in (len(run_frames), had.frame_count):
        both = f"the run has {len(run_frames)} frames" + (
            f" of {had.frame_count} in its source" if had.frame_count != len(run_frames) else ""
        )
        less = facts.frame_count < len(run_frames)
        raise bad_input(
            f"{path.name} has too {'few' if less else 'many'} frames: {facts.frame_count}",
            where=str(path),
            why=both,
            fix="edit every frame of the source, or every frame of the run, and keep their order",
        )
    chosen = range(len(run_frames)) if facts.frame_count == len(run_frames) else run_frames
    size, full = (facts.width, facts.height), (had.width, had.height)
    scale = sum(size) / sum(full)
    if max(abs(one - other * scale) for one, other in zip(size, full, strict=True)) > 1:
        raise bad_input(
            f"{path.name} has frames of another shape: {_text(size)} instead of {_text(full)}",
            where=str(path),
            why="they seem to be cropped, stretched or turned",
            fix="edit the frames without cropping or turning them",
        )
    # "carry no rate" says nothing here: frames go by their order.
    notes = [note for note in facts.notes if "rate" not in note]
    if size != full:
        sharp = "the edit is as sharp as they are" if sum(size) < sum(full) else "they are brought to that size"
        notes.append(f"the edited frames have {_text(size)} pixels instead of {_text(full)}: {sharp}")
    return EditedFrames(source, facts, chosen, min(size, full), tuple(notes))


def _check_gaps(folder: Path) -> None:
    """Names the first picture that is missing in a folder of numbered ones; whatever else is odd shows later."""
    found = [re.fullmatch(r"(.*?)([0-9]+)", path.stem, re.DOTALL) for path in folder.iterdir() if is_image(path)]
    numbers = sorted({int(match[2]): match[2] for match in found if match}.items())
    for (one, text), (other, _) in pairwise(numbers):
        if other > one + 1:
            missing = f"{one + 1:0{len(text)}d}"
            raise bad_input(
                f"the picture number {missing} is missing",
                where=str(folder),
                why=f"{text} is followed by {other:0{len(text)}d}, and every frame is needed",
                fix="add the frames that are missing, in the order of the source",
            )


def _ground(source: Source, layer: str, size: tuple[int, int]) -> Ground:
    """The layer's canonical picture with texels as much smaller as the pixels of the edited frames are."""
    picture = canonical.pristine(source.run.canonical, layer)
    scale = size[0] / source.maps.size[0]
    scale = min(scale, math.sqrt(MOST_TEXELS / (picture.size[0] * picture.size[1])))
    width, height = (max(8, round(side * scale)) for side in picture.size)
    return Ground(source.maps.layers.index(layer), picture.box, (width, height))


def _reported(edited: EditedFrames, report: Report) -> Iterator[np.ndarray]:
    for t, frame in enumerate(edited):
        yield frame
        report("reading the frames", t + 1, len(edited.chosen))


def _flicker(frames: Iterator[np.ndarray], flow: FlowField | None, size: tuple[int, int]) -> float | None:
    """Warp error of frames along the source's flow at the size of the fit; None for a clip of one frame."""
    small = (_at(frame, size) for frame in frames)
    if flow is None:
        for _ in small:  # all frames are read once before any work
            pass
        return None
    forward = (resize_vectors(vectors, size) for vectors in flow.forward)
    return metrics.warp_error(small, forward, (resize_mask(mask, size) for mask in flow.forward_ok))


def _rendered(source: Source, overlays: dict[str, Overlay], lit: bool) -> Iterator[np.ndarray]:
    """The frames of the source at the size of the fit, with the overlays on them."""
    pictures = {name: canonical.pristine(source.run.canonical, name) for name in source.maps.layers}
    renderer = Renderer(source.maps, pictures, overlays, How(lit=lit))
    for t, frame in enumerate(read_source(source.run).frames):
        yield renderer.render_frame(t, np.asarray(frame))


def _told(
    layers: tuple[str, ...], found: list[Fused], before: float | None, after: float | None, lit: bool, share: float
) -> Iterator[str]:
    """What the user should know of a result; `share`: how much it shows where frames have nothing in common."""
    if before and after is not None:
        ratio = after / before
        yield f"warp error along the source's flow: {before:.5f} frame by frame, {after:.5f} fused ({ratio:.0%} of it)"
    if not lit:
        yield "the edited frames do not follow the light of the source, so it is not put on them"
    apart = [
        f"{1 - one.agreed:.0%} of {name}" for name, one in zip(layers, found, strict=True) if 1 - one.agreed > SWIM
    ]
    if apart:
        how = "looks as in those around the middle of the clip"
        faint = "" if share == 1 else f", {share:.0%} as strong, or it would not be steady" if share else ""
        where = f"there it {how}{faint}" if share else "there it is softer than they are, or it would not be steady"
        yield f"the frames do not agree on {' and '.join(apart)}: {where}"


def _at(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """A frame at another size."""
    if (frame.shape[1], frame.shape[0]) == size:
        return frame
    mode = cv2.INTER_AREA if size[0] < frame.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(frame, size, interpolation=mode)


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
