"""Synthetic clips whose uv, opacity, lighting and flow are known, so that a trained model can be measured.

Each layer is a painted texture, a distance field (negative inside the shape) and a map a frame from xy units to uv
(`surfaces.py`). uv are the xy of frame 0: a surface point at a position of frame 0 has that position as its uv. Frames
are rendered by supersampling: a mean over `supersample(size)`^2 points of gain * (foreground over background), and over
`shutter_steps` times where the shutter stays open.
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

from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.data.synthetic import procedural_textures, surfaces
from neural_fields.data.synthetic.surfaces import PlanarSurface, Time

__all__ = [
    "PaintedMark",
    "PlanarSurface",
    "SyntheticClip",
    "SyntheticLighting",
    "make_demo_clip",
    "make_translation_clip",
    "remove_lighting",
]


@dataclass(frozen=True)
class SyntheticSampling:
    """Settings of the resolution of textures and of the supersampling."""

    large_side_px: int = 640  # longer side up to which textures get finer with the frame
    texels_per_pixel: float = 2.0  # texels along a side of a pixel, of frames up to that size
    points_per_side: int = 3  # sampling points along each side of a pixel, for frames below the large size
    large_points_per_side: int = 2  # sampling points along each side of a pixel, for larger frames


DEFAULTS = SyntheticSampling()


@dataclass(frozen=True, eq=False)
class PaintedMark:
    """A picture painted on a layer: it covers `box` in the xy units of `frame`; those of frame 0 are the layer's uv."""

    picture: Shaped[ndarray, "h w 4"]  # straight RGBA, uint8 or float in [0, 1]
    box: Box
    layer: str = "foreground"
    frame: int = 0


