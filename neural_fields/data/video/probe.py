"""The metadata of videos and pictures. What reads pictures is loaded for pictures alone."""

from __future__ import annotations

from pathlib import Path

from neural_fields.core.files import sha256_file
from neural_fields.data.video.decode import check_regular_file, probe_file
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.data.video.picture_suffixes import is_image


def probe_video(path: str | Path) -> VideoMetadata:
    """Reads the metadata of a video file, a folder of numbered pictures or a single picture.

    Pictures have no frame rate: 24 frames a second are assumed, and the notes say so.

    Args:
        path: a video file, a folder of numbered pictures, or a picture.

    Returns:
        The metadata; sizes are those of the upright picture in pixels, times are exact fractions of a second.

    Raises:
        UserError: no such file, or one that is not a usable video or picture (exit 3).

    Example:
        >>> probe_video("no-such-clip.mp4")
        Traceback (most recent call last):
        ...
        neural_fields.core.errors.UserError: error: ...
    """
    path = Path(path)
    if not path.is_dir() and not is_image(path):
        check_regular_file(path)
        return probe_file(path, sha256_file(path))
    from neural_fields.data.video.image_sequence import count_moving_pictures, probe_animation, probe_images

    if path.is_dir():
        return probe_images(path)
    check_regular_file(path)
    count = count_moving_pictures(path)
    if count > 1 and path.suffix.lower() == ".png":
        return probe_file(path, sha256_file(path))
    if count > 1 and path.suffix.lower() == ".webp":
        return probe_animation(path)
    return probe_images(path)
