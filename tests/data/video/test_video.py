"""Video in and out: what comes in is what was there, and what goes out mirrors it. All clips are made here."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neural_fields.config.loader import from_mapping, to_mapping
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.data.video import encode
from neural_fields.data.video.image_sequence import list_images
from neural_fields.data.video.io import (
    VideoMetadata,
    parse_frames,
    parse_size,
    probe_video,
    read_video,
    source_frames,
    write_video,
)

RATE = Fraction(30000, 1001)


def patches(width: int, height: int, shift: int = 0) -> np.ndarray:
    """Eight flat colors in a 4 by 2 grid, moved along the list by `shift`."""
    colors = [(230, 30, 40), (30, 200, 60), (40, 60, 220), (235, 235, 235)]
    colors += [(16, 16, 16), (220, 200, 30), (30, 190, 200), (128, 100, 90)]
    picture = np.zeros((height, width, 3), np.uint8)
    for k in range(8):
        row, column = divmod(k, 4)
        rows = slice(row * height // 2, (row + 1) * height // 2)
        picture[rows, column * width // 4 : (column + 1) * width // 4] = colors[(k + shift) % 8]
    return picture


def clip(count: int = 12, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames that all differ: the patches, with a white bar whose place tells the frame."""
    frames = [patches(width, height) for _ in range(count)]
    for index, frame in enumerate(frames):
        frame[:8, 2 * index : 2 * index + 4] = 255
    return frames


