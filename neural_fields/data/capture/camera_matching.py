"""The cameras of the frames of several videos: matched by names, by numbers in names, or by order.

Cameras come from a calibration (a fixed one for each video), a transforms.json or a COLMAP model. The latter two list
pictures: one picture for a video means a fixed camera, many are the video's frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neural_fields.core.errors import bad_input
from neural_fields.core.validated_input import natural_sort_key
from neural_fields.data.capture.calibration_toml import read_calibration
from neural_fields.data.capture.cameras import Camera
from neural_fields.data.capture.colmap import read_colmap
from neural_fields.data.capture.transforms_json import PosedImage, read_transforms
from neural_fields.data.masks.layer_masks import ASPECT_SLACK
from neural_fields.data.video.metadata import VideoMetadata


@dataclass(frozen=True)
class FilmedFrames:
    """The frames of a video that have a camera.

    Attributes:
        frames: numbers of frames of the video, rising.
        cameras: cameras of these frames, at the video's size.
    """

    frames: tuple[int, ...]
    cameras: tuple[Camera, ...]

    @property
    def is_static(self) -> bool:
        """Returns whether the camera neither moves nor zooms."""
        first = self.cameras[0]
        return all(
            camera.focal == first.focal and np.allclose(camera.pose, first.pose, rtol=0, atol=1e-9)
            for camera in self.cameras
        )


def assign_cameras(
    source: Path, videos: Sequence[VideoMetadata], chosen: range, notes: list[str]
) -> tuple[FilmedFrames, ...]:
    """Finds the cameras of the chosen frames of every video. Assumptions are added to `notes`.

    Args:
        source: a calibration (.toml), a transforms.json or the folder of one, or the folder of a COLMAP model.
        videos: metadata of the videos.
        chosen: frame numbers, the same for all videos, which were filmed together.
        notes: sentences for the user; assumptions are appended.

    Returns:
        For each video, the chosen frames that have a camera, with their cameras.

    Raises:
        UserError: cameras and videos that do not belong together by number, name or size; frames that cannot be told
            apart; what the readers of the files raise.
    """
    source = Path(source)
    groups = _group_cameras(source, len(videos))
    order, reason = _match_cameras([Path(video.path) for video in videos], list(groups), source)
    found = []
    for video, name in zip(videos, order, strict=True):
        group = groups[name]
        if isinstance(group, Camera):
            film = FilmedFrames(tuple(chosen), (group,) * len(chosen))
        else:
            film = _select_frames(group, video, chosen, source, notes)
        if len(groups) > 1:
            notes.append(f"{Path(video.path).name} was filmed by camera {name} ({reason})")

        # The cameras at the video's size; refused where the aspects differ.
        size, filmed = (video.width, video.height), Path(video.path).name
        for index, camera in zip(film.frames, film.cameras, strict=True):
            wide, high = camera.width, camera.height
            if abs(wide * size[1] / (high * size[0]) - 1) > ASPECT_SLACK:
                rotated = (wide - high) * (size[0] - size[1]) < 0
                raise bad_input(
                    f"frame {index} of {filmed} is {size[0]}x{size[1]}, its camera {wide}x{high}",
                    where=video.path,
                    why="one is in portrait and the other in landscape format" if rotated else "their shapes differ",
                    fix="turn the video, or find the cameras again on its frames"
                    if rotated
                    else "find the cameras on frames of this video, not cut or stretched",
                )
        if video.rotation == 180 or (video.rotation and size[0] == size[1]):  # shapes do not tell
            notes.append(
                f"{filmed} is stored turned by {video.rotation} degrees, and its frames are upright here: the cameras "
                "must be those of upright frames"
            )
        first = film.cameras[0]
        if (first.width, first.height) != size and abs(first.width * size[1] - first.height * size[0]) > max(size):
            notes.append(
                f"{filmed} is {size[0]}x{size[1]}, its camera {first.width}x{first.height}: taken as scaled, not as cut"
            )
        found.append(FilmedFrames(film.frames, tuple(camera.resize(*size) for camera in film.cameras)))
    return tuple(found)


# --- which cameras there are ----------------------------------------------------------------------------------------

Group = Camera | list[PosedImage]


def _group_cameras(source: Path, count: int) -> dict[str, Group]:
    """Reads the cameras by name: each a fixed one, or the pictures of one video."""
    if source.suffix.lower() == ".toml":
        return dict(read_calibration(source))
    if source.is_file() or (source / "transforms.json").is_file():
        pictures = read_transforms(source if source.is_file() else source / "transforms.json")
    elif source.is_dir():
        pictures = read_colmap(source)
    else:
        raise bad_input(
            f"there are no cameras at {source}",
            where="--cameras",
            why="expected a calibration (.toml), a transforms.json, or the folder of a COLMAP model",
            fix="find cameras with COLMAP, or export them with nerfstudio's ns-process-data",
        )
    if len(pictures) == count:
        return {picture.path.stem: [picture] for picture in pictures}
    if count == 1:
        return {"all pictures": pictures}
    folders = [picture.path.parent.name for picture in pictures]
    stems = [picture.path.stem for picture in pictures]
    prefixes = [re.sub(r"[^A-Za-z0-9]*[0-9]*$", "", stem) or stem for stem in stems]
    for keys in (folders, prefixes):
        groups: dict[str, list[PosedImage]] = {}
        for key, picture in zip(keys, pictures, strict=True):
            groups.setdefault(key, []).append(picture)
        if len(groups) >= count:
            return dict(groups)
    raise bad_input(
        f"{source.name} has {len(pictures)} pictures that cannot be told apart by video",
        where=str(source),
        why=f"there are {count} videos; the pictures of each need a folder or a beginning of their names",
        fix="rename them: cam01_00000.png, cam01_00001.png, ..., cam02_00000.png, ...",
    )


# --- which camera filmed which video --------------------------------------------------------------------------------


def _match_cameras(videos: Sequence[Path], names: Sequence[str], source: Path) -> tuple[list[str], str]:
    """Finds the name of each video's camera; also returns the reason, for the user."""
    if len(videos) == len(names) == 1:
        return list(names), "the only one"
    keys = (
        ("by its name", lambda name: re.sub(r"[^a-z0-9]", "", name.lower())),
        ("by its number", _find_last_number),
    )
    for reason, key in keys:
        matches = []
        for path in videos:
            wanted = key(path.stem)
            matches.append([name for name in names if wanted and key(name) == wanted])
        if all(len(some) == 1 for some in matches) and len({some[0] for some in matches}) == len(videos):
            return [some[0] for some in matches], reason
    if len(videos) == len(names):
        return list(names), "by order: no names agree"
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise bad_input(
        f"{len(videos)} video{'s' * (len(videos) != 1)} and {len(names)} cameras do not go together",
        where=str(source),
        why=f"the cameras are {listed}; the videos {', '.join(path.name for path in videos)}",
        fix="give a video for each camera, in the same order, or name each video as its camera",
    )


