"""From videos to a scene folder that a 3D fit reads: frames with cameras, masks of the person, and their bones.

Videos that were filmed together share moments: frame k of each shows moment k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neural_fields.data.bones_file import read_bones, read_states
from neural_fields.data.bvh import read_bvh
from neural_fields.data.capture import Capture
from neural_fields.data.capture_folder import write_capture
from neural_fields.data.facts import VideoFacts, parse_frames, parse_size
from neural_fields.data.flow import compute_flow
from neural_fields.data.joints import body_motion, motion_from_joints, read_trc
from neural_fields.data.landmarks import SKELETON, Sighting, skeleton_joints, triangulate, write_landmarks
from neural_fields.data.masks import ASPECT_SLACK, auto_masks, load_masks
from neural_fields.data.memory import one_by_one, zeros
from neural_fields.data.pose_network import PoseNetwork
from neural_fields.data.skeleton import Motion
from neural_fields.data.still_masks import BodyViews, person_masks
from neural_fields.data.video import probe, read
from neural_fields.data.view_cameras import FilmedFrames, film_cameras
from neural_fields.errors import ExitCode, UserError, bad_input
from neural_fields.files import disk_errors, make_folder, temporary
from neural_fields.fit_options import Progress, Reporter

LANDMARKS = "landmarks.json"
SEEN = 0.05  # of the joints, over all views: bones of which less is in the pictures are not of this scene


@dataclass(frozen=True)
class BuildOptions:
    """What a scene is made from; the defaults are those of the command.

    Attributes:
        cameras: a calibration (.toml), a transforms.json, or the folder of a COLMAP model.
        bones: bones.json or .bvh.
        joints: .trc, tracked joints.
        axes, scale: how the world's axes lie in a .bvh or .trc ("zxy"), and world units for one of the file's.
        masks: "auto", "none", or one path a video.
        frames: A:B[:STEP].
        size: of the pictures; never enlarges.
        states: states.json, its switches in frames of the videos.
        pose_model: folder of pose networks (.tflite).
    """

    cameras: Path
    bones: Path | None = None
    joints: Path | None = None
    axes: str = "xyz"
    scale: float = 1.0
    masks: tuple[str, ...] = ("auto",)
    frames: str | None = None
    size: str = "480p"
    states: Path | None = None
    pose_model: Path | None = None


@dataclass(frozen=True)
class Built:
    """A scene folder that was made, and what a user should know about it."""

    folder: Path
    views: int
    moments: int
    size: tuple[int, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Film:
    """One video at the size of the scene.

    Attributes:
        frames: uint8 [chosen frames with a camera, height, width, 3].
        moments: that they show.
    """

    facts: VideoFacts
    film: FilmedFrames
    frames: np.ndarray
    moments: tuple[int, ...]

    @property
    def name(self) -> str:
        return Path(self.facts.path).name


def build_capture(
    out: Path | str, videos: Sequence[Path], options: BuildOptions, report: Reporter = lambda progress: None
) -> Built:
    """Makes a scene folder, all of it or nothing.

    Raises:
        UserError: `out` is there and not empty; videos of different lengths or none; cameras, masks or bones that do
            not fit them; bones that no camera sees; what the readers of the files raise.
    """
    out, notes = Path(out), list[str]()
    _check_new(out)
    _check_asked(videos, options)
    facts = [probe(video) for video in videos]
    chosen = _chosen(facts, options.frames)
    films = film_cameras(options.cameras, facts, chosen, notes)
    size = _size(facts, options.size)
    motion = _given_motion(options, facts[0].frame_count, chosen)
    switches = _switches(options.states, facts[0].frame_count, chosen, notes)
    with disk_errors(out):
        make_folder(out.absolute().parent)
        with temporary(out.absolute().parent) as work:
            parts = []
            for index, film in enumerate(films):
                report(Progress("reading", index, len(films)))
                parts.append(_film(facts[index], film, chosen, size, work))
            report(Progress("reading", len(films), len(films)))
            seen = _sightings(parts, options, report)
            if motion is None and seen:
                motion = _triangulated(parts, seen, len(chosen), notes)
            if motion is not None:
                _check_seen(parts, motion)
            masks = _masks(parts, options, motion, chosen, seen, work, notes, report)
            if motion is not None and masks is None:
                raise _boneless(options)
            report(Progress("writing", 0, 1))
            write_capture(out, _capture(parts, masks, motion, switches))
            if seen:
                write_landmarks(out / LANDMARKS, [(p.name, p.film.frames, s) for p, s in zip(parts, seen, strict=True)])
            report(Progress("writing", 1, 1))
    return Built(out, sum(len(part.frames) for part in parts), len(chosen), size, tuple(notes))


# --- what is asked for ----------------------------------------------------------------------------------------------


def _check_new(out: Path) -> None:
    """As `write_capture` will, but before an hour's work."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        why = "a scene is written into a new folder, so that no file of another one stays in it"
        raise bad_input(f"{out} is there already", where=str(out), why=why, fix="name a new folder")