def noise(count: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frames that compress badly, so that half a file holds about half of them."""
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


def make(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv444p",
    rate: Fraction = RATE,
    ticks: Sequence[int] | None = None,
    tick: Fraction = Fraction(1, 30000),
    space: int = 2,
    wide: int = 0,
    rotation: int = 0,
    sound: str | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """A video straight from PyAV, by nothing of the code under test."""
    ticks = ticks or [round(i / rate / tick) for i in range(len(frames))]
    with av.open(str(path), "w", options=container or {}) as out:
        film = out.add_stream(codec, rate=rate, options=options or ({"crf": "4"} if codec == "libx264" else {}))
        assert isinstance(film, av.VideoStream)
        context = film.codec_context
        height, width = frames[0].shape[:2] if frames else (48, 64)
        context.width, context.height, context.pix_fmt, context.time_base = width, height, pixels, tick
        context.colorspace, context.color_range = space, wide
        if rotation:
            film.set_display_rotation(rotation)
        track = out.add_stream(sound, rate=48000) if sound else None
        assert track is None or isinstance(track, av.AudioStream)
        out.start_encoding()
        reformatter = VideoReformatter()
        for picture, pts in zip(frames, ticks, strict=bool(frames)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            matrix = {2: 5, 0: 1}.get(space, space)
            frame = reformatter.reformat(
                frame, format=pixels, dst_colorspace=matrix, src_color_range=2, dst_color_range=wide or 1
            )
            frame.pts, frame.time_base = pts, tick
            frame.colorspace, frame.color_range = space, wide
            out.mux(film.encode(frame))
        out.mux(film.encode(None))
        if track:
            seconds = float(ticks[-1] * tick)
            _add_sound(out, track, seconds)
    return path


def _add_sound(out: av.container.OutputContainer, track: av.AudioStream, seconds: float) -> None:
    """A sine of 440 Hz."""
    samples = int(48000 * seconds)
    wave = (0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / 48000)).astype(np.float32)
    for at in range(0, samples, 1024):
        block = wave[at : at + 1024]
        if track.codec_context.name.startswith("pcm"):
            frame = av.AudioFrame.from_ndarray((block * 32767).astype(np.int16)[None], format="s16", layout="mono")
        else:
            frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, at, Fraction(1, 48000)
        out.mux(track.encode(frame))
    out.mux(track.encode(None))


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def save_pictures(folder: Path, names: Sequence[str], size: tuple[int, int] = (32, 24)) -> Path:
    folder.mkdir()
    for index, name in enumerate(names):
        Image.fromarray(patches(*size, shift=index)).save(folder / name)
    return folder


# --- coming in ------------------------------------------------------------------------------------------------------


def test_every_frame_arrives_once_with_its_exact_time(tmp_path: Path) -> None:
    frames = clip(20)
    video = read_video(make(tmp_path / "a.mp4", frames), tmp_path / "cache")
    assert isinstance(video.frames, np.memmap) and video.frames.dtype == np.uint8
    assert video.frames.shape == (20, 48, 64, 3) and not video.frames.flags.writeable
    assert video.timestamps == tuple(i / RATE for i in range(20))
    assert (video.metadata.rate, video.metadata.variable_rate, video.metadata.frame_count) == (RATE, False, 20)
    assert np.abs(video.frames.astype(int) - np.stack(frames)).mean() < 2
    assert (tmp_path / "cache" / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_variable_rate_survives_reading_and_writing(tmp_path: Path) -> None:
    ticks = [641, 1001, 3003, 9009, 10010, 40040]
    source = probe_video(make(tmp_path / "a.mp4", clip(6), ticks=ticks, container={"movie_timescale": "30000"}))
    assert source.variable_rate and source.timestamps == tuple(Fraction(t, 30000) for t in ticks)
    copy = probe_video(write_video(tmp_path / "b.mp4", source_frames(source, range(6)), source))
    assert copy.timestamps == source.timestamps and copy.variable_rate


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied_once(tmp_path: Path, rotation: int) -> None:
    stored = patches(64, 48)
    path = make(tmp_path / "a.mp4", [stored] * 2, rotation=rotation)
    metadata = probe_video(path)
    upright = np.rot90(stored, rotation // 90)  # the display matrix turns anticlockwise
    assert (metadata.height, metadata.width) == upright.shape[:2] and metadata.rotation == (360 - rotation) % 360
    for frame in source_frames(metadata, range(2)):
        assert np.abs(frame.astype(int) - upright).max() <= 4
    copy = probe_video(write_video(tmp_path / "b.mp4", source_frames(metadata, range(2)), metadata))
    assert (copy.width, copy.height, copy.rotation) == (metadata.width, metadata.height, 0)


def test_a_distant_range_gives_the_same_frames_as_reading_everything(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", [patches(32, 32, k) for k in range(60)], options={"g": "7", "crf": "4"})
    metadata = probe_video(path)
    everything = list(source_frames(metadata, range(60)))
    for chosen in (range(40, 60, 3), range(33, 34), range(5, 50, 20)):
        part = list(source_frames(metadata, chosen))
        assert len(part) == len(chosen)
        assert all(np.array_equal(everything[i], frame) for i, frame in zip(chosen, part, strict=True))


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(1)))
    assert metadata.frame_count == 1 and not metadata.variable_rate
    assert probe_video(write_video(tmp_path / "b.mp4", clip(1), metadata)).frame_count == 1


def test_matroska_milliseconds_are_still_a_constant_rate(tmp_path: Path) -> None:
    metadata = probe_video(make(tmp_path / "a.mkv", clip(20), rate=Fraction(30), tick=Fraction(1, 30)))
    assert metadata.rate == 30 and not metadata.variable_rate and metadata.timestamps[1] == Fraction(33, 1000)


def test_lost_depth_and_transparency_are_said(tmp_path: Path) -> None:
    deep = probe_video(make(tmp_path / "a.mkv", clip(2), codec="ffv1", pixels="yuv420p10le"))
    assert any("10 bit" in note for note in deep.notes)
    clear = probe_video(make(tmp_path / "b.mkv", clip(2), codec="ffv1", pixels="bgra", space=0))
    assert any("transparency" in note for note in clear.notes)


def test_cover_art_is_not_the_video(tmp_path: Path) -> None:
    film = make(tmp_path / "a.mp4", clip(3), sound="aac")
    with av.open(str(film)) as source, av.open(str(tmp_path / "song.mp4"), "w") as out:
        track = out.add_stream_from_template(source.streams.audio[0])
        cover = out.add_stream("png", rate=1)
        cover.codec_context.width, cover.codec_context.height, cover.codec_context.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(patches(64, 48), format="rgb24")))
        out.mux(cover.encode(None))
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = track
                out.mux(packet)
    with pytest.raises(UserError, match="no video"):
        probe_video(tmp_path / "song.mp4")


def test_facts_survive_json(tmp_path: Path) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(3), sound="aac"))
    assert from_mapping(VideoMetadata, json.loads(json.dumps(to_mapping(metadata)))) == metadata
    with pytest.raises(UserError, match="kind: missing"):
        from_mapping(VideoMetadata, {"path": "x"})


@pytest.mark.parametrize("name", ["-i.mp4", "a%03d.mp4", "http:x.mp4", "'; $(x) \n.mp4", "ü🦢.mp4", b"\xff.mp4"])
def test_file_names_are_taken_literally(tmp_path: Path, name: str | bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    shutil.copy(make(tmp_path / "plain.mp4", clip(2)), path)
    metadata = probe_video(path)
    out = write_video(path.with_name("out-" + path.name), source_frames(metadata, range(2)), metadata)
    assert probe_video(out).frame_count == 2


# --- the cache ------------------------------------------------------------------------------------------------------


def test_only_chosen_frames_are_cached_at_the_asked_size(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", clip(12))
    video = read_video(path, tmp_path / "cache", "32x24", "2:10:4")
    assert video.frames.shape == (2, 24, 32, 3) and video.frame_range == (2, 10, 4)
    assert video.timestamps == (2 / RATE, 6 / RATE)
    whole = read_video(path, tmp_path / "cache")
    expected = cv2.resize(np.array(whole.frames[6]), (32, 24), interpolation=cv2.INTER_AREA)
    assert np.array_equal(video.frames[1], expected)


@pytest.mark.parametrize("damage", ["none", "short", "flipped", "empty"])
def test_a_good_cache_is_reused_and_a_damaged_one_is_made_again(tmp_path: Path, damage: str) -> None:
    path = make(tmp_path / "a.mp4", clip(4))
    before = np.array(read_video(path, tmp_path / "cache").frames)
    (file,) = (tmp_path / "cache").glob("*.npy")
    stamp = file.stat().st_mtime_ns
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    changed: dict[str, bytes | bytearray] = {"short": data[:-5], "flipped": data, "empty": b""}
    if damage in changed:
        file.write_bytes(changed[damage])
    after = read_video(path, tmp_path / "cache").frames
    assert np.array_equal(before, after)
    assert (file.stat().st_mtime_ns == stamp) == (damage == "none")


# --- folders --------------------------------------------------------------------------------------------------------


def test_pictures_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = save_pictures(tmp_path / "f", [f"shot {n}.PNG" for n in range(8, 12)])
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    assert [p.name for p in list_images(folder)] == [f"shot {n}.PNG" for n in range(8, 12)]
    metadata = probe_video(folder)
    assert (metadata.kind, metadata.rate, metadata.frame_count, metadata.width, metadata.height) == (
        "images",
        24,
        4,
        32,
        24,
    )
    assert any("24 frames a second" in note for note in metadata.notes)
    frames = list(source_frames(metadata, metadata.numbers[1:4:2]))
    assert np.array_equal(frames[0], patches(32, 24, 1)) and np.array_equal(frames[1], patches(32, 24, 3))


def test_pictures_with_sixteen_bits_rotation_palette_or_gray_are_read_right(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    picture = patches(32, 24)
    deep = (picture.astype(np.uint16) * 257)[..., ::-1]
    cv2.imwrite(str(folder / "0.png"), deep)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(picture).copy()).save(folder / "1.jpg", exif=exif, quality=100, subsampling=0)
    Image.fromarray(picture).quantize(8).save(folder / "2.png")
    Image.fromarray(np.full((24, 32), 20000, np.uint16)).save(folder / "3.png")
    metadata = probe_video(folder)
    assert any("16 bit" in note for note in metadata.notes)
    first, second, third, gray = source_frames(metadata, range(4))
    assert np.array_equal(first, picture) and np.array_equal(third, picture)
    assert np.abs(second.astype(int) - picture).mean() < 2
    assert np.abs(gray.astype(int) - round(20000 / 257)).max() <= 1


# --- bad input ------------------------------------------------------------------------------------------------------


def _cut(path: Path, keep: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _corrupt(path: Path) -> Path:
    """Wipe 100 bytes three quarters through the coded frames."""
    data = bytearray(path.read_bytes())
    mdat = data.index(b"mdat")
    at = mdat + int.from_bytes(data[mdat - 4 : mdat], "big") * 3 // 4
    data[at : at + 100] = bytes(100)
    path.write_bytes(data)
    return path


def _concat(folder: Path) -> Path:
    make(folder / "other.mp4", clip(3))
    return _text(folder / "x.mp4", "ffconcat version 1.0\nfile other.mp4\n")


def _picture(path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(patches(*size)).save(path)


def _mixed(folder: Path) -> Path:
    _picture(save_pictures(folder, ["0.png", "1.png", "2.png"]) / "3.png", (30, 24))
    return folder


def _bomb(path: Path) -> Path:
    Image.new("1", (20000, 20000)).save(path)
    return path


BAD = {
    "missing": (lambda d: d / "no.mp4", "no such file"),
    "empty file": (lambda d: _text(d / "a.mp4", ""), "empty"),
    "text renamed": (lambda d: _text(d / "a.mp4", "hello " * 500), "as a video"),
    "pipe": (lambda d: _pipe(d / "a.mp4"), "not a regular file"),
    "mp4 without its index": (lambda d: _cut(make(d / "a.mp4", clip()), 0.6), "no video|cut short|InvalidData"),
    "cut mp4 with the index first": (
        lambda d: _cut(make(d / "a.mp4", clip(), container={"movflags": "faststart"}), 0.7),
        "bytes are missing",
    ),
    "cut mkv": (lambda d: _cut(make(d / "a.mkv", clip()), 0.6), "bytes are missing"),
    "cut mkv of unknown length": (lambda d: _open_ended(_cut(make(d / "a.mkv", noise(30)), 0.5)), "declares"),
    "cut avi": (
        lambda d: _cut(make(d / "a.avi", clip(), codec="mjpeg", pixels="yuvj444p", wide=2), 0.6),
        "bytes are missing",
    ),
    "damaged in the middle": (lambda d: _corrupt(make(d / "a.mp4", clip())), "frame"),
    "zero frames": (lambda d: make(d / "a.mkv", [], ticks=[0]), "no frames|as a video"),
    "smaller than 16 pixels": (lambda d: make(d / "a.mp4", clip(2, 8, 8)), "at least 16"),
    "a script of other files": (_concat, "as a video"),
    "empty folder": (lambda d: save_pictures(d / "f", []), "no pictures"),
    "folder with a gap": (
        lambda d: save_pictures(d / "f", ["1.png", "2.png", "4.png"]),
        r"between '2.png' and '4.png'",
    ),
    "folder of mixed sizes": (lambda d: _mixed(d / "f"), "'3.png' is 30x24"),
    "double numbers": (lambda d: save_pictures(d / "f", ["1.png", "01.png"]), "number 1"),
    "two sequences": (lambda d: save_pictures(d / "f", ["a0.png", "b0.png"]), "several sequences"),
    "picture without number": (lambda d: save_pictures(d / "f", ["a.png", "b1.png"]), "no number"),
    "broken picture": (lambda d: _cut(save_pictures(d / "f", ["0.png"]) / "0.png", 0.5).parent, "0.png"),
    "picture bomb": (lambda d: _bomb(d / "a.png"), "pixels"),
}


def _open_ended(path: Path) -> Path:
    """Declare the length of the Matroska segment unknown, as a live recording does; the duration stays."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x18\x53\x80\x67") + 4
    data[at : at + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_video_gets_one_clear_error(tmp_path: Path, case: str) -> None:
    build, words = BAD[case]
    with pytest.raises(UserError, match="error") as caught:
        path = build(tmp_path)
        read_video(path, tmp_path / "cache")
    assert caught.value.code in (ExitCode.BAD_INPUT, ExitCode.UNSAFE_FILE)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert caught.value.where and not list(tmp_path.glob("cache/*.npy"))


def test_frames_before_the_damage_can_be_used(tmp_path: Path) -> None:
    path = _corrupt(make(tmp_path / "a.mp4", clip(30), options={"g": "1", "crf": "4"}))
    with pytest.raises(UserError) as caught:
        read_video(path, tmp_path / "cache")
    assert "frame" in str(caught.value)
    assert read_video(path, tmp_path / "cache", frames="0:5").frames.shape[0] == 5


def test_a_changed_source_is_noticed(tmp_path: Path) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(4)))
    make(tmp_path / "a.mp4", clip(5))
    with pytest.raises(UserError, match="changed"):
        list(source_frames(metadata, range(4)))


