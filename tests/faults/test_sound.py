"""Sound out: every container with every codec keeps a track or says what does (row F07a, F09 and F10 of the faults)."""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from neural_fields.data.video.encode import CODECS, choose_suffix
from neural_fields.data.video.io import VideoMetadata, probe_video, source_frames, write_video
from neural_fields.data.video.plain_metadata import video_metadata
from tests.support.small_films import decode_sound, read_sound, write_film

FFMPEG = shutil.which("ffmpeg")
# Each codec that PyAV encodes and that a usual container holds, in such a container.
SOURCES = [
    "aac.mkv", "aac.mov", "aac.ts", "ac3.mkv", "ac3.avi", "eac3.mov", "alac.mov", "alac.mkv", "flac.mkv", "libopus.mkv",
    "libopus.webm", "vorbis.mkv", "mp2.ts", "libmp3lame.mkv", "libmp3lame.avi", "wavpack.mkv", "tta.mkv",
    "pcm_s16le.mkv", "pcm_s16be.mov", "pcm_s24le.mov", "pcm_f32le.mov", "pcm_u8.avi", "pcm_alaw.mov",
    "adpcm_ima_qt.mov", "adpcm_ms.avi",
]  # fmt: skip
OUTPUTS = [
    ("h264", ".mp4"), ("h264", ".mov"), ("h264", ".mkv"), ("ffv1", ".mkv"), ("prores4444", ".mov"),
]  # fmt: skip


def make_source(folder: Path, name: str) -> VideoMetadata:
    """Writes a film with the codec and in the container of its name, such as "aac.mkv"."""
    codec, ending = name.split(".")
    film = {"webm": "libvpx", "avi": "mjpeg"}.get(ending, "libx264")
    changes = {"max_b_frames": 0} if film == "libx264" else {}
    pixels = "yuvj420p" if film == "mjpeg" else "yuv420p"
    path = folder / f"source-{codec}.{ending}"
    tick = Fraction(1, 25)
    return probe_video(
        write_film(path, range(8), last=1, tick=tick, codec=film, pixels=pixels, sound=codec, changes=changes)
    )


def write_again(source: VideoMetadata, path: Path, codec: str) -> Path:
    frames = source_frames(source, source.numbers)
    return write_video(path, frames, source, codec=codec, overwrite=True)


def check_same_sound(source: Path, out: Path, codec: str) -> None:
    """Checks that no packet is missing or changed, and that the sound is in the same place."""
    if source.suffix != ".ts":  # its packets have headers of their own
        assert read_sound(out) == read_sound(source), out.name
    if codec in ("wavpack", "tta", "mp2", "mp3"):  # other decoders, or streams that PyAV cannot decode
        return
    before, after = decode_sound(source), decode_sound(out)
    count = min(before.shape[1], after.shape[1])
    assert before.dtype == after.dtype and abs(before.shape[1] - after.shape[1]) <= 2 * 1152, out.name
    assert np.array_equal(before[:, :count], after[:, :count]), out.name


