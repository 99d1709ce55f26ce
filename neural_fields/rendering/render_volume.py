"""`unwrap render` for 3D scenes: the views that were filmed, or any other camera, moment and pose.

Where an edit is put on the filmed views, pixels that it does not change are the source's: the edited scene shows only
where it differs from the trained one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch

from neural_fields.core.errors import UserError, bad_input
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.capture.bones_json import read_bones
from neural_fields.data.capture.cameras import Camera, compute_look_at_pose
from neural_fields.data.capture.transforms_json import read_transforms
from neural_fields.data.video.io import CODECS, write_video
from neural_fields.data.video.metadata import make_metadata, parse_size
from neural_fields.open_runs.opening import RunLike, require_scene
from neural_fields.open_runs.scene_run import SceneRun
from neural_fields.rendering.comparison import add_caption
from neural_fields.rendering.options import RenderMode, RenderOptions
from neural_fields.runs.output_name import next_version, require_free
from neural_fields.volume.previews import depth_to_gray
from neural_fields.volume.record import VolumeRecord
from neural_fields.volume.scene import PERSON, Moments, RenderedView, Scene


@dataclass(frozen=True)
class RenderView:
    """One picture to render.

    Attributes:
        time: an index into the moments.
        view: the filmed view that it is; None for another camera, moment or pose.
    """

    camera: Camera
    time: int
    view: int | None = None


def render_volume(run: RunLike, options: RenderOptions, report: ProgressReporter = report_nothing) -> list[Path]:
    """Renders a 3D scene.

    Args:
        run: the run of the scene, or its folder.
        options: the options of `unwrap render`.
        report: called after each picture.

    Returns:
        The files written: one file, or one for each part with `what="layers"`.

    Raises:
        UserError: wrong options, nothing to render, or an existing output (exit 3), no room (4), or damaged files (5).
    """
    if options.what in ("wipe", "difference"):
        what = f"a 3D scene has no --what {options.what}"
        raise bad_input(what, where=str(options.out or ""), fix="--what compare shows both beside each other")
    if options.codec not in CODECS:
        raise bad_input(f"unknown codec '{options.codec}'", why=f"codecs: {', '.join(CODECS)}", fix="--codec h264")
    run = require_scene(run, "this rendering")
    record = run.record
    size = record.size if options.size == "source" else parse_size(options.size, *record.size)
    moments, poses = _select_moments(record, options)
    shots = _list_shots(record, options, size, poses)
    edited, parts = run.apply_edits(options.edits)
    names = [edit.name for edit in run.active_edits(options.edits)]
    if options.what == "edit" and not names:
        raise bad_input(
            "there is no edit to render",
            where=str(run.files.edits),
            why="no edit is active in this run",
            fix=f"unwrap edit {run.path} --editor dynvideo_e --prompt TEXT --model FOLDER, or --what reconstruction",
        )
    # A name that says what is rendered, and from where.
    words = [record.source.name, *([] if options.what == "edit" else [options.what])]
    words += [] if options.camera == "source" else [Path(options.camera).stem]
    words += [] if options.time is None else [f"time{options.time}"]
    words += [] if options.pose is None else [options.pose.stem]
    version = next_version(run.files.renders, "_".join(words))
    suffix = "" if options.codec == "png" else CODECS[options.codec].suffixes[0]
    base = options.out or version.with_name(version.name + suffix)
    require_free([] if options.what == "layers" else [base], options.overwrite)
    pictures = _ScenePictures(run.scene, edited, parts, moments, shots)
    wanted: list[tuple[Path, Iterator[np.ndarray]]] = []
    if options.what == "layers":
        for part in sorted(run.scene.parts):
            wanted.append((base.with_name(f"{base.stem}-{part}{base.suffix}"), pictures.render_part(part)))
    else:
        all_filmed = all(shot.view is not None for shot in shots)
        source = _read_source_frames(run, size) if options.what in ("edit", "compare") and all_filmed else None
        wanted.append((base, pictures.render_frames(options.what, source)))
    written = []
    for path, frames in wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = _report_each(frames, len(shots), report)
        try:
            metadata = make_metadata(size, len(shots), Fraction(24))  # a capture has no frame rate
            written.append(write_video(path, shown, metadata, codec=options.codec, overwrite=options.overwrite))
        except UserError as error:
            if path.exists() and not options.overwrite and not error.fix:
                error.fix = "add -y to replace it, or --out with another name"
            raise
    return written


# --- cameras, moments and poses -------------------------------------------------------------------------------------


def _select_moments(record: VolumeRecord, options: RenderOptions) -> tuple[Moments, int]:
    """Returns the poses and states to render, and how many there are.

    Raises:
        UserError: the file of poses cannot be used, the scene has no person, the bones are others, or no such moment.
    """
    moments = record.make_moments()
    count = len(moments.state)
    if options.pose is not None:
        if record.motion is None:
            raise bad_input(f"--pose {options.pose}", why="the scene has no person to pose", fix="leave out --pose")
        motion = read_bones(options.pose)
        names, own = motion.skeleton.names, record.motion.skeleton.names
        if names != own:
            missing = [name for name in own if name not in names] or [name for name in names if name not in own]
            raise bad_input(
                f"{options.pose.name} has other bones than the scene",
                where=str(options.pose),
                why=f"the scene's are {', '.join(own)}" + (f"; {missing[0]} is not in both" if missing else ""),
                fix="start from a copy of the run's scene/bones.json and change its transforms",
            )
        moments, count = moments.with_poses(motion.transforms), motion.frame_count
    if options.time is not None and not 0 <= options.time < count:
        raise bad_input(
            f"--time {options.time}",
            where=str(options.pose or record.source),
            why=f"there are {count} moments, from 0 to {count - 1}",
            fix=f"--time {min(max(options.time, 0), count - 1)}",
        )
    return moments, count


def _list_shots(record: VolumeRecord, options: RenderOptions, size: tuple[int, int], poses: int) -> list[RenderView]:
    """Lists the pictures to render, in order.

    Args:
        record: record of the run.
        options: which cameras and moments.
        size: (width, height) of the pictures.
        poses: how many moments there are.
    """
    if options.camera == "source":
        shots = [
            RenderView(camera, time, view)
            for view, (camera, time) in enumerate(zip(record.cameras, record.times, strict=True))
        ]
    elif options.camera == "orbit":
        shots = [RenderView(camera, index % poses) for index, camera in enumerate(place_orbit_cameras(record))]
    else:
        pictures = read_transforms(Path(options.camera))
        shots = [
            RenderView(picture.camera, index % poses if picture.time is None else picture.time)
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
            camera=shot.camera.resize(*size),
            time=shot.time if options.time is None else options.time,
            view=None if moved else shot.view,
        )
        for shot in shots
    ]
    return [shot for shot in shots if shot.time < poses]


def place_orbit_cameras(record: VolumeRecord, count: int = 60) -> list[Camera]:
    """Places cameras on a circle around the point that the filming cameras are aimed at.

    They are at the mean distance and height of the filming cameras, with the lens of the first.

    Args:
        record: record of the run, with the filming cameras.
        count: number of cameras on the circle.
    """
    poses = np.stack([camera.pose for camera in record.cameras])
    positions, forward = poses[:, :3, 3], poses[:, :3, 2]
    up = -poses[:, :3, 1].mean(axis=0)
    up /= np.linalg.norm(up)
    if record.motion is not None:
        center = np.mean(
            [record.motion.compute_joint_positions(time).mean(axis=0) for time in sorted(set(record.times))], axis=0
        )
    else:  # the point nearest to all lines of sight
        across = np.eye(3) - forward[:, :, None] * forward[:, None]
        # Lines that are nearly parallel meet nowhere: then a point in front of the cameras is held on to.
        anchor = positions.mean(axis=0) + forward.mean(axis=0) * record.bounds.radius
        weight = 1e-3 * len(positions)
        matrix = across.sum(axis=0) + weight * np.eye(3)
        center = np.linalg.solve(matrix, np.einsum("nij,nj->i", across, positions) + weight * anchor)
    away = positions - center
    height = float((away @ up).mean())
    radius = float(np.linalg.norm(away - np.outer(away @ up, up), axis=1).mean())
    first = away[0] - (away[0] @ up) * up
    ahead = first / max(float(np.linalg.norm(first)), 1e-9)
    aside = np.cross(up, ahead)
    cameras = []
    for angle in 2 * np.pi * np.arange(count) / count:
        place = center + height * up + radius * (np.cos(angle) * ahead + np.sin(angle) * aside)
        cameras.append(record.cameras[0].with_pose(compute_look_at_pose(place, center, up)))
    return cameras


# --- pictures -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ScenePictures:
    """The trained and the edited scene, rendered from given cameras."""

    scene: Scene
    edited: Scene
    parts: frozenset[str]  # of the edited scene
    moments: Moments
    shots: list[RenderView]

    def render_frames(self, what: RenderMode, source: Iterator[np.ndarray] | None) -> Iterator[np.ndarray]:
        """Renders RGB pictures of 8 bits; `source` are the filmed ones, if all are filmed."""
        for shot in self.shots:
            if what in ("depth", "opacity"):
                pictures = self._render_edited(shot)
                if what == "depth":
                    gray = depth_to_gray(pictures.depth)
                else:
                    gray = pictures.opacity.clamp(0, 1)[..., None].expand(*pictures.opacity.shape, 3)
                yield _to_bytes(gray.numpy())
                continue
            plain = self.scene.render_view(shot.camera, shot.time, self.moments).color.numpy()
            filmed = None if source is None else next(source)
            if what == "reconstruction":
                yield _to_bytes(plain)
            elif what == "edit":
                edited = self._render_edited(shot).color.numpy()
                yield _to_bytes(edited if filmed is None else composite_edit(filmed, plain, edited))
            else:
                edited = self._render_edited(shot).color.numpy()
                shown = {"source": filmed, "reconstruction": plain, "edit": edited}
                parts = [add_caption(_to_bytes(part), name) for name, part in shown.items() if part is not None]
                yield np.concatenate(parts, axis=1)

    def render_part(self, part: str) -> Iterator[np.ndarray]:
        """Renders one part alone, with alpha."""
        for shot in self.shots:
            seen = self.edited.render_view(shot.camera, shot.time, self.moments, parts=frozenset({part}) & self.parts)
            opacity = seen.opacity[..., None] if part == PERSON else torch.ones_like(seen.opacity[..., None])
            straight = seen.color / opacity.clamp_min(1e-4) if part == PERSON else seen.color
            yield _to_bytes(torch.cat([straight, opacity], dim=2).numpy())

    def _render_edited(self, shot: RenderView) -> RenderedView:
        return self.edited.render_view(shot.camera, shot.time, self.moments, parts=self.parts)


def composite_edit(
    filmed: np.ndarray,
    plain: np.ndarray,
    edited: np.ndarray,
    min_change: float = 1 / 255,
    full_change: float = 8 / 255,
) -> np.ndarray:
    """Adds to a filmed picture what an edit changes; all pictures are [height, width, 3] in [0, 1].

    Args:
        filmed: the filmed picture, which is kept where the edit changes nothing.
        plain: rendering of the trained scene.
        edited: rendering of the edited scene.
        min_change: change of a color value, 0 to 1, up to which the filmed picture is kept.
        full_change: change of a color value, 0 to 1, from which on the whole change is added.

    Returns:
        The filmed picture with the edit.
    """
    change = np.abs(edited - plain).max(axis=2, keepdims=True)
    share = np.clip((change - min_change) / (full_change - min_change), 0, 1)
    return np.where(share > 0, filmed + share * (edited - filmed), filmed)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def _read_source_frames(run: SceneRun, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Reads the filmed pictures in [0, 1], one a view."""
    for frame in run.capture.frames:
        if (frame.shape[1], frame.shape[0]) != size:
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)
        yield frame.astype(np.float32) / 255


def _report_each(frames: Iterator[np.ndarray], count: int, report: ProgressReporter) -> Iterator[np.ndarray]:
    """Passes frames on, reporting each one that was taken."""
    for done, frame in enumerate(frames, start=1):
        yield frame
        report(Progress("rendering", done, count))
