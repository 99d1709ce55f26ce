"""Canvases: parts of canonical pictures on which a diffusion model works, and their conversion to overlays.

A model needs a picture without holes, at the size that it was trained on. A canvas is the part of a canonical picture
around the region to edit, scaled to that size (VidEdit, Couairon et al., 2023, crops its atlas in the same way). The
result becomes an overlay that is transparent outside the region: other pixels do not change.

Beyond the part that the video shows, the region is extended by a few texels: pixels at the silhouette of a layer sample
texels on both sides of it, and would otherwise keep a rim of the old color.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editors.core.model_pictures import check_finite, check_model_picture
from editors.diffusion.backend.tiled_denoising import DEFAULTS as WINDOWS
from neural_fields.atlas.canonical import CanonicalImage, Overlay, resample_overlay
from neural_fields.core.box import Box
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply


@dataclass(frozen=True)
class CanvasSettings:
    """Settings of cutting canvases out of canonical pictures and of joining them."""

    margin_share: float = 0.1  # margin around the region, as a share of its longer side, that the model sees
    gap_px: int = 16  # gap between canvases that are placed side by side
    min_coverage: float = 0.5  # least coverage of a texel whose color is that of the video
    extension_texels: int = 3  # by which the region is extended where the video shows nothing


DEFAULTS = CanvasSettings()


@dataclass(frozen=True)
class Canvas:
    """Holds a part of a canonical picture at the size at which a model works.

    Attributes:
        image: RGB in [0, 1], without holes.
        region: the editable region, in [0, 1].
        alpha: the region at the texels of the whole picture: the largest alpha of an overlay there.
        box: the part of the canonical plane that the canvas covers.
        layer: name of the layer.
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

    def make_overlay(self, result: Float[Tensor, "1 3 height width"], notes: Sequence[str] = ()) -> Overlay:
        """Makes an overlay that shows a model's result in the region, and is transparent elsewhere.

        Args:
            result: the model's result, RGB in [0, 1].
            notes: notes for the user, one sentence each.
        """
        return self.make_rgba_overlay(torch.cat([result, torch.ones_like(result[:, :1])], dim=1), notes)

    def make_rgba_overlay(self, rgba: Float[Tensor, "1 4 height width"], notes: Sequence[str] = ()) -> Overlay:
        """Makes an overlay of RGBA on the canvas, limited to the region.

        Its resolution is the smallest multiple of the picture's texels that preserves the resolution of the canvas.

        Args:
            rgba: straight RGBA in [0, 1].
            notes: notes for the user, one sentence each.

        Raises:
            UserError: values that are no numbers (exit 3).
        """
        check_finite(rgba, "the model")
        rows, columns = self.alpha.shape
        finer = max(1, -(-self.size[0] // columns), -(-self.size[1] // rows))
        size = (finer * columns, finer * rows)
        array = rgba[0].permute(1, 2, 0).detach().float().cpu().contiguous().numpy()
        array = unpremultiply(resize_image(premultiply(np.clip(array, 0, 1)), size))
        # The smooth enlargement alone would reach half a texel past the region.
        smooth = resize_image(np.ascontiguousarray(self.alpha[..., None]), size)[..., 0]
        array[..., 3] *= np.minimum(smooth, self.alpha.repeat(finer, axis=0).repeat(finer, axis=1))
        array[..., :3] *= array[..., 3:] > 0
        return Overlay(array, self.box, tuple(notes))

    def crop_picture(
        self, picture: Float[np.ndarray, "h w channels"], box: Box
    ) -> Float[Tensor, "1 channels height width"]:
        """Crops a picture to the canvas, at the size of the canvas.

        Args:
            picture: the picture.
            box: the part of the canonical plane that the picture covers.
        """
        height, width = picture.shape[:2]
        left, right = (round((u - box.u0) / box.width * width) for u in (self.box.u0, self.box.u1))
        top, bottom = (round((v - box.v0) / box.height * height) for v in (self.box.v0, self.box.v1))
        part = np.ascontiguousarray(picture[max(0, top) : max(top + 1, bottom), max(0, left) : max(left + 1, right)])
        return torch.from_numpy(resize_image(part, self.size)).permute(2, 0, 1)[None].contiguous()

    def resample_to_picture(
        self, values: Float[Tensor, "1 1 height width"], picture: CanonicalImage
    ) -> Float[np.ndarray, "rows columns"]:
        """Resamples values on the canvas to the texels of the whole picture; they are 0 outside the canvas.

        Args:
            values: values in [0, 1] on the canvas.
            picture: the canonical picture.
        """
        rows, columns = self.alpha.shape
        array = resize_image(values[0].permute(1, 2, 0).float().cpu().contiguous().numpy(), (columns, rows))
        rgba = np.concatenate([np.zeros((rows, columns, 3), np.float32), array], axis=-1)
        return resample_overlay(Overlay(rgba, self.box), picture.size, picture.box)[..., 3]


def open_canvas(
    picture: CanonicalImage,
    region: Float[np.ndarray, "height width"],
    side: int,
    multiple: int,
    feather: float = 0.0,
    settings: CanvasSettings = DEFAULTS,
) -> Canvas:
    """Crops the part of a picture around a region, scaled so that its longer side has about `side` pixels.

    Args:
        picture: the canonical picture.
        region: the editable region in [0, 1], at the picture's size; it must not be 0 everywhere.
        side: longer side of the canvas, in pixels.
        multiple: both sides of the canvas are multiples of this, in pixels.
        feather: pixels of the canvas over which the region fades in from its edge. The outline of the layer is not such
            an edge: there its weight in each frame fades.
        settings: margin and extension of the region.
    """
    rgba = picture.rgba

    # Extend the region where nothing is known: there it has the value of the nearest known texel.
    known = (rgba[..., 3] > settings.min_coverage) | (region > 0)
    if known.all() or not known.any():
        extended, distance = region, np.zeros_like(region)
    else:
        distance, labels = cv2.distanceTransformWithLabels(
            (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
        )
        values = np.zeros(labels.max() + 1, np.float32)
        values[labels[known]] = region[known]
        extended = values[labels]
    alpha = np.where(distance <= settings.extension_texels, extended, 0).astype(np.float32)

    rows, columns = _frame_region(alpha, side, multiple, settings.margin_share)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    scale = side / max(width, height)
    size = tuple(max(multiple, multiple * round(scale * texels / multiple)) for texels in (width, height))
    if feather > 0:
        # Fade by the distance to the edge, which lies between two texels; the picture's own border is no edge.
        inside = (extended > settings.min_coverage).astype(np.uint8)
        padded = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        alpha = np.minimum(alpha, np.clip((depth - 0.5) / (feather / scale), 0, 1))
    part = np.ascontiguousarray(fill_holes(rgba[rows, columns, :3], rgba[rows, columns, 3] > settings.min_coverage))
    image = np.clip(resize_image(part, size), 0, 1)
    alpha = np.ascontiguousarray(alpha[rows, columns])
    editable = np.clip(resize_image(alpha[..., None], size)[..., 0], 0, 1)
    box, (texels_across, texels_down) = picture.box, picture.size
    return Canvas(
        torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(),
        torch.from_numpy(np.ascontiguousarray(editable))[None, None],
        alpha,
        Box(
            box.u0 + box.width * columns.start / texels_across,
            box.v0 + box.height * rows.start / texels_down,
            box.u0 + box.width * columns.stop / texels_across,
            box.v0 + box.height * rows.stop / texels_down,
        ),
        picture.layer,
    )


def open_canvases(
    pictures: Mapping[str, CanonicalImage],
    regions: Mapping[str, Float[np.ndarray, "_ _"]],
    side: int,
    multiple: int,
    feather: float = 0.0,
    settings: CanvasSettings = DEFAULTS,
) -> list[Canvas]:
    """Opens canvases of several layers that together are small enough for one pass of a model.

    Args:
        pictures: canonical pictures, by layer.
        regions: editable regions in [0, 1], by layer, each at the size of its picture and not 0 everywhere. These
            layers are opened, in this order.
        side: approximate longer side of each canvas in pixels; smaller if the canvases would be too large together.
        multiple: both sides of each canvas are multiples of this, in pixels.
        feather: pixels of a canvas over which its region fades in from its edge; 0 for none.
        settings: margin and extension of the regions.
    """
    each = side
    longest = WINDOWS.max_stretch * side
    while True:
        canvases = [
            open_canvas(pictures[layer], region, each, multiple, feather, settings) for layer, region in regions.items()
        ]
        if len(canvases) <= 1 or each <= multiple:
            return canvases
        axis = 1 if _are_stacked(canvases) else 0
        gaps = _compute_gap(multiple, settings) * (len(canvases) - 1)
        length = sum(canvas.size[axis] for canvas in canvases) + gaps
        joint = max(length, max(canvas.size[1 - axis] for canvas in canvases))
        if joint <= longest:
            return canvases
        fitting = each * (longest - gaps) / (joint - gaps)
        each = max(multiple, min(each - multiple, int(fitting)))


def fill_holes(
    rgb: Float[np.ndarray, "height width 3"], known: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width 3"]:
    """Fills the holes of a picture smoothly from their surroundings (push-pull, Gortler et al., 1996).

    Args:
        rgb: colors in [0, 1]; any value where they are not known.
        known: texels whose color is known.

    Returns:
        The picture with known colors unchanged and holes filled.
    """
    if known.all() or not known.any():
        return rgb
    weight = known.astype(np.float32)[..., None]
    return np.where(known[..., None], rgb, _fill_from_coarser(rgb * weight, weight)).astype(np.float32)


def join_canvases(
    canvases: Sequence[Canvas], multiple: int, settings: CanvasSettings = DEFAULTS
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
    """Joins canvases of several layers to one picture and one region, so that a model makes them consistent.

    They are placed side by side, or on top of each other if that makes a squarer picture. NaRCan (2024) edits the
    canonical pictures of its charts in the same way, as one grid.

    Args:
        canvases: canvases of the layers.
        multiple: the gaps between them are multiples of this, in pixels.
        settings: width of the gaps.

    Returns:
        The picture, RGB in [0, 1], and its region.
    """
    image = join_pictures([canvas.image for canvas in canvases], canvases, multiple, "replicate", settings)
    return image, join_pictures([canvas.region for canvas in canvases], canvases, multiple, settings=settings)


def join_pictures(
    parts: Sequence[Float[Tensor, "1 c _ _"]],
    canvases: Sequence[Canvas],
    multiple: int,
    padding_mode: str = "constant",
    settings: CanvasSettings = DEFAULTS,
) -> Float[Tensor, "1 c h w"]:
    """Joins pictures of the canvases' sizes to one picture.

    Args:
        parts: one picture per canvas.
        canvases: canvases of the layers.
        multiple: the gaps between them are multiples of this, in pixels.
        padding_mode: padding around the parts, as in `torch.nn.functional.pad`: "constant" (zeros) or "replicate".
        settings: width of the gaps.
    """
    above = _are_stacked(canvases)
    across = max(canvas.size[0 if above else 1] for canvas in canvases)
    padded = []
    for index, (part, canvas) in enumerate(zip(parts, canvases, strict=True)):
        beside = across - canvas.size[0 if above else 1]
        gap = _compute_gap(multiple, settings) if index < len(canvases) - 1 else 0
        padding = (0, beside, 0, gap) if above else (0, gap, 0, beside)
        padded.append(torch.nn.functional.pad(part, padding, mode=padding_mode))
    return torch.cat(padded, dim=2 if above else 3)


def split_joined_picture(
    picture: Float[Tensor, "1 c h w"], canvases: Sequence[Canvas], multiple: int, settings: CanvasSettings = DEFAULTS
) -> list[Tensor]:
    """Splits a picture made by `join_canvases` into its parts.

    Args:
        picture: the joined picture.
        canvases: canvases of the layers, in the order in which they were joined.
        multiple: the value with which they were joined: the gaps are multiples of this, in pixels.
        settings: the settings with which they were joined.
    """
    above, start, parts = _are_stacked(canvases), 0, []
    for canvas in canvases:
        width, height = canvas.size
        if above:
            parts.append(picture[:, :, start : start + height, :width])
        else:
            parts.append(picture[:, :, :height, start : start + width])
        start += (height if above else width) + _compute_gap(multiple, settings)
    return parts


def split_into_overlays(
    picture: Float[Tensor, "1 3 h w"], canvases: Sequence[Canvas], multiple: int
) -> dict[str, Overlay]:
    """Splits what a model made of joined canvases into an overlay for each layer.

    Args:
        picture: the joined picture, RGB in [0, 1].
        canvases: canvases of the layers, in the order in which they were joined.
        multiple: the value with which they were joined.

    Raises:
        UserError: the model made no picture (exit 3).
    """
    overlays = {}
    for canvas, part in zip(canvases, split_joined_picture(picture, canvases, multiple), strict=True):
        check_model_picture(part, canvas.image, canvas.region)
        overlays[canvas.layer] = canvas.make_overlay(part)
    return overlays


def _compute_gap(multiple: int, settings: CanvasSettings) -> int:
    """Computes the pixels between joined canvases."""
    return multiple * -(-settings.gap_px // multiple)


def _are_stacked(canvases: Sequence[Canvas]) -> bool:
    """Tells whether joined canvases are placed on top of each other."""
    return sum(canvas.size[1] for canvas in canvases) < sum(canvas.size[0] for canvas in canvases)


def _frame_region(
    region: Float[np.ndarray, "height width"], side: int, multiple: int, margin_share: float
) -> tuple[slice, slice]:
    """Finds the rows and columns of a region with a margin, with an aspect ratio that suits multiples of `multiple`."""
    where = np.argwhere(region > 0)
    (top, left), (bottom, right) = where.min(axis=0).tolist(), (where.max(axis=0) + 1).tolist()
    margin = round(margin_share * max(bottom - top, right - left))
    limits = region.shape
    spans = [
        (max(0, top - margin), min(limits[0], bottom + margin)),
        (max(0, left - margin), min(limits[1], right + margin)),
    ]
    # Show more of the surroundings rather than distort the picture to whole multiples.
    texels_per_pixel = max(stop - start for start, stop in spans) / side
    framed = []
    for (start, stop), limit in zip(spans, limits, strict=True):
        multiples = -(-(stop - start) // max(1e-9, multiple * texels_per_pixel))
        length = round(multiples * multiple * texels_per_pixel)
        length = max(stop - start, min(length, limit))
        start = min(max(0, start - (length - (stop - start)) // 2), limit - length)
        framed.append(slice(int(start), int(start + length)))
    rows, columns = framed
    return rows, columns


def _fill_from_coarser(color: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Spreads the colors of weighted texels over the entire picture through a pyramid of smaller copies."""
    height, width = weight.shape[:2]
    if max(height, width) <= 1:
        return color / np.maximum(weight, 1e-6)
    half = ((width + 1) // 2, (height + 1) // 2)
    small_color = cv2.resize(color, half, interpolation=cv2.INTER_AREA).reshape(half[1], half[0], -1)
    small_weight = cv2.resize(weight, half, interpolation=cv2.INTER_AREA).reshape(half[1], half[0], 1)
    coarse = cv2.resize(_fill_from_coarser(small_color, small_weight), (width, height), interpolation=cv2.INTER_LINEAR)
    share = np.clip(weight, 0, 1)
    return color / np.maximum(weight, 1e-6) * share + coarse.reshape(height, width, -1) * (1 - share)
