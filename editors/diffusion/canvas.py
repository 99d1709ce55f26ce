"""From a canonical picture to the pictures that a diffusion model works on, and back to an overlay.

A model wants a picture without holes, of the size it was trained on. A canvas is the part of a canonical picture around
the region to edit, enlarged or shrunk to that size (VidEdit, Couairon et al., 2023, crops its atlas in the same way).
What comes back is put on as an overlay that is transparent outside the region: other pixels stay the source's.

Where the video shows nothing the region goes on as it ends, for some texels: pixels at the silhouette of a layer look
up texels on both sides of it, and without that they would keep a rim of the old colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editors.diffusion.tiles import STRETCH
from neural_fields.canonical import CanonicalImage, Overlay, fit
from neural_fields.coords import Box
from neural_fields.pictures import premultiplied, resize, straight

MARGIN = 0.1  # of the region's longer side is shown around it, so that the model sees where it joins
GAP = 16  # pixels between canvases that lie side by side
SEEN = 0.5  # coverage from which a texel's colour is the video's
GROWN = 3  # texels by which the region goes on where nothing is seen


@dataclass(frozen=True)
class Canvas:
    """A part of a canonical picture at the size a model works at.

    Attributes:
        image: RGB in [0, 1], without holes.
        region: where the edit may go, in [0, 1].
        alpha: the same for each texel of the picture: the most that an overlay hides of it.
        box: the part of the canonical plane it covers.
        layer: whose picture it is.
    """

    image: Float[Tensor, "1 3 height width"]
    region: Float[Tensor, "1 1 height width"]
    alpha: Float[np.ndarray, "rows columns"]
    box: Box
    layer: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.image.shape[3], self.image.shape[2]

    def overlay(self, result: Float[Tensor, "1 3 height width"], notes: Sequence[str] = ()) -> Overlay:
        """What a model made of the canvas, as an overlay that shows it in the region and nothing elsewhere."""
        return self.overlay_rgba(torch.cat([result, torch.ones_like(result[:, :1])], dim=1), notes)

    def overlay_rgba(self, rgba: Float[Tensor, "1 4 height width"], notes: Sequence[str] = ()) -> Overlay:
        """An overlay of straight RGBA on the canvas, as far as the region lets it be seen.

        Its size is the smallest multiple of the picture's own texels that loses nothing of the canvas.
        """
        rows, columns = self.alpha.shape
        finer = max(1, -(-self.size[0] // columns), -(-self.size[1] // rows))
        size = (finer * columns, finer * rows)
        array = rgba[0].permute(1, 2, 0).detach().float().cpu().contiguous().numpy()
        array = straight(resize(premultiplied(np.clip(array, 0, 1)), size))
        # The smooth enlargement alone would reach half a texel past the region.
        smooth = resize(np.ascontiguousarray(self.alpha[..., None]), size)[..., 0]
        array[..., 3] *= np.minimum(smooth, self.alpha.repeat(finer, axis=0).repeat(finer, axis=1))
        array[..., :3] *= array[..., 3:] > 0
        return Overlay(array, self.box, tuple(notes))

    def part_of(self, picture: Float[np.ndarray, "h w channels"], box: Box) -> Float[Tensor, "1 channels height width"]:
        """What a picture that covers `box` shows where the canvas lies, at the size of the canvas."""
        height, width = picture.shape[:2]
        left, right = (round((u - box.u0) / box.width * width) for u in (self.box.u0, self.box.u1))
        top, bottom = (round((v - box.v0) / box.height * height) for v in (self.box.v0, self.box.v1))
        part = np.ascontiguousarray(picture[max(0, top) : max(top + 1, bottom), max(0, left) : max(left + 1, right)])
        return torch.from_numpy(resize(part, self.size)).permute(2, 0, 1)[None].contiguous()

    def on_picture(
        self, values: Float[Tensor, "1 1 height width"], picture: CanonicalImage
    ) -> Float[np.ndarray, "rows columns"]:
        """Values in [0, 1] on the canvas, at the texels of the whole picture; 0 around the canvas."""
        rows, columns = self.alpha.shape
        array = resize(values[0].permute(1, 2, 0).float().cpu().contiguous().numpy(), (columns, rows))
        rgba = np.concatenate([np.zeros((rows, columns, 3), np.float32), array], axis=-1)
        return fit(Overlay(rgba, self.box), picture.size, picture.box)[..., 3]


def open_canvas(
    picture: CanonicalImage, region: Float[np.ndarray, "height width"], side: int, multiple: int, feather: float = 0.0
) -> Canvas:
    """The part of a picture around a region, scaled so that its longer side has about `side` pixels.

    Args:
        picture: the canonical picture.
        region: where the edit may go, at the picture's size; some of it is above 0.
        side: of the canvas in pixels.
        multiple: both sides of the canvas are multiples of this.
        feather: pixels of the canvas over which the region fades in from its edge. Where the layer itself ends is no
            edge: there its weight in each frame fades.
    """
    rgba = picture.array()
    known = (rgba[..., 3] > SEEN) | (region > 0)
    onward, distance = _continued(region, known)
    alpha = np.where(distance <= GROWN, onward, 0).astype(np.float32)
    rows, columns = _around(alpha, side, multiple)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    scale = side / max(width, height)
    size = tuple(max(multiple, multiple * round(scale * texels / multiple)) for texels in (width, height))
    if feather > 0:
        alpha = np.minimum(alpha, _faded(onward, feather / scale))
    part = np.ascontiguousarray(filled(rgba[rows, columns, :3], rgba[rows, columns, 3] > SEEN))
    image = np.clip(resize(part, size), 0, 1)
    alpha = np.ascontiguousarray(alpha[rows, columns])
    inside = np.clip(resize(alpha[..., None], size)[..., 0], 0, 1)
    return Canvas(
        torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(),
        torch.from_numpy(np.ascontiguousarray(inside))[None, None],
        alpha,
        _box_of(picture, rows, columns),
        picture.layer,
    )


def open_canvases(
    pictures: Mapping[str, CanonicalImage],
    regions: Mapping[str, Float[np.ndarray, "_ _"]],
    side: int,
    multiple: int,
    feather: float = 0.0,
) -> list[Canvas]:
    """Canvases of several layers that together are a picture a model sees as a whole.

    Args:
        pictures, regions: by layer; the layers of `regions` are opened, in its order.
        side, multiple, feather: as for `open_canvas`.
    """

    def opened(each: int) -> list[Canvas]:
        return [open_canvas(pictures[layer], region, each, multiple, feather) for layer, region in regions.items()]

    canvases, each = opened(side), side
    while len(canvases) > 1 and each > multiple and max(_joint_size(canvases, multiple)) > STRETCH * side:
        gaps = _gap(multiple) * (len(canvases) - 1)
        fitting = each * (STRETCH * side - gaps) / (max(_joint_size(canvases, multiple)) - gaps)
        each = max(multiple, min(each - multiple, int(fitting)))
        canvases = opened(each)
    return canvases


def filled(
    rgb: Float[np.ndarray, "height width 3"], known: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width 3"]:
    """A picture without holes: unknown texels take smooth colours from around (push-pull, Gortler et al., 1996)."""
    if known.all() or not known.any():
        return rgb
    weight = known.astype(np.float32)[..., None]
    return np.where(known[..., None], rgb, _pulled(rgb * weight, weight)).astype(np.float32)


def side_by_side(
    canvases: Sequence[Canvas], multiple: int
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
    """Canvases of several layers as one picture and its region, so that a model sees them together and they agree.

    They lie beside each other, or one above the other where that is the squarer picture. NaRCan (2024) edits the
    canonical pictures of its segments in the same way, as one grid.
    """
    image = together([canvas.image for canvas in canvases], canvases, multiple, "replicate")
    return image, together([canvas.region for canvas in canvases], canvases, multiple)


def together(
    parts: Sequence[Float[Tensor, "1 c _ _"]], canvases: Sequence[Canvas], multiple: int, around: str = "constant"
) -> Float[Tensor, "1 c h w"]:
    """Pictures of the canvases' sizes as one picture; around them are zeros, or their borders go on ("replicate")."""
    above = _above(canvases)
    across = max(canvas.size[0 if above else 1] for canvas in canvases)
    padded = []
    for index, (part, canvas) in enumerate(zip(parts, canvases, strict=True)):
        beside = across - canvas.size[0 if above else 1]
        gap = _gap(multiple) if index < len(canvases) - 1 else 0
        room = (0, beside, 0, gap) if above else (0, gap, 0, beside)
        padded.append(torch.nn.functional.pad(part, room, mode=around))
    return torch.cat(padded, dim=2 if above else 3)