@pytest.mark.parametrize("name", SOURCES)
def test_f10_every_sound_everywhere(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(tmp_path, name)
    (track,) = source.sound
    m4v = [("h264", ".m4v")] if name in ("aac.mov", "pcm_s24le.mov") else []  # the same container as .mp4
    for codec, suffix in [*OUTPUTS, *m4v]:
        caplog.clear()
        out = write_again(source, tmp_path / f"out-{codec}{suffix}", codec)
        made = probe_video(out)
        if made.sound:
            assert not caplog.messages and not (track.codec.startswith("pcm_") and suffix in (".mp4", ".m4v"))
            check_same_sound(Path(source.path), out, track.codec)
            continue
        (note,) = caplog.messages
        assert f"the {track.codec} sound track is left out of {out.name}" in note
        advice = re.search(r"(?:--codec (\w+) )?--out (\S+) keeps it", note)
        if advice is None:
            assert "ffmpeg -i" in note
            continue
        better = write_again(source, tmp_path / f"better-{advice[2]}", advice[1] or codec)
        check_same_sound(Path(source.path), better, track.codec)


@pytest.mark.skipif(FFMPEG is None, reason="needs ffmpeg")
def test_f10_the_line_that_adds_a_sound_again_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(tmp_path, "adpcm_ms.avi")
    write_again(source, tmp_path / "out.mp4", "h264")
    line = shlex.split(caplog.messages[0].partition("again: ")[2])
    assert line[0] == "ffmpeg"
    subprocess.run([*line[:1], "-v", "error", *line[1:]], cwd=tmp_path, check=True)
    made = probe_video(tmp_path / "with-sound.mp4")
    assert made.frame_count == 8 and made.sound[0].codec == "aac"


def test_f10_uncompressed_sound_goes_to_mov_by_default(tmp_path: Path) -> None:
    source = make_source(tmp_path, "pcm_s24le.mov")
    assert [choose_suffix(codec, source) for codec in CODECS] == [".mov", ".mkv", ".mov", ""]
    assert choose_suffix("h264", make_source(tmp_path, "aac.mov")) == ".mp4"
    assert any("renders are .mov files" in note for note in video_metadata(Path(source.path))["notes"])
    note = next(note for note in make_source(tmp_path, "wavpack.mkv").notes if "wavpack" in note)
    assert "--out NAME.mkv" in note


@pytest.mark.skipif(FFMPEG is None, reason="needs ffmpeg")
@pytest.mark.parametrize("name", ["aac.mkv", "pcm_f32le.mov", "flac.mkv"])
def test_f10_another_reader_hears_the_same(tmp_path: Path, name: str) -> None:
    source = make_source(tmp_path, name)
    suffix = choose_suffix("h264", source)
    out = write_again(source, tmp_path / f"out{suffix}", "h264")
    sounds = []
    for path in (source.path, out):
        line = [str(FFMPEG), "-v", "error", "-i", str(path), "-map", "0:a", "-f", "f32le", "-"]
        done = subprocess.run(line, capture_output=True, check=True)
        assert not done.stderr
        sounds.append(np.frombuffer(done.stdout, np.float32))
    count = min(len(sound) for sound in sounds)
    # FFmpeg 5 plays what comes before the first frame in Matroska, and not in MP4.
    assert np.array_equal(sounds[0][len(sounds[0]) - count :], sounds[1][len(sounds[1]) - count :])


def read_heard(path: Path) -> tuple[Fraction, Fraction]:
    """Reads when the sound of a file begins to be heard, and when its track ends, in seconds."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        end = ((track.start_time or 0) + (track.duration or 0)) * Fraction(track.time_base or 1)
        first = next(container.decode(track))
        return (first.pts or 0) * Fraction(first.time_base or 1), end


@pytest.mark.parametrize("name", ["libopus.webm", "aac.mov", "libmp3lame.mov", "libmp3lame.mkv"])
def test_f10_padding_of_encoders_moves_no_sound(tmp_path: Path, name: str) -> None:
    source = make_source(tmp_path, name)
    start, _ = read_heard(Path(source.path))
    for codec, suffix in [("h264", ".mp4"), ("h264", ".mkv")]:
        made = write_again(source, tmp_path / f"out{suffix}", codec)
        copy = write_again(probe_video(made), tmp_path / f"copy-of{suffix}.mkv", codec)
        assert [abs(read_heard(path)[0] - start) <= Fraction(1, 1000) for path in (made, copy)] == [True, True]
    # The encoder filled its last packet up: the track ends before, by its list of edits.
    _, end = read_heard(tmp_path / "out.mp4")
    assert abs(end - Fraction(2, 5)) <= Fraction(1, 1000)


@pytest.mark.skipif(FFMPEG is None, reason="needs ffmpeg")
@pytest.mark.parametrize("output", OUTPUTS)
def test_f07a_dts_is_kept(tmp_path: Path, output: tuple[str, str]) -> None:
    film = write_film(tmp_path / "film.mkv")
    line = [str(FFMPEG), "-v", "error", "-i", str(film), "-f", "lavfi", "-i", "sine=d=0.3", "-c:v", "copy"]
    subprocess.run([*line, "-c:a", "dca", "-strict", "-2", str(tmp_path / "a.mkv")], check=True)
    source = probe_video(tmp_path / "a.mkv")
    out = write_again(source, tmp_path / f"out{output[1]}", output[0])
    if output[1] == ".mov":  # QuickTime has no DTS
        assert [track.codec for track in probe_video(out).sound] in ([], ["dts"])
    else:
        assert read_sound(out) == read_sound(Path(source.path))


# --- recordings that were put together --------------------------------------------------------------------------------


def join(folder: Path, name: str, *parts: Path) -> VideoMetadata:
    (folder / name).write_bytes(b"".join(part.read_bytes() for part in parts))
    return probe_video(folder / name)


@pytest.mark.parametrize(("codec", "suffix"), OUTPUTS)
def test_f09_joined_streams(tmp_path: Path, codec: str, suffix: str) -> None:
    part = write_film(tmp_path / "part.ts", sound="aac", sound_ms=340)
    source = join(tmp_path, "joined.ts", part, part)
    assert source.frame_count == 16 and any("2 recordings" in note for note in source.notes)
    steps = {round(1000 * (b - a)) for a, b in pairwise(source.timestamps)}
    assert steps == {40}
    made = probe_video(write_again(source, tmp_path / f"out{suffix}", codec))
    assert made.frame_count == 16 and abs(made.sound[0].seconds - 0.66) < 0.05


def test_f09_each_recording_keeps_its_sound_beside_its_frames(tmp_path: Path) -> None:
    first = write_film(tmp_path / "first.ts", sound="mp2", sound_ms=330)
    silent = write_film(tmp_path / "silent.ts", range(7000, 7320, 40), sound=None)
    last = write_film(tmp_path / "last.ts", range(500, 820, 40), sound="mp2", sound_ms=820)
    source = join(tmp_path, "joined.ts", first, last)
    assert source.frame_count == 16
    out = write_again(source, tmp_path / "out.mp4", "h264")
    with av.open(str(out)) as made:
        stamps = [(p.pts or 0) * Fraction(p.time_base) for p in made.demux(audio=0) if p.size]
    assert all(b > a for a, b in pairwise(stamps))
    assert abs(float(stamps[-1] - source.end)) < 0.1
    assert join(tmp_path, "more.ts", first, silent).frame_count == 16


def test_f09_a_packet_that_cannot_be_copied_never_ends_a_render(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source(tmp_path, "ac3.mkv")
    data = bytearray(Path(source.path).read_bytes())
    sync, at = b"\x0b\x77", 0
    while (at := data.find(sync, at)) >= 0:
        data[at : at + 8] = bytes(8)  # no AC-3 any more: its MP4 needs what is said in these bytes
        at += 8
    Path(source.path).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        out = write_again(source, tmp_path / "out.mp4", "h264")
    made = probe_video(out)
    assert made.frame_count == 8 and (made.sound or "a sound track, which is damaged" in caplog.text)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_sound_that_ends_before_the_film_or_after_it_is_kept(tmp_path: Path, codec: str) -> None:
    for length in (120, 900):
        path = write_film(tmp_path / f"{codec}-{length}.mov", sound=codec, sound_ms=length)
        source = probe_video(path)
        out = write_again(source, tmp_path / f"out-{length}.mov", "h264")
        assert read_sound(out) == read_sound(path) and probe_video(out).end == source.end


def test_times_of_the_film_are_the_same_with_sound_that_starts_before_it(tmp_path: Path) -> None:
    source = make_source(tmp_path, "aac.mov")
    for codec, suffix in OUTPUTS:
        made = probe_video(write_again(source, tmp_path / f"out{suffix}", codec))
        assert made.timestamps == source.timestamps and made.end == source.end, suffix
