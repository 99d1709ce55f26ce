"""`unwrap render` for scenes in space: the views that were filmed, or any other camera, moment and pose.

Where an edit is put on the filmed views, pixels that it does not change are the source's: the edited scene shows only
where it differs from the fitted one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from neural_fields.data.bones_file import read_bones
from neural_fields.data.camera_files import read_transforms
from neural_fields.data.cameras import Camera, look_at
from neural_fields.data.capture_folder import read_capture
from neural_fields.data.facts import made_facts, parse_size
from neural_fields.data.skeleton import Motion
from neural_fields.data.video import CODECS, write
from neural_fields.edits import active_edits
from neural_fields.errors import UserError, bad_input
from neural_fields.output import RenderOptions
from neural_fields.run import Run
from neural_fields.volume.scene import PERSON, Moments, Scene, ViewPictures
from neural_fields.volume_previews import depth_picture
from neural_fields.volume_run import VolumeRecord, load_scene, read_record, with_edits

What = Literal["edit", "reconstruction", "compare", "layers", "depth", "opacity"]
ORBIT = 60  # pictures of a turn around
RATE = 24  # pictures a second of what has no rate of its own
SLIGHT, CLEAR = 1 / 255, 8 / 255  # changes of a pixel up to which the source stays, and from which the scene shows


@dataclass(frozen=True)
class Shot:
    """One picture to render: where from, when, and which filmed view it is."""

    camera: Camera
    time: int  # an index into the moments
    view: int | None = None


@dataclass(frozen=True)
class VolumeRenderOptions:
    """What a rendering of a scene is asked for; the defaults are those of the command.

    Attributes:
        common: edits, file, size, codec: as for every run; of `common.what` nothing is read.
        what: what to show.
        camera: "source" for the views that were filmed, "orbit" for a turn around the scene, or a transforms.json.
        time: the moment that is shown all along; None lets time run.
        pose: a bones.json whose poses take the place of those of the capture.
    """

    common: RenderOptions = field(default_factory=RenderOptions)
    what: What = "edit"
    camera: str = "source"
    time: int | None = None
    pose: Path | None = None


def render_volume(
    run: Run, options: VolumeRenderOptions, report: Callable[[int, int], None] = lambda done, total: None
) -> list[Path]:
    """Renders a scene; returns the files written (one, or one per part with `what="layers"`).

    Raises:
        UserError: bad options, nothing to render, the output exists, damaged files, no room.
    """
    common = options.common
    if common.codec not in CODECS:
        raise bad_input(f"unknown codec '{common.codec}'", why=f"codecs: {', '.join(CODECS)}", fix="--codec h264")
    record = read_record(run)
    size = record.size if common.size == "source" else parse_size(common.size, *record.size)
    moments, poses = _moments(record, options)
    shots = _shots(record, options, size, poses)
    scene, _ = load_scene(run, record)
    edited, parts = with_edits(run, scene, common.edits)
    names = [edit.name for edit in active_edits(run, common.edits)]
    if options.what == "edit" and not names:
        raise bad_input(
            "there is no edit to render",
            where=str(run.edits),
            why="no edit is active in this run",
            fix=f"unwrap edit {run.path} --editor dynvideo_e --prompt TEXT --model FOLDER, or --what reconstruction",
        )
    base = (
        common.out
        or run.renders / f"{_stem(options, names)}{'' if common.codec == 'png' else CODECS[common.codec].suffixes[0]}"
    )
    look = _Look(scene, edited, parts, moments, shots)
    if options.what == "layers":
        wanted = [
            (base.with_name(f"{base.stem}-{part}{base.suffix}"), look.layer(part)) for part in sorted(scene.parts)
        ]
    else:
        source = _sources(record, size) if options.what in ("edit", "compare") and _filmed(shots) else None
        wanted = [(base, look.frames(options.what, source))]
    return [_write(path, frames, shots, size, common, report) for path, frames in wanted]


# --- cameras, moments and poses -------------------------------------------------------------------------------------


def _moments(record: VolumeRecord, options: VolumeRenderOptions) -> tuple[Moments, int]:
    """The poses and states to show, and how many there are."""
    moments = record.moments()
    count = len(moments.state)
    if options.pose is not None:
        motion = _pose_file(record, options.pose)
        moments, count = moments.posed(motion.transforms), motion.frame_count
    if options.time is not None and not 0 <= options.time < count:
        raise bad_input(
            f"--time {options.time}",
            where=str(options.pose or record.source),
            why=f"there are {count} moments, from 0 to {count - 1}",
            fix=f"--time {min(max(options.time, 0), count - 1)}",
        )
    return moments, count


def _pose_file(record: VolumeRecord, path: Path) -> Motion:
    """Other poses of the same skeleton.

    Raises:
        UserError: the file cannot be used, the scene has no person, or the bones are others.
    """
    if record.motion is None:
        raise bad_input(f"--pose {path}", why="the scene has no person to pose", fix="leave out --pose")
    motion = read_bones(path)
    names, own = motion.skeleton.names, record.motion.skeleton.names
    if names != own:
        missing = [name for name in own if name not in names] or [name for name in names if name not in own]
        raise bad_input(
            f"{path.name} has other bones than the scene",
            where=str(path),
            why=f"the scene's are {', '.join(own)}" + (f"; {missing[0]} is not in both" if missing else ""),
            fix="start from a copy of the run's scene/bones.json and change its transforms",
        )
    return motion


def _shots(record: VolumeRecord, options: VolumeRenderOptions, size: tuple[int, int], poses: int) -> list[Shot]:
    """What to render, in order."""
    if options.camera == "source":
        shots = [
            Shot(camera, time, view)
            for view, (camera, time) in enumerate(zip(record.cameras, record.times, strict=True))
        ]
    elif options.camera == "orbit":
        shots = [Shot(camera, index % poses) for index, camera in enumerate(orbit_cameras(record))]
    else:
        pictures = read_transforms(Path(options.camera))
        shots = [
            Shot(picture.camera, index % poses if picture.time is None else picture.time)
            for index, picture in enumerate(pictures)
        ]
        late = next((shot.time for shot in shots if shot.time >= poses), None)
        if late is not None and options.time is None:
            raise bad_input(
                f"{Path(options.camera).name} asks for moment {late}",
                where=options.camera,
                why=f"there are {poses} moments, from 0 to {poses - 1}",
                fix="another time in the file, or --time K for all of it",
            )
    moved = options.time is not None or options.pose is not None
    shots = [
        replace(
            shot,
            camera=shot.camera.resized(*size),
            time=shot.time if options.time is None else options.time,
            view=None if moved else shot.view,
        )
        for shot in shots
    ]
    return [shot for shot in shots if shot.time < poses]


def orbit_cameras(record: VolumeRecord, count: int = ORBIT) -> list[Camera]:
    """A turn around what the filming cameras look at, at their mean distance and height, with the lens of the first."""
    poses = np.stack([camera.pose for camera in record.cameras])
    positions, forward = poses[:, :3, 3], poses[:, :3, 2]
    up = -poses[:, :3, 1].mean(axis=0)
    up /= np.linalg.norm(up)
    centre = _looked_at(record, positions, forward)
    away = positions - centre
    height = float((away @ up).mean())
    radius = float(np.linalg.norm(away - np.outer(away @ up, up), axis=1).mean())
    first = away[0] - (away[0] @ up) * up
    across = first / max(float(np.linalg.norm(first)), 1e-9)
    aside = np.cross(up, across)
    turns = 2 * np.pi * np.arange(count) / count
    places = [centre + height * up + radius * (np.cos(turn) * across + np.sin(turn) * aside) for turn in turns]
    return [record.cameras[0].moved(look_at(place, centre, up)) for place in places]


def _looked_at(record: VolumeRecord, positions: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """The person's middle, or the point nearest to all lines of sight."""
    if record.motion is not None:
        return np.mean([record.motion.joints(time).mean(axis=0) for time in sorted(set(record.times))], axis=0)
    across = np.eye(3) - forward[:, :, None] * forward[:, None]
    # Lines that are nearly parallel meet nowhere: then a point in front of the cameras is held on to.
    anchor = positions.mean(axis=0) + forward.mean(axis=0) * record.frame.radius
    weight = 1e-3 * len(positions)
    matrix = across.sum(axis=0) + weight * np.eye(3)
    return np.linalg.solve(matrix, np.einsum("nij,nj->i", across, positions) + weight * anchor)


