"""A picture that lies on the canonical plane by a map: the pixels stay those that the user gave.

The canonical plane of a layer is divided into patches, at most one for each chart. A patch says where in the picture
its points lie, at knots between which positions are bilinear. Frames look the picture up once, by their own map to the
plane and by the patch's to the picture: nothing is resampled in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Float

from neural_fields.atlas.canonical import FramePaint, Overlay, resample_overlay
from neural_fields.core import array_coords
from neural_fields.core.box import Box
from neural_fields.imaging.alpha import premultiply, resize_image, unpremultiply
from neural_fields.imaging.tiles import Part, bounding_part


@dataclass(frozen=True)
class PicturePatch:
    """Says where a part of the canonical plane lies in a picture.

    Attributes:
        box: the part of the plane, in uv units; the outermost knots lie on its edges.
        places: at each knot x and y in pixels of the picture (the center of the first pixel is 0.5, 0.5), and 1 where
            the picture is shown, else 0.
        light: at each knot the logarithm of a factor of the picture's colors; None: they stay.
    """

    box: Box
    places: Float[np.ndarray, "rows columns 3"]
    light: Float[np.ndarray, "rows columns 3"] | None = None

    @staticmethod
    def cover_box(box: Box, size: tuple[int, int]) -> PicturePatch:
        """Makes the patch of a picture that covers a box of the plane.

        Args:
            box: in uv units.
            size: (width, height) of the picture.
        """
        corners = [[(x, y, 1) for x in (0, size[0])] for y in (0, size[1])]
        return PicturePatch(box, np.array(corners, np.float32))

    @cached_property
    def affine(self) -> Float[np.ndarray, "2 3"] | None:
        """The map from uv to pixels of the picture, where it is affine everywhere, also beyond the box; else None."""
        if self.places.shape != (2, 2, 3) or self.light is not None or self.places[..., 2].min() < 1:
            return None
        (start, right), (down, across) = self.places[..., :2].astype(np.float64)
        if not np.allclose(across - down, right - start):
            return None
        slope = np.stack([(right - start) / self.box.width, (down - start) / self.box.height], axis=1)
        return np.column_stack([slope, start - slope @ [self.box.u0, self.box.v0]])

    def find_knots(self, uv: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n 2"]:
        """Returns where points lie among the knots; (0, 0) is the first one."""
        rows, columns = self.places.shape[:2]
        x, y = (columns - 1) / self.box.width, (rows - 1) / self.box.height
        return cv2.transform(uv, np.array([[x, 0, -self.box.u0 * x], [0, y, -self.box.v0 * y]]))

    def find_part(self, uv: Float[np.ndarray, "height width 2"], margin: int) -> Part | None:
        """Finds the rows and columns of points that may lie in the box; None: none does.

        Args:
            uv: in uv units, smooth.
            margin: rows and columns more on each side.
        """
        rows, columns = uv.shape[:2]
        if self.affine is not None:
            return slice(0, rows), slice(0, columns)
        # Every eighth point is looked at: what lies between is between its neighbors' least and largest values.
        step, window = 8, np.ones((3, 3), np.uint8)
        some = np.ascontiguousarray(uv[np.ix_(*(np.append(np.arange(0, n - 1, step), n - 1) for n in (rows, columns)))])
        low, high = cv2.erode(some, window), cv2.dilate(some, window)
        inside = (low <= (self.box.u1, self.box.v1)).all(-1) & (high >= (self.box.u0, self.box.v0)).all(-1)
        found = bounding_part(inside.astype(np.uint8), 1)
        if found is None:
            return None
        return tuple(
            slice(max(0, step * part.start - margin), min(count, step * part.stop + margin))
            for part, count in zip(found, (rows, columns), strict=True)
        )  # type: ignore[return-value]

    def find_places(self, uv: Float[np.ndarray, "height width 2"]) -> Float[np.ndarray, "height width 3"]:
        """Finds where points of the plane lie in the picture.

        Args:
            uv: in uv units.

        Returns:
            x and y in pixels of the picture, and the share to which it is shown there, 0 beyond the box.
        """
        if self.affine is not None:
            return cv2.merge([*cv2.split(cv2.transform(uv, self.affine)), np.ones(uv.shape[:2], np.float32)])
        knots = self.find_knots(uv)
        padded = cv2.cvtColor(self.places, cv2.COLOR_RGB2RGBA)  # four channels are what OpenCV samples exactly
        found = cv2.remap(padded, knots, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[..., :3].copy()
        rows, columns = self.places.shape[:2]
        x, y = cv2.split(knots)
        found[(x < 0) | (y < 0) | (x > columns - 1) | (y > rows - 1), 2] = 0
        return found

    def find_light(self, uv: Float[np.ndarray, "height width 2"]) -> Float[np.ndarray, "height width 4"] | None:
        """Finds the factors of the picture's colors at points of the plane; the fourth channel is one."""
        if self.light is None:
            return None
        padded = cv2.cvtColor(self.light, cv2.COLOR_RGB2RGBA)
        padded[..., 3] = 0
        found = cv2.remap(padded, self.find_knots(uv), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return cv2.exp(found)


@dataclass(frozen=True)
class PlacedPicture:
    """Holds a picture, and where it lies on the canonical plane of a layer.

    Attributes:
        rgba: the picture: RGB with straight alpha in [0, 1].
        patches: parts of the plane that show it, which do not overlap.
        notes: sentences for the user about how it was made.
        frames: the painted frames that it was made from, if they are to be shown as they were painted.
    """

    rgba: Float[np.ndarray, "height width 4"]
    patches: tuple[PicturePatch, ...]
    notes: tuple[str, ...] = ()
    frames: tuple[FramePaint, ...] = ()

    @staticmethod
    def from_overlay(overlay: Overlay) -> PlacedPicture:
        """Makes the placed picture that an overlay is: one patch, its box."""
        return PlacedPicture(
            overlay.rgba, (PicturePatch.cover_box(overlay.box, overlay.size),), overlay.notes, overlay.frames
        )

    @staticmethod
    def from_painted_part(overlay: Overlay) -> PlacedPicture:
        """Makes a placed picture of the part of an overlay that is not transparent; all of it, where nothing is not."""
        rows, columns = (np.flatnonzero((overlay.rgba[..., 3] > 0).any(axis)) for axis in (1, 0))
        if not len(rows):
            return PlacedPicture.from_overlay(overlay)
        width, height = overlay.size
        top, bottom, left, right = max(0, rows[0] - 1), rows[-1] + 2, max(0, columns[0] - 1), columns[-1] + 2
        rgba = np.ascontiguousarray(overlay.rgba[top:bottom, left:right])
        (u, v), (x, y) = (overlay.box.u0, overlay.box.v0), (overlay.box.width / width, overlay.box.height / height)
        right, bottom = left + rgba.shape[1], top + rgba.shape[0]
        box = Box(*(float(side) for side in (u + left * x, v + top * y, u + right * x, v + bottom * y)))
        patch = PicturePatch.cover_box(box, (rgba.shape[1], rgba.shape[0]))
        return PlacedPicture(rgba, (patch,), overlay.notes, overlay.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.rgba.shape[1], self.rgba.shape[0]

    def replace_picture(self, rgba: Float[np.ndarray, "h w 4"]) -> PlacedPicture:
        """Returns a copy of the picture, of any size, at the same place."""
        scale = np.array([rgba.shape[1] / self.size[0], rgba.shape[0] / self.size[1], 1], np.float32)
        return replace(self, rgba=rgba, patches=tuple(replace(one, places=one.places * scale) for one in self.patches))

    @property
    def box(self) -> Box:
        """The smallest box of the plane that holds all patches, in uv units."""
        boxes = [patch.box for patch in self.patches]
        low = (min(box.u0 for box in boxes), min(box.v0 for box in boxes))
        return Box(*low, max(box.u1 for box in boxes), max(box.v1 for box in boxes))

    @property
    def density(self) -> float:
        """Pixels of the picture in one unit of uv along u, where most of them are."""
        densest = 0.0
        for patch in self.patches:
            steps = np.linalg.norm(np.diff(patch.places[..., :2], axis=1), axis=-1)
            densest = max(densest, float(np.median(steps)) * (patch.places.shape[1] - 1) / patch.box.width)
        return densest

    def draw_overlay(self, size: tuple[int, int], box: Box, is_cubic: bool = False) -> Overlay:
        """Draws the picture onto the plane, for programs and steps that need a picture of the plane.

        Args:
            size: (width, height) of the result in texels.
            box: the part of the plane that the result covers, in uv units.
            is_cubic: whether cubic kernels are used, for texels that are finer than the picture; otherwise linear ones,
                as in rendering.

        Returns:
            The overlay; colors beyond [0, 1], which light would make, are clipped.
        """
        result = np.zeros((size[1], size[0], 4), np.float32)
        picture = premultiply(self.rgba)
        step = np.array([box.width / size[0], box.height / size[1]])
        corner, mode = np.array([box.u0, box.v0]), cv2.INTER_CUBIC if is_cubic else cv2.INTER_LINEAR
        for patch in self.patches:
            low = np.floor((np.array([patch.box.u0, patch.box.v0]) - corner) / step).astype(int).clip(0, size)
            high = np.ceil((np.array([patch.box.u1, patch.box.v1]) - corner) / step).astype(int).clip(0, size)
            if (high <= low).any():
                continue
            part = Box(*(corner + low * step).tolist(), *(corner + high * step).tolist())
            uv = array_coords.texel_centers(part, *(high - low).tolist())
            places = patch.find_places(uv)
            # Halved until its pixels are no smaller than texels.
            across = [np.diff(places[..., :2], axis=axis) for axis in (1, 0)]
            steps = [float(np.median(np.linalg.norm(one, axis=-1))) if one.size else 1.0 for one in across]
            shrink = max(1.0, min(max(steps), max(self.size)))
            width, height = (max(1, round(side / shrink)) for side in self.size)
            smaller = resize_image(picture, (width, height))
            scale = np.array([width / self.size[0], height / self.size[1]], np.float32)
            at = np.ascontiguousarray(places[..., :2] * scale - 0.5, np.float32)
            found = cv2.remap(
                np.ascontiguousarray(smaller), at, None, mode, borderMode=cv2.BORDER_CONSTANT, borderValue=0
            )
            light = patch.find_light(uv)
            if light is not None:
                found = found * light
            result[low[1] : high[1], low[0] : high[0]] += found * places[..., 2:]
        result[..., 3] = result[..., 3].clip(0, 1)
        result[..., :3] = np.clip(result[..., :3], 0, result[..., 3:])
        return Overlay(unpremultiply(result), box, self.notes, self.frames)


Paint = Overlay | PlacedPicture


def draw_paint(paint: Paint, size: tuple[int, int], box: Box) -> Float[np.ndarray, "height width 4"]:
    """Draws an overlay or a placed picture onto a part of the plane.

    Args:
        paint: on the same canonical plane.
        size: (width, height) of the result in texels.
        box: the part of the plane that the result covers, in uv units.

    Returns:
        RGBA in [0, 1], straight alpha; transparent outside of the paint.
    """
    overlay = paint.draw_overlay(size, box) if isinstance(paint, PlacedPicture) else paint
    return resample_overlay(overlay, size, box)
