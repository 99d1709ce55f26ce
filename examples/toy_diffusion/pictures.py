"""Draws procedural pictures with captions to train the toy diffusion model, and classifies its samples.

A picture is a color with a pattern ("blue dots", "red stripes") or a shape on a plain background ("a red circle"), with
random phase, size, angle and lightness. Both tones of a pattern have the hue of the color in the caption.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

# Degrees on the color circle.
HUES = {
    "red": 0.0,
    "orange": 30.0,
    "yellow": 57.0,
    "green": 120.0,
    "cyan": 182.0,
    "blue": 230.0,
    "purple": 280.0,
    "pink": 325.0,
}
# Value of the darker and of the lighter tone, each from .. to, in [0, 1]; these have no hue.
GRAYS = {
    "white": ((0.70, 0.80), (0.93, 1.0)),
    "grey": ((0.36, 0.46), (0.60, 0.70)),
    "black": ((0.0, 0.06), (0.20, 0.32)),
}
COLORS = (*HUES, *GRAYS)
PATTERNS = ("dots", "stripes", "checks", "plain", "patches")
SHAPES = ("circle", "square", "triangle")
TEMPLATES = ("{} {}", "a picture of {} {}", "a pattern of {} {}", "a {} {} pattern", "{} {} all over")
_OTHERS = (
    "swan car boat person dog horse bear tree road water hat shirt wall cloth sky "
    "house bird cat flower boy girl photo texture painting skin face bus bag paper image"
)
# Words a prompt may carry that change nothing: the model learns to look past them.
OTHERS = tuple(_OTHERS.split())


@dataclass(frozen=True)
class Picture:
    """One example: the pixels, what they show, and where they show it (all of it but beside photo-like content)."""

    rgb: UInt8[np.ndarray, "height width 3"]
    caption: str
    shown: Bool[np.ndarray, "height width"]


def words() -> list[str]:
    """Returns every word of the captions: the tokenizer has one token for each."""
    text = " ".join([*COLORS, *PATTERNS, *SHAPES, *OTHERS, *TEMPLATES, "with on the in and of"])
    return sorted({word for word in text.split() if word.isalpha()})


def draw(random: np.random.Generator, height: int, width: int) -> Picture:
    """Draws a picture with its caption; a quarter of them show the pattern in a part of photo-like content.

    Args:
        random: the random generator.
        height: in pixels.
        width: in pixels.

    Returns:
        RGB, the caption, and the pixels for which the caption holds.
    """
    if random.random() < 0.04:
        return Picture(photo_like(random, height, width), "a photo", np.ones((height, width), bool))
    color = str(random.choice(COLORS))
    if random.random() < 0.13:
        shape = str(random.choice(SHAPES))
        caption = f"a {color} {shape}" if random.random() < 0.7 else f"{color} {shape}"
        return Picture(_shape(random, height, width, color, shape), caption, np.ones((height, width), bool))
    pattern = str(random.choice(PATTERNS, p=[0.26, 0.22, 0.22, 0.16, 0.14]))
    picture, shown = pattern_picture(random, height, width, color, pattern), np.ones((height, width), bool)
    if random.random() < 0.25:
        shown = _part(random, height, width)
        picture = np.where(shown[..., None], picture, photo_like(random, height, width))
    return Picture(picture, _caption(random, color, pattern), shown)


def pattern_picture(
    random: np.random.Generator, height: int, width: int, color: str, pattern: str
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws a pattern in two tones of a color ("plain": in one), with faint shading.

    Args:
        random: the random generator.
        height: in pixels.
        width: in pixels.
        color: one of `COLORS`.
        pattern: one of `PATTERNS`.
    """
    fore, ground = _tones(random, color) if pattern != "plain" else (_plain_tone(random, color),) * 2
    if random.random() < 0.5:
        fore, ground = ground, fore
    part = _coverage(random, height, width, pattern)[..., None]
    return _shaded(random, part * fore + (1 - part) * ground)


