"""Clips whose uv, opacity, lighting and flow are known, so that every claim about a fit can be measured.

Each layer is a painted texture, a distance field (negative inside the shape) and a map a frame from xy units to uv
(`surfaces.py`). uv are the xy of frame 0: what is seen at a point of frame 0 has that point as its uv. Frames are
rendered by supersampling: a mean over `supersample(size)`^2 points of gain * (foreground over background), and over
`SHUTTER_STEPS` moments where the shutter stays open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from neural_fields import coords
from neural_fields.coords import Box
from neural_fields.data import painting, surfaces
from neural_fields.data.surfaces import Surface, Time

LARGE = 640  # pixels of the longer side from which the paint is smoother than the pixels
TEXELS_PER_PIXEL = 2.0  # textures are finer than the frames that show them, up to LARGE
SHUTTER_STEPS = 7  # moments of an open shutter that a frame is the mean of

__all__ = ["Lighting", "Mark", "Surface", "SyntheticClip", "demo_clip", "translation_clip", "without_lighting"]


@dataclass(frozen=True, eq=False)
class Mark:
    """A picture painted on a layer: it covers `box` in the xy units of `frame`; frame 0 is the layer's uv."""

    picture: Shaped[ndarray, "h w 4"]  # straight RGBA, uint8 or float in [0, 1]
    box: Box
    layer: str = "foreground"
    frame: int = 0


