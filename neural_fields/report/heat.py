"""Pictures of a report: canonical images with their heat maps, frames with their errors, as JPEG bytes."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from neural_fields.canonical import CanonicalImage
from neural_fields.report.survey import LayerMaps
from neural_fields.report.verdict import RISK_FOLD, RISK_FRAMES, RISK_RESIDUAL, RISK_STRETCH

CANONICAL_SIDE, HEAT_SIDE = 1200, 640  # pixels of the longer side of a picture on the page
QUALITY = 82  # of JPEG: no difference is seen beside a PNG several times as large
CHECKER, CHECKER_LIGHT, CHECKER_DARK = 8, 150, 125  # pixels and levels of the pattern where nothing is seen
MOST_STRETCH, MOST_RESIDUAL, MOST_FOLD = 4.0, 64.0, 0.10  # the bright ends of the scales
RISK_COLOURS = ((60, 170, 90), (236, 190, 60), (214, 55, 50))  # green, yellow, red
GHOST = 90.0  # levels of a white place where its heat is zero
STRIPE = 6  # pixels: red is striped too, for eyes that see no difference to green

Picture = UInt8[np.ndarray, "height width 3"]


def jpeg(rgb: Picture) -> bytes:
    """A JPEG file."""
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise ValueError(f"a picture of shape {rgb.shape} cannot be written as JPEG")
    return encoded.tobytes()


def palette(name: str) -> UInt8[np.ndarray, "256 3"]:
    """The 256 colours of a scale, RGB: `seen` (viridis) for more is better, `bad` (inferno) for more is worse."""
    kind = {"seen": cv2.COLORMAP_VIRIDIS, "bad": cv2.COLORMAP_INFERNO}[name]
    return cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], kind)[:, 0, ::-1].copy()


def canonical_picture(image: CanonicalImage) -> Picture:
    """A canonical image at page size, over a checker where no frame shows it."""
    size = _page_size(image.size, CANONICAL_SIDE)
    rgba = cv2.resize(image.array(), size, interpolation=cv2.INTER_AREA)
    alpha = rgba[..., 3:]
    return (255 * rgba[..., :3] * alpha + _checker(size) * (1 - alpha)).clip(0, 255).round().astype(np.uint8)


def risk_levels(maps: LayerMaps, frame_count: int) -> Shaped[np.ndarray, "rows columns"]:
    """Edit risk of every cell: 0 green, 1 yellow, 2 red, -1 where no frame of the clip shows it."""
    with np.errstate(invalid="ignore"):  # a cell that was not measured compares as not risky
        risk = np.zeros(maps.frames.shape, np.int8)
        for values, (yellow, red) in (
            (maps.fold, RISK_FOLD),
            (maps.stretch, RISK_STRETCH),
            (maps.residual, RISK_RESIDUAL),
        ):
            risk = np.maximum(risk, (values >= yellow).astype(np.int8) + (values >= red))
    risk[(maps.frames < min(RISK_FRAMES, frame_count)) & (risk == 0)] = 1
    risk[maps.frames <= 0] = -1
    return risk


def heat_pictures(image: CanonicalImage, maps: LayerMaps, frame_count: int) -> dict[str, Picture]:
    """Coverage, stretch, fold, residual and risk of a layer, over its canonical image in grey."""
    size = _page_size(image.size, HEAT_SIDE)
    rgb = cv2.resize(image.array()[..., :3], size, interpolation=cv2.INTER_AREA)
    gray = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)[..., None]
    scales = {
        "coverage": ("seen", maps.frames / max(1, frame_count)),
        "stretch": ("bad", np.log2(np.maximum(maps.stretch, 1)) / np.log2(MOST_STRETCH)),
        "fold": ("bad", maps.fold / MOST_FOLD),
        "residual": ("bad", maps.residual / MOST_RESIDUAL),
    }
    known = _enlarged(maps.frames > 0, size)
    pictures = {}
    for name, (kind, values) in scales.items():
        levels = (255 * np.nan_to_num(values).clip(0, 1)).round().astype(np.uint8)
        pictures[name] = _over(palette(kind)[_enlarged(levels, size)], gray, known)
    risk = _enlarged(risk_levels(maps, frame_count), size)
    colours = np.array(RISK_COLOURS, np.uint8)[risk.clip(0)]
    x, y = (np.arange(side) for side in size)
    colours[(risk == 2) & ((x + y[:, None]) // STRIPE % 2 == 0)] //= 2
    pictures["risk"] = _over(colours, gray, known)
    return pictures


def error_picture(error: UInt8[np.ndarray, "height width"]) -> Picture:
    """The error of a frame in the colours of the residual."""
    levels = (error.astype(np.float32) * (255 / MOST_RESIDUAL)).clip(0, 255).round().astype(np.uint8)
    return palette("bad")[levels]


def _over(colours: Picture, gray: Float[np.ndarray, "h w 1"], known: np.ndarray) -> Picture:
    """Colours lit by the picture below, which shows through where they are dark."""
    lit = np.maximum(colours * (0.5 + 0.5 * gray), GHOST * gray)
    return np.where(known[..., None], lit, _checker((colours.shape[1], colours.shape[0]))).round().astype(np.uint8)


def _enlarged(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each pixel takes the cell it lies in."""
    rows, columns = (np.arange(side) * count // side for side, count in zip(size[::-1], cells.shape, strict=True))
    return cells[rows[:, None], columns]


def _checker(size: tuple[int, int]) -> Float[np.ndarray, "height width 1"]:
    x, y = (np.arange(side) // CHECKER for side in size)
    return np.where((x + y[:, None]) % 2 == 0, np.float32(CHECKER_LIGHT), np.float32(CHECKER_DARK))[..., None]


def _page_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    shrink = min(1.0, longest / max(size))
    return (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink)))