# --- sizes and ranges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source", "size"),
    [
        ("240p", (854, 480), (427, 240)),
        ("240p", (1080, 1920), (240, 427)),
        ("480p", (320, 240), (320, 240)),
        ("100x60", (854, 480), (100, 60)),
        ("source", (97, 63), (97, 63)),
    ],
)
def test_sizes(text: str, source: tuple[int, int], size: tuple[int, int]) -> None:
    assert parse_size(text, *source) == size


@pytest.mark.parametrize("text", ["", "p", "0p", "8p", "240", "1x1", "99999x99999", "-240p"])
def test_impossible_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_size(text, 854, 480)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 9), st.integers(1, 50), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_frame_ranges_are_slices_or_errors(start: int, stop: int, step: int, count: int, first: int) -> None:
    numbers = range(first, first + count)
    if step and first <= start < stop <= first + count:
        assert parse_frames(f"{start}:{stop}:{step}", numbers) == range(start, stop, step)
    else:
        with pytest.raises(UserError):
            parse_frames(f"{start}:{stop}:{step}", numbers)


def test_open_frame_ranges() -> None:
    assert parse_frames("3:", range(9)) == range(3, 9) and parse_frames(":4", range(9)) == range(4)
    with pytest.raises(UserError):
        parse_frames("5", range(9))


