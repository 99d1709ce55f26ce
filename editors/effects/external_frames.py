"""`frames`: turns a video that was edited frame by frame into one steady edit.

Frames that are copies of the source, painted on in places, are an edit of that paint alone (`inputs/edited_clip.py`).
Others are fused into the canonical picture of each layer (`inputs/frame_fusion.py`), so that every point has one color
in all frames. The warp error along the source's optical flow, before and after, measures how much steadier the
result is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.core.stack import EditEffects
from editors.inputs.edited_clip import ClipPaint, find_painted_frames
from editors.inputs.frame_fusion import DEFAULTS as FUSION
from editors.inputs.frame_fusion import (
    FusedFrames,
    FusionGrid,
    FusionSettings,
    compute_texel_positions,
    follows_light,
    fuse_frames,
    sample_replicated,
)
from editors.inputs.painted_frames import DEFAULTS as VOTES
from editors.inputs.painted_frames import FrameVoteSettings, lift_frames
from editors.options.effects import EditedFramesOptions
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.flow.compute import FlowField, resize_mask, resize_vectors
from neural_fields.data.video.io import probe_video, source_frames
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.data.video.picture_suffixes import is_image
from neural_fields.evaluation import metrics
from neural_fields.imaging.alpha import resize_image
from neural_fields.imaging.image_io import make_picture
from neural_fields.rendering.base import OverlayOptions
from neural_fields.rendering.overlay_pass import OverlayPass


@dataclass(frozen=True)
class FramesEditSettings:
    """Settings of the edit that is made of edited frames."""

    max_texels: int = 24_000_000  # largest number of texels of an overlay
    max_warp_error_ratio: float = 0.45  # ratio of the result to the frames: below 0.5, to halve the error safely
    min_detail_share: float = 0.1  # a smaller share of the detail that frames do not share is left out
    min_disagreement_share: float = 0.05  # share of a layer: smaller disagreements are not reported
    most_lifted: int = 8  # most painted frames that are lifted; of more of them, a majority decides what is paint
    fusion: FusionSettings = FUSION
    votes: FrameVoteSettings = VOTES


DEFAULTS = FramesEditSettings()


@dataclass(frozen=True, kw_only=True)
class Frames(EditedFramesOptions, PlanarEditor):
    """Fuse a video that was edited frame by frame, by any program, into one steady edit."""

    starts_with = "all"

    def edit(
        self, source: EditSource, report: ProgressReporter, settings: FramesEditSettings = DEFAULTS
    ) -> EditorResult:
        """Fuses the frames into one overlay per layer, or lifts their paint if they are copies of the source.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.
            settings: limits of the overlays and of the warp error.

        Returns:
            The overlays, with notes on the warp error, the lighting, and the regions where frames disagree.

        Raises:
            UserError: frames that cannot be read, too few or too many frames, a different shape, frames that are
                cropped or in another order, or no change (exit 3).
        """
        edited = open_edited_frames(source, self.frames)
        paint = find_painted_frames(source.run, edited.__iter__, self.frames.name, report)
        if paint is not None:
            return self._lift_paint(source, edited, paint, settings)
        flow = source.run.flow
        before = _measure_flicker(_report_frames(edited, report), flow, source.maps.size)

        # Canonical pictures have texels as much smaller as the pixels of the edited frames are.
        grids = []
        for layer in source.layers:
            picture = source.run.canonical(layer)
            scale = edited.size[0] / source.maps.size[0]
            scale = min(scale, math.sqrt(settings.max_texels / (picture.size[0] * picture.size[1])))
            width, height = (max(8, round(side * scale)) for side in picture.size)
            grids.append(FusionGrid(source.maps.layers.index(layer), picture.box, (width, height)))

        lit = follows_light(edited.iterate_targets, source.maps, grids, edited.size, settings.fusion)
        found = fuse_frames(
            edited.iterate_targets,
            source.maps,
            grids,
            edited.size,
            lit,
            report,
            settings.fusion,
        )
        overlays, after, share = self._limit_flicker(source, grids, found, lit, flow, before, settings)

        notes = list(edited.notes)
        if before and after is not None:
            ratio = after / before
            figures = f"{before:.5f} frame by frame, {after:.5f} fused ({ratio:.0%} of it)"
            notes.append(f"warp error along the source's flow: {figures}")
        if not lit:
            notes.append("the edited frames do not follow the light of the source, so it is not put on them")
        apart = [
            f"{1 - one.agreement:.0%} of {name}"
            for name, one in zip(source.layers, found, strict=True)
            if 1 - one.agreement > settings.min_disagreement_share
        ]
        if apart:
            how = "looks as in those around the middle of the clip"
            faint = "" if share == 1 else f", {share:.0%} as strong, or it would not be steady" if share else ""
            where = f"there it {how}{faint}" if share else "there it is softer than they are, or it would not be steady"
            notes.append(f"the frames do not agree on {' and '.join(apart)}: {where}")

        details = {
            "frames": {"file": self.frames.name, "sha256": edited.metadata.sha256, "size": list(edited.size)},
            "warp_error_of_frames": before,
            "warp_error": after,
            "agreement": {layer: round(one.agreement, 4) for layer, one in zip(source.layers, found, strict=True)},
        }
        return EditorResult(overlays, tuple(notes), details, effects=EditEffects(lit=lit))

    def _lift_paint(
        self, source: EditSource, edited: EditedFrames, paint: ClipPaint, settings: FramesEditSettings
    ) -> EditorResult:
        """Makes overlays of the paint on frames that are copies of the source otherwise.

        Raises:
            UserError: there is no paint (exit 3).
        """
        count = len(paint.painted)
        chosen = {paint.painted[round(place)] for place in np.linspace(0, count - 1, min(count, settings.most_lifted))}
        pictures = {
            source.run.frames[t]: make_picture(frame, f"a frame of {self.frames.name}")
            for t, frame in enumerate(edited)
            if t in chosen
        }
        votes = replace(settings.votes, all_vote=count > settings.most_lifted)
        found = lift_frames(source.run, pictures, source.only_layer, skip_unpainted=True, settings=votes)
        if not found:
            like = f" in other colors ({paint.colors.name})" if paint.colors.is_told and paint.colors.name else ""
            raise bad_input(
                f"no change found in {self.frames.name}",
                where=str(self.frames),
                why=f"its frames are those of the video{like}: what differs is what saving them did",
                fix="paint on them, save them, and run the same command again",
            )
        overlays = {}
        for layer, overlay in found.items():
            rgba = overlay.rgba.copy()
            if source.mask is not None:
                rgba[..., 3] *= resize_image(source.read_region(layer)[..., None], rgba.shape[1::-1])[..., 0]
            rgba[..., 3] *= self.strength
            overlays[layer] = replace(overlay, rgba=rgba)
        note = f"{count} of {source.frame_count} frames have paint on them; all else is left as it is"
        return EditorResult(overlays, (*edited.notes, note))

    def _limit_flicker(
        self,
        source: EditSource,
        grids: list[FusionGrid],
        found: list[FusedFrames],
        lit: bool,
        flow: FlowField | None,
        before: float | None,
        settings: FramesEditSettings,
    ) -> tuple[dict[str, Overlay], float | None, float]:
        """Builds overlays that keep as much detail that not all frames share as the warp error allows.

        The error of a mixture grows with the square of the share of that detail, so two errors determine the share.

        Returns:
            The overlays, their warp error, and the share: 1 for all detail, 0 for only what all frames have in common.
        """
        overlays = self._build_overlays(source, grids, found, 1.0)
        error = _measure_flicker(_render_frames(source, overlays, lit), flow, source.maps.size)
        if before is None or error is None or error <= settings.max_warp_error_ratio * before:
            return overlays, error, 1.0
        overlays = self._build_overlays(source, grids, found, 0.0)
        least = _measure_flicker(_render_frames(source, overlays, lit), flow, source.maps.size)
        assert least is not None, "there is a flow"
        share = math.sqrt(max(0.0, settings.max_warp_error_ratio * before - least) / max(error - least, 1e-12))
        if least >= error or share < settings.min_detail_share:
            return overlays, least, 0.0
        overlays = self._build_overlays(source, grids, found, share)
        return overlays, _measure_flicker(_render_frames(source, overlays, lit), flow, source.maps.size), share

    def _build_overlays(
        self, source: EditSource, grids: list[FusionGrid], found: list[FusedFrames], share: float
    ) -> dict[str, Overlay]:
        result = {}
        for layer, grid, one in zip(source.layers, grids, found, strict=True):
            alpha = one.visible_mask.astype(np.float32)
            if source.mask is not None:
                alpha *= resize_image(source.read_region(layer)[..., None], grid.size)[..., 0]
            color = np.where(alpha[..., None] > 0, one.shared_color + share * (one.color - one.shared_color), 0)
            rgba = np.concatenate([color, self.strength * alpha[..., None]], axis=-1)
            result[layer] = Overlay(rgba.astype(np.float32), grid.box)
        return result


@dataclass(frozen=True)
class EditedFrames:
    """Holds the edited frames of a run, which are decoded again for every pass.

    Attributes:
        source: the run, and the layers to edit.
        metadata: metadata of the edited frames.
        frame_numbers: numbers of the edited frames that belong to the frames of the run.
        size: (width, height) in pixels at which they are processed: their size, or the source's if that is smaller.
        notes: notes for the user, one sentence each.
    """

    source: EditSource
    metadata: VideoMetadata
    frame_numbers: range
    size: tuple[int, int]
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        for frame in source_frames(self.metadata, self.frame_numbers):
            yield _resize_frame(frame, self.size)

    def iterate_targets(self) -> Iterator[Float[np.ndarray, "height width 3"]]:
        """Yields the contribution of the edited layers to each frame: the frame without the other layers."""
        source, maps, size = self.source, self.source.maps, self.size
        others = [i for i, name in enumerate(maps.layers) if name not in source.layers]
        if not others:
            yield from (frame.astype(np.float32) / 255 for frame in self)
            return
        for t, (frame, plain) in enumerate(zip(self, source.run.iterate_frames(), strict=True)):
            # What the other layers show of a frame of the source, by the decomposition that rendering uses.
            weight = maps.read_weights(t, size)
            shown = []
            for layer, name in enumerate(maps.layers):
                picture = source.run.canonical(name)
                places = compute_texel_positions(maps, t, layer, size, picture.box, picture.size)
                color = sample_replicated(picture.rgba[..., :3], places) * maps.read_gain(t, layer, size)
                shown.append(weight[layer][..., None] * color)
            missed = _resize_frame(plain, size).astype(np.float32) / 255 - np.sum(shown, axis=0)
            added = sum((shown[i] + weight[i][..., None] * missed for i in others), np.zeros_like(missed))
            yield frame.astype(np.float32) / 255 - added


def open_edited_frames(source: EditSource, path: Path) -> EditedFrames:
    """Opens edited frames, and checks them against the run without decoding them.

    Args:
        source: the run, and the layers to edit.
        path: a folder of numbered pictures, or a video.

    Raises:
        UserError: frames that cannot be read, too few or too many frames, or a different shape (exit 3).
    """
    if not path.exists():
        raise bad_input(f"there is no file or folder {path}", where="--frames", fix="check the spelling of the path")
    if path.is_dir():
        # The first number that is missing is named here; whatever else is odd shows later.
        found = [re.fullmatch(r"(.*?)([0-9]+)", file.stem, re.DOTALL) for file in path.iterdir() if is_image(file)]
        numbers = sorted({int(match[2]): match[2] for match in found if match}.items())
        for (one, text), (other, _) in pairwise(numbers):
            if other > one + 1:
                missing = f"{one + 1:0{len(text)}d}"
                raise bad_input(
                    f"the picture number {missing} is missing",
                    where=str(path),
                    why=f"{text} is followed by {other:0{len(text)}d}, and every frame is needed",
                    fix="add the frames that are missing, in the order of the source",
                )
    metadata = probe_video(path)
    had, run_frames = source.run.metadata, source.run.frames
    if metadata.frame_count not in (len(run_frames), had.frame_count):
        both = f"the run has {len(run_frames)} frames" + (
            f" of {had.frame_count} in its source" if had.frame_count != len(run_frames) else ""
        )
        less = metadata.frame_count < len(run_frames)
        raise bad_input(
            f"{path.name} has too {'few' if less else 'many'} frames: {metadata.frame_count}",
            where=str(path),
            why=both,
            fix="edit every frame of the source, or every frame of the run, and keep their order",
        )
    chosen = metadata.numbers
    if metadata.frame_count != len(run_frames):
        chosen = chosen[run_frames.start - had.first_number : run_frames.stop - had.first_number : run_frames.step]
    size, full = (metadata.width, metadata.height), (had.width, had.height)
    scale = sum(size) / sum(full)
    if max(abs(one - other * scale) for one, other in zip(size, full, strict=True)) > 1:
        raise bad_input(
            f"{path.name} has frames of another shape: {_format_size(size)} instead of {_format_size(full)}",
            where=str(path),
            why="they seem to be cropped, stretched or rotated",
            fix="edit the frames without cropping or rotating them",
        )
    # "carry no rate" says nothing here: frames go by their order.
    notes = [note for note in metadata.notes if "rate" not in note]
    if size != full:
        sharp = "the edit is as sharp as they are" if sum(size) < sum(full) else "they are brought to that size"
        notes.append(f"the edited frames have {_format_size(size)} pixels instead of {_format_size(full)}: {sharp}")
    return EditedFrames(source, metadata, chosen, min(size, full), tuple(notes))


def _report_frames(edited: EditedFrames, report: ProgressReporter) -> Iterator[np.ndarray]:
    """Yields the frames and reports how many are read."""
    for t, frame in enumerate(edited):
        yield frame
        report(Progress("reading the frames", t + 1, len(edited.frame_numbers)))


def _measure_flicker(frames: Iterator[np.ndarray], flow: FlowField | None, size: tuple[int, int]) -> float | None:
    """Computes the warp error of frames along the source's optical flow, at the training size.

    Returns:
        The error; None for a clip of one frame.
    """
    small = (_resize_frame(frame, size) for frame in frames)
    if flow is None:
        for _ in small:  # all frames are read once before any work
            pass
        return None
    forward = (resize_vectors(vectors, size) for vectors in flow.forward)
    return metrics.warp_error(small, forward, (resize_mask(mask, size) for mask in flow.forward_ok))


def _render_frames(source: EditSource, overlays: dict[str, Overlay], lit: bool) -> Iterator[np.ndarray]:
    """Renders the frames of the source with the overlays on them, at the training size."""
    renderer = OverlayPass(source.maps, source.run.canonicals, overlays, OverlayOptions(lit=lit))
    for t, frame in enumerate(source.run.video.frames):
        yield renderer.render_frame(t, np.asarray(frame))


def _resize_frame(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    if (frame.shape[1], frame.shape[0]) == size:
        return frame
    mode = cv2.INTER_AREA if size[0] < frame.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(frame, size, interpolation=mode)


def _format_size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