# --- pictures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What all renderings share."""

    scene: Scene
    edited: Scene
    parts: frozenset[str]  # of the edited scene
    moments: Moments
    shots: list[Shot]

    def frames(self, what: What, source: Iterator[np.ndarray] | None) -> Iterator[np.ndarray]:
        """RGB pictures of 8 bits."""
        for shot in self.shots:
            if what in ("depth", "opacity"):
                pictures = self._edited(shot)
                grey = depth_picture(pictures.depth) if what == "depth" else _grey(pictures.opacity)
                yield _bytes(grey.numpy())
                continue
            plain = self.scene.view(shot.camera, shot.time, self.moments).color.numpy()
            filmed = None if source is None else next(source)
            if what == "reconstruction":
                yield _bytes(plain)
            elif what == "edit":
                edited = self._edited(shot).color.numpy()
                yield _bytes(edited if filmed is None else put_on(filmed, plain, edited))
            else:
                edited = self._edited(shot).color.numpy()
                shown = [plain] if filmed is None else [filmed, plain]
                yield _bytes(np.concatenate([*shown, edited], axis=1))

    def layer(self, part: str) -> Iterator[np.ndarray]:
        """One part alone: with alpha."""
        for shot in self.shots:
            seen = self.edited.view(shot.camera, shot.time, self.moments, parts=frozenset({part}) & self.parts)
            opacity = seen.opacity[..., None] if part == PERSON else torch.ones_like(seen.opacity[..., None])
            straight = seen.color / opacity.clamp_min(1e-4) if part == PERSON else seen.color
            yield _bytes(torch.cat([straight, opacity], dim=2).numpy())

    def _edited(self, shot: Shot) -> ViewPictures:
        return self.edited.view(shot.camera, shot.time, self.moments, parts=self.parts)


