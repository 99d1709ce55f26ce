"""The ground-truth suite: one short clip for every kind of motion and light that a fit has to cope with.

Every clip has a background that moves in the named way and at least one object in front of it. Speeds are per frame,
so that a longer clip goes on where a shorter one ends. One clip, one difficulty: `demo_clip` has many at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from neural_fields.coords import Box
from neural_fields.data import painting
from neural_fields.data.surfaces import Relief, Surface, Turn, Warp, Wave
from neural_fields.data.synthetic import Lighting, SyntheticClip, demo_clip, texels

Photo = Float[ndarray, "_ _ 3"]
Course = Float[ndarray, "frames 4"]  # centre x, y, angle and scale of an object
STILL = Lighting(strength=0.0)


@dataclass(frozen=True)
class Stage:
    """What all clips of the suite share."""

    frames: int = 24
    width: int = 192
    height: int = 108
    seed: int = 0
    photos: tuple[Photo, ...] = ()  # for the surfaces, the last for the background; without them they are painted

    @property
    def half(self) -> Float[ndarray, "2"]:
        """Half the frame in xy units."""
        return np.array([self.width, self.height]) / max(self.width, self.height)

    @property
    def time(self) -> Float[ndarray, " frames"]:
        return np.arange(self.frames, dtype=float)


def suite_clip(
    name: str,
    frames: int = 24,
    size: tuple[int, int] = (192, 108),
    seed: int = 0,
    photos: Sequence[Photo] = (),
) -> SyntheticClip:
    """One clip of the suite.

    Args:
        name: one of `SUITE`.
        size: (width, height); "portrait" swaps them, "square" takes a square of about the same area.
        photos: RGB in [0, 1], put on the surfaces instead of paint, front to back, again from the first when they run
            out.
    """
    return SUITE[name](Stage(frames, *size, seed, tuple(photos)))


def pan(stage: Stage) -> SyntheticClip:
    """The camera pans two pixels a frame; the object swims against it."""
    return _clip(stage, camera(stage, pan=(0.02, 0.004)))


def zoom(stage: Stage) -> SyntheticClip:
    """The camera zooms in by 1.8 % a frame."""
    return _clip(stage, camera(stage, zoom=0.018), swim(stage, speed=(0.012, 0.004)))


def rotation(stage: Stage) -> SyntheticClip:
    """The camera rolls by 1.4 degrees a frame."""
    return _clip(stage, camera(stage, roll=np.radians(1.4)), swim(stage, speed=(0.014, 0.0), turn=-0.01))


def perspective(stage: Stage) -> SyntheticClip:
    """The camera tilts and pans over a plane: homographies, not affine maps, for the background and for the object."""
    ground = camera(stage, pan=(0.012, 0.0), tilt=(0.006, 0.010))
    front = _object_maps(swim(stage, speed=(0.010, 0.003)))
    leaning = np.tile(np.eye(3), (stage.frames, 1, 1))
    leaning[:, 2, 0] = 0.008 * stage.time
    return _clip(stage, ground, maps=front @ leaning)


def wave(stage: Stage) -> SyntheticClip:
    """The background billows like a cloth, the object wriggles; nothing is rigid."""
    slow = camera(stage, pan=(0.006, 0.002))
    warps = (Wave(0.014, 0.7, 18.0), Wave(0.025, 1.1, 22.0))
    return _clip(stage, slow, swim(stage, speed=(0.010, 0.0)), warps=warps)


def occlusion(stage: Stage) -> SyntheticClip:
    """Three layers: a disc passes in front of the turtle."""
    x = 0.45 * stage.half[0]
    turtle = _turtle(stage, swim(stage, start=(0.12, 0.02), speed=(0.008, 0.0)), name="back")
    path = swim(stage, start=(-x, -0.05), speed=(2.4 * x / 23, 0.004))
    return _assemble(stage, [_disc(stage, path, 0.34 * stage.half.min()), turtle], camera(stage, pan=(-0.008, 0.003)))


def parallax(stage: Stage) -> SyntheticClip:
    """The camera moves past hills: near ones move further than far ones, a still nearer object further yet."""
    moves = camera(stage, pan=(0.014, 0.0))
    return _clip(stage, moves, swim(stage, speed=(-0.024, 0.0)), warps=(None, Relief((-0.0035, 0.0))))


def turning(stage: Stage) -> SyntheticClip:
    """A cylinder turns by two degrees a frame: what it shows on one side at first is never seen together with what
    it shows on the other in the end."""
    radius = 0.62 * stage.half.min()
    turn = Turn((0.0, 0.0), radius, 0.7 * stage.half.min(), np.radians(2.0))
    box = turn.box(stage.frames)
    still = np.tile(np.eye(3), (stage.frames, 1, 1))
    texture = _texture(stage, 0, box, lambda width, height: _other_floor(box, width, height, stage.seed))
    can = Surface("foreground", texture, box, None, still, turn)
    return _assemble(stage, [can], camera(stage, pan=(0.008, 0.0)))


def flash(stage: Stage) -> SyntheticClip:
    """Two flashes of a third more light, and light that wanders."""
    first, second = stage.frames // 3, (3 * stage.frames) // 4
    flashes = ((first, 1.33), (first + 1, 1.15), (second, 1.33))
    lighting = Lighting(strength=0.15, flashes=flashes, exposure=0.8)
    return replace(pan(stage), lighting=lighting)


def blur(stage: Stage) -> SyntheticClip:
    """Fast motion, four to five pixels a frame, with a shutter open for half of the time."""
    return replace(_clip(stage, camera(stage, pan=(0.048, 0.0)), swim(stage, speed=(-0.038, 0.004))), shutter=0.5)


def portrait(stage: Stage) -> SyntheticClip:
    """The clip of `unwrap demo` in portrait: a turtle swims up while the camera pans, zooms and rolls."""
    return _photographed(stage, demo_clip(stage.frames, stage.height, stage.width, stage.seed))


def square(stage: Stage) -> SyntheticClip:
    """The clip of `unwrap demo` in a square."""
    side = 4 * round((stage.width * stage.height) ** 0.5 / 4)
    return _photographed(stage, demo_clip(stage.frames, side, side, stage.seed))


SUITE: dict[str, Callable[[Stage], SyntheticClip]] = {
    make.__name__: make
    for make in (
        pan, zoom, rotation, perspective, wave, occlusion, parallax, turning, flash, blur, portrait, square
    )
}  # fmt: skip
SMOOTH = tuple(name for name in SUITE if name != "turning")  # rigid and smooth non-rigid; a turning body hides itself


# --- motion ---------------------------------------------------------------------------------------------------------


def camera(
    stage: Stage,
    pan: tuple[float, float] = (0.0, 0.0),
    zoom: float = 0.0,
    roll: float = 0.0,
    tilt: tuple[float, float] = (0.0, 0.0),
) -> Float[ndarray, "frames 3 3"]:
    """xy of each frame to the background's plane; what is given is what changes a frame.

    Args:
        pan: plane units; zoom: a share; roll: radians; tilt: of the homography's last row, per xy unit.
    """
    angle, scale = roll * stage.time, np.exp(-zoom * stage.time)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    maps = np.tile(np.eye(3), (stage.frames, 1, 1))
    maps[:, :2, :2] = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], axis=1)
    maps[:, :2, 2] = stage.time[:, None] * np.array(pan)
    maps[:, 2, :2] = stage.time[:, None] * np.array(tilt)
    return maps


def swim(
    stage: Stage,
    start: tuple[float, float] | None = None,
    speed: tuple[float, float] = (-0.012, 0.003),
    turn: float = 0.006,
) -> Course:
    """Centre x, y, angle and scale of an object in each frame.

    Args:
        start: by default such that the object passes the middle of the frame in the middle of 24 frames.
    """
    x, y = start if start is not None else (-12 * speed[0], -12 * speed[1])
    t = stage.time
    return np.stack([x + speed[0] * t, y + speed[1] * t, turn * t, 1 + 0.004 * t], axis=1)


def _object_maps(path: Course) -> Float[ndarray, "frames 3 3"]:
    """xy of each frame to the object's plane, in which it lies as in frame 0."""
    x, y, angle, scale = path.T
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    maps = np.tile(np.eye(3), (len(path), 1, 1))
    maps[:, :2, :2] = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=1)
    centres = np.stack([x, y], -1)
    maps[:, :2, 2] = centres[0] - (maps[:, :2, :2] @ centres[..., None])[..., 0]
    return maps


