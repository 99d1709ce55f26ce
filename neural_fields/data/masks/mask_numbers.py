"""Which picture of masks belongs to which frame: by the numbers in file names, or by the order inside of one file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neural_fields.core.errors import bad_input


@dataclass(frozen=True)
class MatchedMasks:
    """Says which pictures are the masks of the frames in use.

    Attributes:
        used: index of the picture of each frame in use.
        own: indices of all pictures that are masks of frames of the clip.
        note: how numbers were understood, where they are not those of the frames; empty otherwise.
    """

    used: tuple[int, ...]
    own: tuple[int, ...]
    note: str = ""


def read_numbers(files: Sequence[Path]) -> tuple[int, ...]:
    """Reads the number of the frame in each file name: the part that differs from name to name.

    Args:
        files: pictures of one folder.

    Raises:
        UserError: names that belong to several sequences, have no number, or have one number twice (exit 3).

    Example:
        >>> read_numbers([Path("cam2_0007_mask.png"), Path("cam2_0008_mask.png")])
        (7, 8)
    """
    folder = str(files[0].parent)
    shapes = Counter(re.sub(r"\d+", "#", file.stem) for file in files)
    usual = shapes.most_common(1)[0][0]
    odd = [file.name for file in files if re.sub(r"\d+", "#", file.stem) != usual]
    if odd or "#" not in usual:
        name = odd[0] if "#" in usual else files[0].name
        raise bad_input(
            f"{name!r} has no number as the other files have" if odd else f"{name!r} has no number",
            where=folder,
            why="masks belong to frames by the numbers in their names, as in 00000.png, 00001.png",
            fix="move it out of the folder, or rename it" if odd else "rename the files: 00000.png, 00001.png, ...",
        )
    columns = list(zip(*([int(digits) for digits in re.findall(r"\d+", file.stem)] for file in files), strict=True))
    varying = [column for column in columns if len(set(column)) > 1] or columns[-1:]
    unique = [column for column in varying if len(set(column)) == len(files)]
    even = [column for column in unique if max(column) - min(column) == len(files) - 1]
    if len(unique) == 1 or len(set(even)) == 1:
        return (unique if len(unique) == 1 else even)[0]
    if len(varying) > 1:
        raise bad_input(
            f"names such as {files[0].name!r} and {files[1].name!r} differ in {len(varying)} numbers",
            where=folder,
            why="one number must say the frame; are there several objects in one folder?",
            fix="put the masks of each object into a folder of its own: --masks a=FOLDER_A --masks b=FOLDER_B",
        )
    twice = next(number for number, count in Counter(varying[0]).items() if count > 1)
    names = [repr(file.name) for file, number in zip(files, varying[0], strict=True) if number == twice]
    raise bad_input(
        f"two masks have the number {twice}", where=folder, why=" and ".join(names[:2]), fix="move one of them away"
    )


def match_masks(path: Path, count: int, given: Sequence[int] | None, numbers: range, frames: range) -> MatchedMasks:
    """Finds the mask of each frame in use.

    Numbers in file names are those of frames. Only a set that has one mask for each frame of the clip may be counted
    from another first number: from 0 or 1, or with numbers that no frame has.

    Args:
        path: the masks, for messages.
        count: number of pictures.
        given: the number in the name of each picture; None for pictures inside of one file.
        numbers: numbers of all frames of the clip.
        frames: numbers of the frames in use.

    Raises:
        UserError: frames without a mask, or masks without a frame (exit 3).

    Example:
        >>> match_masks(Path("masks"), 3, (7, 8, 9), range(7, 10), range(8, 10)).used
        (1, 2)
    """
    if given is None or (count == 1 and len(numbers) == 1):
        if count == len(numbers):
            return MatchedMasks(tuple(number - numbers.start for number in frames), tuple(range(count)))
        if count == len(frames):
            return MatchedMasks(tuple(range(count)), tuple(range(count)))
        missing, surplus = list(numbers)[count:], list[int]()
    else:
        place = {number: index for index, number in enumerate(given)}
        first, last = min(given), max(given)
        is_whole = count == len(numbers) == last - first + 1
        if is_whole and (first in (0, 1, numbers.start) or last < numbers.start or first >= numbers.stop):
            note = ""
            if first != numbers.start:
                ends = f"{numbers.start} to {numbers[-1]}"
                note = f"the masks {first} to {last} in {path} are taken for the frames {ends}, one for each"
            used = tuple(place[number - numbers.start + first] for number in frames)
            return MatchedMasks(used, tuple(range(count)), note)
        surplus = [number for number in sorted(given) if number not in numbers]
        missing = [number for number in frames if number not in place]
        if not surplus and not missing:
            return MatchedMasks(tuple(place[number] for number in frames), tuple(range(count)))

    # Masks that are not those of the frames.
    what = f"{path} holds {count} mask{'s' * (count != 1)}, the clip has {len(numbers)} frames"
    what += f"; without a mask: frames {_list_numbers(missing)}" if missing else ""
    what += f"; without a frame: masks {_list_numbers(surplus)}" if surplus else ""
    fix = "add the missing masks, or --masks auto" if missing else "remove the masks that belong to no frame"
    more = f", or {len(frames)} for the frames in use" if len(frames) != len(numbers) else ""
    why = f"one mask for each frame is needed: {len(numbers)}{more}"
    if given is not None:
        why = f"masks belong to the frame of the number in their name, and frames are {numbers.start} to {numbers[-1]}"
        ordered = sorted(given)
        step = ordered[1] - ordered[0] if count > 1 else 1
        if not surplus and count > 1 and ordered == list(range(ordered[0], ordered[-1] + 1, step)):
            chosen = f"--frames {ordered[0]}:{ordered[-1] + 1}" + (f":{step}" if step > 1 else "")
            fix = f"add the missing masks, or use the frames that have one: {chosen}"
    elif count == 1 and path.is_file() and len(list(path.parent.glob(f"*{path.suffix}"))) > 1:
        fix = f"give the folder, if the other pictures in it are the other masks: --masks {path.parent}"
    elif missing:
        fix = "add the missing masks, use --frames to train on fewer frames, or --masks auto"
    raise bad_input(what, where=str(path), why=why, fix=fix)


def _list_numbers(numbers: Sequence[int]) -> str:
    """Lists the first numbers, and says how many more there are."""
    shown = ", ".join(map(str, numbers[:8]))
    return shown + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