# --- going out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("space", "wide"), [(1, 1), (1, 2), (2, 0), (6, 1), (9, 1)])
def test_colors_and_tags_return_within_two_levels(tmp_path: Path, space: int, wide: int) -> None:
    picture = patches(128, 96)
    source = probe_video(make(tmp_path / "a.mp4", [picture] * 2, pixels="yuv420p", space=space, wide=wide))
    out = write_video(tmp_path / "b.mp4", [picture] * 2, source, crf=4)
    copy = probe_video(out)
    assert (copy.color_space, copy.range) == (source.color_space, source.range)
    with av.open(str(out)) as container:  # another reader, by the tags alone, with its quick rounding
        other = next(container.decode(video=0)).to_ndarray(format="rgb24")
    (first,), (second,) = source_frames(source, range(1)), source_frames(copy, range(1))
    for frame, limit in ((first, 2), (second, 2), (other, 3)):
        for row, column in np.ndindex(2, 4):
            place = (slice(row * 48 + 16, row * 48 + 32), slice(column * 32 + 12, column * 32 + 20))  # clear of edges
            assert np.abs(frame[place].astype(int) - picture[place]).max() <= limit, (row, column)


def test_reading_and_writing_does_not_darken(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(40, 200, (12, 16, 3), np.uint8)
    frames = [cv2.resize(noise, (64, 48), interpolation=cv2.INTER_CUBIC)] * 2
    source = probe_video(make(tmp_path / "a.mp4", frames, pixels="yuv420p", space=1, wide=1))
    write_video(tmp_path / "b.mp4", source_frames(source, range(2)), source, crf=1)
    luma = []
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(tmp_path / name)) as container:
            luma.append(next(container.decode(video=0)).to_ndarray()[:48].astype(float))
    assert abs((luma[1] - luma[0]).mean()) < 0.25