# --- surfaces -------------------------------------------------------------------------------------------------------


def _clip(
    stage: Stage,
    ground: Float[ndarray, "frames 3 3"],
    path: Course | None = None,
    maps: Float[ndarray, "frames 3 3"] | None = None,
    warps: tuple[Warp | None, Warp | None] = (None, None),
) -> SyntheticClip:
    """A turtle over a sea floor."""
    turtle = _turtle(stage, swim(stage) if path is None else path, maps, warps[0])
    return _assemble(stage, [turtle], ground, warps[1])


def _assemble(
    stage: Stage, fronts: list[Surface], ground: Float[ndarray, "frames 3 3"], warp: Warp | None = None
) -> SyntheticClip:
    """The objects over a sea floor that is large enough for the whole clip."""
    bare = Surface("background", np.zeros((2, 2, 3), np.float32), Box(-1.0, -1.0, 1.0, 1.0), None, ground, warp)
    box = _seen(stage, bare)
    texture = _texture(stage, -1, box, lambda width, height: painting.sea_floor(box, width, height, stage.seed))
    floor = replace(bare, texture=texture, box=box)
    return SyntheticClip(stage.width, stage.height, stage.frames, (*fronts, floor), STILL)


def _seen(stage: Stage, surface: Surface) -> Box:
    """The box that holds everything the frames see of a layer, with a margin for an open shutter."""
    rim = torch.linspace(-1, 1, 21, dtype=torch.float64)
    xy = torch.cartesian_prod(rim, rim) * torch.from_numpy(stage.half)
    points = torch.cat([surface.uv_at(t, xy) for t in range(stage.frames)]).numpy()
    low, high = points.min(0) - 0.06, points.max(0) + 0.06
    return Box(*(float(value) for value in (*low, *high)))