def _check_asked(videos: Sequence[Path], options: BuildOptions) -> None:
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
        raise _boneless(options)


def _boneless(options: BuildOptions) -> UserError:
    return bad_input(
        "there are bones but no masks",
        where=str(options.bones or options.joints or options.pose_model),
        why="without masks nothing says which pixels are the person",
        fix="--masks auto, or no bones for a scene without a person",
    )


def _chosen(facts: Sequence[VideoFacts], frames: str | None) -> range:
    """The frames that are used of every video."""
    counts = [f.frame_count for f in facts]
    shortest = min(counts)
    if frames is None and max(counts) != shortest:
        short, long = facts[counts.index(shortest)], facts[counts.index(max(counts))]
        raise bad_input(
            f"{Path(short.path).name} has {shortest} frames, {Path(long.path).name} has {max(counts)}",
            where=short.path,
            why=f"frame k of all videos shows moment k: frame {shortest} is missing in the shorter one",
            fix=f"cut the videos to one begin and end, or take what all have: --frames 0:{shortest}",
        )
    return parse_frames(frames, shortest) if frames else range(shortest)


def _size(facts: Sequence[VideoFacts], text: str) -> tuple[int, int]:
    """The size of all pictures of the scene."""
    size = parse_size(text, facts[0].width, facts[0].height)
    for f in facts:
        if "x" not in text and abs(f.width * size[1] / (f.height * size[0]) - 1) > 2 * ASPECT_SLACK:
            raise bad_input(
                f"{Path(f.path).name} is {f.width}x{f.height}, {Path(facts[0].path).name} "
                f"{facts[0].width}x{facts[0].height}",
                where=f.path,
                why="all pictures of a scene have one size; their cameras are stretched with them",
                fix=f"name it: --size {size[0]}x{size[1]}",
            )
    return size


def _given_motion(options: BuildOptions, count: int, chosen: range) -> Motion | None:
    """The bones of the chosen frames, from the file that was named."""
    path = options.bones or options.joints
    if path is None:
        return None
    try:
        if options.joints is not None:
            motion = body_motion(read_trc(options.joints, options.axes, options.scale))
        elif path.suffix.lower() == ".bvh":
            motion = read_bvh(path, None, options.scale, options.axes)
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


def _switches(path: Path | None, count: int, chosen: range, notes: list[str]) -> tuple[int, ...]:
    """The moments at which the carried object changes."""
    if path is None:
        return ()
    given = read_states(path, count)
    moments = [sum(frame < switch for frame in chosen) for switch in given]
    kept = tuple(sorted({moment for moment in moments if 0 < moment < len(chosen)}))
    if len(kept) < len(given):
        notes.append(f"{len(given) - len(kept)} of {len(given)} switches of {path.name} lie outside of the frames used")
    return kept


# --- frames, bones, masks -------------------------------------------------------------------------------------------


def _film(facts: VideoFacts, film: FilmedFrames, chosen: range, size: tuple[int, int], work: Path) -> _Film:
    """The frames of a video that have a camera, at the scene's size."""
    text = f"{chosen.start}:{chosen.stop}:{chosen.step}"
    frames = read(facts.path, work, f"{size[0]}x{size[1]}", text).frames
    moments = tuple(chosen.index(frame) for frame in film.frames)
    if len(moments) < len(chosen):
        frames = frames[list(moments)]
    cameras = tuple(camera.resized(*size) for camera in film.cameras)
    return _Film(facts, FilmedFrames(film.frames, cameras), frames, moments)


def _sightings(parts: Sequence[_Film], options: BuildOptions, report: Reporter) -> list[list[Sighting | None]]:
    """What the pose networks see in every frame of every video; nothing if there are none."""
    if options.pose_model is None:
        return []
    network = PoseNetwork.open(options.pose_model)
    found = []
    for part in parts:
        network.forget()
        seen: list[Sighting | None] = []
        for frame in one_by_one(part.frames):
            seen.append(network.look(frame))
            report(Progress("poses", len(seen), len(part.frames)))
        found.append(seen)
    return found


