"""A frame of the source as a picture to paint on, with its number in the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from neural_fields.core.errors import bad_input
from neural_fields.core.files import atomic_write, disk_errors, make_folder
from neural_fields.data.video.image_sequence import encode_frame
from neural_fields.open_runs.planar_run import PlanarRun

# Programs keep the text under this key when they save as PNG, and most of them when they save as JPEG.
_COMMENT = re.compile(r"unwrap: frame (\d+) of the video ([0-9a-f]{16})")


@dataclass(frozen=True)
class FramePicture:
    """Describes a frame that was written.

    Attributes:
        path: the file.
        frame: number of the frame in the source.
        size: (width, height) in pixels.
        sha256: of the source.
    """

    path: Path
    frame: int
    size: tuple[int, int]
    sha256: str


def write_frame_picture(run: PlanarRun, number: int, out: Path | None = None, overwrite: bool = False) -> FramePicture:
    """Writes a frame of the source as PNG, exactly as the program decodes it.

    Args:
        run: the open run.
        number: number of the frame in the source.
        out: the file; by default frame-00012.png in the current folder.
        overwrite: whether an existing file is replaced.

    Raises:
        UserError: a frame that the run does not have, a file that exists, or another suffix than .png (exit 3).
    """
    path = out or Path(f"frame-{number:05d}.png")
    if path.suffix.lower() != ".png":
        raise bad_input(
            f"{path.name} is no PNG file",
            where=str(path),
            why="another format would change colors",
            fix=f"-o {path.stem}.png",
        )
    if path.exists() and not overwrite:
        raise bad_input(f"{path} exists already", where=str(path), why="it may have paint on it", fix="-y replaces it")
    frame = run.read_frame(number)
    data = encode_frame(frame, {"comment": f"unwrap: frame {number} of the video {run.record.sha256[:16]}"})
    with disk_errors(path.parent):
        make_folder(path.parent)
        with atomic_write(path) as part:
            part.write_bytes(data)
    return FramePicture(path, number, (frame.shape[1], frame.shape[0]), run.record.sha256)


def parse_frame_comment(comment: str, run: PlanarRun) -> int | None:
    """Returns the number of the frame that the comment of a picture states; None if it states none of this run."""
    found = _COMMENT.search(comment)
    if found is None or found[2] != run.record.sha256[:16] or int(found[1]) not in run.frames:
        return None
    return int(found[1])