@dataclass(frozen=True)
class Lighting:
    """A smooth multiplicative gain: a warm wave of light that wanders over the frame."""

    strength: float = 0.18  # largest change of the gain; 0 is none
    period: float = 72.0  # frames until the wave comes back
    flashes: tuple[tuple[int, float], ...] = ()  # frames with a gain of their own, on top of the wave
    exposure: float = 1.0  # a gain of every frame; below 1 leaves room for flashes

    def at(self, xy: Float[Tensor, "*n 2"], frame: Time) -> Float[Tensor, "*n 3"]:
        """Gain of each colour channel at xy units."""
        phase = 2 * np.pi * frame / self.period
        wave = torch.sin(1.9 * xy[..., 0] + 1.3 * xy[..., 1] - phase + 0.6)
        breath = 0.35 * np.sin(phase * 0.5 + 0.4)
        channels = xy.new_tensor([1.0, 0.9, 0.7])
        flash = self.exposure * dict(self.flashes).get(round(frame), 1.0)
        return (1 + self.strength * (0.65 * wave + breath)[..., None] * channels) * flash


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """A clip with its truth. Everything is derived from the surfaces on first use and kept.

    Layers run front to back; the last is the background. The centre of a foreground's box is the centre of its object.
    """

    width: int
    height: int
    count: int  # frames
    surfaces: tuple[Surface, ...]
    lighting: Lighting
    shutter: float = 0.0  # share of the time between frames that the shutter is open; the truth is of the middle

    @property
    def layer_names(self) -> tuple[str, ...]:
        return tuple(surface.name for surface in self.surfaces)

    @property
    def boxes(self) -> tuple[Box, ...]:
        return tuple(surface.box for surface in self.surfaces)

    @property
    def textures(self) -> tuple[Float[ndarray, "h w 3"], ...]:
        return tuple(surface.texture for surface in self.surfaces)

    @cached_property
    def frames(self) -> UInt8[ndarray, "frames height width 3"]:
        """The clip as decoded RGB."""
        return np.stack(list(self.render()))

    @cached_property
    def uv(self) -> Float[ndarray, "layers frames height width 2"]:
        """True uv of every pixel centre in every layer, also where another layer hides it."""
        xy = coords.frame_xy(self.width, self.height).double()
        maps = [[surface.uv_at(t, xy).float().numpy() for t in range(self.count)] for surface in self.surfaces]
        return np.array(maps)

    @cached_property
    def alpha(self) -> Float[ndarray, "fronts frames height width"]:
        """Opacity of every layer but the background, antialiased: the part of the pixel that the layer covers."""
        xy = _points(self.width, self.height)
        result = np.zeros((len(self.surfaces) - 1, self.count, self.height, self.width), np.float32)
        for layer, surface in enumerate(self.surfaces[:-1]):
            for t in range(self.count):
                for moment in self._moments(t):
                    cover = _coverage(surface, moment, xy, max(self.width, self.height))
                    result[layer, t] += _shrink(cover[None], self.width)[0].numpy() / len(self._moments(t))
        return result

    @cached_property
    def masks(self) -> Bool[ndarray, "fronts frames height width"]:
        """Where the opacity of a layer is at least one half."""
        return self.alpha >= 0.5

    @cached_property
    def gain(self) -> Float[ndarray, "frames height width 3"]:
        """True lighting at the pixel centres: colour seen = gain * texture."""
        xy = coords.frame_xy(self.width, self.height)
        return np.stack([self.lighting.at(xy, t).numpy() for t in range(self.count)])

    @cached_property
    def forward(self) -> Float[ndarray, "pairs height width 2"]:
        """Flow in pixels of the visible surface, frame t to t+1."""
        return self._flow(1)[0]

    @cached_property
    def forward_ok(self) -> Bool[ndarray, "pairs height width"]:
        """Where the surface seen in frame t is seen again in frame t+1."""
        return self._flow(1)[1]

    @cached_property
    def backward(self) -> Float[ndarray, "pairs height width 2"]:
        """Flow in pixels of the visible surface, frame t+1 to t."""
        return self._flow(-1)[0]

    @cached_property
    def backward_ok(self) -> Bool[ndarray, "pairs height width"]:
        """Where the surface seen in frame t+1 was seen in frame t."""
        return self._flow(-1)[1]

    def render(self, marks: Sequence[Mark] = ()) -> Iterator[UInt8[ndarray, "height width 3"]]:
        """The frames one at a time, with `marks` painted on the textures."""
        for mark in marks:
            self._index(mark.layer)
        xy = _points(self.width, self.height)
        for t in range(self.count):
            moments = [self._colour(moment, xy, marks) for moment in self._moments(t)]
            seen = moments[0] if len(moments) == 1 else torch.stack(moments).mean(0)
            colour = seen * self.lighting.at(xy, t).permute(2, 0, 1)
            yield (_shrink(colour, self.width).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

    def edited(self, marks: Sequence[Mark]) -> UInt8[ndarray, "frames height width 3"]:
        """The true edited clip: what the camera would have seen had the marks been painted on the surfaces."""
        return np.stack(list(self.render(marks)))

    def mark_positions(self, layer: str | int, uv_point: Sequence[float | int]) -> Float[ndarray, "frames 2"]:
        """Pixel position, frame by frame, of the point of a layer whose uv is `uv_point`."""
        surface, uv = self.surfaces[self._index(layer)], torch.tensor([list(map(float, uv_point))], dtype=torch.float64)
        return np.stack([self.to_pixels(surface.xy_at(t, uv))[0].numpy() for t in range(self.count)])

    def to_pixels(self, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """xy units to pixels of this clip."""
        return coords.denormalise_pixels(xy, self.width, self.height)

    def covers(self, layer: int, t: int, xy: Float[Tensor, "*n 2"]) -> Bool[Tensor, "*n"]:
        """Whether points lie inside the outline of a layer, whatever is in front of it."""
        distance = _distance(self.surfaces[layer], t, xy)
        return torch.ones(xy.shape[:-1], dtype=torch.bool) if distance is None else distance < 0

    def labels(self) -> Shaped[ndarray, "frames height width"]:
        """Index of the layer seen most in each pixel."""
        weights, rest = [], np.ones((self.count, self.height, self.width), np.float32)
        for alpha in self.alpha:
            weights.append(rest * alpha)
            rest = rest * (1 - alpha)
        return np.argmax(np.stack([*weights, rest]), axis=0)

    def _moments(self, t: int) -> tuple[Time, ...]:
        """The moments that a frame is the mean of."""
        if not self.shutter:
            return (t,)
        return tuple(t + self.shutter * ((k + 0.5) / SHUTTER_STEPS - 0.5) for k in range(SHUTTER_STEPS))

    def _index(self, layer: str | int) -> int:
        if isinstance(layer, int):
            return layer
        if layer not in self.layer_names:
            raise ValueError(f"no layer {layer!r} in this clip; it has {', '.join(self.layer_names)}")
        return self.layer_names.index(layer)

    def _colour(self, t: Time, xy: Float[Tensor, "h w 2"], marks: Sequence[Mark]) -> Float[Tensor, "3 h w"]:
        """Unlit colour of frame t at the points xy."""
        result = xy.new_zeros(3, *xy.shape[:2])
        for surface in reversed(self.surfaces):
            rows, columns = _window(surface, t, xy)
            uv = surface.uv_at(t, xy[rows, columns])
            colour = coords.sample(_picture(surface.texture), surface.box, uv[None])[0]
            for mark in marks:
                if mark.layer == surface.name:
                    at = surface.xy_at(mark.frame, uv)
                    hidden = ~surface.facing(mark.frame, uv)  # nobody can paint on what is turned away
                    colour = _paint(colour, mark, at.masked_fill(hidden[..., None], 1e3) if hidden.any() else at)
            alpha = _coverage(surface, t, xy[rows, columns], max(self.width, self.height))
            result[:, rows, columns] += alpha * (colour - result[:, rows, columns])
        return result

    def _flow(self, step: int) -> tuple[Float[ndarray, "n h w 2"], Bool[ndarray, "n h w"]]:
        """Flow and visibility from each frame to its neighbour `step` frames later."""
        shape = (max(self.count - 1, 0), self.height, self.width)
        flow, ok = np.zeros((*shape, 2), np.float32), np.zeros(shape, bool)
        xy = coords.frame_xy(self.width, self.height).double()
        labels = self.labels()
        for n in range(shape[0]):
            source, target = (n, n + 1) if step > 0 else (n + 1, n)
            for layer, surface in enumerate(self.surfaces):
                uv = surface.uv_at(source, xy)
                there = surface.xy_at(target, uv)
                seen = labels[source] == layer
                flow[n][seen] = ((there - xy) * max(self.width, self.height) / 2).numpy()[seen]
                same = _label_at(labels[target], self.to_pixels(there).numpy()) == layer
                ok[n] |= seen & same & surface.facing(target, uv).numpy()
        return flow, ok


def demo_clip(frames: int = 48, width: int = 320, height: int = 180, seed: int = 0) -> SyntheticClip:
    """A turtle swims over a sea floor while the camera pans, zooms and rolls a little and the light changes.

    The speed per frame does not depend on `frames`; the motion swings, so the turtle stays inside a clip of any length.
    """
    long, short = max(width, height), min(width, height)
    half = np.array([width / long, height / long])
    radius = min(0.52 * short / long, 0.4)  # of the shell; leaves room to swim in a square as well
    path = _swim_path(frames, half, radius, upright=height > width)
    centre = path[0, :2]
    body = Box(*(centre - 1.6 * radius), *(centre + 1.6 * radius))
    texture, distance = painting.turtle(body, *texels(body, long), radius, seed, upright=height > width)
    turtle = Surface("foreground", texture, body, distance, _object_to_uv(path))
    camera = _camera_to_uv(frames, upright=height > width)
    box = _seen_box(camera, half)
    floor = Surface("background", painting.sea_floor(box, *texels(box, long), seed), box, None, camera)
    return SyntheticClip(width, height, frames, (turtle, floor), Lighting())


def translation_clip(
    frames: int = 8, width: int = 64, height: int = 36, velocity: Sequence[float | int] = (2.0, 1.0), seed: int = 0
) -> SyntheticClip:
    """One layer that moves by `velocity` pixels (dx, dy) a frame under constant light: flow and uv in closed form."""
    matrices = np.tile(np.eye(2, 3), (frames, 1, 1))
    matrices[:, :, 2] = -np.arange(frames)[:, None] * np.array(velocity) * 2 / max(width, height)
    box = _seen_box(matrices, np.array([width, height]) / max(width, height))
    texture = painting.sea_floor(box, *texels(box, max(width, height)), seed)
    surface = Surface("background", texture, box, None, matrices)
    return SyntheticClip(width, height, frames, (surface,), Lighting(strength=0.0))


def without_lighting(clip: SyntheticClip) -> SyntheticClip:
    """The same clip under constant light."""
    return replace(clip, lighting=Lighting(strength=0.0))


def _swim_path(count: int, half: Float[ndarray, "2"], radius: float, upright: bool) -> Float[ndarray, "frames 4"]:
    """Centre x, y, angle and scale of the object in each frame, in xy units."""
    phase = np.pi * (np.arange(count) + 7) / 62
    room = np.maximum(half - 1.68 * radius, 0)
    along, across = -room.max() * 0.85 * np.cos(phase), room.min() * 0.9 * np.cos(1.7 * phase + 0.5)
    angle = 0.22 * np.cos(1.3 * phase)
    scale = 1 + 0.1 * (np.sin(phase) - np.sin(phase[0]))
    xy = (across, -along) if upright else (along, across)
    return np.stack([*xy, angle - angle[0], scale], axis=1)


def _object_to_uv(path: Float[ndarray, "frames 4"]) -> Float[ndarray, "frames 2 3"]:
    """xy of each frame to the object's uv: undo scale and turn about its centre, put the centre back to frame 0's."""
    x, y, angle, scale = path.T
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    linear = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=1)
    centres = np.stack([x, y], -1)
    shift = centres[0] - (linear @ centres[..., None])[..., 0]
    return np.concatenate([linear, shift[..., None]], axis=2)


def _camera_to_uv(count: int, upright: bool) -> Float[ndarray, "frames 2 3"]:
    """xy of each frame to the background's uv: a pan against the object's way, a slight zoom and roll."""
    phase = 2 * np.pi * np.arange(count) / 240
    angle, zoom = 0.05 * np.sin(phase), 1 - 0.05 * np.sin(phase)
    pan, drift = 0.42 * np.sin(phase), 0.1 * np.sin(0.7 * phase)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    linear = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=1)
    shift = np.stack([drift, -pan] if upright else [pan, drift], -1)
    return np.concatenate([linear, shift[..., None]], axis=2)