def test_pictures_become_tagged_bt709(tmp_path: Path) -> None:
    metadata = probe_video(save_pictures(tmp_path / "f", ["0.png", "1.png"]))
    copy = probe_video(write_video(tmp_path / "a.mp4", source_frames(metadata, range(2)), metadata, crf=4))
    assert (copy.color_space, copy.primaries, copy.transfer, copy.range) == ("bt709", "bt709", "bt709", "tv")


@given(st.integers(16, 40), st.integers(16, 40), st.booleans())
@settings(max_examples=8, deadline=None)
def test_ffv1_is_lossless_at_every_size(tmp_path_factory: pytest.TempPathFactory, w: int, h: int, alpha: bool) -> None:
    folder = tmp_path_factory.mktemp("ffv1")
    frames = list(np.random.default_rng(w).integers(0, 256, (3, h, w, 4 if alpha else 3), np.uint8))
    metadata = probe_video(make(folder / "a.mp4", clip(3)))
    out = write_video(folder / "b.mkv", frames, metadata, codec="ffv1")
    with av.open(str(out)) as container:
        back = [f.to_ndarray(format="rgba" if alpha else "rgb24") for f in container.decode(video=0)]
    assert np.array_equal(back, frames)


def test_prores_keeps_alpha(tmp_path: Path) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(2)))
    alpha = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    frames = [np.dstack([patches(64, 48), alpha])] * 2
    out = write_video(tmp_path / "b.mov", frames, metadata, codec="prores4444")
    with av.open(str(out)) as container:
        frame = next(container.decode(video=0))
        assert any(component.is_alpha for component in frame.format.components)
        back = frame.reformat(format="rgba").to_ndarray()
    assert np.abs(back[..., 3].astype(int) - alpha).max() <= 1
    assert probe_video(out).timestamps == metadata.timestamps