def apart(picture: Float[Tensor, "1 c h w"], canvases: Sequence[Canvas], multiple: int) -> list[Tensor]:
    """The parts of a picture made by `side_by_side`."""
    above, start, parts = _above(canvases), 0, []
    for canvas in canvases:
        width, height = canvas.size
        if above:
            parts.append(picture[:, :, start : start + height, :width])
        else:
            parts.append(picture[:, :, :height, start : start + width])
        start += (height if above else width) + _gap(multiple)
    return parts


def _gap(multiple: int) -> int:
    return multiple * -(-GAP // multiple)


def _above(canvases: Sequence[Canvas]) -> bool:
    """Whether canvases lie one above the other."""
    return sum(canvas.size[1] for canvas in canvases) < sum(canvas.size[0] for canvas in canvases)


def _joint_size(canvases: Sequence[Canvas], multiple: int) -> tuple[int, int]:
    """How long and how wide the canvases are together."""
    axis = 1 if _above(canvases) else 0
    gaps = _gap(multiple) * (len(canvases) - 1)
    return sum(canvas.size[axis] for canvas in canvases) + gaps, max(canvas.size[1 - axis] for canvas in canvases)


def _continued(
    region: Float[np.ndarray, "height width"], known: Bool[np.ndarray, "height width"]
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """A region with the value of the nearest known texel where nothing is known, and how far away that is."""
    if known.all() or not known.any():
        return region, np.zeros_like(region)
    distance, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros(labels.max() + 1, np.float32)
    values[labels[known]] = region[known]
    return values[labels], distance


def _around(region: Float[np.ndarray, "height width"], side: int, multiple: int) -> tuple[slice, slice]:
    """The rows and columns of a region with a margin, of an aspect that a canvas of whole multiples has."""
    where = np.argwhere(region > 0)
    (top, left), (bottom, right) = where.min(axis=0).tolist(), (where.max(axis=0) + 1).tolist()
    margin = round(MARGIN * max(bottom - top, right - left))
    limits = region.shape
    spans = [
        (max(0, top - margin), min(limits[0], bottom + margin)),
        (max(0, left - margin), min(limits[1], right + margin)),
    ]
    # More is shown around, rather than the picture stretched to whole multiples.
    texels = max(stop - start for start, stop in spans) / side  # a pixel
    whole = [-(-(stop - start) // max(1e-9, multiple * texels)) * multiple * texels for start, stop in spans]
    rows, columns = (
        _widened(*span, round(least), limit) for span, least, limit in zip(spans, whole, limits, strict=True)
    )
    return rows, columns


def _widened(start: int, stop: int, least: int, limit: int) -> slice:
    """A span made at least so long, within [0, limit]."""
    least = max(stop - start, min(least, limit))
    start = min(max(0, start - (least - (stop - start)) // 2), limit - least)
    return slice(int(start), int(start + least))


def _box_of(picture: CanonicalImage, rows: slice, columns: slice) -> Box:
    box, (width, height) = picture.box, picture.size
    return Box(
        box.u0 + box.width * columns.start / width,
        box.v0 + box.height * rows.start / height,
        box.u0 + box.width * columns.stop / width,
        box.v0 + box.height * rows.stop / height,
    )


def _faded(region: Float[np.ndarray, "height width"], radius: float) -> Float[np.ndarray, "height width"]:
    """How far inside the region each texel lies, as a share of the radius; the picture's own border is no edge."""
    padded = cv2.copyMakeBorder((region > SEEN).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return np.clip((distance - 0.5) / radius, 0, 1)  # the edge lies between two texels


def _pulled(colour: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours of weighted texels spread over all of a picture, through smaller and smaller copies of it."""
    height, width = weight.shape[:2]
    if max(height, width) <= 1:
        return colour / np.maximum(weight, 1e-6)
    half = ((width + 1) // 2, (height + 1) // 2)
    small_colour = cv2.resize(colour, half, interpolation=cv2.INTER_AREA).reshape(half[1], half[0], -1)
    small_weight = cv2.resize(weight, half, interpolation=cv2.INTER_AREA).reshape(half[1], half[0], 1)
    coarse = cv2.resize(_pulled(small_colour, small_weight), (width, height), interpolation=cv2.INTER_LINEAR)
    share = np.clip(weight, 0, 1)
    return colour / np.maximum(weight, 1e-6) * share + coarse.reshape(height, width, -1) * (1 - share)