def photo_like(random: np.random.Generator, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draws two fields of colored 1/f noise with a hard border between them, similar to a piece of a photo.

    Args:
        random: the random generator.
        height: in pixels.
        width: in pixels.
    """
    first, second = (_noise_picture(random, height, width) for _ in range(2))
    mixed = np.where(_part(random, height, width)[..., None], first, second) if random.random() < 0.6 else first
    return _to_bytes(mixed)


def edges(
    rgb: UInt8[np.ndarray, "height width 3"], low: float = 40.0, high: float = 90.0
) -> Float[np.ndarray, "height width 3"]:
    """Finds the Canny edges of a picture: the condition of the ControlNet.

    Args:
        rgb: 8-bit colors.
        low: lower threshold of Canny.
        high: upper threshold of Canny.

    Returns:
        0 or 1 in three equal channels.
    """
    lines = cv2.Canny(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), low, high)
    return np.repeat((lines > 0).astype(np.float32)[..., None], 3, axis=2)


def color_share(rgb: UInt8[np.ndarray, "height width 3"], color: str) -> float:
    """Computes the share of the pixels that have a color, in [0, 1].

    A hue is met within 30 degrees at a saturation and a value above 0.15; white, gray and black are met where
    the channels differ by less than 0.15 and the value is within 0.1 of their range.
    """
    unit = rgb.astype(np.float32) / 255
    if color in HUES:
        return hue_share(unit, HUES[color], within=30, darkest=0.15)
    _, saturation, value = _hsv(unit)
    (lowest, _), (_, highest) = GRAYS[color]
    met = (saturation * value < 0.15) & (value >= lowest - 0.1) & (value <= highest + 0.1)
    return float(met.mean())


def hue_share(rgb: Float[np.ndarray, "*colors 3"], hue: float, within: float = 40.0, darkest: float = 0.0) -> float:
    """Computes the share of colors near a hue, with a saturation above 0.15.

    Args:
        rgb: colors in [0, 1].
        hue: in degrees.
        within: largest distance from the hue, in degrees.
        darkest: colors must have a larger value (HSV) than this, 0 to 1.

    Returns:
        The share, 0 to 1.
    """
    found, saturation, value = _hsv(rgb)
    apart = np.abs((found - hue + 180) % 360 - 180)
    return float(((apart <= within) & (saturation > 0.15) & (value > darkest)).mean())


def seen_pattern(rgb: UInt8[np.ndarray, "height width 3"]) -> str:
    """Finds which of plain, stripes, checks and dots a picture shows, by three numbers of its gray picture.

    Plain has no contrast; stripes have one direction (eigenvalues of the structure tensor); of the others, dots take
    clearly less than half of the picture and checks take half. Patches come out as any of the last two.
    """
    gray = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32), (3, 3), 0.6)
    if np.percentile(gray, 95) - np.percentile(gray, 5) < 18:
        return "plain"
    dx, dy = cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1)
    tensor = np.array([[(dx * dx).mean(), (dx * dy).mean()], [(dx * dy).mean(), (dy * dy).mean()]])
    weaker, stronger = np.linalg.eigvalsh(tensor)
    if weaker < 0.25 * stronger:
        return "stripes"
    threshold, _ = cv2.threshold(gray.astype(np.uint8), 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    light = float((gray > threshold).mean())
    return "dots" if min(light, 1 - light) < 0.41 else "checks"


def _caption(random: np.random.Generator, color: str, pattern: str) -> str:
    """The words for a pattern: mostly "blue dots", some longer, some with only one of the two, some with noise."""
    kind = random.random()
    if kind < 0.10:
        return color
    if kind < 0.14:
        return pattern
    text = TEMPLATES[0 if kind < 0.7 else random.integers(1, len(TEMPLATES))].format(color, pattern)
    if pattern == "plain" and random.random() < 0.5:
        text = f"plain {color}"
    if random.random() < 0.15:
        other = str(random.choice(OTHERS)) if random.random() < 0.7 else _letters(random)
        text = [f"a {other} with {text}", f"{text} on the {other}", f"{other} {text}"][random.integers(3)]
    return text


def _letters(random: np.random.Generator) -> str:
    """A word of letters without a meaning."""
    return "".join(chr(97 + code) for code in random.integers(0, 26, random.integers(2, 7)))


def _rgb(hue: float, saturation: float, value: float) -> Float[np.ndarray, "3"]:
    return np.array(colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value), np.float32)


def _tones(random: np.random.Generator, color: str) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """A deep and a light tone of a color."""
    if color in GRAYS:
        dark, light = (_rgb(random.uniform(0, 360), random.uniform(0, 0.04), random.uniform(*v)) for v in GRAYS[color])
        return dark, light
    hue = HUES[color] + random.uniform(-6, 6)
    deep = _rgb(hue, random.uniform(0.75, 1.0), random.uniform(0.45, 0.85))
    return deep, _rgb(hue + random.uniform(-4, 4), random.uniform(0.32, 0.55), random.uniform(0.88, 1.0))


def _plain_tone(random: np.random.Generator, color: str) -> Float[np.ndarray, "3"]:
    """Any tone between the deep and the light one."""
    deep, light = _tones(random, color)
    part = np.float32(random.random())
    return part * deep + (1 - part) * light


def _hsv(rgb: Float[np.ndarray, "*colors 3"]) -> Float[np.ndarray, "3 n"]:
    """Hue in degrees, saturation and value of colors."""
    return cv2.cvtColor(rgb.reshape(1, -1, 3).astype(np.float32), cv2.COLOR_RGB2HSV)[0].T


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return x, y


def _turned(random: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel positions in axes turned by a random angle (half of the time one of 0, 45 and 90 degrees) and moved."""
    angle = random.choice([0, np.pi / 4, np.pi / 2]) if random.random() < 0.5 else random.uniform(0, np.pi)
    x, y = _grid(height, width)
    return (
        np.cos(angle) * x + np.sin(angle) * y + random.uniform(0, 64),
        np.cos(angle) * y - np.sin(angle) * x + random.uniform(0, 64),
    )


def _wave(position: np.ndarray, period: float) -> np.ndarray:
    """Distance in pixels to the next multiple of the period."""
    return np.abs((position + period / 2) % period - period / 2)


def _coverage(random: np.random.Generator, height: int, width: int, pattern: str) -> Float[np.ndarray, "height width"]:
    """How much of each pixel the foreground of a pattern covers, in [0, 1]; outlines are one pixel soft."""
    u, v = _turned(random, height, width)
    if pattern == "dots":
        period = random.uniform(7, 13)
        shift = (period / 2) * (np.floor(v / period + 0.5) % 2) * (random.random() < 0.5)
        distance = np.hypot(_wave(u + shift, period), _wave(v, period))
        return np.clip(0.5 + period * random.uniform(0.25, 0.33) - distance, 0, 1)
    if pattern == "stripes":
        period = random.uniform(5, 13)
        return np.clip(0.5 + period * random.uniform(0.18, 0.32) - _wave(u, period), 0, 1)
    if pattern == "checks":
        period = random.uniform(8, 15)
        first, second = (np.clip(period / 4 - _wave(axis, period), -0.5, 0.5) for axis in (u, v))
        return 0.5 + 2 * first * second
    if pattern == "patches":
        field = _pink_noise(random, height, width, 2.0)
        slope = np.maximum(np.hypot(*np.gradient(field)), 1e-3)
        return np.clip(0.5 + (field - np.quantile(field, random.uniform(0.3, 0.7))) / slope, 0, 1)
    return np.zeros((height, width), np.float32)


def _shape(random: np.random.Generator, height: int, width: int, color: str, shape: str) -> np.ndarray:
    """A shape in one tone on a plain ground without a hue, lighter or darker than it."""
    x, y = _grid(height, width)
    radius = min(height, width) * random.uniform(0.27, 0.42)
    x = x - width / 2 - random.uniform(-1, 1) * (width / 2 - radius)
    y = y - height / 2 - random.uniform(-1, 1) * (height / 2 - radius)
    if shape == "circle":
        inside = radius - np.hypot(x, y)
    elif shape == "square":
        inside = 0.85 * radius - np.maximum(np.abs(x), np.abs(y))
    else:
        inside = np.minimum(0.6 * radius - y, 0.53 * radius + 0.45 * y - 0.89 * np.abs(x))
    part = np.clip(0.5 + inside, 0, 1)[..., None]
    light = random.random() < 0.5 if color in HUES or color == "grey" else color == "black"
    ground = _rgb(0, 0, random.uniform(0.85, 1.0) if light else random.uniform(0.05, 0.25))
    return _shaded(random, part * _plain_tone(random, color) + (1 - part) * ground)


def _part(random: np.random.Generator, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """A random half plane, ellipse or blob, between a quarter and four fifths of the picture."""
    x, y = _grid(height, width)
    kind, angle = random.integers(3), random.uniform(0, 2 * np.pi)
    if kind == 0:
        field = np.cos(angle) * x + np.sin(angle) * y
    elif kind == 1:
        field = -np.hypot((x - random.uniform(0.3, 0.7) * width) * random.uniform(0.6, 1.6), y - height / 2)
    else:
        field = _pink_noise(random, height, width, 2.5)
    return field >= np.quantile(field, random.uniform(0.2, 0.75))


def _pink_noise(random: np.random.Generator, height: int, width: int, power: float) -> np.ndarray:
    """Noise whose amplitude falls with frequency to a power; mean 0, standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = (
        np.fft.rfft2(random.standard_normal((height, width))) / np.maximum(frequency, 0.5 / max(height, width)) ** power
    )
    field = np.fft.irfft2(spectrum, (height, width)).astype(np.float32)
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def _noise_picture(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Colored 1/f noise around a random color: light varies more than hue does, as in photos."""
    power = random.uniform(0.9, 2.0)
    light = _pink_noise(random, height, width, power)[..., None] * random.uniform(0.03, 0.25)
    tint = np.stack([_pink_noise(random, height, width, power + 0.3) for _ in range(3)], axis=2)
    return random.uniform(0.1, 0.9, 3) + light + tint * random.uniform(0.0, 0.08)


def _shaded(random: np.random.Generator, rgb: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """The picture under light that changes by up to 8 % across it."""
    x, y = _grid(*rgb.shape[:2])
    angle = random.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * x + np.sin(angle) * y) / max(rgb.shape[:2])
    return _to_bytes(rgb * (1 + random.uniform(0, 0.08) * (ramp - ramp.mean()))[..., None])


def _to_bytes(rgb: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
