"""Edit by several frames: each painted frame is lifted, and frames vote where their paint meets in a canonical picture.

A frame votes on its paint and within a few pixels around it, so that soft edges keep their position. Elsewhere it has
no vote, not even against: paint in a single frame counts as paint. The weight of a vote is the visibility of the texel
in the frame. Of three votes or more the weighted median is taken, so that a single deviating frame leaves no trace; of
two votes, the one of the frame that shows the patch of paint better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from editors.inputs.canonical_picture import NoChangeError
from editors.inputs.frame_lifting import DEFAULTS as LIFTING
from editors.inputs.frame_lifting import FrameLiftSettings, add_alpha, place_frame, squeeze_pixels
from editors.inputs.frame_recognition import check_frame_number
from editors.inputs.match_to_original import require_whole_picture
from editors.inputs.merging_settings import DEFAULTS as MERGING
from editors.inputs.merging_settings import FrameMergingSettings
from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.paint_lifting import read_frame_maps
from neural_fields.atlas.placed_picture import Paint, PlacedPicture
from neural_fields.core import array_coords
from neural_fields.imaging.image_io import Picture
from neural_fields.imaging.push_pull import pull_push
from neural_fields.open_runs.planar_run import PlanarRun


@dataclass(frozen=True)
class FrameVoteSettings:
    """Settings of merging what several painted frames say of a canonical picture."""

    rim_px: float = 2.0  # distance around paint, in pixels of the frame, in which a frame votes for no paint
    min_alpha: float = 0.5  # least alpha of paint whose colors are compared; edges are mixtures
    opaque_alpha: float = 0.998
    max_color_difference: float = 0.1  # share of the range of colors above which paint counts as different
    fineness: float = 3.0  # of the merged paint: texels along a side to one of the canonical picture
    max_texels: float = 16e6
    all_vote: bool = False  # whether frames vote against paint wherever they show the layer, so that a majority decides
    lifting: FrameLiftSettings = LIFTING
    merging: FrameMergingSettings = MERGING


DEFAULTS = FrameVoteSettings()


def lift_frames(
    run: PlanarRun,
    painted: Mapping[int, Picture],
    layer: str | None = None,
    skip_unpainted: bool = False,
    settings: FrameVoteSettings = DEFAULTS,
) -> Mapping[str, Paint]:
    """Lifts the changes that a user made to frames of a clip: those of one frame are placed, of several are merged.

    Args:
        run: the open run.
        painted: the painted frames, by their number in the source.
        layer: the layer that takes the changes; by default, for each frame, the layer most visible under its paint.
        skip_unpainted: whether frames without paint are left out instead of refused.
        settings: thresholds of the votes.

    Returns:
        The paint, by layer; none if no frame has paint. The painted frames show it as it was painted.

    Raises:
        UserError: frames that the run does not have, or an error of `place_frame` (exit 3). Errors are raised before
            any work is done, where possible.
    """
    indices = {number: run.require_frame(number) for number in painted}
    if layer is not None:
        run.require_layer(layer)
    maps, pictures = run.maps, run.canonicals
    aspect, ready = run.metadata.pixel_aspect, {}
    for number, picture in sorted(painted.items()):
        ready[number] = squeeze_pixels(picture, run.source_size, aspect)
        require_whole_picture(ready[number], add_alpha(run.read_frame(number)), f"the frame {number}")
        check_frame_number(run, ready[number], number)
    if len(ready) == 1:
        ((number, picture),) = ready.items()
        try:
            return place_frame(picture, run.read_frame(number), run, number, layer, settings.lifting)
        except NoChangeError:
            if not skip_unpainted:
                raise
            return {}
    lifted: dict[str, list[LiftedFrame]] = {}
    for number, picture in ready.items():
        source = run.read_frame(number)
        here = read_frame_maps(maps, pictures, indices[number], (source.shape[1], source.shape[0]))
        sizes = [_choose_vote_size(size, settings) for size in here.sizes]
        here = replace(here, sizes=sizes)
        try:
            placed = place_frame(picture, source, run, number, layer, settings.lifting)
        except NoChangeError:
            if not skip_unpainted:
                raise
            continue
        for name, one in placed.items():
            index = maps.layers.index(name)
            width, height = here.sizes[index]
            overlay = replace(one.draw_overlay((width, height), here.boxes[index], is_cubic=True), frames=one.frames)
            uv = np.asarray(here.uv[index], np.float32)
            texels = array_coords.uv_to_texels(uv, here.boxes[index], width, height)
            column, row = texels[..., 0], texels[..., 1]
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            # How many texels lie between pixels.
            steps = np.abs(np.diff(texels, axis=1)).max(axis=-1)[(inside & (here.weight[index] > 0))[:, 1:]]
            step = float(np.median(steps)) if len(steps) else 1.0
            # How many pixels there are to each texel, as far as they show the layer. Over some pixels: how they fall on
            # single texels is chance.
            x, y = texels[inside].astype(np.int64).T
            count = np.bincount(y * width + x, here.weight[index][inside], width * height).reshape(height, width)
            sight = cv2.GaussianBlur(count.astype(np.float32), (0, 0), 2 * max(1.0, step))
            rim = max(1, round(settings.rim_px * step))
            lifted.setdefault(name, []).append(LiftedFrame(number, overlay, sight, rim))
    return {name: merge_votes(name, votes, settings) for name, votes in lifted.items()}


@dataclass(frozen=True)
class LiftedFrame:
    """Holds the vote of one frame on a layer.

    Attributes:
        number: number of the frame in the source.
        overlay: the paint of the frame.
        sight: visibility of each texel of the layer, in pixels of the frame.
        rim: texels around the paint in which the frame votes for no paint.
    """

    number: int
    overlay: Overlay
    sight: Float[np.ndarray, "height width"]
    rim: int

    @property
    def paint_mask(self) -> Bool[np.ndarray, "height width"]:
        """The texels that the frame paints."""
        return self.overlay.rgba[..., 3] > 0

    def fill_colors(self) -> tuple[Float[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
        """Returns its colors and where they are defined, with pinholes filled where paint equals the picture below."""
        window = np.ones((2 * self.rim + 1,) * 2, np.uint8)
        closed = cv2.morphologyEx(self.paint_mask.astype(np.uint8), cv2.MORPH_CLOSE, window)
        known = self.paint_mask
        filled = pull_push(self.overlay.rgba[..., :3], known) if known.any() else self.overlay.rgba[..., :3]
        return filled, closed > 0

    def vote_mask(self, min_sight: float, everywhere: bool) -> Bool[np.ndarray, "height width"]:
        """Computes where the frame votes: on its paint, and around it, or everywhere, where it shows the layer."""
        if everywhere:
            return self.paint_mask | (self.sight > min_sight)
        window = np.ones((2 * self.rim + 1,) * 2, np.uint8)
        around = cv2.dilate(self.paint_mask.astype(np.uint8), window) > 0
        return self.paint_mask | (around & (self.sight > min_sight))


def merge_votes(layer: str, votes: list[LiftedFrame], settings: FrameVoteSettings = DEFAULTS) -> PlacedPicture:
    """Merges the overlays of several frames, with a note on frames that were painted differently from others.

    Args:
        layer: name of the layer, for the notes.
        votes: what the frames say of it.
        settings: thresholds of the votes.
    """
    rgba = np.stack([one.overlay.rgba for one in votes])
    min_sight = settings.merging.min_weight
    weight = np.stack(
        [np.where(one.vote_mask(min_sight, settings.all_vote), np.maximum(one.sight, min_sight), 0) for one in votes]
    )
    alpha = rgba[..., 3] * (weight > 0)
    # Colors are asked only of frames that painted there; how opaque the paint is, of all that vote.
    filled = [one.fill_colors() for one in votes]
    colors, colored = np.stack([color for color, _ in filled]), np.stack([known for _, known in filled])
    patches = cv2.connectedComponents((alpha.max(axis=0) > 0).astype(np.uint8))[1]
    merged_color = _decide_votes(colors, weight * colored, patches, settings.merging)
    merged_alpha = _decide_votes(alpha[..., None], weight, patches, settings.merging)
    merged = np.concatenate([merged_color, merged_alpha], axis=-1)
    merged[merged[..., 3] <= 0] = 0
    notes = [f"frame {one.number}: {note}" for one in votes for note in one.overlay.notes]

    # Which frames were painted differently where others were painted too?
    differing: set[int] = set()
    opaque = rgba[..., 3] > settings.min_alpha
    shared = opaque.sum(axis=0) > 1
    for one, own, color in zip(votes, opaque & shared, rgba[..., :3], strict=True):
        # A mean over some texels: detail finer than the pixels comes out a little different in every frame.
        side = (2 * one.rim + 1,) * 2
        total = cv2.blur((color - merged[..., :3]) * own[..., None], side)
        mean = total / np.maximum(cv2.blur(own.astype(np.float32), side), 1e-3)[..., None]
        off = own & (np.abs(mean).max(axis=-1) > settings.max_color_difference)
        if off.sum() > settings.lifting.told_share * own.sum():
            there = [str(v.number) for v, o in zip(votes, opaque, strict=True) if v is not one and (o & off).any()]
            differing.add(one.number)
            others = f"frame {there[0]}"
            if len(there) > 1:
                others = f"frames {', '.join(there[:-1])} and {there[-1]}"
            notes.append(
                f"frame {one.number} differs from {others} on {off.sum() / own.sum():.0%} of the paint that "
                f"they share in {layer}: there the others are followed"
            )
    # Opaque paint is shown as it was painted, on frames that do not differ from others.
    frames = tuple(
        replace(paint, rgba=paint.rgba * (paint.rgba[..., 3:] > settings.opaque_alpha), is_whole=False)
        for one in votes
        if one.number not in differing
        for paint in one.overlay.frames
    )
    overlay = Overlay(merged.astype(np.float32), votes[0].overlay.box, tuple(dict.fromkeys(notes)), frames)
    return PlacedPicture.from_painted_part(overlay)


def _choose_vote_size(size: tuple[int, int], settings: FrameVoteSettings) -> tuple[int, int]:
    """Chooses the (width, height) of the picture that frames vote on, for a canonical picture of `size`."""
    finer = min(settings.fineness, max(1.0, (settings.max_texels / (size[0] * size[1])) ** 0.5))
    return round(finer * size[0]), round(finer * size[1])


def _decide_votes(
    values: Float[np.ndarray, "n height width channels"],
    weight: Float[np.ndarray, "n height width"],
    patches: Int[np.ndarray, "height width"],
    settings: FrameMergingSettings,
) -> Float[np.ndarray, "height width channels"]:
    """Takes the weighted median of three or more votes, else the vote of the frame with most weight in the patch."""
    import torch

    from editors.inputs.merging import compute_weighted_median

    flat = [np.bincount(patches.ravel(), one.ravel().astype(np.float64)) for one in weight]
    standing = np.where(weight > 0, np.stack(flat)[:, patches], -1)
    best = np.take_along_axis(values, standing.argmax(axis=0)[None, ..., None], axis=0)[0]
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 1), np.float32))
    median = compute_weighted_median(tensor, torch.from_numpy(np.ascontiguousarray(weight, np.float32)), settings)
    many = (weight > 0).sum(axis=0) >= settings.min_votes
    return np.where(many[..., None], np.moveaxis(median.numpy(), 0, -1), best)