def test_png_output_is_a_folder_that_reads_back(tmp_path: Path) -> None:
    metadata, frames = probe_video(make(tmp_path / "a.mp4", clip(3))), clip(3)
    out = write_video(tmp_path / "pictures", frames, metadata, codec="png")
    assert sorted(p.name for p in out.iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert np.array_equal(list(source_frames(probe_video(out), range(3))), frames)
    write_video(out, frames[:2], metadata, codec="png", timestamps=metadata.timestamps[:2], overwrite=True)
    assert len(list(out.iterdir())) == 2
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        write_video(out, frames, metadata, codec="png", overwrite=True)
    assert (out / "mine.txt").exists() and {p.name for p in tmp_path.iterdir()} == {"a.mp4", "pictures"}


@pytest.mark.parametrize(("width", "height"), [(97, 63), (64, 48), (33, 64)])
def test_h264_keeps_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(3, width, height)))
    copy = probe_video(write_video(tmp_path / "b.mp4", source_frames(metadata, range(3)), metadata))
    assert (copy.width, copy.height) == (width, height)
    assert copy.pixel_format == ("yuv420p" if width % 2 == height % 2 == 0 else "yuv444p")


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv"])
def test_joined_films_have_every_frame_and_packet_of_sound(tmp_path: Path, name: str) -> None:
    source = probe_video(make(tmp_path / "a.mp4", clip(45), sound="aac"))
    spans = [range(13), range(13, 27), range(27, 45)]
    parts = [
        write_video(
            tmp_path / f"{k}.mkv", source_frames(source, s), source, timestamps=source.find_times(s), sound=False
        )
        for k, s in enumerate(spans)
    ]
    joined = encode.join_videos(tmp_path / name, parts, source)
    whole = write_video(tmp_path / f"whole{name}", source_frames(source, range(45)), source)
    assert probe_video(joined).timestamps == probe_video(whole).timestamps
    assert sound_of(joined) == sound_of(whole)
    shown, wanted = (list(source_frames(probe_video(path), range(45))) for path in (joined, whole))
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(shown, wanted, strict=True)) < 1.5
    with av.open(str(joined)) as film:
        decoded = [packet.dts for packet in film.demux(video=0) if packet.size and packet.dts is not None]
    assert len(decoded) > 40 and decoded == sorted(set(decoded))
    with pytest.raises(ValueError, match="2 films of 27 frames"):
        encode.join_videos(tmp_path / f"c{name}", parts[:2], source)


@pytest.mark.parametrize(("sound", "name"), [("aac", "b.mp4"), ("aac", "b.mkv"), ("pcm_s16le", "b.mov")])
def test_sound_is_copied_packet_by_packet(tmp_path: Path, sound: str, name: str) -> None:
    suffix = ".mov" if sound.startswith("pcm") else ".mp4"
    source = probe_video(make(tmp_path / f"a{suffix}", clip(20), sound=sound))
    assert [track.codec for track in source.sound] == [sound]
    out = write_video(tmp_path / name, source_frames(source, range(20)), source)
    assert b"".join(sound_of(out)) == b"".join(sound_of(Path(source.path)))
    assert probe_video(out).timestamps == source.timestamps or name.endswith(".mkv")
    silent = write_video(tmp_path / "c.mp4", source_frames(source, range(20)), source, sound=False)
    assert probe_video(silent).sound == ()