def _find_last_number(name: str) -> str:
    """Returns the last number in a name without leading zeros; an empty text if there is none."""
    found = re.findall(r"[0-9]+", name)
    return str(int(found[-1][:1000])) if found else ""


# --- which camera filmed which frame --------------------------------------------------------------------------------


def _select_frames(
    pictures: Sequence[PosedImage], video: VideoMetadata, chosen: range, source: Path, notes: list[str]
) -> FilmedFrames:
    """Selects the cameras of a video's chosen frames from those of pictures that are its frames."""
    pictures = sorted(pictures, key=lambda picture: natural_sort_key(picture.path.as_posix()))
    if len(pictures) == 1:
        return FilmedFrames(tuple(chosen), (pictures[0].camera,) * len(chosen))
    if len(pictures) == video.frame_count:
        return FilmedFrames(tuple(chosen), tuple(pictures[index].camera for index in chosen))
    if len(pictures) == len(chosen):
        return FilmedFrames(tuple(chosen), tuple(picture.camera for picture in pictures))
    where, name, count = str(source), Path(video.path).name, video.frame_count
    numbers = [_find_last_number(picture.path.stem) for picture in pictures]
    if "" in numbers or len(set(numbers)) < len(numbers):
        raise bad_input(
            f"{len(pictures)} cameras for the {count} frames of {name}",
            where=where,
            why="the pictures' names have no numbers that would say which frames they are",
            fix="give a camera for every frame",
        )
    first = 0 if "0" in numbers else 1
    frames = {int(number) - first: picture.camera for number, picture in zip(numbers, pictures, strict=True)}
    last, contiguous = max(frames), max(frames) - min(frames) + 1 == len(frames)
    if last >= count or (contiguous and last < count - 1 and len(frames) < len(chosen)):
        raise bad_input(
            f"{len(pictures)} cameras, numbered {min(frames) + first} to {last + first}, "
            f"for the {count} frames of {name}",
            where=where,
            why="they are not its frames by number; perhaps every second or third frame was taken",
            fix=f"name the frames they are of: --frames 0:{count}:{max(2, round(count / len(pictures)))}",
        )
    used = tuple(index for index in chosen if index in frames)
    if not used:
        raise bad_input(
            f"no chosen frame of {name} has a camera",
            where=where,
            why=f"those that have one are {min(frames)} to {last}",
            fix=f"--frames {min(frames)}:{last + 1}",
        )
    if len(used) < len(chosen):
        notes.append(
            f"{len(chosen) - len(used)} of {len(chosen)} frames of {name} have no camera and are left out "
            f"(picture {first} is taken as frame 0)"
        )
    return FilmedFrames(used, tuple(frames[index] for index in used))


# --- sizes ----------------------------------------------------------------------------------------------------------
