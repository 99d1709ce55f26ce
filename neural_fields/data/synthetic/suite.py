"""The ground-truth suite: one short clip for every kind of motion and light that training has to cope with.

Every clip has a background that moves in the named way and at least one object in front of it. Speeds are per frame,
so that a longer clip continues where a shorter one ends. Each clip has one difficulty; `make_demo_clip` has many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from neural_fields.core.box import Box
from neural_fields.data.synthetic import procedural_textures
from neural_fields.data.synthetic.planar_clips import (
    SyntheticClip,
    SyntheticLighting,
    compute_texture_size,
    make_demo_clip,
)
from neural_fields.data.synthetic.surfaces import CylinderWarp, PlanarSurface, ReliefWarp, SurfaceWarp, WaveWarp

Photo = Float[ndarray, "_ _ 3"]
Course = Float[ndarray, "frames 4"]  # center x, y, angle and scale of an object


@dataclass(frozen=True)
class SuiteSettings:
    """Settings that all clips of the suite share."""

    frames: int = 24  # number of frames of a clip
    width: int = 192  # pixels
    height: int = 108  # pixels
    seed: int = 0  # seed of the procedural textures
    # Textures of the surfaces, the last one of the background; without photos they are procedural.
    photos: tuple[Photo, ...] = ()

    @property
    def half_size(self) -> Float[ndarray, "2"]:
        """Returns half the frame in xy units."""
        return np.array([self.width, self.height]) / max(self.width, self.height)

    @property
    def frame_times(self) -> Float[ndarray, " frames"]:
        """Returns the frame numbers."""
        return np.arange(self.frames, dtype=float)


def make_suite_clip(
    name: str,
    frames: int = 24,
    size: tuple[int, int] = (192, 108),
    seed: int = 0,
    photos: Sequence[Photo] = (),
) -> SyntheticClip:
    """Makes one clip of the suite.

    Args:
        name: one of `SUITE_CLIPS`.
        frames: number of frames.
        size: (width, height) in pixels; "portrait" swaps them, "square" is a square of about the same area.
        seed: seed of the procedural textures.
        photos: RGB in [0, 1], used as textures of the surfaces, front to back; they repeat if there are fewer than
            surfaces.

    Returns:
        The clip with its ground truth.
    """
    return SUITE_CLIPS[name](SuiteSettings(frames, *size, seed, tuple(photos)))


def make_pan_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip in which the camera pans two pixels a frame; the object swims against it."""
    return _make_turtle_clip(stage, compute_camera_maps(stage, pan=(0.02, 0.004)), compute_course(stage))


def make_zoom_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip in which the camera zooms in by 1.8 % a frame."""
    return _make_turtle_clip(stage, compute_camera_maps(stage, zoom=0.018), compute_course(stage, speed=(0.012, 0.004)))


def make_rotation_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip in which the camera rolls by 1.4 degrees a frame."""
    course = compute_course(stage, speed=(0.014, 0.0), turn=-0.01)
    return _make_turtle_clip(stage, compute_camera_maps(stage, roll=np.radians(1.4)), course)


def make_perspective_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip in which the camera tilts and pans over a plane: homographies for background and object."""
    ground = compute_camera_maps(stage, pan=(0.012, 0.0), tilt=(0.006, 0.010))
    front = _compute_object_maps(compute_course(stage, speed=(0.010, 0.003)))
    leaning = np.tile(np.eye(3), (stage.frames, 1, 1))
    leaning[:, 2, 0] = 0.008 * stage.frame_times
    return _make_turtle_clip(stage, ground, compute_course(stage), maps=front @ leaning)


def make_wave_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip in which the background billows like a cloth and the object wriggles; nothing is rigid."""
    slow = compute_camera_maps(stage, pan=(0.006, 0.002))
    warps = (WaveWarp(0.014, 0.7, 18.0), WaveWarp(0.025, 1.1, 22.0))
    return _make_turtle_clip(stage, slow, compute_course(stage, speed=(0.010, 0.0)), warps=warps)


