"""Small films straight from PyAV, with the times and sound that a test asks for, by nothing of the code under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MS = Fraction(1, 1000)
SAMPLES = 48000  # a second


def draw_frame(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Draws a flat picture with a white bar whose place tells its number."""
    picture = np.full((height, width, 3), (40, 90, 160), np.uint8)
    picture[:12, 4 * number % width : 4 * number % width + 4] = 255
    return picture


def write_film(
    path: Path,
    starts: Sequence[int] = range(0, 320, 40),
    *,
    last: int = 40,
    tick: Fraction = MS,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sound: str | None = None,
    sound_ms: int = 400,
    stamps: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a film of 64x48 pixels.

    Args:
        path: the file.
        starts: time of each frame, in ticks.
        last: duration of the last frame, in ticks; 0 leaves all durations out.
        tick: seconds of one tick.
        codec: FFmpeg's name of the encoder of the film.
        pixels: its pixel format.
        sound: FFmpeg's name of the encoder of a sine; None is silent.
        sound_ms: length of the sound.
        stamps: what the file says about the start of each frame, where that is not the truth.
        options: of the container.
        changes: attributes of the film's codec.
    """
    durations = [b - a for a, b in zip(starts, [*starts[1:], starts[-1] + last], strict=True)]
    known = dict(zip(starts, durations, strict=True))
    said = dict(zip(starts, stamps, strict=True)) if stamps else {}
    with av.open(str(path), "w", options=dict(options or {})) as out:
        film: Any = out.add_stream(codec, rate=25, options={"preset": "ultrafast"} if codec == "libx264" else {})
        film.width, film.height, film.pix_fmt, film.codec_context.time_base = 64, 48, pixels, tick
        for name, value in (changes or {}).items():
            setattr(film.codec_context, name, value)
        track: Any = out.add_stream(sound, rate=SAMPLES, options={"strict": "-2"}) if sound else None
        if track:
            track.layout = "stereo"
        out.start_encoding()
        if track:
            encode_sine(out, track, sound_ms)
        for number, start in enumerate(starts):
            frame = av.VideoFrame.from_ndarray(draw_frame(number), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = start, tick
            mux_timed(out, film.encode(frame), known if last else {}, said, tick)
        mux_timed(out, film.encode(None), known if last else {}, said, tick)
    return path


def mux_timed(
    out: Any, packets: Sequence[Any], durations: Mapping[int, int], stamps: Mapping[int, int], tick: Fraction
) -> None:
    """Writes packets of a film with the durations, and the other stamps, of the frames that start at their times."""
    for packet in packets:
        start = round(packet.pts * packet.time_base / tick)
        packet.duration = round(durations.get(start, 0) * tick / packet.time_base)
        if start in stamps:
            packet.pts = packet.dts = round(stamps[start] * tick / packet.time_base)
        out.mux(packet)


def encode_sine(out: Any, track: Any, length_ms: int) -> None:
    """Encodes a sine of 440 Hz, in the format that the encoder wants."""
    context = track.codec_context
    step = context.frame_size or 1024
    resampler = av.AudioResampler(format=context.format.name, layout=context.layout.name, rate=SAMPLES)
    wave = (12000 * np.sin(2 * np.pi * 440 * np.arange(SAMPLES * length_ms // 1000) / SAMPLES)).astype(np.int16)
    for at in range(0, len(wave), step):
        frame = av.AudioFrame.from_ndarray(np.repeat(wave[at : at + step], 2)[None], format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLES, at, Fraction(1, SAMPLES)
        for ready in resampler.resample(frame):
            out.mux(track.encode(ready))
    out.mux(track.encode(None))


def read_sound(path: Path) -> bytes:
    """Reads the sound of the first track as its packets, one after another."""
    with av.open(str(path)) as container:
        return b"".join(bytes(packet) for packet in container.demux(audio=0) if packet.size)


def decode_sound(path: Path) -> np.ndarray:
    """Decodes the sound of the first track: [channels, samples], or [1, samples x channels]."""
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def read_end(path: Path) -> Fraction:
    """Reads where the film of a file ends, from the packets: seconds."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        ends = [((packet.pts or 0), (packet.duration or 0)) for packet in packets]
        return sum(max(ends)) * Fraction(packets[0].time_base)
