"""Which camera filmed which frame of which video: by names, by numbers in names, or by order.

Cameras come from a calibration (one a video, standing still), a transforms.json or a COLMAP model. The latter two list
pictures: one a video stands for a camera that does not move, many are the video's frames.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neural_fields.data.calibration import read_calibration
from neural_fields.data.camera_files import PosedPicture, read_transforms
from neural_fields.data.cameras import Camera
from neural_fields.data.colmap import read_colmap
from neural_fields.data.facts import VideoFacts
from neural_fields.data.masks import ASPECT_SLACK
from neural_fields.data.user_files import natural
from neural_fields.errors import bad_input


@dataclass(frozen=True)
class FilmedFrames:
    """The frames of a video that have a camera.

    Attributes:
        frames: numbers of frames of the video, rising.
        cameras: of each of them, at the video's size.
    """

    frames: tuple[int, ...]
    cameras: tuple[Camera, ...]

    @property
    def still(self) -> bool:
        """Whether the camera neither moves nor zooms."""
        first = self.cameras[0]
        return all(
            camera.focal == first.focal and np.allclose(camera.pose, first.pose, rtol=0, atol=1e-9)
            for camera in self.cameras
        )


def film_cameras(
    source: Path, videos: Sequence[VideoFacts], chosen: range, notes: list[str]
) -> tuple[FilmedFrames, ...]:
    """The cameras of the chosen frames of every video. What was assumed on the way is said in `notes`.

    Args:
        source: a calibration (.toml), a transforms.json or the folder of one, or the folder of a COLMAP model.
        chosen: numbers of frames, the same of all videos: they were filmed together.

    Raises:
        UserError: cameras and videos that do not belong together by number, name or size; frames that cannot be told
            apart; what the readers of the files raise.
    """
    source = Path(source)
    groups = _groups(source, len(videos))
    order, how = _matched([Path(facts.path) for facts in videos], list(groups), source)
    found = []
    for facts, name in zip(videos, order, strict=True):
        given = groups[name]
        if isinstance(given, Camera):
            film = FilmedFrames(tuple(chosen), (given,) * len(chosen))
        else:
            film = _numbered(given, facts, chosen, source, notes)
        name_of_video = Path(facts.path).name
        if len(groups) > 1:
            notes.append(f"{name_of_video} was filmed by camera {name} ({how})")
        found.append(_at_size(film, facts, notes))
    return tuple(found)


# --- what there is --------------------------------------------------------------------------------------------------

Group = Camera | list[PosedPicture]


def _groups(source: Path, count: int) -> dict[str, Group]:
    """Cameras by name: one that stands still, or the pictures of one video."""
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
    for key in (_folder, _prefix):
        groups: dict[str, Group] = {}
        for picture in pictures:
            group = groups.setdefault(key(picture), [])
            assert isinstance(group, list)
            group.append(picture)
        if len(groups) >= count:
            return groups
    raise bad_input(
        f"{source.name} has {len(pictures)} pictures that cannot be told apart by video",
        where=str(source),
        why=f"there are {count} videos; their pictures lie in folders of their own, or begin with a name of their own",
        fix="rename them: cam01_00000.png, cam01_00001.png, ..., cam02_00000.png, ...",
    )


def _folder(picture: PosedPicture) -> str:
    return picture.path.parent.name


def _prefix(picture: PosedPicture) -> str:
    return re.sub(r"[^A-Za-z0-9]*[0-9]*$", "", picture.path.stem) or picture.path.stem


# --- which belongs to which -----------------------------------------------------------------------------------------


def _matched(videos: Sequence[Path], names: Sequence[str], source: Path) -> tuple[list[str], str]:
    """The name of each video's camera, and how it was found."""
    if len(videos) == len(names) == 1:
        return list(names), "the only one"
    for how, key in (("by its name", _plain_name), ("by its number", _number)):
        keys = {name: key(name) for name in names}
        found = [[name for name in names if keys[name] == key(path.stem) != ""] for path in videos]
        if all(len(some) == 1 for some in found) and len({some[0] for some in found}) == len(videos):
            return [some[0] for some in found], how
    if len(videos) == len(names):
        return list(names), "by order: no names agree"
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise bad_input(
        f"{len(videos)} video{'s' * (len(videos) != 1)} and {len(names)} cameras do not go together",
        where=str(source),
        why=f"the cameras are {listed}; the videos {', '.join(path.name for path in videos)}",
        fix="give a video for each camera, in the same order, or name each video as its camera",
    )