def _turtle(
    stage: Stage,
    path: Course,
    maps: Float[ndarray, "frames 3 3"] | None = None,
    warp: Warp | None = None,
    name: str = "foreground",
) -> Surface:
    """The turtle of the demo on a path, with its centre where the path begins."""
    radius = 0.42 * stage.half.min()
    box = _box_around(path, 1.7 * radius)
    size = texels(box, max(stage.width, stage.height))
    painted, distance = painting.turtle(box, *size, radius, stage.seed)
    texture = _texture(stage, 0, box, lambda width, height: painted)
    return Surface(name, texture, box, distance, _object_maps(path) if maps is None else maps, warp)


def _disc(stage: Stage, path: Course, radius: float) -> Surface:
    """A disc cut from another sea floor."""
    box = _box_around(path, 1.3 * radius)
    width, height = texels(box, max(stage.width, stage.height))
    texture = _texture(stage, 1, box, lambda width, height: _other_floor(box, width, height, stage.seed))
    v, u = np.mgrid[:height, :width] + 0.5
    du, dv = (u / width - 0.5) * box.width, (v / height - 0.5) * box.height
    return Surface("front", texture, box, (np.hypot(du, dv) - radius).astype(np.float32), _object_maps(path))


def _other_floor(box: Box, width: int, height: int, seed: int) -> Float[ndarray, "height width 3"]:
    """A sea floor of another seed with its colours exchanged: nothing in it is found in the background."""
    return np.ascontiguousarray(painting.sea_floor(box, width, height, seed + 7)[..., [0, 2, 1]] * [1.0, 0.75, 0.75])


def _box_around(path: Course, half: float) -> Box:
    x, y = (float(value) for value in path[0, :2])
    return Box(x - half, y - half, x + half, y + half)


def _texture(
    stage: Stage, number: int, box: Box, paint: Callable[[int, int], ndarray]
) -> Float[ndarray, "height width 3"]:
    """Paint, or a photo where there are any: cut to the aspect of the box around its middle."""
    width, height = texels(box, max(stage.width, stage.height))
    if not stage.photos:
        return paint(width, height).astype(np.float32)
    photo = stage.photos[number % len(stage.photos)]
    scale = max(width / photo.shape[1], height / photo.shape[0])
    whole = (max(width, round(photo.shape[1] * scale)), max(height, round(photo.shape[0] * scale)))
    sized = cv2.resize(np.asarray(photo, np.float32), whole, interpolation=cv2.INTER_AREA)
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    return np.ascontiguousarray(sized[top : top + height, left : left + width])


def _photographed(stage: Stage, clip: SyntheticClip) -> SyntheticClip:
    """The clip with the stage's photos on its surfaces, if there are any."""
    if not stage.photos:
        return clip
    stage, put = replace(stage, width=clip.width, height=clip.height), []
    for layer, surface in enumerate(clip.surfaces):
        number = -1 if surface.everywhere else layer
        put.append(replace(surface, texture=_texture(stage, number, surface.box, lambda width, height: np.zeros(0))))
    return replace(clip, surfaces=tuple(put))
