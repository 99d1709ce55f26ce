"""Several painted frames at once: each is lifted, and where their paint meets in a canonical picture they vote.

A frame votes where it was painted, and within a few pixels of its paint, so that soft edges stay where they are.
Elsewhere it has no vote, not even against: what was painted in one frame only, is painted. A vote counts as much as the
frame sees of the texel. Of three votes or more the weighted median is taken, so that one frame that differs leaves no
trace; of two, the one of the frame that sees the patch of paint better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from editors.frame import FrameMaps, frame_maps, lift_frame
from editors.lift import ROBUST, weighted_median
from neural_fields import canonical, coords
from neural_fields.baking import Maps
from neural_fields.canonical import Overlay
from neural_fields.data.video import source_frames
from neural_fields.errors import bad_input
from neural_fields.output import source_facts
from neural_fields.pictures import Picture
from neural_fields.planar.placement import pull_push
from neural_fields.run import Run

RIM = 2  # pixels around paint in which a frame says that there is none
CLEAR = 4  # power by which pixels count less that show other layers too
FAIR = 0.3  # of the usual sight of its paint: where a frame sees less, its colours are not held against it
LEAST = 1e-3  # pixels to a texel: a frame with less does not see it
OPAQUE = 0.5  # alpha of paint whose colours are compared: edges are mixtures
APART = 0.1  # of a colour's range; paint that differs by more is other paint
WORTH = 0.01  # of what frames share: disagreeing on less of it is not worth telling


def lift_frames(
    run: Run, maps: Maps, painted: Mapping[int, Picture], layer: str | None = None
) -> Mapping[str, Overlay]:
    """The changes a user made to several frames of a clip, as one overlay a layer.

    Args:
        painted: the painted frames by their number in the source, 0 is the first.
        layer: the layer that takes the changes; by default, for each frame the one that shows most under its paint.

    Raises:
        UserError: frames that the run does not have, or what `lift_frame` raises; before any work where it can be.
    """
    facts, chosen = source_facts(run)
    for number in painted:
        if number not in chosen:
            some = f", every {chosen.step}th" if chosen.step > 1 else ""
            raise bad_input(
                f"frame {number} is not part of this run",
                why=f"it was fitted to frames {chosen[0]} to {chosen[-1]}{some}",
                fix=f"--frame {min(chosen, key=lambda k: abs(k - number))}",
            )
    pictures = {name: canonical.pristine(run.canonical, name) for name in maps.layers}
    lifted: dict[str, list[_Lifted]] = {}
    for number, picture in sorted(painted.items()):
        source = next(iter(source_frames(facts, range(number, number + 1))))
        here = frame_maps(maps, pictures, chosen.index(number), (source.shape[1], source.shape[0]))
        for name, overlay in lift_frame(picture, source, here, layer).items():
            sight, step = _sight(here, maps.layers.index(name))
            lifted.setdefault(name, []).append(_Lifted(number, overlay, sight, max(1, round(RIM * step))))
    alone = len(painted) == 1
    return {name: votes[0].overlay if alone else _merged(name, votes) for name, votes in lifted.items()}


@dataclass(frozen=True)
class _Lifted:
    """What one frame says of a layer.

    Attributes:
        number: of the frame in the source.
        overlay: its paint.
        sight: how many of its pixels there are to each texel of the layer.
        rim: texels around the paint in which it says that there is none.
    """

    number: int
    overlay: Overlay
    sight: Float[np.ndarray, "height width"]
    rim: int

    @property
    def painted(self) -> Bool[np.ndarray, "height width"]:
        return self.overlay.rgba[..., 3] > 0

    @property
    def colours(self) -> tuple[Float[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
        """Its colours, and where it has any: also in pinholes, where paint happened to be as what is under it."""
        closed = cv2.morphologyEx(
            self.painted.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((2 * self.rim + 1,) * 2, np.uint8)
        )
        known = self.painted
        filled = pull_push(self.overlay.rgba[..., :3], known) if known.any() else self.overlay.rgba[..., :3]
        return filled, closed > 0

    @property
    def reach(self) -> Bool[np.ndarray, "height width"]:
        """Where it votes: on its paint, and around it where it sees the layer."""
        around = cv2.dilate(self.painted.astype(np.uint8), np.ones((2 * self.rim + 1,) * 2, np.uint8)) > 0
        return self.painted | (around & (self.sight > LEAST))


def _sight(maps: FrameMaps, index: int) -> tuple[Float[np.ndarray, "rows columns"], float]:
    """How many pixels of a frame there are to each texel of a layer, and how many texels lie between pixels."""
    width, height = maps.sizes[index]
    uv = torch.from_numpy(np.asarray(maps.uv[index], np.float32))
    texels = coords.uv_to_texels(uv, maps.boxes[index], width, height).numpy()
    column, row = texels[..., 0], texels[..., 1]
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    x, y = texels[inside].astype(np.int64).T
    # Where layers share a pixel, colours of one are told badly: such pixels count much less.
    trust = maps.weight[index][inside] ** CLEAR
    count = np.bincount(y * width + x, trust, width * height).reshape(height, width)
    steps = np.abs(np.diff(texels, axis=1)).max(axis=-1)[(inside & (maps.weight[index] > 0))[:, 1:]]
    step = float(np.median(steps)) if len(steps) else 1.0
    # Over some pixels: how they fall on single texels is chance.
    return cv2.GaussianBlur(count.astype(np.float32), (0, 0), 2 * max(1.0, step)), step


def _merged(layer: str, votes: list[_Lifted]) -> Overlay:
    """The overlay that several frames ask for together."""
    rgba = np.stack([one.overlay.rgba for one in votes])
    weight = np.stack([np.where(one.reach, np.maximum(one.sight, LEAST), 0) for one in votes])
    alpha = rgba[..., 3] * (weight > 0)
    # Colours are asked only of frames that painted there; how opaque the paint is, of all that vote.
    colours, coloured = (np.stack(part) for part in zip(*(one.colours for one in votes), strict=True))
    patches = cv2.connectedComponents((alpha.max(axis=0) > 0).astype(np.uint8))[1]
    merged = np.concatenate(
        [_decided(colours, weight * coloured, patches), _decided(alpha[..., None], weight, patches)], axis=-1
    )
    merged[merged[..., 3] <= 0] = 0
    own = [f"frame {one.number}: {note}" for one in votes for note in one.overlay.notes]
    notes = tuple(dict.fromkeys([*own, *_conflicts(layer, votes, rgba, merged)]))
    return Overlay(merged.astype(np.float32), votes[0].overlay.box, notes)


def _decided(
    values: Float[np.ndarray, "n height width channels"],
    weight: Float[np.ndarray, "n height width"],
    patches: Int[np.ndarray, "height width"],
) -> Float[np.ndarray, "height width channels"]:
    """The weighted median of three votes or more; of fewer, that of the frame with most weight in the patch."""
    flat = [np.bincount(patches.ravel(), one.ravel().astype(np.float64)) for one in weight]
    standing = np.where(weight > 0, np.stack(flat)[:, patches], -1)
    best = np.take_along_axis(values, standing.argmax(axis=0)[None, ..., None], axis=0)[0]
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 1), np.float32))
    median = weighted_median(tensor, torch.from_numpy(np.ascontiguousarray(weight, np.float32)))
    many = (weight > 0).sum(axis=0) >= ROBUST
    return np.where(many[..., None], np.moveaxis(median.numpy(), 0, -1), best)


def _conflicts(
    layer: str,
    votes: list[_Lifted],
    rgba: Float[np.ndarray, "n height width 4"],
    merged: Float[np.ndarray, "height width 4"],
) -> Iterator[str]:
    """Which frames were painted differently where others were painted too."""
    usual = [np.median(one.sight[one.painted]) if one.painted.any() else 0 for one in votes]
    fair = np.stack([one.sight >= FAIR * level for one, level in zip(votes, usual, strict=True)])
    opaque = (rgba[..., 3] > OPAQUE) & fair
    shared = opaque.sum(axis=0) > 1
    for one, own, colour in zip(votes, opaque & shared, rgba[..., :3], strict=True):
        # A mean over some texels: detail finer than the pixels comes out a little different in every frame.
        side = (2 * one.rim + 1,) * 2
        mean = (
            cv2.blur((colour - merged[..., :3]) * own[..., None], side)
            / np.maximum(cv2.blur(own.astype(np.float32), side), 1e-3)[..., None]
        )
        off = own & (np.abs(mean).max(axis=-1) > APART)
        if off.sum() > WORTH * own.sum():
            there = [v.number for v, o in zip(votes, opaque, strict=True) if v is not one and (o & off).any()]
            yield (
                f"frame {one.number} differs from {_listed(there)} on {off.sum() / own.sum():.0%} of the paint that "
                f"they share in {layer}: there the others are followed"
            )


def _listed(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"frame {numbers[0]}"
    return f"frames {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