def _seen_box(to_uv: Float[ndarray, "frames rows 3"], half: Float[ndarray, "2"]) -> Box:
    """The box that holds everything the frames see of a layer, with a little margin."""
    corners = torch.from_numpy(np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]]) * half)
    seen = np.concatenate([surfaces.apply(matrix, corners).numpy() for matrix in to_uv])
    return Box(*(float(x) for x in (*(seen.min(axis=0) - 0.02), *(seen.max(axis=0) + 0.02))))


def texels(box: Box, long: int) -> tuple[int, int]:
    """Width and height of a texture that covers `box` for frames whose longer side is `long`."""
    density = max(TEXELS_PER_PIXEL * min(long, LARGE), long) / 2
    return max(2, round(box.width * density)), max(2, round(box.height * density))


def supersample(long: int) -> int:
    """Sampling points along each side of a pixel, for frames whose longer side is `long`."""
    return 3 if long < LARGE else 2


def _points(width: int, height: int) -> Float[Tensor, "h w 2"]:
    """xy units of the sampling points of a frame: aspect is kept, so they are those of a larger frame."""
    finer = supersample(max(width, height))
    return coords.frame_xy(width * finer, height * finer)


def _shrink(image: Float[Tensor, "channel h w"], width: int) -> Float[Tensor, "channel height width"]:
    """Sampling points to pixels."""
    return F.avg_pool2d(image[None], image.shape[-1] // width)[0]


def _picture(image: Float[ndarray, "h w channel"]) -> Float[Tensor, "1 channel h w"]:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def _window(surface: Surface, t: Time, xy: Float[Tensor, "h w 2"]) -> tuple[slice, slice]:
    """Rows and columns of the sampling grid that can see the surface in frame t."""
    if surface.distance is None or surface.warp is not None:
        return slice(None), slice(None)
    box = surface.box
    corners = torch.tensor([[u, v] for u in (box.u0, box.u1) for v in (box.v0, box.v1)], dtype=torch.float64)
    seen = surface.xy_at(t, corners).numpy()
    low, high = seen.min(axis=0), seen.max(axis=0)
    columns = np.searchsorted(xy[0, :, 0].numpy(), [low[0], high[0]])
    rows = np.searchsorted(xy[:, 0, 1].numpy(), [low[1], high[1]])
    return slice(*rows), slice(*columns)


def _distance(surface: Surface, t: Time, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"] | None:
    """Distance to the outline, negative inside, on the plane or in uv; None where there is no outline."""
    if surface.warp is not None:
        on_plane = surface.warp.distance(surface.plane_at(t, xy), t)
        if on_plane is not None:
            return on_plane
    if surface.distance is None:
        return None
    picture, uv = _picture(surface.distance[..., None]).to(xy.dtype), surface.uv_at(t, xy)
    return coords.sample(picture, surface.box, uv.reshape(1, 1, -1, 2)).view(uv.shape[:-1])


def _coverage(surface: Surface, t: Time, xy: Float[Tensor, "h w 2"], long: int) -> Float[Tensor, "h w"]:
    """Opacity at sampling points: a ramp as wide as the distance between two points, across the outline."""
    distance = _distance(surface, t, xy)
    if distance is None:
        return xy.new_ones(xy.shape[:2])
    if surface.warp is None and len(surface.to_uv[0]) == 2:
        points_per_uv = supersample(long) * long / 2 / float(np.sqrt(np.linalg.det(surface.matrix(t)[:, :2])))
        return (0.5 - distance * points_per_uv).clamp(0, 1)
    slope = torch.stack(torch.gradient(distance)).norm(dim=0)  # of the distance from one sampling point to the next
    return (0.5 - distance / slope.clamp_min(1e-6)).clamp(0, 1)


def _paint(colour: Float[Tensor, "3 h w"], mark: Mark, at: Float[Tensor, "h w 2"]) -> Float[Tensor, "3 h w"]:
    """Colour with the mark over it; blended premultiplied, so that a transparent texel's colour does not bleed."""
    rgba = mark.picture / 255 if mark.picture.dtype == np.uint8 else mark.picture
    premultiplied = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1).astype(np.float32)
    over = coords.sample(_picture(premultiplied), mark.box, at[None], padding="zeros")[0]
    return over[:3] + (1 - over[3:]) * colour


def _label_at(labels: Shaped[ndarray, "height width"], pixels: Float[ndarray, "h w 2"]) -> Shaped[ndarray, "h w"]:
    """Label of the pixel that holds each position; -1 outside the frame."""
    column, row = np.floor(pixels[..., 0]).astype(int), np.floor(pixels[..., 1]).astype(int)
    height, width = labels.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = labels[row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.where(inside, found, -1)