def _plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _number(name: str) -> str:
    """The last number in a name, without the zeros before it."""
    found = re.findall(r"[0-9]+", name)
    return str(int(found[-1][:1000])) if found else ""


# --- which frame ----------------------------------------------------------------------------------------------------


def _numbered(
    pictures: Sequence[PosedPicture], facts: VideoFacts, chosen: range, source: Path, notes: list[str]
) -> FilmedFrames:
    """The cameras of a video's chosen frames, from those of pictures that are its frames."""
    pictures = sorted(pictures, key=lambda picture: natural(picture.path.as_posix()))
    if len(pictures) == 1:
        return FilmedFrames(tuple(chosen), (pictures[0].camera,) * len(chosen))
    if len(pictures) == facts.frame_count:
        return FilmedFrames(tuple(chosen), tuple(pictures[index].camera for index in chosen))
    if len(pictures) == len(chosen):
        return FilmedFrames(tuple(chosen), tuple(picture.camera for picture in pictures))
    video, numbers = Path(facts.path).name, [_number(picture.path.stem) for picture in pictures]
    where, count = str(source), facts.frame_count
    if "" in numbers or len(set(numbers)) < len(numbers):
        raise bad_input(
            f"{len(pictures)} cameras for the {count} frames of {video}",
            where=where,
            why="the pictures' names have no numbers that would say which frames they are",
            fix="give a camera for every frame",
        )
    first = 0 if "0" in numbers else 1
    frames = {int(number) - first: picture.camera for number, picture in zip(numbers, pictures, strict=True)}
    last, together = max(frames), max(frames) - min(frames) + 1 == len(frames)
    if last >= count or (together and last < count - 1 and len(frames) < len(chosen)):
        raise bad_input(
            f"{len(pictures)} cameras, numbered {min(frames) + first} to {last + first}, "
            f"for the {count} frames of {video}",
            where=where,
            why="they are not its frames by number; perhaps every second or third frame was taken",
            fix=f"name the frames they are of: --frames 0:{count}:{max(2, round(count / len(pictures)))}",
        )
    used = tuple(index for index in chosen if index in frames)
    if not used:
        raise bad_input(
            f"no chosen frame of {video} has a camera",
            where=where,
            why=f"those that have one are {min(frames)} to {last}",
            fix=f"--frames {min(frames)}:{last + 1}",
        )
    if len(used) < len(chosen):
        notes.append(
            f"{len(chosen) - len(used)} of {len(chosen)} frames of {video} have no camera and are left out "
            f"(picture {first} is taken as frame 0)"
        )
    return FilmedFrames(used, tuple(frames[index] for index in used))


# --- sizes ----------------------------------------------------------------------------------------------------------


def _at_size(film: FilmedFrames, facts: VideoFacts, notes: list[str]) -> FilmedFrames:
    """The cameras at the video's size, if they can be of it."""
    size, name = (facts.width, facts.height), Path(facts.path).name
    for index, camera in zip(film.frames, film.cameras, strict=True):
        wide, high = camera.width, camera.height
        if abs(wide * size[1] / (high * size[0]) - 1) > ASPECT_SLACK:
            turned = (wide - high) * (size[0] - size[1]) < 0
            raise bad_input(
                f"frame {index} of {name} is {size[0]}x{size[1]}, its camera {wide}x{high}",
                where=facts.path,
                why="one stands upright and the other lies" if turned else "their shapes differ",
                fix="turn the video, or find the cameras again on its frames"
                if turned
                else "find the cameras on frames of this video, not cut or stretched",
            )
    first = film.cameras[0]
    if (first.width, first.height) != size and abs(first.width * size[1] - first.height * size[0]) > max(size):
        notes.append(
            f"{name} is {size[0]}x{size[1]}, its camera {first.width}x{first.height}: taken as scaled, not as cut"
        )
    cameras = tuple(camera.resized(*size) for camera in film.cameras)
    return FilmedFrames(film.frames, cameras)
