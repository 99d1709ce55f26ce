"""Options of `unwrap render`, for runs of videos and of 3D scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from neural_fields.config.flags import EditsFlag, MetadataFlag, OutputFileFlag, OverwriteFlag, Repeated

RenderMode = Literal["edit", "reconstruction", "compare", "wipe", "difference", "layers", "depth", "opacity"]
Codec = Literal["h264", "ffv1", "prores4444", "png"]


@dataclass(frozen=True)
class RenderOptions:
    """Sets what is rendered of a run, and how it is written; the fields are the flags of `unwrap render`.

    Example:
        >>> options = RenderOptions(edits=("painted",), codec="prores4444", out=Path("painted.mov"))
        >>> options.what, options.size
        ('edit', 'source')
    """

    edits: EditsFlag = ()
    """Name or number of an edit. Repeatable (default: all active edits)."""
    out: OutputFileFlag = None
    """The file to write (default: the next version in the run, such as renders/clip_v002.mp4)."""
    what: RenderMode = "edit"
    """What to show. compare: source, reconstruction and edit side by side. wipe: the source turns into the edit.
    difference: of source and edit, enlarged. depth, opacity: of 3D scenes."""
    frames: str | None = None
    """Videos: frames to render, by their numbers: A:B (without B), or K, which writes one picture (default: all)."""
    start_number: int | None = None
    """With --codec png: number of the first picture (default: that of its frame in the source)."""
    camera: str = "source"
    """3D scenes: source (the filmed views), orbit, or a transforms.json."""
    time: int | None = None
    """3D scenes: freeze time at this frame."""
    pose: Path | None = None
    """3D scenes: a bones.json with poses for the person."""
    motion_blur: str = "0"
    """Videos: blur edits as far as they move while the shutter is open: its share of the time, such as 0.5 (180
    degrees), or auto, which estimates it."""
    size: str = "source"
    """Size of the output: source, 240p, Np or WxH."""
    codec: Codec = "h264"
    """ffv1 is lossless; ffv1, prores4444 and png carry alpha."""
    speed: str = "1"
    """Videos: speed relative to the source. 0.5 or 1/2 is slow motion with interpolated frames."""
    rate: str = ""
    """Videos: frames a second, such as 60 or 30000/1001 (default: the source's)."""
    freeze: Repeated = ()
    """Videos: FRAME:SECONDS, such as 20:2, freezes a frame for this time. Repeatable."""
    jobs: int = 1
    """Videos: processes that render parts of the video at the same time, each with its share of the cores."""
    metadata: MetadataFlag = True
    """Record in the files how they were made."""
    overwrite: OverwriteFlag = False
    """Replace an existing output."""