def make_occlusion_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip of three layers: a disc passes in front of the turtle."""
    x = 0.45 * stage.half_size[0]
    turtle = _make_turtle(stage, compute_course(stage, start=(0.12, 0.02), speed=(0.008, 0.0)), name="back")
    path = compute_course(stage, start=(-x, -0.05), speed=(2.4 * x / 23, 0.004))

    disc = _make_disc(stage, path, 0.34 * stage.half_size.min(), "front")
    return _assemble_clip(stage, [disc, turtle], compute_camera_maps(stage, pan=(-0.008, 0.003)))


def make_crossing_clip(stage: SuiteSettings, count: int = 2) -> SyntheticClip:
    """Makes a clip of two or three objects that cross each other in the middle of the clip and of the frame.

    Two turtles swim past each other, the violet one in front. A disc that comes from above passes between them.

    Args:
        stage: settings of the suite.
        count: 2, or 3 with the disc.

    Returns:
        The clip with the layers "front", "middle" (the disc, if there is one), "back" and "background".
    """
    radius, middle = 0.3 * stage.half_size.min(), (stage.frames - 1) / 2
    speed = 0.55 * stage.half_size[0] / middle

    def cross(velocity: tuple[float, float], meeting: tuple[float, float]) -> Course:
        start = (meeting[0] - velocity[0] * middle, meeting[1] - velocity[1] * middle)
        return compute_course(stage, start, velocity, turn=0.1 / stage.frames)

    front, back = (
        _make_turtle(stage, cross((velocity, 0.0), (0.0, y)), name=name, radius=radius)
        for name, velocity, y in (("front", speed, -0.07), ("back", -speed, 0.07))
    )
    front = replace(front, texture=np.ascontiguousarray(front.texture[..., [1, 2, 0]]))
    assert back.outline_distance is not None
    flipped = (np.ascontiguousarray(picture[:, ::-1]) for picture in (back.texture, back.outline_distance))
    texture, distance = flipped  # it swims to the left
    objects = [front, replace(back, texture=texture, outline_distance=distance)]
    if count == 3:
        course = cross((0.1 * speed, 0.5 * speed), (0.1, 0.0))
        objects.insert(1, _make_disc(stage, course, 0.8 * radius, "middle"))
    return _assemble_clip(stage, objects, compute_camera_maps(stage, pan=(0.1 / stage.frames, 0.04 / stage.frames)))


def make_parallax_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip in which the camera moves past hills: near ones move more than far ones, and the object the most."""
    ground, course = compute_camera_maps(stage, pan=(0.014, 0.0)), compute_course(stage, speed=(-0.024, 0.0))
    return _make_turtle_clip(stage, ground, course, warps=(None, ReliefWarp((-0.0035, 0.0))))


def make_turning_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip of a cylinder that rotates by two degrees a frame.

    The side that it shows first is never visible together with the side that it shows in the end.
    """
    radius = 0.62 * stage.half_size.min()
    turn = CylinderWarp((0.0, 0.0), radius, 0.7 * stage.half_size.min(), np.radians(2.0))
    box = turn.visible_box(stage.frames)
    still = np.tile(np.eye(3), (stage.frames, 1, 1))
    texture = _make_texture(stage, 0, box, lambda width, height: _paint_other_floor(box, width, height, stage.seed))
    can = PlanarSurface("foreground", texture, box, None, still, turn)
    return _assemble_clip(stage, [can], compute_camera_maps(stage, pan=(0.008, 0.0)))


def make_flash_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip with two flashes of a third more light, and light that changes slowly."""
    first, second = stage.frames // 3, (3 * stage.frames) // 4
    flashes = ((first, 1.33), (first + 1, 1.15), (second, 1.33))
    lighting = SyntheticLighting(strength=0.15, flashes=flashes, exposure=0.8)
    return replace(make_pan_clip(stage), lighting=lighting)


def make_blur_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes a clip of fast motion, four to five pixels a frame, with a shutter open for half of the time."""
    ground, course = compute_camera_maps(stage, pan=(0.048, 0.0)), compute_course(stage, speed=(-0.038, 0.004))
    return replace(_make_turtle_clip(stage, ground, course), shutter=0.5)


def make_portrait_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes the clip of `unwrap demo` in portrait: a turtle swims up while the camera pans, zooms and rolls."""
    return _apply_photos(stage, make_demo_clip(stage.frames, stage.height, stage.width, stage.seed))


def make_square_clip(stage: SuiteSettings) -> SyntheticClip:
    """Makes the clip of `unwrap demo` in a square."""
    side = 4 * round((stage.width * stage.height) ** 0.5 / 4)
    return _apply_photos(stage, make_demo_clip(stage.frames, side, side, stage.seed))