def _triangulated(
    parts: Sequence[_Film], seen: list[list[Sighting | None]], moments: int, notes: list[str]
) -> Motion | None:
    """Bones from what several cameras see; None where only one does."""
    if not any(sighting is not None and len(sighting.pixels) for some in seen for sighting in some):
        return None
    if len(parts) < 2:
        notes.append(
            f"one camera sees where joints are in the picture, not how far away: {LANDMARKS} has them, the scene has "
            "no bones (a second camera, --bones or --joints give some)"
        )
        return None
    views = []
    for part, some in zip(parts, seen, strict=True):
        at = dict(zip(part.moments, zip(part.film.cameras, some, strict=True), strict=True))
        views.append([at.get(moment, (part.film.cameras[0], None)) for moment in range(moments)])
    found = triangulate(views)
    notes.append(f"joints from {len(parts)} cameras: {found.error:.1f} pixels off in the middle, {found.filled} filled")
    names, parents = SKELETON
    return motion_from_joints(names, parents, skeleton_joints(found.points))


def _check_seen(parts: Sequence[_Film], motion: Motion) -> None:
    """Refuses bones that lie outside of the pictures: most likely their axes or units are not those of the cameras."""
    shares = []
    for part in parts:
        for camera, moment in zip(part.film.cameras, part.moments, strict=True):
            shares.append(float(camera.project(motion.joints(moment))[2].mean()))
    if float(np.mean(shares)) < SEEN:
        raise bad_input(
            f"{100 * float(np.mean(shares)):.0f} % of the bones' joints are in the pictures",
            where=parts[0].name,
            why="they do not stand where the cameras look; their axes or units are other than the cameras'",
            fix="--joints-axes zxy for a file with y up and cameras with z up; --joints-scale 0.01 for centimetres",
        )


def _masks(
    parts: Sequence[_Film],
    options: BuildOptions,
    motion: Motion | None,
    chosen: range,
    seen: list[list[Sighting | None]],
    work: Path,
    notes: list[str],
    report: Reporter,
) -> list[np.ndarray] | None:
    """Masks of every video; None for a scene without a person."""
    if options.masks == ("none",):
        return None
    if options.masks != ("auto",):
        return [_loaded(part, spec, chosen) for part, spec in zip(parts, options.masks, strict=True)]
    found = []
    for index, part in enumerate(parts):
        shown = _shown(part, seen[index]) if seen and motion is None else None
        found.append(_own_masks(part, motion, work, report) if shown is None else shown)
        if found[-1] is None:
            reason = "nothing differs from the background" if part.film.still else "nothing moves clearly on its own"
            notes.append(f"{part.name}: {reason}; nobody is marked in it")
    if all(masks is None for masks in found):
        return None
    return [zeros(part.frames.shape[:3], bool) if m is None else m for part, m in zip(parts, found, strict=True)]


def _loaded(part: _Film, spec: str, chosen: range) -> np.ndarray:
    """The user's masks of a video."""
    facts, size = part.facts, (part.frames.shape[2], part.frames.shape[1])
    masks = load_masks((f"person={spec}",), facts.frame_count, size, chosen, (facts.width, facts.height)).masks[0]
    return masks[list(part.moments)] if len(part.moments) < len(chosen) else masks


def _shown(part: _Film, seen: Sequence[Sighting | None]) -> np.ndarray | None:
    """The masks that the networks give."""
    out = zeros(part.frames.shape[:3], bool)
    for index, sighting in enumerate(seen):
        if sighting is not None and sighting.mask is not None:
            out[index] = sighting.mask
    return out if out.any() else None


def _own_masks(part: _Film, motion: Motion | None, work: Path, report: Reporter) -> np.ndarray | None:
    """Masks without a network: by the bones, by a background that stands still, or by motion."""

    def told(done: int, total: int) -> None:
        report(Progress("masks", done, total))

    if motion is not None:
        body = BodyViews(part.film.cameras, replace(motion, transforms=motion.transforms[list(part.moments)]))
        return person_masks(part.frames, body, part.film.still, told)
    if part.film.still:
        return person_masks(part.frames, None, True, told)
    if len(part.frames) < 2:
        return None
    flow = compute_flow(part.frames, work, progress=lambda done, all_: report(Progress("flow", done, all_)))
    found = auto_masks(part.frames, flow, told)
    return found.masks[0] if found.names else None


def _capture(
    parts: Sequence[_Film], masks: list[np.ndarray] | None, motion: Motion | None, switches: tuple[int, ...]
) -> Capture:
    """Everything together, one video after the other."""
    count = sum(len(part.frames) for part in parts)
    frames = zeros((count, *parts[0].frames.shape[1:]), np.uint8)
    together = None if masks is None else zeros(frames.shape[:3], bool)
    start = 0
    for index, part in enumerate(parts):
        for offset, frame in enumerate(one_by_one(part.frames)):
            frames[start + offset] = frame
        if together is not None and masks is not None:
            together[start : start + len(part.frames)] = masks[index]
        start += len(part.frames)
    cameras = tuple(camera for part in parts for camera in part.film.cameras)
    times = tuple(moment for part in parts for moment in part.moments)
    return Capture(cameras, frames, times, together, motion, switches)