def put_on(filmed: np.ndarray, plain: np.ndarray, edited: np.ndarray) -> np.ndarray:
    """The edited scene where it differs from the fitted one, the filmed picture elsewhere; all [height, width, 3]."""
    change = np.abs(edited - plain).max(axis=2, keepdims=True)
    share = np.clip((change - SLIGHT) / (CLEAR - SLIGHT), 0, 1)
    return np.where(share > 0, filmed + share * (edited - filmed), filmed)


def _grey(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(0, 1)[..., None].expand(*values.shape, 3)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _filmed(shots: list[Shot]) -> bool:
    return all(shot.view is not None for shot in shots)


def _sources(record: VolumeRecord, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The filmed pictures in [0, 1], one a view."""
    capture = read_capture(record.source, record.size)
    for frame in capture.frames:
        resized = (
            frame
            if (frame.shape[1], frame.shape[0]) == size
            else cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)
        )
        yield resized.astype(np.float32) / 255


def _stem(options: VolumeRenderOptions, names: list[str]) -> str:
    """The default name of the output: what it shows, and from where."""
    shown = "+".join(names) if options.what == "edit" else options.what
    camera = [] if options.camera == "source" else [Path(options.camera).stem]
    moment = [] if options.time is None else [f"time{options.time}"]
    pose = [] if options.pose is None else [options.pose.stem]
    return re.sub(r"[^a-z0-9+-]", "-", "-".join([shown, *camera, *moment, *pose]).lower())[:80]


def _write(
    path: Path,
    frames: Iterator[np.ndarray],
    shots: list[Shot],
    size: tuple[int, int],
    options: RenderOptions,
    report: Callable[[int, int], None],
) -> Path:
    """Encodes pictures at `RATE` a second, counting them."""

    def counted() -> Iterator[np.ndarray]:
        for done, frame in enumerate(frames, start=1):
            yield frame
            report(done, len(shots))

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        facts = made_facts(size, len(shots), Fraction(RATE))
        return write(path, counted(), facts, codec=options.codec, overwrite=options.overwrite)
    except UserError as error:
        if path.exists() and not options.overwrite and not error.fix:
            error.fix = "add -y to replace it, or --out with another name"
        raise
