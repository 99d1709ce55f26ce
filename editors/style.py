"""`style`: a trained style network repaints the canonical picture of a layer.

The picture is looked at as a whole: instance norm makes every tile another picture, so tiles would not fit together.
What no frame shows is filled smoothly from around first, so that nothing there bleeds into what is seen. For the same
norm, the network sees a frame of the clip beside each picture: a dark object alone would be painted bright.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
from jaxtyping import Bool, Float

from editors.base import EditorResult, Report, Source
from editors.style_network import StyleNetwork, read_style, stylised
from neural_fields import canonical
from neural_fields.canonical import Overlay
from neural_fields.errors import bad_input
from neural_fields.files import sha256_file
from neural_fields.planar.placement import pull_push

LONGEST = 1280  # pixels; above it a picture is made smaller if nothing else is asked for
LIMITS = (64, 2048)  # of --side; 2048 x 2048 pixels at once take 3.6 GB
SHOWN = 0.5  # coverage from which the colour of a texel is that of the video
GAP = 32  # pixels between a picture and the frame beside it, of colours between theirs
MARGIN = 16  # texels around what is seen that the network sees too


@dataclass(frozen=True, kw_only=True)
class Style:
    """Repaint the canonical picture with a trained style network (Johnson et al. 2016)."""

    name: ClassVar[str] = "style"

    weights: Path
    """The network: a .pth or .safetensors state dict of pytorch/examples fast_neural_style, or ncnn's .bin of it."""
    side: int | None = None
    """Longer side at which the largest picture is painted, 64 to 2048; less: larger strokes (default: up to 1280)."""
    strength: float = 1.0
    """How much of the style is shown, above 0 and at most 1."""

    def __post_init__(self) -> None:
        if self.side is not None and not LIMITS[0] <= self.side <= LIMITS[1]:
            raise bad_input(f"a side of {self.side} pixels", where="--side", why="it is 64 to 2048", fix="--side 640")
        check_strength(self.strength)

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """One overlay a layer, opaque where the edit may go.

        Raises:
            UserError: weights that are not those of a style network, or nothing to edit (exit 3).
        """
        network = read_style(self.weights)
        regions = {layer: source.region(layer) for layer in source.layers}
        parts = {layer: Part.of(source, layer) for layer in source.layers}
        beside = source.frame(source.frame_count // 2).astype(np.float32) / 255
        length = max(part.length for part in parts.values())
        longest = max(max(part.rgb.shape[:2]) for part in parts.values())
        side = self.side or min(longest, LONGEST)
        overlays = {}
        for done, (layer, part) in enumerate(parts.items()):
            report("painting", done, len(parts))
            colour = part.painted(network, beside, side / length)
            alpha = self.strength * regions[layer][..., None]
            rgba = np.concatenate([np.where(alpha > 0, colour, 0), alpha], axis=-1)
            overlays[layer] = Overlay(rgba.astype(np.float32), source.pictures[layer].box)
        report("painting", len(parts), len(parts))
        smaller = f"the largest picture was painted with its longer side at {side} of {longest} pixels"
        facts = {"network": {"file": self.weights.name, "sha256": sha256_file(self.weights)}, "side": side}
        return EditorResult(overlays, (smaller,) if side < longest else (), facts)


def check_strength(strength: float) -> None:
    """Refuses a strength that is not above 0 and at most 1.

    Raises:
        UserError: it is not (exit 3).
    """
    if not 0 < strength <= 1:
        why = "it is above 0 and at most 1"
        raise bad_input(f"a strength of {strength:g}", where="--strength", why=why, fix="--strength 0.8")


@dataclass(frozen=True)
class Part:
    """What the network shall see of a layer.

    Attributes:
        rgb: the layer's picture around what is seen, the rest filled smoothly.
        rows, columns: where it lies in the whole picture.
        whole: the whole picture, filled.
        length: the longer side of `rgb`, in uv units.
    """

    rgb: Float[np.ndarray, "_ _ 3"]
    rows: slice
    columns: slice
    whole: Float[np.ndarray, "height width 3"]
    length: float

    @classmethod
    def of(cls, source: Source, layer: str) -> Part:
        """The part of a layer of a run."""
        picture = source.pictures[layer]
        seen = canonical.pristine(source.run.canonical, layer).rgba[3].numpy() >= SHOWN
        return cls.around(np.ascontiguousarray(picture.array()[..., :3]), seen, picture.box.width / picture.size[0])

    @classmethod
    def around(
        cls, colours: Float[np.ndarray, "height width 3"], seen: Bool[np.ndarray, "height width"], texel: float
    ) -> Part:
        """The part of a picture around what is seen, if anything is; `texel`: how wide a texel is in uv units."""
        whole = pull_push(colours, seen) if seen.any() else colours
        rows, columns = _bounds(seen)
        rgb = np.ascontiguousarray(whole[rows, columns])
        return cls(rgb, rows, columns, whole, texel * max(rgb.shape[:2]))

    def painted(
        self, network: StyleNetwork, beside: Float[np.ndarray, "_ _ 3"], pixels: float
    ) -> Float[np.ndarray, "height width 3"]:
        """The whole picture, with this part of it in the network's style.

        Args:
            beside: a frame that the network sees beside it.
            pixels: to a uv unit, at which the network works: the same for all layers, so that strokes are of one size.
        """
        height, width = self.rgb.shape[:2]
        scale = pixels * self.length / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        frame = _scaled(beside, pixels * 2 / max(beside.shape[:2]))
        sheet, known = _side_by_side(_resized(self.rgb, size), frame)
        found = stylised(network, pull_push(sheet, known))[: size[1], : size[0]]
        result = self.whole.copy()
        result[self.rows, self.columns] = np.clip(_resized(found, (width, height)), 0, 1)
        return result


def _side_by_side(
    one: Float[np.ndarray, "_ _ 3"], other: Float[np.ndarray, "_ _ 3"]
) -> tuple[Float[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]]:
    """Two pictures on one sheet, the first in its corner and the other along its longer side; and where they lie."""
    down = one.shape[1] >= one.shape[0]
    top, left = (one.shape[0] + GAP, 0) if down else (0, one.shape[1] + GAP)
    height, width = max(one.shape[0], top + other.shape[0]), max(one.shape[1], left + other.shape[1])
    sheet, known = np.zeros((height, width, 3), np.float32), np.zeros((height, width), bool)
    for picture, row, column in ((one, 0, 0), (other, top, left)):
        part = slice(row, row + picture.shape[0]), slice(column, column + picture.shape[1])
        sheet[part], known[part] = picture, True
    return sheet, known


def _resized(picture: Float[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float[np.ndarray, "_ _ 3"]:
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    smaller = size[0] < picture.shape[1]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def _scaled(picture: Float[np.ndarray, "h w 3"], scale: float) -> Float[np.ndarray, "_ _ 3"]:
    return _resized(picture, (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))))


def _bounds(seen: Bool[np.ndarray, "height width"]) -> tuple[slice, slice]:
    """The rows and columns of what is seen, with a margin; all of them where nothing is."""
    left, top, width, height = cv2.boundingRect(seen.astype(np.uint8))
    if not width:
        return slice(0, seen.shape[0]), slice(0, seen.shape[1])
    return (
        slice(max(0, top - MARGIN), top + height + MARGIN),
        slice(max(0, left - MARGIN), left + width + MARGIN),
    )
