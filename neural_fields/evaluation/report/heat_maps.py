"""Draws the pictures of a report: canonical pictures with their heat maps, and the errors of frames."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.evaluation.report.survey import LayerHeatMaps
from neural_fields.evaluation.report.verdict import DEFAULTS as VERDICT_DEFAULTS
from neural_fields.evaluation.report.verdict import VerdictSettings
from neural_fields.imaging.color_scales import color_scale

Color = tuple[int, int, int]


@dataclass(frozen=True)
class HeatSettings:
    """Sizes and colors of the pictures on the page."""

    canonical_side_px: int = 1200  # longer side of a canonical picture on the page
    heat_side_px: int = 640  # longer side of a heat map on the page
    jpeg_quality: int = 82  # JPEG quality, 0 to 100: looks like a PNG that is several times as large
    checker_px: int = 8  # side of a square of the checkerboard where no frame shows the layer
    checker_levels: tuple[int, int] = (150, 125)  # the two grays of the checkerboard, 0 to 255
    max_stretch: float = 4.0  # stretch at the bright end of its scale
    max_residual: float = 64.0  # residual at the bright end of its scale, in 8-bit levels
    max_fold: float = 0.10  # share of the time folded over at the bright end of its scale
    # Low, medium and high risk: green, yellow, red.
    risk_colors: tuple[Color, Color, Color] = ((60, 170, 90), (236, 190, 60), (214, 55, 50))
    ghost_level: float = 90.0  # brightness of a white place of the picture where the heat is zero, 0 to 255
    stripe_px: int = 6  # half the period of the dark stripes on red, for readers who cannot tell it from green


DEFAULTS = HeatSettings()

Picture = UInt8[np.ndarray, "height width 3"]


def encode_jpeg(rgb: Picture, settings: HeatSettings = DEFAULTS) -> bytes:
    """Encodes a picture as a JPEG file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, settings.jpeg_quality]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"a picture of shape {rgb.shape} cannot be written as JPEG")
    return encoded.tobytes()


def draw_canonical(image: CanonicalImage, settings: HeatSettings = DEFAULTS) -> Picture:
    """Draws a canonical picture at page size, over a checkerboard where no frame shows it."""
    size = _page_size(image.size, settings.canonical_side_px)
    rgba = cv2.resize(image.rgba, size, interpolation=cv2.INTER_AREA)
    alpha = rgba[..., 3:]
    over_checkers = 255 * rgba[..., :3] * alpha + _draw_checkerboard(size, settings) * (1 - alpha)
    return over_checkers.clip(0, 255).round().astype(np.uint8)


def classify_risk(
    maps: LayerHeatMaps, frame_count: int, limits: VerdictSettings = VERDICT_DEFAULTS
) -> Shaped[np.ndarray, "rows columns"]:
    """Classifies the edit risk of every cell.

    Args:
        maps: the measurements of a layer.
        frame_count: frames of the clip.
        limits: limits of the edit risk.

    Returns:
        0 green, 1 yellow, 2 red, -1 where no frame of the clip shows the cell.
    """
    with np.errstate(invalid="ignore"):  # a cell that was not measured compares as not risky
        risk = np.zeros(maps.frames.shape, np.int8)
        for values, (yellow, red) in (
            (maps.fold, limits.fold_risks),
            (maps.stretch, limits.stretch_risks),
            (maps.residual, limits.residual_risks),
        ):
            risk = np.maximum(risk, (values >= yellow).astype(np.int8) + (values >= red))
    risk[(maps.frames < min(limits.min_risk_frames, frame_count)) & (risk == 0)] = 1
    risk[maps.frames <= 0] = -1
    return risk


def draw_heat_maps(
    image: CanonicalImage,
    maps: LayerHeatMaps,
    frame_count: int,
    limits: VerdictSettings = VERDICT_DEFAULTS,
    settings: HeatSettings = DEFAULTS,
) -> dict[str, Picture]:
    """Draws coverage, stretch, fold, residual and risk of a layer, over its canonical picture in gray.

    Args:
        image: the canonical picture of the layer.
        maps: the measurements of the layer.
        frame_count: number of frames of the clip.
        limits: limits of the edit risk.
        settings: size and colors of the pictures.

    Returns:
        Pictures by name: coverage, stretch, fold, residual and risk.
    """
    size = _page_size(image.size, settings.heat_side_px)
    rgb = cv2.resize(image.rgba[..., :3], size, interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)[..., None]
    scales = {
        "coverage": ("seen", maps.frames / max(1, frame_count)),
        "stretch": ("bad", np.log2(np.maximum(maps.stretch, 1)) / np.log2(settings.max_stretch)),
        "fold": ("bad", maps.fold / settings.max_fold),
        "residual": ("bad", maps.residual / settings.max_residual),
    }
    known = _enlarge_cells(maps.frames > 0, size)
    pictures = {}
    for name, (kind, values) in scales.items():
        levels = (255 * np.nan_to_num(values).clip(0, 1)).round().astype(np.uint8)
        pictures[name] = _overlay_colors(color_scale(kind)[_enlarge_cells(levels, size)], gray, known, settings)
    risk = _enlarge_cells(classify_risk(maps, frame_count, limits), size)
    colors = np.array(settings.risk_colors, np.uint8)[risk.clip(0)]
    x, y = (np.arange(side) for side in size)
    colors[(risk == 2) & ((x + y[:, None]) // settings.stripe_px % 2 == 0)] //= 2
    pictures["risk"] = _overlay_colors(colors, gray, known, settings)
    return pictures


def draw_error(error: UInt8[np.ndarray, "height width"], settings: HeatSettings = DEFAULTS) -> Picture:
    """Draws the error of a frame, in 8-bit levels, in the colors of the residual."""
    levels = (error.astype(np.float32) * (255 / settings.max_residual)).clip(0, 255).round().astype(np.uint8)
    return color_scale("bad")[levels]


def _overlay_colors(
    colors: Picture, gray: Float[np.ndarray, "h w 1"], known: Bool[np.ndarray, "h w"], settings: HeatSettings
) -> Picture:
    """Lights colors by the picture below, which shows through where they are dark."""
    lit = np.maximum(colors * (0.5 + 0.5 * gray), settings.ghost_level * gray)
    unknown = _draw_checkerboard((colors.shape[1], colors.shape[0]), settings)
    return np.where(known[..., None], lit, unknown).round().astype(np.uint8)


def _enlarge_cells(
    cells: Shaped[np.ndarray, "rows columns"], size: tuple[int, int]
) -> Shaped[np.ndarray, "height width"]:
    """Enlarges cells to a picture of (width, height): each pixel gets the value of its cell."""
    rows, columns = (np.arange(side) * count // side for side, count in zip(size[::-1], cells.shape, strict=True))
    return cells[rows[:, None], columns]


def _draw_checkerboard(size: tuple[int, int], settings: HeatSettings) -> Float[np.ndarray, "height width 1"]:
    """Draws the pattern for places that no frame shows, (width, height) in gray levels."""
    x, y = (np.arange(side) // settings.checker_px for side in size)
    light, dark = settings.checker_levels
    return np.where((x + y[:, None]) % 2 == 0, np.float32(light), np.float32(dark))[..., None]


def _page_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Shrinks a (width, height) to at most `longest` pixels along a side."""
    shrink = min(1.0, longest / max(size))
    return (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
