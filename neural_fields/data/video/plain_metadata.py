"""The metadata of a video in plain values, as `unwrap info` prints them. No torch is needed for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neural_fields.config.loader import to_mapping
from neural_fields.data.video.probe import probe_video


def video_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata of a video: the values that `unwrap info VIDEO` prints.

    Args:
        path: a video file, a folder of numbered pictures, or a picture.

    Returns:
        Plain values; sizes in pixels, times in seconds.

    Raises:
        UserError: a file that cannot be used (exit 3).
    """
    metadata = probe_video(path)
    plain = to_mapping(metadata)
    times = metadata.timestamps
    copied = ("path", "kind", "width", "height", "frame_count", "codec", "pixel_format", "color_space", "range")
    return {
        **{name: plain[name] for name in copied},
        "seconds": round(float(metadata.end - times[0]), 3),
        "rate": plain["rate"],
        "variable_rate": metadata.variable_rate,
        "rotation": metadata.rotation,
        "sound": [f"{track.codec} {track.seconds:.1f} s" for track in metadata.sound],
        "notes": list(metadata.notes),
    }
