"""A file without its end is refused, wherever it is cut, in every container that declares its length.

Recordings without a length are judged by their packets: whole ones are read, whatever their headers say, and a part of
a packet at the end is named.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.video import decode
from neural_fields.data.video.container_length import FileEnd
from neural_fields.data.video.decode import file_frames, probe_file
from tests.support.small_films import write_film

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
    monkeypatch.setattr(decode, "read_file_end", lambda path: FileEnd(0, True))
    assert 0 < read_count(path) < 30


# --- recordings without a length --------------------------------------------------------------------------------------

UNEVEN = (0, 100, 200, 300)  # and the last frame stays until 3300


def write_live(path: Path, last: int = 3000, codec: str = "libvpx", sound: str | None = None) -> Path:
    """Writes a Matroska file as browsers do that put the length into its header afterwards: nothing else has one."""
    data = bytearray(write_film(path, UNEVEN, last=last, codec=codec, sound=sound).read_bytes())
    for name in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):  # segment and cluster
        at = data.index(name) + 4
        width = 9 - data[at].bit_length()
        data[at : at + width] = ((1 << 7 * width + 1) - 1).to_bytes(width, "big")
    path.write_bytes(data.replace(b"DURATION", b"XURATION"))
    return path


def write_open_ended(path: Path) -> Path:
    """Writes an AVI or FLV file whose header has no length, as that of a recording that was not closed."""
    if path.suffix == ".avi":
        write_film(path, range(30), last=1, tick=Fraction(1, 25), codec="mjpeg", pixels="yuvj420p")
        data = bytearray(path.read_bytes())
        for at in (4, data.index(b"movi") - 4):
            data[at : at + 4] = bytes(4)
    else:
        data = bytearray(write_film(path, range(0, 1200, 40), changes={"max_b_frames": 0}).read_bytes())
        at = data.index(b"duration\0") + 9
        data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    return path


LASTING: dict[str, Callable[[Path], Path]] = {
    "a.webm": write_live,
    "sound.webm": lambda path: write_live(path, sound="libopus"),
    "a.mkv": lambda path: write_live(path, codec="libx264"),
    "a.avi": lambda path: write_film(
        path, (0, 1, 2, 3), last=30, tick=Fraction(1, 10), codec="mjpeg", pixels="yuvj420p"
    ),
    "a.mp4": lambda path: write_film(path, UNEVEN, last=3000, options={"movflags": "frag_keyframe+empty_moov"}),
    "edits.mp4": lambda path: write_film(path, UNEVEN, last=3000, changes={"max_b_frames": 2}, sound="aac"),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_last_frame_may_stay_as_long_as_the_header_says(tmp_path: Path, name: str) -> None:
    source = probe_file(LASTING[name](tmp_path / name), "")
    assert source.frame_count == 4 and round(1000 * source.end) == 3300
    assert any("the last frame stays 3 seconds" in note for note in source.notes)


INTERRUPTED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a.webm": (lambda path: write_live(path, sound="libopus"), "it declares 3.30 s"),
    "a.flv": (write_open_ended, "bytes are missing"),
    "a.avi": (write_open_ended, "it declares 1.20 s"),
    "a.mkv": (lambda path: write_film(path, range(0, 1200, 40), options={"live": "1"}), ""),
    "a.ts": (lambda path: write_film(path, range(0, 1200, 40)), ""),
}


@pytest.mark.parametrize("name", INTERRUPTED)
def test_a_part_of_a_packet_at_the_end_is_refused_or_named(tmp_path: Path, name: str) -> None:
    write, words = INTERRUPTED[name]
    path = write(tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 5 | 1])
    if not words:
        source = probe_file(path, "")
        assert source.frame_count < 30 and any("last packet is not complete" in note for note in source.notes)
        return
    with pytest.raises(UserError, match="cut short") as caught:
        probe_file(path, "")
    assert words in str(caught.value)
