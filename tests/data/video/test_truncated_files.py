"""A file without its end is refused, wherever it is cut, in every container that declares its length."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.video import decode
from neural_fields.data.video.decode import file_frames, probe_file

CONTAINERS = {
    "mp4": ("libx264", "yuv420p", {}),
    "faststart.mp4": ("libx264", "yuv420p", {"movflags": "faststart"}),
    "fragments.mp4": ("libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    "mov": ("libx264", "yuv420p", {}),
    "mkv": ("libx264", "yuv420p", {}),
    "webm": ("libvpx-vp9", "yuv420p", {}),
    "avi": ("mjpeg", "yuvj444p", {}),
}


def write_clip(path: Path, codec: str, pixels: str, options: dict[str, str]) -> Path:
    """Thirty frames of noise."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options=options) as file:
        stream = file.add_stream(codec, rate=Fraction(25))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for _ in range(30):
            picture = random.integers(0, 255, (48, 64, 3), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def read_count(path: Path) -> int:
    metadata = probe_file(path, "")
    return sum(1 for _ in file_frames(metadata, range(metadata.frame_count)))


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_without_its_end_is_refused(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / f"clip.{name}", *CONTAINERS[name])
    data = path.read_bytes()
    assert read_count(path) == 30
    for missing in (1, 8, 100, *(len(data) * part // 10 for part in range(1, 10))):
        path.write_bytes(data[:-missing])
        with pytest.raises(UserError) as caught:
            read_count(path)
        assert caught.value.code == ExitCode.BAD_INPUT and path.name in caught.value.where


@pytest.mark.parametrize("name", ["mkv", "webm"])
def test_ffmpeg_alone_reads_a_cut_matroska_file_as_a_shorter_film(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the lengths are read at all: without them frames are lost and nobody is told."""
    path = write_clip(tmp_path / f"clip.{name}", *CONTAINERS[name])
    data = path.read_bytes()
    path.write_bytes(data[: -len(data) // 20])
    monkeypatch.setattr(decode, "count_missing_bytes", lambda path: 0)
    assert 0 < read_count(path) < 30
