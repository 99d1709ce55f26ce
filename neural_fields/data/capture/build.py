"""Builds a scene folder for 3D training from videos: frames with cameras, masks of the person, and their bones.

Videos that were filmed together share moments: frame k of each shows moment k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.files import disk_errors, make_folder, temporary_path
from neural_fields.core.memmap import allocate_zeros, iterate_releasing
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.capture.background_subtraction import BodyViews, segment_person
from neural_fields.data.capture.bones_json import read_bones, read_states
from neural_fields.data.capture.bvh import read_bvh
from neural_fields.data.capture.camera_matching import FilmedFrames, assign_cameras
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.capture import Capture
from neural_fields.data.capture.capture_folder import check_new_folder, write_capture
from neural_fields.data.capture.options import CaptureBuildOptions
from neural_fields.data.capture.pose_estimation import PoseNetwork
from neural_fields.data.capture.pose_landmarks import (
    LANDMARK_SKELETON,
    PersonDetection,
    compute_skeleton_joints,
    triangulate_landmarks,
    write_landmarks,
)
from neural_fields.data.capture.skeleton import SkeletonMotion
from neural_fields.data.capture.trc_joints import fit_body_motion, fit_motion_to_joints, read_trc
from neural_fields.data.flow.compute import compute_flow
from neural_fields.data.masks.layer_masks import ASPECT_SLACK, load_masks
from neural_fields.data.segmentation.moving_objects import find_moving_objects
from neural_fields.data.video.io import probe_video, read_video
from neural_fields.data.video.metadata import VideoMetadata, parse_frames, parse_size

LANDMARKS_FILE = "landmarks.json"


@dataclass(frozen=True)
class BuiltCapture:
    """A scene folder that was built, with notes for the user."""

    folder: Path
    views: int
    moments: int
    size: tuple[int, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Film:
    """One video at the size of the scene.

    Attributes:
        metadata: metadata of the video.
        film: the frames that have a camera, and their cameras.
        frames: uint8 [chosen frames with a camera, height, width, 3].
        moments: the moment that each frame shows.
    """

    metadata: VideoMetadata
    film: FilmedFrames
    frames: np.ndarray
    moments: tuple[int, ...]

    @property
    def name(self) -> str:
        return Path(self.metadata.path).name


def build_capture(
    out: Path | str,
    videos: Sequence[Path],
    options: CaptureBuildOptions,
    report: ProgressReporter = report_nothing,
) -> BuiltCapture:
    """Builds a scene folder, all of it or nothing.

    Args:
        out: the folder to make.
        videos: files that were filmed together.
        options: cameras, bones, masks, frames and size.
        report: receives the progress.

    Returns:
        The folder, the numbers of its views and moments, and notes for the user.

    Raises:
        UserError: `out` exists and is not empty; videos of different lengths or none; cameras, masks or bones that do
            not fit them; bones that no camera sees; what the readers of the files raise.
    """
    out, notes = Path(out), list[str]()
    check_new_folder(out)  # before an hour's work
    _check_options(videos, options)
    metadata = [probe_video(video) for video in videos]
    chosen = _select_frames(metadata, options.frames)
    filmed = assign_cameras(options.cameras, metadata, chosen, notes)
    size = _choose_size(metadata, options.size)
    motion = _read_motion(options, metadata[0].frame_count, chosen)

    # The moments at which the held object changes, among the chosen frames.
    switches: tuple[int, ...] = ()
    if options.states is not None:
        given = read_states(options.states, metadata[0].frame_count)
        moments = [sum(frame < switch for frame in chosen) for switch in given]
        switches = tuple(sorted({moment for moment in moments if 0 < moment < len(chosen)}))
        if len(switches) < len(given):
            lost = f"{len(given) - len(switches)} of {len(given)} switches of {options.states.name}"
            notes.append(f"{lost} are outside of the frames used")

    with disk_errors(out):
        make_folder(out.absolute().parent)
        with temporary_path(out.absolute().parent) as work:
            parts = []
            for index, film in enumerate(filmed):
                report(Progress("reading", index, len(filmed)))
                text = f"{chosen.start}:{chosen.stop}:{chosen.step}"
                frames = read_video(metadata[index].path, work, f"{size[0]}x{size[1]}", text).frames
                shown = tuple(chosen.index(frame) for frame in film.frames)
                if len(shown) < len(chosen):
                    frames = frames[list(shown)]
                cameras = tuple(camera.resize(*size) for camera in film.cameras)
                parts.append(_Film(metadata[index], FilmedFrames(film.frames, cameras), frames, shown))
            report(Progress("reading", len(filmed), len(filmed)))
            sightings = _find_people(parts, options, report)
            if motion is None and sightings:
                motion = _triangulate_motion(parts, sightings, len(chosen), notes)
            if motion is not None:
                _check_motion_in_view(parts, motion)
            masks = _make_masks(parts, options, motion, chosen, sightings, work, notes, report)
            if motion is not None and masks is None:
                raise _make_missing_masks_error(options)
            report(Progress("writing", 0, 1))
            write_capture(out, _join_films(parts, masks, motion, switches))
            if sightings:
                seen = [(part.name, part.film.frames, some) for part, some in zip(parts, sightings, strict=True)]
                write_landmarks(out / LANDMARKS_FILE, seen)
            report(Progress("writing", 1, 1))
    return BuiltCapture(out, sum(len(part.frames) for part in parts), len(chosen), size, tuple(notes))


# --- options --------------------------------------------------------------------------------------------------------


def _check_options(videos: Sequence[Path], options: CaptureBuildOptions) -> None:
    """Refuses options that contradict one another."""
    if not videos:
        raise UserError(ExitCode.USAGE, "no video is named", fix="unwrap capture OUT VIDEO --cameras FILE")
    if options.bones is not None and options.joints is not None:
        raise UserError(
            ExitCode.USAGE,
            "--bones and --joints both say where the person is",
            why="bones are made from joints",
            fix="leave one of them out",
        )
    words = {"auto", "none"} & set(options.masks)
    if len(options.masks) != (1 if words else len(videos)):
        raise bad_input(
            f"{len(options.masks)} --masks for {len(videos)} videos",
            where="--masks",
            why="one path a video, in their order; or once auto or none",
            fix="--masks auto",
        )
    if options.masks == ("none",) and (options.bones or options.joints):
        raise _make_missing_masks_error(options)


def _make_missing_masks_error(options: CaptureBuildOptions) -> UserError:
    """Returns the error of bones without masks."""
    return bad_input(
        "there are bones but no masks",
        where=str(options.bones or options.joints or options.pose_model),
        why="without masks nothing says which pixels are the person",
        fix="--masks auto, or no bones for a scene without a person",
    )


def _select_frames(metadata: Sequence[VideoMetadata], frames: str | None) -> range:
    """Selects the frames that are used of every video."""
    counts = [f.frame_count for f in metadata]
    shortest = min(counts)
    if frames is None and max(counts) != shortest:
        short, long = metadata[counts.index(shortest)], metadata[counts.index(max(counts))]
        raise bad_input(
            f"{Path(short.path).name} has {shortest} frames, {Path(long.path).name} has {max(counts)}",
            where=short.path,
            why=f"frame k of all videos shows moment k: frame {shortest} is missing in the shorter one",
            fix=f"cut the videos to one begin and end, or take what all have: --frames 0:{shortest}",
        )
    return parse_frames(frames, range(shortest)) if frames else range(shortest)


def _choose_size(metadata: Sequence[VideoMetadata], text: str) -> tuple[int, int]:
    """Returns the size of all pictures of the scene."""
    size = parse_size(text, metadata[0].width, metadata[0].height)
    for f in metadata:
        if "x" not in text and abs(f.width * size[1] / (f.height * size[0]) - 1) > 2 * ASPECT_SLACK:
            raise bad_input(
                f"{Path(f.path).name} is {f.width}x{f.height}, {Path(metadata[0].path).name} "
                f"{metadata[0].width}x{metadata[0].height}",
                where=f.path,
                why="all pictures of a scene have one size; their cameras are stretched with them",
                fix=f"name it: --size {size[0]}x{size[1]}",
            )
    return size


def _read_motion(options: CaptureBuildOptions, count: int, chosen: range) -> SkeletonMotion | None:
    """Reads the bones of the chosen frames from the given file; None if there is none."""
    path = options.bones or options.joints
    if path is None:
        return None
    try:
        if options.joints is not None:
            motion = fit_body_motion(read_trc(options.joints, options.joints_axes, options.joints_scale))
        elif path.suffix.lower() == ".bvh":
            motion = read_bvh(path, None, options.joints_scale, options.joints_axes)
        else:
            motion = read_bones(path)
    except ValueError as error:
        raise bad_input(f"{path.name} cannot be used", where=str(path), why=str(error)) from None
    if motion.frame_count == count:
        return replace(motion, transforms=motion.transforms[chosen.start : chosen.stop : chosen.step])
    if motion.frame_count == len(chosen):
        return motion
    used = f", or {len(chosen)} for those in use" if len(chosen) != count else ""
    raise bad_input(
        f"{path.name} has {motion.frame_count} frames, the videos have {count}",
        where=str(path),
        why=f"bones are needed for every frame: {count}{used}",
        fix=f"bring the bones to the rate of the videos, or cut both: --frames 0:{min(count, motion.frame_count)}",
    )


# --- frames, bones, masks -------------------------------------------------------------------------------------------


def _find_people(
    parts: Sequence[_Film], options: CaptureBuildOptions, report: ProgressReporter
) -> list[list[PersonDetection | None]]:
    """Runs the pose networks on every frame of every video; returns an empty list if there are none."""
    if options.pose_model is None:
        return []
    network = PoseNetwork.load(options.pose_model)
    found = []
    for part in parts:
        network.forget_person()
        seen: list[PersonDetection | None] = []
        for frame in iterate_releasing(part.frames):
            seen.append(network.find_person(frame))
            report(Progress("poses", len(seen), len(part.frames)))
        found.append(seen)
    return found


def _triangulate_motion(
    parts: Sequence[_Film], sightings: list[list[PersonDetection | None]], moments: int, notes: list[str]
) -> SkeletonMotion | None:
    """Fits bones to the landmarks of several cameras; None where only one camera has any."""
    if not any(sighting is not None and len(sighting.pixels) for some in sightings for sighting in some):
        return None
    if len(parts) < 2:
        notes.append(
            f"one camera sees where joints are in the picture, not how far away: {LANDMARKS_FILE} has them, the "
            "scene has no bones (a second camera, --bones or --joints give some)"
        )
        return None
    views = []
    for part, some in zip(parts, sightings, strict=True):
        view: list[tuple[Camera, PersonDetection | None]] = [(part.film.cameras[0], None)] * moments
        for moment, camera, sighting in zip(part.moments, part.film.cameras, some, strict=True):
            view[moment] = camera, sighting
        views.append(view)
    found = triangulate_landmarks(views)
    notes.append(
        f"joints from {len(parts)} cameras: {found.median_error_px:.1f} pixels off in the middle, "
        f"{found.filled_count} filled"
    )
    names, parents = LANDMARK_SKELETON
    return fit_motion_to_joints(names, parents, compute_skeleton_joints(found.points))


def _check_motion_in_view(parts: Sequence[_Film], motion: SkeletonMotion) -> None:
    """Refuses bones outside of the pictures: most likely their axes or units are not those of the cameras."""
    min_share = 0.05  # of the joints, over all views
    shares = []
    for part in parts:
        for camera, moment in zip(part.film.cameras, part.moments, strict=True):
            shares.append(float(camera.project_points(motion.compute_joint_positions(moment))[2].mean()))
    if float(np.mean(shares)) < min_share:
        raise bad_input(
            f"{100 * float(np.mean(shares)):.0f} % of the bones' joints are in the pictures",
            where=parts[0].name,
            why="they do not stand where the cameras look; their axes or units are other than the cameras'",
            fix="--joints-axes zxy for a file with y up and cameras with z up; --joints-scale 0.01 for centimeters",
        )


def _make_masks(
    parts: Sequence[_Film],
    options: CaptureBuildOptions,
    motion: SkeletonMotion | None,
    chosen: range,
    sightings: list[list[PersonDetection | None]],
    work: Path,
    notes: list[str],
    report: ProgressReporter,
) -> list[np.ndarray] | None:
    """Reads or makes the masks of every video; None for a scene without a person."""
    if options.masks == ("none",):
        return None
    if options.masks != ("auto",):
        given = []
        for part, spec in zip(parts, options.masks, strict=True):
            source, size = part.metadata, (part.frames.shape[2], part.frames.shape[1])
            read = load_masks((f"person={spec}",), source, size, chosen)
            notes += [f"{part.name}: {note}" for note in read.notes]
            masks = read.masks[0]
            given.append(masks[list(part.moments)] if len(part.moments) < len(chosen) else masks)
        return given
    found: list[np.ndarray | None] = []
    for index, part in enumerate(parts):
        own: np.ndarray | None = None
        if sightings and motion is None:  # those of the networks, if there are any
            from_networks = allocate_zeros(part.frames.shape[:3], bool)
            for frame, sighting in enumerate(sightings[index]):
                if sighting is not None and sighting.mask is not None:
                    from_networks[frame] = sighting.mask
            own = from_networks if from_networks.any() else None
        if own is None:
            own = _segment_person(part, motion, work, report)
        found.append(own)
        if own is None:
            reason = "nothing differs from the background" if part.film.is_static else "no separate moving object found"
            notes.append(f"{part.name}: {reason}; nobody is marked in it")
    if all(each is None for each in found):
        return None
    return [
        allocate_zeros(part.frames.shape[:3], bool) if m is None else m for part, m in zip(parts, found, strict=True)
    ]


def _segment_person(
    part: _Film, motion: SkeletonMotion | None, work: Path, report: ProgressReporter
) -> np.ndarray | None:
    """Makes masks without a network: by the bones, by a static background, or by motion; None if nobody is found."""
    if motion is not None:
        body = BodyViews(part.film.cameras, replace(motion, transforms=motion.transforms[list(part.moments)]))
        return segment_person(part.frames, body, part.film.is_static, report)
    if part.film.is_static:
        return segment_person(part.frames, None, True, report)
    if len(part.frames) < 2:
        return None
    flow = compute_flow(part.frames, work, report=report)
    found = find_moving_objects(part.frames, flow, 1, report).layers
    return found.masks[0] if found.names else None


def _join_films(
    parts: Sequence[_Film], masks: list[np.ndarray] | None, motion: SkeletonMotion | None, switches: tuple[int, ...]
) -> Capture:
    """Joins the films to a capture, one video after the other."""
    count = sum(len(part.frames) for part in parts)
    frames = allocate_zeros((count, *parts[0].frames.shape[1:]), np.uint8)
    all_masks = None if masks is None else allocate_zeros(frames.shape[:3], bool)
    start = 0
    for index, part in enumerate(parts):
        for offset, frame in enumerate(iterate_releasing(part.frames)):
            frames[start + offset] = frame
        if all_masks is not None and masks is not None:
            all_masks[start : start + len(part.frames)] = masks[index]
        start += len(part.frames)
    cameras = tuple(camera for part in parts for camera in part.film.cameras)
    times = tuple(moment for part in parts for moment in part.moments)
    return Capture(cameras, frames, times, all_masks, motion, switches)
