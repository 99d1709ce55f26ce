"""A folder that `unwrap mask` wrote: masks.json names its objects, front to back, and each has a folder of mattes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neural_fields.config.loader import load_json
from neural_fields.data.masks.layer_names import check_layer_name

MASKS_FILE = "masks.json"


@dataclass(frozen=True, kw_only=True)
class MaskFolderRecord:
    """Holds the content of masks.json.

    Attributes:
        schema: version of the file; a program refuses folders with another version.
        sha256: of the video.
        size: (width, height) of the video, which is that of the mattes, in pixels.
        frame_count: frames of the video; there is one matte for each.
        frames: the frames in which objects were looked for; mattes of the others are black.
        objects: names of the objects, front to back; a folder beside masks.json each.
        order: the order that the user asked for; empty if it was guessed.
        followed_at: the size at which objects are followed, as `--size` takes it.
        edges: how the edges of the mattes are made.
        model: the network that follows objects; None for colors and motion.
        matte_model: the network for soft edges; None for none.
    """

    schema: Literal[1] = 1
    sha256: str
    size: tuple[int, int]
    frame_count: int
    frames: range
    objects: tuple[str, ...]
    order: tuple[str, ...] = ()
    followed_at: str = "240p"
    edges: Literal["soft", "hard"] = "soft"
    model: str | None = None
    matte_model: str | None = None

    def __post_init__(self) -> None:
        for name in self.objects:
            check_layer_name(name, where=MASKS_FILE, fix="unwrap mask VIDEO --out ANOTHER_FOLDER")


def read_mask_folder(folder: Path) -> MaskFolderRecord | None:
    """Reads masks.json.

    Args:
        folder: a folder of masks.

    Returns:
        Its content; None for a folder without it.

    Raises:
        UserError: a damaged file (exit 5).
    """
    path = folder / MASKS_FILE
    if not path.is_file():
        return None
    fix = f"restore it from a copy, or remove it and make the masks again: unwrap mask VIDEO --out {folder}"
    return load_json(MaskFolderRecord, path, fix)