def test_sound_that_the_container_cannot_hold_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = probe_video(make(tmp_path / "a.mkv", clip(10), sound="wavpack"))
    out = write_video(tmp_path / "b.mp4", source_frames(source, range(10)), source)
    assert probe_video(out).sound == () and "wavpack sound track" in caplog.text


def test_a_part_starts_at_the_start_with_its_own_sound(tmp_path: Path) -> None:
    source = probe_video(make(tmp_path / "a.mp4", clip(30), sound="aac"))
    times = source.timestamps[10:20]
    out = probe_video(write_video(tmp_path / "b.mp4", source_frames(source, range(10, 20)), source, timestamps=times))
    assert out.timestamps == tuple(t - times[0] for t in times)
    packets, everything = sound_of(Path(out.path)), sound_of(Path(source.path))
    assert packets == everything[(first := everything.index(packets[0])) : first + len(packets)]
    assert abs(first * 1024 / 48000 - float(times[0])) < 2 * 1024 / 48000
    assert abs(len(packets) * 1024 / 48000 - 10 / float(RATE)) < 2 * 1024 / 48000


def test_index_comes_first_in_mp4(tmp_path: Path) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(3)))
    data = write_video(tmp_path / "b.mp4", clip(3), metadata).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_name_that_cannot_carry_the_codec_is_refused_with_one_that_can(tmp_path: Path) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(2)))
    for codec, name, better in [
        ("ffv1", "x.mp4", "x.mkv"),
        ("prores4444", "x.mkv", "x.mov"),
        ("h264", "x.webm", "x.mp4"),
    ]:
        with pytest.raises(UserError) as caught:
            write_video(tmp_path / name, clip(2), metadata, codec=codec)
        assert better in caught.value.fix
    with pytest.raises(UserError, match="folder"):
        write_video(tmp_path / "x.png", clip(2), metadata, codec="png")
    with pytest.raises(UserError, match="unknown codec"):
        write_video(tmp_path / "x.mp4", clip(2), metadata, codec="h265")
    with pytest.raises(UserError, match="transparency"):
        write_video(tmp_path / "x.mp4", [np.zeros((48, 64, 4), np.uint8)] * 2, metadata)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_outputs_are_not_overwritten_unless_told_and_the_source_never(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", clip(2))
    metadata, before = probe_video(source), source.read_bytes()
    write_video(tmp_path / "b.mp4", clip(2), metadata)
    with pytest.raises(UserError) as caught:
        write_video(tmp_path / "b.mp4", clip(2), metadata)
    assert "-y" in caught.value.fix
    write_video(tmp_path / "b.mp4", clip(2), metadata, overwrite=True)
    with pytest.raises(UserError, match="source video itself"):
        write_video(source, clip(2), metadata, overwrite=True)
    assert source.read_bytes() == before


@pytest.mark.parametrize(("codec", "name"), [("h264", "b.mp4"), ("ffv1", "b.mkv"), ("png", "b")])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, codec: str, name: str) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(6)))
    frames = list(np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        with pytest.raises(UserError) as caught:
            write_video(tmp_path / name, frames, metadata, codec=codec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == ExitCode.NO_ROOM
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_an_error_of_the_renderer_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(4), sound="aac"))

    def failing() -> Iterator[np.ndarray]:
        yield from clip(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "b.mp4", failing(), metadata)
    with pytest.raises(ValueError, match="2 frames, and 4 timestamps"):
        write_video(tmp_path / "b.mp4", clip(2), metadata)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_every_output_kind_can_be_written_again_from_its_own_output(tmp_path: Path) -> None:
    metadata = probe_video(make(tmp_path / "a.mp4", clip(3), sound="aac"))
    for codec, kind in encode.CODECS.items():
        suffix = kind.suffixes[0] if kind.suffixes else ""
        first = probe_video(write_video(tmp_path / f"{codec}-1{suffix}", clip(3), metadata, codec=codec))
        again = probe_video(
            write_video(tmp_path / f"{codec}-2{suffix}", source_frames(first, range(3)), first, codec=codec)
        )
        assert (again.frame_count, again.color_space, again.range) == (3, first.color_space, first.range)
        assert again.timestamps == first.timestamps and len(again.sound) == len(first.sound)