@dataclass(frozen=True)
class SyntheticLighting:
    """A smooth multiplicative gain: a warm wave of light that moves over the frame."""

    strength: float = 0.18  # largest change of the gain; 0 is constant light
    period: float = 72.0  # frames until the wave repeats
    flashes: tuple[tuple[int, float], ...] = ()  # pairs of a frame and its own gain, on top of the wave
    exposure: float = 1.0  # gain of every frame; below 1 leaves room for flashes

    def compute_gain(self, xy: Float[Tensor, "*n 2"], frame: Time) -> Float[Tensor, "*n 3"]:
        """Computes the gain of each color channel at xy units."""
        phase = 2 * np.pi * frame / self.period
        wave = torch.sin(1.9 * xy[..., 0] + 1.3 * xy[..., 1] - phase + 0.6)
        breath = 0.35 * np.sin(phase * 0.5 + 0.4)
        channels = xy.new_tensor([1.0, 0.9, 0.7])
        flash = self.exposure * dict(self.flashes).get(round(frame), 1.0)
        return (1 + self.strength * (0.65 * wave + breath)[..., None] * channels) * flash


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """A clip with its ground truth. Everything is computed from the surfaces on first use and kept.

    Layers go front to back; the last is the background. The center of a foreground's box is the center of its object.
    """

    width: int
    height: int
    count: int  # number of frames
    surfaces: tuple[PlanarSurface, ...]
    lighting: SyntheticLighting
    # Share of the time between frames for which the shutter is open; the truth is that of the middle.
    shutter: float = 0.0
    shutter_steps: int = 7  # number of times within an open shutter over which a frame is averaged

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of the layers, front to back."""
        return tuple(surface.name for surface in self.surfaces)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The box that the texture of each layer covers, in uv units, front to back."""
        return tuple(surface.box for surface in self.surfaces)

    @property
    def textures(self) -> tuple[Float[ndarray, "h w 3"], ...]:
        """The texture of each layer, RGB in [0, 1], front to back."""
        return tuple(surface.texture for surface in self.surfaces)

    @cached_property
    def frames(self) -> UInt8[ndarray, "frames height width 3"]:
        """Renders the clip as decoded RGB."""
        return np.stack(list(self.render_frames()))

    @cached_property
    def uv(self) -> Float[ndarray, "layers frames height width 2"]:
        """Computes the true uv of every pixel center in every layer, also where another layer hides it."""
        xy = coords.frame_xy(self.width, self.height).double()
        maps = [[surface.uv_at(t, xy).float().numpy() for t in range(self.count)] for surface in self.surfaces]
        return np.array(maps)

    @cached_property
    def alpha(self) -> Float[ndarray, "fronts frames height width"]:
        """Computes the antialiased opacity of every layer but the background: the share of the pixel that it covers."""
        xy = _sampling_points(self.width, self.height)
        result = np.zeros((len(self.surfaces) - 1, self.count, self.height, self.width), np.float32)
        for layer, surface in enumerate(self.surfaces[:-1]):
            for t in range(self.count):
                for time in self._shutter_times(t):
                    cover = _compute_coverage(surface, time, xy, max(self.width, self.height))
                    result[layer, t] += _downsample(cover[None], self.width)[0].numpy() / len(self._shutter_times(t))
        return result

    @cached_property
    def masks(self) -> Bool[ndarray, "fronts frames height width"]:
        """Returns where the opacity of a layer is at least one half."""
        return self.alpha >= 0.5

    @cached_property
    def gain(self) -> Float[ndarray, "frames height width 3"]:
        """Computes the true lighting at the pixel centers: rendered color = gain * texture."""
        xy = coords.frame_xy(self.width, self.height)
        return np.stack([self.lighting.compute_gain(xy, t).numpy() for t in range(self.count)])

    @cached_property
    def forward_flow(self) -> Float[ndarray, "pairs height width 2"]:
        """Computes the flow in pixels of the visible surface, frame t to t+1."""
        return self._compute_flow(1)[0]

    @cached_property
    def forward_visible(self) -> Bool[ndarray, "pairs height width"]:
        """Returns where the surface visible in frame t is visible in frame t+1."""
        return self._compute_flow(1)[1]

    @cached_property
    def backward_flow(self) -> Float[ndarray, "pairs height width 2"]:
        """Computes the flow in pixels of the visible surface, frame t+1 to t."""
        return self._compute_flow(-1)[0]

    @cached_property
    def backward_visible(self) -> Bool[ndarray, "pairs height width"]:
        """Returns where the surface visible in frame t+1 is visible in frame t."""
        return self._compute_flow(-1)[1]

    def render_frames(self, marks: Sequence[PaintedMark] = ()) -> Iterator[UInt8[ndarray, "height width 3"]]:
        """Renders the frames one at a time, with `marks` painted on the textures."""
        for mark in marks:
            self._layer_index(mark.layer)
        xy = _sampling_points(self.width, self.height)
        for t in range(self.count):
            colors = [self._compute_color(time, xy, marks) for time in self._shutter_times(t)]
            unlit = colors[0] if len(colors) == 1 else torch.stack(colors).mean(0)
            color = unlit * self.lighting.compute_gain(xy, t).permute(2, 0, 1)
            yield (_downsample(color, self.width).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()

    def render_edited(self, marks: Sequence[PaintedMark]) -> UInt8[ndarray, "frames height width 3"]:
        """Renders the true edited clip: the one of surfaces that the marks are painted on."""
        return np.stack(list(self.render_frames(marks)))

    def compute_mark_positions(self, layer: str | int, uv_point: Sequence[float | int]) -> Float[ndarray, "frames 2"]:
        """Computes the pixel position in each frame of the point of a layer whose uv is `uv_point`."""
        surface, uv = (
            self.surfaces[self._layer_index(layer)],
            torch.tensor([list(map(float, uv_point))], dtype=torch.float64),
        )
        return np.stack([self.to_pixels(surface.xy_at(t, uv))[0].numpy() for t in range(self.count)])

    def to_pixels(self, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Converts xy units to pixels of this clip."""
        return coords.denormalize_pixels(xy, self.width, self.height)

    def is_inside_layer(self, layer: int, t: int, xy: Float[Tensor, "*n 2"]) -> Bool[Tensor, "*n"]:
        """Tells whether points are inside the outline of a layer, hidden or not.

        Args:
            layer: number of the layer.
            t: number of the frame.
            xy: positions in xy units.
        """
        distance = _compute_distance(self.surfaces[layer], t, xy)
        return torch.ones(xy.shape[:-1], dtype=torch.bool) if distance is None else distance < 0

    def compute_labels(self) -> Shaped[ndarray, "frames height width"]:
        """Computes the index of the layer that is most visible in each pixel."""
        weights, rest = [], np.ones((self.count, self.height, self.width), np.float32)
        for alpha in self.alpha:
            weights.append(rest * alpha)
            rest = rest * (1 - alpha)
        return np.argmax(np.stack([*weights, rest]), axis=0)

    def _shutter_times(self, t: int) -> tuple[Time, ...]:
        """Returns the times that a frame is the mean of."""
        if not self.shutter:
            return (t,)
        steps = self.shutter_steps
        return tuple(t + self.shutter * ((k + 0.5) / steps - 0.5) for k in range(steps))

    def _layer_index(self, layer: str | int) -> int:
        """Returns the index of a layer by its name."""
        if isinstance(layer, int):
            return layer
        if layer not in self.layer_names:
            raise ValueError(f"no layer {layer!r} in this clip; it has {', '.join(self.layer_names)}")
        return self.layer_names.index(layer)

    def _compute_color(
        self, t: Time, xy: Float[Tensor, "h w 2"], marks: Sequence[PaintedMark]
    ) -> Float[Tensor, "3 h w"]:
        """Computes the unlit color of time t at the points xy."""
        result = xy.new_zeros(3, *xy.shape[:2])
        for surface in reversed(self.surfaces):
            # The rows and columns of the sampling grid that can show the surface.
            rows, columns = slice(None), slice(None)
            if surface.outline_distance is not None and surface.warp is None:
                box = surface.box
                corners = [[u, v] for u in (box.u0, box.u1) for v in (box.v0, box.v1)]
                positions = surface.xy_at(t, torch.tensor(corners, dtype=torch.float64)).numpy()
                low, high = positions.min(axis=0), positions.max(axis=0)
                columns = slice(*np.searchsorted(xy[0, :, 0].numpy(), [low[0], high[0]]))
                rows = slice(*np.searchsorted(xy[:, 0, 1].numpy(), [low[1], high[1]]))
            uv = surface.uv_at(t, xy[rows, columns])
            color = coords.sample_canonical(_to_batch(surface.texture), surface.box, uv[None])[0]
            for mark in marks:
                if mark.layer != surface.name:
                    continue
                at = surface.xy_at(mark.frame, uv)
                hidden = ~surface.faces_camera(mark.frame, uv)  # a mark covers only what faces the camera
                at = at.masked_fill(hidden[..., None], 1e3) if hidden.any() else at
                # Blended premultiplied, so that a transparent texel's color does not bleed.
                rgba = mark.picture / 255 if mark.picture.dtype == np.uint8 else mark.picture
                premultiplied = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], axis=-1)
                picture = _to_batch(premultiplied.astype(np.float32))
                over = coords.sample_canonical(picture, mark.box, at[None], padding="zeros")[0]
                color = over[:3] + (1 - over[3:]) * color
            alpha = _compute_coverage(surface, t, xy[rows, columns], max(self.width, self.height))
            result[:, rows, columns] += alpha * (color - result[:, rows, columns])
        return result

    def _compute_flow(self, step: int) -> tuple[Float[ndarray, "n h w 2"], Bool[ndarray, "n h w"]]:
        """Computes flow and visibility from each frame to its neighbor `step` frames later."""
        shape = (max(self.count - 1, 0), self.height, self.width)
        flow, ok = np.zeros((*shape, 2), np.float32), np.zeros(shape, bool)
        xy = coords.frame_xy(self.width, self.height).double()
        labels = self.compute_labels()
        for n in range(shape[0]):
            source, target = (n, n + 1) if step > 0 else (n + 1, n)
            for layer, surface in enumerate(self.surfaces):
                uv = surface.uv_at(source, xy)
                there = surface.xy_at(target, uv)
                visible = labels[source] == layer
                flow[n][visible] = ((there - xy) * max(self.width, self.height) / 2).numpy()[visible]

                # The pixel of the target frame that holds the position shows the same layer.
                pixels = self.to_pixels(there).numpy()
                column, row = np.floor(pixels[..., 0]).astype(int), np.floor(pixels[..., 1]).astype(int)
                inside = (column >= 0) & (column < self.width) & (row >= 0) & (row < self.height)
                found = labels[target][row.clip(0, self.height - 1), column.clip(0, self.width - 1)]
                ok[n] |= visible & inside & (found == layer) & surface.faces_camera(target, uv).numpy()
        return flow, ok


def make_demo_clip(frames: int = 48, width: int = 320, height: int = 180, seed: int = 0) -> SyntheticClip:
    """Makes a clip of a turtle over a sea floor while the camera pans, zooms and rolls a little and the light changes.

    The speed per frame does not depend on `frames`; the motion swings, so the turtle stays inside a clip of any length.

    Args:
        frames: number of frames.
        width: width of the frames in pixels.
        height: height of the frames in pixels.
        seed: seed of the procedural textures.

    Returns:
        A clip with the layers "foreground" and "background", and their ground truth.
    """
    long, short = max(width, height), min(width, height)
    half = np.array([width / long, height / long])
    radius = min(0.52 * short / long, 0.4)  # of the shell; leaves room to swim in a square as well
    upright = height > width

    # The path of the turtle: center x, y, angle and scale in each frame, in xy units.
    phase = np.pi * (np.arange(frames) + 7) / 62
    room = np.maximum(half - 1.68 * radius, 0)
    along, across = -room.max() * 0.85 * np.cos(phase), room.min() * 0.9 * np.cos(1.7 * phase + 0.5)
    angle = 0.22 * np.cos(1.3 * phase)
    scale = 1 + 0.1 * (np.sin(phase) - np.sin(phase[0]))
    xy = (across, -along) if upright else (along, across)
    path = np.stack([*xy, angle - angle[0], scale], axis=1)
    center = path[0, :2]
    body = Box(*(center - 1.6 * radius), *(center + 1.6 * radius))
    texture, distance = procedural_textures.paint_turtle(body, *compute_texture_size(body, long), radius, seed, upright)

    # From xy of each frame to the turtle's uv: undo scale and rotation about its center, and move that to frame 0's.
    x, y, angle, scale = path.T
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    linear = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=1)
    centers = np.stack([x, y], -1)
    shift = centers[0] - (linear @ centers[..., None])[..., 0]
    maps = np.concatenate([linear, shift[..., None]], axis=2)
    turtle = PlanarSurface("foreground", texture, body, distance, maps)

    # The camera pans against the turtle, and zooms and rolls slightly: maps from xy of each frame to the floor's uv.
    phase = 2 * np.pi * np.arange(frames) / 240
    angle, zoom = 0.05 * np.sin(phase), 1 - 0.05 * np.sin(phase)
    pan, drift = 0.42 * np.sin(phase), 0.1 * np.sin(0.7 * phase)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    linear = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=1)
    shift = np.stack([drift, -pan] if upright else [pan, drift], -1)
    camera = np.concatenate([linear, shift[..., None]], axis=2)
    box = _compute_visible_box(camera, half)
    floor = PlanarSurface(
        "background",
        procedural_textures.paint_sea_floor(box, *compute_texture_size(box, long), seed),
        box,
        None,
        camera,
    )
    return SyntheticClip(width, height, frames, (turtle, floor), SyntheticLighting())


def make_translation_clip(
    frames: int = 8, width: int = 64, height: int = 36, velocity: Sequence[float | int] = (2.0, 1.0), seed: int = 0
) -> SyntheticClip:
    """Makes a clip of a single layer that moves at constant speed under constant light.

    Args:
        frames: number of frames.
        width: width of the frames in pixels.
        height: height of the frames in pixels.
        velocity: (dx, dy) in pixels a frame.
        seed: seed of the procedural texture.

    Returns:
        A clip with the single layer "background", and its ground truth.
    """
    matrices = np.tile(np.eye(2, 3), (frames, 1, 1))
    matrices[:, :, 2] = -np.arange(frames)[:, None] * np.array(velocity) * 2 / max(width, height)
    box = _compute_visible_box(matrices, np.array([width, height]) / max(width, height))
    texture = procedural_textures.paint_sea_floor(box, *compute_texture_size(box, max(width, height)), seed)
    surface = PlanarSurface("background", texture, box, None, matrices)
    return SyntheticClip(width, height, frames, (surface,), SyntheticLighting(strength=0.0))


def remove_lighting(clip: SyntheticClip) -> SyntheticClip:
    """Returns the same clip under constant light."""
    return replace(clip, lighting=SyntheticLighting(strength=0.0))


def _compute_visible_box(to_uv: Float[ndarray, "frames rows 3"], half: Float[ndarray, "2"]) -> Box:
    """Computes the box of everything that the frames show of a layer, with a little margin."""
    corners = torch.from_numpy(np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]]) * half)
    seen = np.concatenate([surfaces.apply_transform(matrix, corners).numpy() for matrix in to_uv])
    return Box(*(float(x) for x in (*(seen.min(axis=0) - 0.02), *(seen.max(axis=0) + 0.02))))


def compute_texture_size(box: Box, longer_side_px: int, settings: SyntheticSampling = DEFAULTS) -> tuple[int, int]:
    """Computes width and height of a texture that covers `box`.

    Args:
        box: the part of the canonical plane to cover, in uv units.
        longer_side_px: longer side of the frames in pixels.
        settings: texels per pixel.
    """
    density = max(settings.texels_per_pixel * min(longer_side_px, settings.large_side_px), longer_side_px) / 2
    return max(2, round(box.width * density)), max(2, round(box.height * density))


def supersampling_factor(longer_side_px: int, settings: SyntheticSampling = DEFAULTS) -> int:
    """Returns the sampling points along each side of a pixel, for frames whose longer side is `long`."""
    return settings.points_per_side if longer_side_px < settings.large_side_px else settings.large_points_per_side


def _sampling_points(width: int, height: int) -> Float[Tensor, "h w 2"]:
    """Computes xy units of the sampling points of a frame: those of a larger frame of the same aspect."""
    finer = supersampling_factor(max(width, height))
    return coords.frame_xy(width * finer, height * finer)


def _downsample(image: Float[Tensor, "channel h w"], width: int) -> Float[Tensor, "channel height width"]:
    """Averages sampling points to pixels."""
    return F.avg_pool2d(image[None], image.shape[-1] // width)[0]


def _to_batch(image: Float[ndarray, "h w channel"]) -> Float[Tensor, "1 channel h w"]:
    """Converts an image to a batch of one."""
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def _compute_distance(surface: PlanarSurface, t: Time, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"] | None:
    """Computes the distance to the outline, negative inside, on the plane or in uv; None where there is no outline."""
    if surface.warp is not None:
        on_plane = surface.warp.outline_distance(surface.plane_at(t, xy), t)
        if on_plane is not None:
            return on_plane
    if surface.outline_distance is None:
        return None
    picture, uv = _to_batch(surface.outline_distance[..., None]).to(xy.dtype), surface.uv_at(t, xy)
    return coords.sample_canonical(picture, surface.box, uv.reshape(1, 1, -1, 2)).view(uv.shape[:-1])


def _compute_coverage(surface: PlanarSurface, t: Time, xy: Float[Tensor, "h w 2"], long: int) -> Float[Tensor, "h w"]:
    """Computes the opacity at sampling points: a ramp across the outline, as wide as the distance of two points."""
    distance = _compute_distance(surface, t, xy)
    if distance is None:
        return xy.new_ones(xy.shape[:2])
    if surface.warp is None and len(surface.transforms[0]) == 2:
        points_per_uv = (
            supersampling_factor(long) * long / 2 / float(np.sqrt(np.linalg.det(surface.transform_at(t)[:, :2])))
        )
        return (0.5 - distance * points_per_uv).clamp(0, 1)
    slope = torch.stack(torch.gradient(distance)).norm(dim=0)  # of the distance from one sampling point to the next
    return (0.5 - distance / slope.clamp_min(1e-6)).clamp(0, 1)