SUITE_CLIPS: dict[str, Callable[[SuiteSettings], SyntheticClip]] = {
    "pan": make_pan_clip,
    "zoom": make_zoom_clip,
    "rotation": make_rotation_clip,
    "perspective": make_perspective_clip,
    "wave": make_wave_clip,
    "occlusion": make_occlusion_clip,
    "parallax": make_parallax_clip,
    "turning": make_turning_clip,
    "flash": make_flash_clip,
    "blur": make_blur_clip,
    "portrait": make_portrait_clip,
    "square": make_square_clip,
}
SMOOTH_CLIP_NAMES = tuple(
    name for name in SUITE_CLIPS if name != "turning"
)  # rigid and smooth non-rigid; a turning body hides itself


# --- motion ---------------------------------------------------------------------------------------------------------


def compute_camera_maps(
    stage: SuiteSettings,
    pan: tuple[float, float] = (0.0, 0.0),
    zoom: float = 0.0,
    roll: float = 0.0,
    tilt: tuple[float, float] = (0.0, 0.0),
) -> Float[ndarray, "frames 3 3"]:
    """Computes the maps from xy of each frame to the background's plane.

    Args:
        stage: settings of the suite.
        pan: (x, y) per frame, in plane units.
        zoom: relative change of scale per frame.
        roll: rotation per frame, in radians.
        tilt: change per frame of the last row of the homography, per xy unit.

    Returns:
        A homography for each frame.
    """
    angle, scale = roll * stage.frame_times, np.exp(-zoom * stage.frame_times)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    maps = np.tile(np.eye(3), (stage.frames, 1, 1))
    maps[:, :2, :2] = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=1)
    maps[:, :2, 2] = stage.frame_times[:, None] * np.array(pan)
    maps[:, 2, :2] = stage.frame_times[:, None] * np.array(tilt)
    return maps


def compute_course(
    stage: SuiteSettings,
    start: tuple[float, float] | None = None,
    speed: tuple[float, float] = (-0.012, 0.003),
    turn: float = 0.006,
) -> Course:
    """Computes center x, y, angle and scale of an object in each frame.

    Args:
        stage: settings of the suite.
        start: (x, y) in frame 0, in xy units; by default the object passes the middle of the frame at frame 12.
        speed: (x, y) per frame, in xy units.
        turn: rotation per frame, in radians.

    Returns:
        A row for each frame, in xy units and radians.
    """
    x, y = start if start is not None else (-12 * speed[0], -12 * speed[1])
    t = stage.frame_times
    return np.stack([x + speed[0] * t, y + speed[1] * t, turn * t, 1 + 0.004 * t], axis=1)


def _compute_object_maps(path: Course) -> Float[ndarray, "frames 3 3"]:
    """Computes the maps from xy of each frame to the object's plane, whose positions are those of frame 0."""
    x, y, angle, scale = path.T
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    maps = np.tile(np.eye(3), (len(path), 1, 1))
    maps[:, :2, :2] = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=1)
    centers = np.stack([x, y], -1)
    maps[:, :2, 2] = centers[0] - (maps[:, :2, :2] @ centers[..., None])[..., 0]
    return maps


# --- surfaces -------------------------------------------------------------------------------------------------------


def _make_turtle_clip(
    stage: SuiteSettings,
    ground: Float[ndarray, "frames 3 3"],
    path: Course,
    maps: Float[ndarray, "frames 3 3"] | None = None,
    warps: tuple[SurfaceWarp | None, SurfaceWarp | None] = (None, None),
) -> SyntheticClip:
    """Makes a clip of a turtle over a sea floor."""
    turtle = _make_turtle(stage, path, maps, warps[0])
    return _assemble_clip(stage, [turtle], ground, warps[1])


