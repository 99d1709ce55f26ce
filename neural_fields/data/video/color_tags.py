"""Color tags of video streams: FFmpeg's numbers and names, and the matrix by which frames become RGB and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

# FFmpeg's numbers of the tags (libavutil/pixfmt.h); 2 is "unspecified".
SPACES = {
    0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc",
    10: "bt2020c",
}  # fmt: skip
PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020", 10: "smpte428",
    11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log100", 10: "log316",
    11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084",
    17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
RANGES = {1: "tv", 2: "pc"}
# swscale's number of the matrix behind each space. Untagged is BT.601 at every size: FFmpeg reads it so, and because
# the way out (encode.py) uses the same matrix and stays untagged, the stored YUV comes back as it was and every player
# treats the output as it treated the source, whatever that player guesses.
MATRICES = {"bt709": 1, "fcc": 4, "bt470bg": 5, "smpte170m": 5, "smpte240m": 7, "bt2020nc": 9, "bt2020c": 9}
UNTAGGED_MATRIX = 5
# swscale's quick way to RGB takes 1/255 off every pixel (measured: 1.0 on average), and that would add up on every
# pass. Whole chroma and exact rounding cost two thirds of the speed of this one step and have no bias.
TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
FROM_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


def read_color_tags(frame: Any) -> dict[str, str | None]:
    """Returns the color tags of a decoded frame with FFmpeg's names; None for tags that the stream does not have."""
    full = frame.format.name.startswith("yuvj")
    return {
        "color_space": SPACES.get(int(frame.colorspace)),
        "primaries": PRIMARIES.get(int(frame.color_primaries)),
        "transfer": TRANSFERS.get(int(frame.color_trc)),
        "range": "pc" if full else RANGES.get(int(frame.color_range)),
    }


def convert_to_rgb(frame: Any, reformatter: VideoReformatter) -> np.ndarray:
    """Converts a decoded frame to RGB, with the matrix and range of its tags.

    Args:
        frame: a frame of PyAV.
        reformatter: converts all frames of a stream.

    Returns:
        uint8 [height, width, 3].
    """
    space = read_color_tags(frame)["color_space"]
    matrix = MATRICES.get(space or "", UNTAGGED_MATRIX)
    return reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, interpolation=TO_RGB).to_ndarray()
