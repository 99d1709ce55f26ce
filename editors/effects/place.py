"""`place`: puts a picture, a logo or a text on an object in one frame; it stays on the object in all frames.

The edit keeps the picture as it was given, and a map of where the layer's plane lies in it (`projection`). Frames look
it up through their own maps and that one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.effects.shape import find_layer_in_frame, find_run_frame
from editors.effects.shape_points import parse_points
from editors.effects.text import DEFAULTS as LETTERING
from editors.effects.text import LetteringSettings, draw_text
from editors.inputs.picture_projection import DEFAULTS as PROJECTION
from editors.inputs.picture_projection import ProjectionSettings, Quad, find_own_plane, lay_picture
from editors.options.effects import PlaceOptions
from neural_fields.atlas.placed_picture import PlacedPicture
from neural_fields.core import array_coords
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.data.masks.roi import draw_quad_mask
from neural_fields.edits.record import SourceFile
from neural_fields.imaging.image_io import read_picture
from neural_fields.imaging.resampling import sample_bilinear

EXAMPLE = '--image logo.png --box "100,80,200,120"'
QUAD_EXAMPLE = '--quad "100,80 300,90 290,210 105,200"'


@dataclass(frozen=True)
class PlaceSettings:
    """Limits on placements, and their default size."""

    max_picture_px: int = 24_000_000
    max_picture_side_px: int = 16_000
    default_width_share: float = 0.25  # of the frame's width, for a picture at a point
    min_thickness_px: float = 4.0  # of the frame: height and width of a placement at its thinnest
    max_corner_distance: float = 4.0  # of a corner from the frame's center, in longer sides of the frame
    min_layer_share: float = 0.005  # least share of a placement that must fall on a layer
    checked_size: tuple[int, int] = (256, 256)  # at which it is checked whether anything falls on the layer
    projection: ProjectionSettings = PROJECTION
    lettering: LetteringSettings = LETTERING


DEFAULTS = PlaceSettings()


@dataclass(frozen=True, kw_only=True)
class Place(PlaceOptions, PlanarEditor):
    """Put a picture, a logo or a text on a layer in one frame; it stays on the layer in every frame."""

    starts_with = "all"  # then the one that shows most there is taken

    def edit(self, source: EditSource, report: ProgressReporter, settings: PlaceSettings = DEFAULTS) -> EditorResult:
        """Places the picture on one layer.

        Args:
            source: the run, and the layers to choose from.
            report: called with the progress.
            settings: limits, and the knots of the map.

        Returns:
            The picture and where it lies, with a note on the share of the placement that falls on the layer.

        Raises:
            UserError: no picture or no position, or more than one; a file that cannot be read; a layer that is not
                visible at that position.
        """
        if (self.image is None) == (self.text is None):
            raise bad_input("a placement takes one of --image and --text", fix=EXAMPLE)
        if sum(place is not None for place in (self.point, self.box, self.quad)) != 1:
            raise bad_input("a placement takes one of --point, --box and --quad", fix=EXAMPLE)
        for flag, value, needs, wanted in (
            ("--font", self.font, "--text", self.text),
            ("--color", self.color, "--text", self.text),
            ("--width", self.width, "--point", self.point),
            ("--angle", self.angle, "--point", self.point),
        ):
            if value is not None and wanted is None:
                raise bad_input(f"{flag} goes with {needs}", fix=f"leave {flag} out, or use {needs}")

        number, t = find_run_frame(source, self.frame)
        report(Progress("placing", 0, 1))

        # What is placed: straight RGBA, notes for the user, and the file for the record.
        notes: tuple[str, ...] = ()
        sources: tuple[SourceFile, ...] = ()
        if self.image is None:
            assert self.text is not None
            color = "white" if self.color is None else self.color
            rgba = draw_text(self.text, self.font, color, settings.lettering)
        else:
            found = read_picture(self.image, max_pixels=settings.max_picture_px)
            longest = settings.max_picture_side_px
            if max(found.size) > longest:
                why = f"it has {found.size[0]}x{found.size[1]} pixels, and at most {longest} along a side are accepted"
                raise bad_input(f"{self.image.name} is too long", where=str(self.image), why=why, fix="make it smaller")
            if not found.rgba[..., 3].any():
                raise bad_input(f"{self.image.name} is transparent everywhere", where=str(self.image))
            rgba, notes = found.rgba, found.notes
            sources = (SourceFile(file=self.image.name, sha256=found.sha256),)

        size, aspect = source.run.source_size, rgba.shape[1] / rgba.shape[0]
        if self.quad is not None:
            quad = parse_points(self.quad.split(), "--quad")
            if len(quad) != 4:
                why = "a picture has four, top left first"
                raise bad_input(f"--quad has {len(quad)} corners", why=why, fix=QUAD_EXAMPLE)
        elif self.box is not None:
            quad = fit_corners_into_box(self.box, aspect, settings)
        else:
            assert self.point is not None
            width = settings.default_width_share * size[0] if self.width is None else self.width
            quad = make_corners_at_point(self.point, width, self.angle or 0.0, aspect, size, settings)
        check_corners(quad, size, settings)

        layer, share = choose_layer(source, t, number, quad, size, settings)
        placed = place_picture(source, layer, t, rgba, quad, settings)
        report(Progress("placing", 1, 1))
        position = f"{share:.0%} of the placement falls on layer {layer} in frame {number}"
        corners = np.round(quad, 2).tolist()
        return EditorResult({layer: placed}, (*notes, position), {"frame": number, "corners": corners}, sources=sources)


def fit_corners_into_box(text: str, aspect: float, settings: PlaceSettings = DEFAULTS) -> Quad:
    """Computes the corners of a picture that is centered in a box, as large as possible.

    Args:
        text: the box in pixels of the frame: "x,y,w,h".
        aspect: width / height of the picture.
        settings: the largest length.

    Returns:
        The corners (x, y) in pixels of the frame, top left first, clockwise.

    Raises:
        UserError: the text does not describe a box (exit 3).

    Example:
        >>> fit_corners_into_box("100,80,200,100", aspect=1.0).tolist()
        [[150.0, 80.0], [250.0, 80.0], [250.0, 180.0], [150.0, 180.0]]
    """
    try:
        x, y, width, height = (float(number) for number in text.split(","))
    except ValueError:
        x = y = width = height = np.nan
    if not (np.isfinite([x, y, width, height]).all() and min(width, height) > 0):
        why = "expected left, top, width and height, in pixels"
        raise bad_input(f"--box {text!r} is no box", why=why, fix='--box "100,80,200,120"')
    wide = min(width, aspect * height)
    return _make_rectangle(np.array([x + width / 2, y + height / 2]), wide, wide / aspect, 0.0)


def make_corners_at_point(
    text: str,
    width: float,
    angle: float,
    aspect: float,
    size: tuple[int, int],
    settings: PlaceSettings = DEFAULTS,
) -> Quad:
    """Computes the corners of a picture around a point of a frame.

    Args:
        text: the center in pixels of the frame: "x,y".
        width: width of the picture, in pixels of the frame.
        angle: rotation in degrees, clockwise.
        aspect: width / height of the picture.
        size: (width, height) of the frame in pixels.
        settings: the largest length.

    Returns:
        The corners (x, y) in pixels of the frame, top left first, clockwise.

    Raises:
        UserError: the text does not describe a point in the frame, or the width or angle is invalid (exit 3).
    """
    (middle,) = parse_points((text,), "--point")
    if not ((middle >= 0) & (middle <= size)).all():
        why = f"a frame has {size[0]}x{size[1]} pixels"
        raise bad_input(
            f"the point {text} is outside the frame", why=why, fix=f'--point "{size[0] // 2},{size[1] // 2}"'
        )
    if not 0 < width < np.inf:
        raise bad_input(f"--width {width:g} is no width", why="it counts pixels of the frame", fix="--width 100")
    if not np.isfinite(angle):
        raise bad_input(f"--angle {angle:g} is no angle", why="it counts degrees", fix="--angle 15")
    return _make_rectangle(middle, width, width / aspect, angle)


def check_corners(quad: Quad, size: tuple[int, int], settings: PlaceSettings = DEFAULTS) -> None:
    """Refuses corners that no picture can have.

    Args:
        quad: the corners (x, y) in pixels of the frame, top left first, clockwise.
        size: (width, height) of the frame in pixels.
        settings: limits of size and distance.

    Raises:
        UserError: the corners are mirrored, crossed or concave, or the quad is too small or too far away (exit 3).
    """
    away = np.abs(quad - np.array(size) / 2).max(axis=1)
    if away.max() > settings.max_corner_distance * max(size):
        why = (
            f"a frame has {size[0]}x{size[1]} pixels, and one of the corners is {_format_points(quad[[away.argmax()]])}"
        )
        raise bad_input("the placement reaches too far beyond the frame", why=why, fix="make it smaller")
    side = np.roll(quad, -1, axis=0) - quad
    after = np.roll(side, -1, axis=0)
    turns = side[:, 0] * after[:, 1] - side[:, 1] * after[:, 0]
    if (turns < 0).all():
        mirrored = f'--quad "{_format_points(quad[[0, 3, 2, 1]])}"'
        raise bad_input("the corners run counter-clockwise", why="the picture would be mirrored", fix=mirrored)
    if not (turns > 0).all():
        why = "one after the other they have to go around a convex shape, clockwise, top left first"
        raise bad_input(f"no picture has the corners {_format_points(quad)}", why=why, fix=QUAD_EXAMPLE)
    thinnest = float((turns / np.linalg.norm(side, axis=1)).min())
    if thinnest < settings.min_thickness_px:
        why = f"at its thinnest it has {thinnest:.1f} pixels; at least {settings.min_thickness_px:g} are needed"
        raise bad_input("the placement is too small", why=why, fix="make it larger")


def choose_layer(
    source: EditSource, t: int, number: int, quad: Quad, size: tuple[int, int], settings: PlaceSettings = DEFAULTS
) -> tuple[str, float]:
    """Chooses the layer for a placement.

    Args:
        source: the run, and the layers to choose from.
        t: index of the frame in the run.
        number: number of the frame in the source.
        quad: the corners (x, y) in pixels of the frame.
        size: (width, height) of a frame of the source, in pixels.
        settings: least share of the placement that must fall on a layer.

    Returns:
        The name of the layer, and the share of the placement that falls on it in the frame.

    Raises:
        UserError: several layers are named, or the layer is not visible there (exit 3).
    """
    names = source.maps.layers
    if 1 < len(source.layers) < len(names):
        raise bad_input("a picture is placed on one layer", fix=f"--layer {source.layers[0]}")
    inside = draw_quad_mask(array_coords.normalize_pixels(quad, *size), size)
    if not inside.any():
        why = f"a frame has {size[0]}x{size[1]} pixels"
        raise bad_input("the placement is outside the frame", why=why, fix="another place, or another --frame")
    x, y = quad.T
    area = float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    weights = zip(names, source.maps.read_weights(t, size), strict=True)
    shares = {name: min(1.0, float(weight[inside].sum()) / area) for name, weight in weights}
    most = max(shares, key=lambda name: shares[name])
    layer = most if len(source.layers) > 1 else source.layers[0]
    if shares[layer] < settings.min_layer_share:
        why = f"in frame {number} {shares[most]:.0%} of the placement falls on layer {most}"
        raise bad_input(f"the layer {layer} is not seen there", why=why, fix=f"--layer {most}, or another place")
    return layer, shares[layer]


def place_picture(
    source: EditSource,
    layer: str,
    t: int,
    rgba: Float[np.ndarray, "height width 4"],
    quad: Quad,
    settings: PlaceSettings = DEFAULTS,
) -> PlacedPicture:
    """Places a picture on a layer, with its corners at `quad` in one frame.

    Args:
        source: the run.
        layer: name of the layer.
        t: index of the frame in the run.
        rgba: the picture, straight RGBA in [0, 1].
        quad: the corners (x, y) in pixels of the source.
        settings: knots of the map.

    Returns:
        The picture, and where it lies.

    Raises:
        UserError: no part of the picture falls on the layer (exit 3).
    """
    limit = find_own_plane(source.maps, layer, t)
    here = find_layer_in_frame(source, layer, t)
    patch = lay_picture(
        here.uv_map,
        here.visible_mask,
        (rgba.shape[1], rgba.shape[0]),
        quad * here.scale,
        limit,
        None,
        settings.projection,
    )
    if patch is not None and source.mask is not None:
        rows, columns = patch.places.shape[:2]
        u, v = np.linspace(patch.box.u0, patch.box.u1, columns), np.linspace(patch.box.v0, patch.box.v1, rows)
        region, box = source.read_region(layer), source.pictures[layer].box
        # Between knots the share falls from one to nothing: it must have done so at the edge of the mask.
        spacing = patch.box.width / (columns - 1) * region.shape[1] / box.width
        side = 2 * math.ceil(spacing) + 1
        region = cv2.erode(region, np.ones((side, side), np.uint8), borderValue=1.0)
        uv = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
        x, y = (array_coords.uv_to_texels(uv, box, region.shape[1], region.shape[0]) - 0.5).T.astype(np.float32)
        patch.places[..., 2] *= sample_bilinear(region, x.copy(), y.copy()).reshape(rows, columns)
    placed = None if patch is None else PlacedPicture(rgba, (patch,))
    if placed is None or not placed.draw_overlay(settings.checked_size, placed.box).rgba[..., 3].any():
        raise bad_input(f"no part of the picture falls on the layer {layer}", fix="another place or --frame")
    return placed


def _make_rectangle(middle: Float[np.ndarray, "2"], width: float, height: float, angle: float) -> Quad:
    """Makes the corners of a rectangle around a point, rotated clockwise by degrees."""
    radians = np.deg2rad(angle)
    across, down = np.array([np.cos(radians), np.sin(radians)]), np.array([-np.sin(radians), np.cos(radians)])
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return np.array([middle + (x * width * across + y * height * down) / 2 for x, y in signs])


def _format_points(points: Float[np.ndarray, "n 2"]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