def _assemble_clip(
    stage: SuiteSettings,
    fronts: list[PlanarSurface],
    ground: Float[ndarray, "frames 3 3"],
    warp: SurfaceWarp | None = None,
) -> SyntheticClip:
    """Puts the objects over a sea floor that is large enough for the whole clip."""
    bare = PlanarSurface("background", np.zeros((2, 2, 3), np.float32), Box(-1.0, -1.0, 1.0, 1.0), None, ground, warp)

    # The box of everything that the frames show of it, with a margin for an open shutter.
    rim = torch.linspace(-1, 1, 21, dtype=torch.float64)
    xy = torch.cartesian_prod(rim, rim) * torch.from_numpy(stage.half_size)
    points = torch.cat([bare.uv_at(t, xy) for t in range(stage.frames)]).numpy()
    low, high = points.min(0) - 0.06, points.max(0) + 0.06
    box = Box(*(float(value) for value in (*low, *high)))

    texture = _make_texture(
        stage, -1, box, lambda width, height: procedural_textures.paint_sea_floor(box, width, height, stage.seed)
    )
    floor = replace(bare, texture=texture, box=box)
    return SyntheticClip(stage.width, stage.height, stage.frames, (*fronts, floor), SyntheticLighting(strength=0.0))


def _make_turtle(
    stage: SuiteSettings,
    path: Course,
    maps: Float[ndarray, "frames 3 3"] | None = None,
    warp: SurfaceWarp | None = None,
    name: str = "foreground",
    radius: float | None = None,
) -> PlanarSurface:
    """Makes the turtle of the demo on a path, with its center at the start of the path."""
    radius = 0.42 * stage.half_size.min() if radius is None else radius
    box = _compute_box_around(path, 1.7 * radius)
    size = compute_texture_size(box, max(stage.width, stage.height))
    painted, distance = procedural_textures.paint_turtle(box, *size, radius, stage.seed)
    texture = _make_texture(stage, 0, box, lambda width, height: painted)
    return PlanarSurface(name, texture, box, distance, _compute_object_maps(path) if maps is None else maps, warp)


def _make_disc(stage: SuiteSettings, path: Course, radius: float, name: str) -> PlanarSurface:
    """Makes a disc on a path, cut from another sea floor."""
    box = _compute_box_around(path, 1.3 * radius)
    width, height = compute_texture_size(box, max(stage.width, stage.height))
    texture = _make_texture(stage, 1, box, lambda width, height: _paint_other_floor(box, width, height, stage.seed))
    v, u = np.mgrid[:height, :width] + 0.5
    distance = np.hypot((u / width - 0.5) * box.width, (v / height - 0.5) * box.height) - radius
    return PlanarSurface(name, texture, box, distance.astype(np.float32), _compute_object_maps(path))


def _paint_other_floor(box: Box, width: int, height: int, seed: int) -> Float[ndarray, "height width 3"]:
    """Paints a sea floor of another seed with exchanged colors: nothing in it is found in the background."""
    return np.ascontiguousarray(
        procedural_textures.paint_sea_floor(box, width, height, seed + 7)[..., [0, 2, 1]] * [1.0, 0.75, 0.75]
    )


def _compute_box_around(path: Course, half: float) -> Box:
    """Computes the square box around the start of a path."""
    x, y = (float(value) for value in path[0, :2])
    return Box(x - half, y - half, x + half, y + half)


def _make_texture(
    stage: SuiteSettings, number: int, box: Box, paint: Callable[[int, int], ndarray]
) -> Float[ndarray, "height width 3"]:
    """Paints a texture, or cuts a photo, where there are any, to the aspect of the box around its middle."""
    width, height = compute_texture_size(box, max(stage.width, stage.height))
    if not stage.photos:
        return paint(width, height).astype(np.float32)
    photo = stage.photos[number % len(stage.photos)]
    scale = max(width / photo.shape[1], height / photo.shape[0])
    whole = (max(width, round(photo.shape[1] * scale)), max(height, round(photo.shape[0] * scale)))
    sized = cv2.resize(np.asarray(photo, np.float32), whole, interpolation=cv2.INTER_AREA)
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return np.ascontiguousarray(sized[top : top + height, left : left + width])


def _apply_photos(stage: SuiteSettings, clip: SyntheticClip) -> SyntheticClip:
    """Puts the stage's photos on the surfaces of a clip, if there are any."""
    if not stage.photos:
        return clip
    stage, surfaces = replace(stage, width=clip.width, height=clip.height), []
    for layer, surface in enumerate(clip.surfaces):
        number = -1 if surface.has_no_outline else layer
        texture = _make_texture(stage, number, surface.box, lambda width, height: np.zeros(0))
        surfaces.append(replace(surface, texture=texture))
    return replace(clip, surfaces=tuple(surfaces))
