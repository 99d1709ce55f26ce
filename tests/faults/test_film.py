"""Films in and out: times, lengths, shapes, tags and pictures (rows F and S of docs/faults.md)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from neural_fields.core.errors import UserError
from neural_fields.data.video.frame_times import FrameStamp, tabulate_frame_times
from neural_fields.data.video.io import VideoMetadata, parse_size, probe_video, source_frames, write_video
from neural_fields.data.video.plain_metadata import video_metadata
from neural_fields.data.video.timecode import shift_timecode
from neural_fields.rendering.retiming.timeline import parse_timing, schedule_frames
from tests.support.small_films import MS, draw_frame, read_end, write_film

UNEVEN = (0, 100, 200, 300)
FFMPEG = shutil.which("ffmpeg")


def copy_film(source: VideoMetadata, path: Path, frames: range | None = None, codec: str = "h264") -> VideoMetadata:
    """Writes frames of a film again, as a render does, and reads what came out."""
    chosen = source.numbers if frames is None else frames
    times = None if frames is None else source.find_times(frames)
    return probe_video(write_video(path, source_frames(source, chosen), source, codec=codec, timestamps=times))


def write_animation(path: Path, form: str, durations: tuple[int, ...] = (100, 100, 100, 3000)) -> Path:
    first, *others = [Image.fromarray(draw_frame(number)) for number in range(len(durations))]
    first.save(path, form, save_all=True, append_images=others, duration=list(durations))
    return path


def seconds(stamps: tuple[Fraction, ...]) -> list[int]:
    return [round(1000 * stamp) for stamp in stamps]


# --- times -----------------------------------------------------------------------------------------------------------

LASTING: dict[str, Callable[[Path], Path]] = {
    "a.gif": lambda path: write_animation(path, "GIF"),
    "a.apng": lambda path: write_animation(path, "PNG"),
    "a.mp4": lambda path: write_film(path, UNEVEN, last=3000),
    "b-frames.mp4": lambda path: write_film(path, UNEVEN, last=3000, changes={"max_b_frames": 2}),
    "a.mov": lambda path: write_film(path, UNEVEN, last=3000, codec="prores_ks", pixels="yuv422p10le"),
    "a.mkv": lambda path: write_film(path, UNEVEN, last=3000),
    "a.flv": lambda path: write_film(path, UNEVEN, last=3000, changes={"max_b_frames": 0}),
    "fragments.mp4": lambda path: write_film(path, UNEVEN, last=3000, options={"movflags": "frag_keyframe"}),
    "still-with-sound.mp4": lambda path: write_film(path, (0,), last=400, sound="aac"),
}


@pytest.mark.parametrize("name", LASTING)
def test_f01_last_frame(tmp_path: Path, name: str) -> None:
    source = probe_video(LASTING[name](tmp_path / name))
    length = 3300 if source.frame_count > 1 else 400
    assert round(1000 * (source.end - source.timestamps[0])) == length
    assert video_metadata(Path(source.path))["seconds"] == length / 1000
    out = copy_film(source, tmp_path / "out.mp4")
    assert abs(read_end(Path(out.path)) - source.end) <= MS and out.timestamps == source.timestamps
    assert abs(copy_film(source, tmp_path / "out.mkv", codec="ffv1").end - source.end) <= MS


def test_f01_a_film_without_durations_does_not_outlast_its_usual_step(tmp_path: Path) -> None:
    starts = (0, 40, 80, 120, 160, 900, 1300, 1340, 1380)
    path = write_film(tmp_path / "a.webm", starts, last=0, codec="libvpx", sound="libopus", sound_ms=1440)
    assert round(1000 * probe_video(path).end) == 1420


@pytest.mark.parametrize("ending", ["mkv", "webm", "flv", "mp4", "ts"])
def test_f03_later_starts(tmp_path: Path, ending: str) -> None:
    codec, sound = ("libvpx", "libopus") if ending == "webm" else ("libx264", "aac")
    starts = range(10_000, 10_320, 40)
    changes = {"max_b_frames": 0} if codec == "libx264" else {}
    path = write_film(tmp_path / f"a.{ending}", starts, codec=codec, changes=changes)
    source = probe_video(path)
    assert source.frame_count == 8 and source.end - source.timestamps[0] == Fraction(8, 25)
    again = probe_video(write_film(tmp_path / f"b.{ending}", starts, codec=codec, sound=sound, changes=changes))
    assert again.frame_count == 8


def test_f05_doubled_stamps(tmp_path: Path) -> None:
    starts, stamps = (0, 40, 80, 120, 160, 2000, 2040, 2080), (0, 40, 80, 120, 120, 2000, 2040, 2080)
    path = write_film(tmp_path / "a.mkv", starts, stamps=stamps, codec="ffv1", pixels="bgr0", sound="aac")
    source = probe_video(path)
    assert seconds(source.timestamps) == [0, 40, 80, 120, 160, 2000, 2040, 2080] and round(1000 * source.end) == 2120
    assert any("one frame has no time of its own (frame 4)" in note for note in source.notes)
    assert seconds(copy_film(source, tmp_path / "b.mp4").timestamps) == seconds(source.timestamps)


@pytest.mark.parametrize(
    ("stamps", "right"),
    [
        ((0, 40, None, 120, 160), [0, 40, 80, 120, 160]),  # missing
        ((None, 40, 80, 120), [0, 40, 80, 120]),
        ((0, 40, 80, None, None), [0, 40, 80, 120, 160]),
        ((0, 40, 10, 120, 160), [0, 40, 80, 120, 160]),  # one is too early
        ((0, 40, 5000, 120, 160), [0, 40, 80, 120, 160]),  # one is too late
        ((0, 40, 40, 40, 50), [0, 40, 43, 46, 50]),  # less room than usual
        ((0, 40, 80, 0, 40, 80), [0, 40, 80, 120, 160, 200]),  # a second recording
        ((7000, 7040, 7080, 0, 40, 900, 940), [7000, 7040, 7080, 7120, 7160, 8020, 8060]),
        ((None, None, None), [0, 42, 83]),
    ],
)
def test_f05_stamps_are_mended_one_by_one(stamps: tuple[int | None, ...], right: list[int]) -> None:
    given = [FrameStamp(None if stamp is None else stamp * MS, Fraction(0)) for stamp in stamps]
    assert seconds(tabulate_frame_times(given, MS, None).starts) == right


def test_f14_sound_length(tmp_path: Path) -> None:
    for sound in ("aac", "mp2", "ac3"):
        (track,) = probe_video(write_film(tmp_path / f"{sound}.ts", sound=sound)).sound
        assert abs(track.seconds - 0.4) < 0.05, sound


def test_s4_exact_rate(tmp_path: Path) -> None:
    starts = [round(1001 * number / 30) for number in range(8)]
    source = probe_video(write_film(tmp_path / "a.mkv", starts, last=33))
    assert seconds(source.timestamps) == starts and source.rate == Fraction(30000, 1001)
    out = copy_film(source, tmp_path / "b.mp4")
    assert out.timestamps == tuple(Fraction(1001 * number, 30000) for number in range(8))
    assert out.end == Fraction(8008, 30000)
    part = copy_film(source, tmp_path / "c.mp4", range(2, 6))
    assert part.timestamps == out.timestamps[:4]


# --- shapes and sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "title"),
    [
        ("ffv1.mkv", ""),
        ("ffv1.mkv", "Ein längerer Name ロゴ " * 5),
        ("h264.mkv", ""),
        ("h264.mp4", ""),
        ("prores4444.mov", ""),
    ],
)
def test_f06_every_output_keeps_the_shape_of_pixels(tmp_path: Path, ending: str, title: str) -> None:
    path = write_film(tmp_path / "a.mov", changes={"sample_aspect_ratio": Fraction(64, 45)})
    source = probe_video(path)
    if title:
        with av.open(str(path)) as film, av.open(str(tmp_path / "b.mkv"), "w") as out:
            track = out.add_stream_from_template(film.streams.video[0], opaque=True)
            track.metadata["title"] = title.strip()
            for packet in film.demux(video=0):
                if packet.dts is not None:
                    packet.stream = track
                    out.mux(packet)
        source = probe_video(tmp_path / "b.mkv")
    out_path = tmp_path / f"out.{ending}"
    assert source.pixel_aspect == Fraction(64, 45)
    assert copy_film(source, out_path, codec=ending.partition(".")[0]).pixel_aspect == Fraction(64, 45)
    with av.open(str(out_path)) as made:
        assert made.streams.video[0].metadata.get("title", "") == title.strip()
        assert sum(1 for _ in made.decode(video=0)) == 8


def test_f31_turned_films_are_named(tmp_path: Path) -> None:
    for turn, size in ((90, "48x64"), (180, "64x48")):
        path = tmp_path / f"{turn}.mp4"
        with av.open(str(path), "w") as out:
            film: Any = out.add_stream("libx264", rate=25)
            film.width, film.height = 64, 48
            film.set_display_rotation(turn)
            for number in range(2):
                out.mux(film.encode(av.VideoFrame.from_ndarray(draw_frame(number), format="rgb24")))
            out.mux(film.encode(None))
        assert any(f"({size})" in note and "masks and cameras" in note for note in probe_video(path).notes)


@pytest.mark.parametrize(
    ("text", "size", "right"),
    [
        ("240p", (854, 480), (426, 240)),
        ("240p", (1080, 1920), (240, 426)),
        ("480p", (853, 480), (853, 480)),  # its own odd size stays
        ("101x63", (854, 480), (101, 63)),  # an exact size too
    ],
)
def test_s2_even_sizes(text: str, size: tuple[int, int], right: tuple[int, int]) -> None:
    assert parse_size(text, *size, keeps_even=True) == right


def test_s3_losses_are_named(tmp_path: Path) -> None:
    full = write_film(tmp_path / "a.mkv", pixels="yuv444p")
    assert any("color resolution" in note for note in probe_video(full).notes)
    if FFMPEG is None:
        pytest.skip("needs ffmpeg")
    fields, hdr = tmp_path / "b.mkv", tmp_path / "c.mkv"
    start = [FFMPEG, "-v", "error", "-i", str(full)]
    subprocess.run([*start, "-vf", "setfield=tff,interlace", "-c:v", "mpeg2video", "-flags", "+ildct", str(fields)])
    assert any("progressive" in note for note in probe_video(fields).notes)
    display = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1):max-cll=1000,400"
    made = subprocess.run([*start, "-c:v", "libx265", "-x265-params", f"log-level=none:{display}", str(hdr)])
    if made.returncode == 0:
        assert any("HDR10" in note for note in probe_video(hdr).notes)


# --- what a film holds beside pictures and sound ---------------------------------------------------------------------


def write_titled(path: Path, codec: str, tags: tuple[bytes, bytes] | None = None) -> Path:
    """Writes a film with a German track of titles; `tags` make its MP4 track one of another kind."""
    if FFMPEG is None:
        pytest.skip("needs ffmpeg")
    film, text = write_film(path.with_name("film.mp4")), path.with_name("titles.srt")
    text.write_text("1\n00:00:00,000 --> 00:00:00,300\nHello\n\n")
    line = [FFMPEG, "-v", "error", "-i", str(film), "-i", str(text), "-c:v", "copy", "-c:s", codec]
    subprocess.run([*line, "-metadata:s:s:0", "language=ger", str(path)], check=True)
    if tags:
        path.write_bytes(path.read_bytes().replace(b"sbtl", tags[0]).replace(b"tx3g", tags[1]))
    return path


def write_spherical(path: Path) -> Path:
    """Writes a film with the mark of a 360 degree film that cameras write (spherical video, version 1)."""
    spherical = "<GSpherical:{0}>{1}</GSpherical:{0}>"
    words = {"Spherical": "true", "Stitched": "true", "StitchingSoftware": "x", "ProjectionType": "equirectangular"}
    text = "".join(spherical.format(name, word) for name, word in words.items())
    content = bytes.fromhex("ffcc8263f8554a938814587a02521fdd") + f"<rdf:SphericalVideo>{text}".encode()
    data, box = bytearray(write_film(path).read_bytes()), (len(content) + 8).to_bytes(4, "big") + b"uuid" + content
    for name in (b"trak", b"moov"):
        at = data.index(name) - 4
        length = int.from_bytes(data[at : at + 4], "big")
        data[at : at + 4] = (length + len(box)).to_bytes(4, "big")
        if name == b"trak":
            data[at + length : at + length] = box
    path.write_bytes(data)
    return path


def write_captioned(path: Path) -> Path:
    """Writes a film with closed captions in its frames, as television has them (CEA-608 in ATSC A/53)."""
    content = b"\xb5\x00\x31GA94\x03\xc1\xff\xfc\x94\x2c\xff"
    unit = b"\x06\x04" + bytes([len(content)]) + content + b"\x80"
    plain = write_film(path.with_name("plain.mp4"), changes={"max_b_frames": 0})
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        film = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                again = av.Packet(len(unit).to_bytes(4, "big") + unit + bytes(packet))
                again.pts, again.dts, again.time_base = packet.pts, packet.dts, packet.time_base
                again.duration, again.is_keyframe, again.stream = packet.duration, packet.is_keyframe, film
                out.mux(again)
    return path


def write_two_eyes(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        film: Any = out.add_stream("libx264", rate=25, options={"x264-params": "frame-packing=3"})
        film.width, film.height = 64, 48
        for number in range(8):
            out.mux(film.encode(av.VideoFrame.from_ndarray(draw_frame(number), format="rgb24")))
        out.mux(film.encode(None))
    return path


BESIDE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "text.mp4": (lambda path: write_titled(path, "mov_text"), "subtitle mov_text ger"),
    "srt.mkv": (lambda path: write_titled(path, "srt"), "subtitle subrip ger"),
    "ass.mkv": (lambda path: write_titled(path, "ass"), "subtitle ass ger"),
    "vtt.mkv": (lambda path: write_titled(path, "webvtt"), "subtitle webvtt ger"),
    "608.mp4": (lambda path: write_titled(path, "mov_text", (b"clcp", b"c608")), "subtitle eia_608 ger"),
    "camera.mp4": (lambda path: write_titled(path, "mov_text", (b"meta", b"gpmd")), "data bin_data ger"),
    "captions.mp4": (write_captioned, "closed captions"),
    "360.mp4": (write_spherical, "mark of a 360 degree film"),
    "3d.mp4": (write_two_eyes, "mark of a 3D film of two eyes"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_s3_what_renders_do_not_have_is_named(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    write, words = BESIDE[name]
    source = probe_video(write(tmp_path / name))
    assert source.frame_count == 8 and [words in note for note in source.notes] == [True]
    out = copy_film(source, tmp_path / "out.mkv")
    assert caplog.messages == [f"out.mkv does not hold these of the source: {words}"]
    assert not any(words in note for note in out.notes)


# --- tags ------------------------------------------------------------------------------------------------------------


def write_tagged(path: Path) -> Path:
    """Writes a film with two languages, of which the second plays first, two chapters and tags."""
    plain = write_film(path.with_name("plain.mp4"), sound="aac")
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        out.metadata.update(title="My film", artist="Somebody", creation_time="2024-05-06T07:08:09.000000Z")
        out.metadata["location"] = "+48.1000+011.5000/"
        out.set_chapters(
            [
                {"id": k, "start": 160 * k, "end": 160 * k + 160, "time_base": MS, "metadata": {"title": title}}
                for k, title in enumerate(("One", "Zwei"))
            ]
        )
        film = out.add_stream_from_template(source.streams.video[0], opaque=True)
        tracks = [out.add_stream_from_template(source.streams.audio[0]) for _ in range(2)]
        for track, language, flag in zip(tracks, ("ger", "eng"), (0, Disposition.default), strict=True):
            track.metadata.update(language=language, title=f"Track {language}", handler_name=f"Track {language}")
            track.disposition = Disposition(flag)
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                packet.stream = film
                out.mux(packet)
            else:
                time, content = (packet.pts, packet.dts, packet.duration, packet.time_base), bytes(packet)
                for track in tracks:
                    again = av.Packet(content)
                    again.pts, again.dts, again.duration, again.time_base = time
                    again.stream = track
                    out.mux(again)
    return path


@pytest.mark.parametrize("ending", ["h264.mp4", "h264.mov", "h264.mkv", "ffv1.mkv"])
def test_f13a_tags_are_kept(tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    source = probe_video(write_tagged(tmp_path / "a.mkv"))
    out = copy_film(source, tmp_path / f"out.{ending}", codec=ending.partition(".")[0])
    with av.open(out.path) as made:
        kept = {name.lower(): text for name, text in made.metadata.items()}
        assert (kept["title"], kept["artist"], kept["creation_time"][:19]) == (
            "My film",
            "Somebody",
            "2024-05-06T07:08:09",
        )
        assert kept["location"].startswith("+48.1")
        tracks = made.streams.audio
        assert [track.language for track in tracks] == ["ger", "eng"]
        assert [bool(track.disposition & Disposition.default) for track in tracks] == [False, True]
        names = [track.metadata.get("title") or track.metadata.get("handler_name") for track in tracks]
        assert names == ["Track ger", "Track eng"]
    assert [(one.title, seconds((one.start, one.end))) for one in out.chapters] == [
        ("One", [0, 160]),
        ("Zwei", [160, 320]),
    ]
    assert not caplog.messages


def test_f13a_a_part_has_its_part_of_the_chapters(tmp_path: Path) -> None:
    source = probe_video(write_tagged(tmp_path / "a.mov"))
    out = copy_film(source, tmp_path / "b.mp4", range(2, 6))
    assert [(one.title, seconds((one.start, one.end))) for one in out.chapters] == [
        ("One", [0, 80]),
        ("Zwei", [80, 160]),
    ]
    slow = schedule_frames(source, range(8), parse_timing("0.5"))
    assert slow.metadata.chapters == () and "the sound and the chapters are left out" in slow.notes[0]


def test_f13a_a_tag_that_the_output_cannot_hold_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_film(tmp_path / "a.mkv")
    with av.open(str(path)) as film, av.open(str(tmp_path / "b.mkv"), "w") as out:
        out.metadata["SCENE"] = "12A"
        track = out.add_stream_from_template(film.streams.video[0], opaque=True)
        for packet in film.demux(video=0):
            if packet.dts is not None or packet.pts is not None:
                packet.stream = track
                out.mux(packet)
    copy_film(probe_video(tmp_path / "b.mkv"), tmp_path / "c.mp4")
    assert caplog.messages == ["c.mp4 does not hold these of the source: scene"]


@pytest.mark.parametrize("ending", ["h264.mp4", "h264.mov", "h264.mkv", "ffv1.mkv", "prores4444.mov"])
def test_c9_the_timecode_is_kept_and_moves_with_a_part(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as out:
        film: Any = out.add_stream("libx264", rate=Fraction(30000, 1001))
        film.width, film.height = 64, 48
        film.metadata["timecode"] = "00:59:59;28"
        for number in range(8):
            out.mux(film.encode(av.VideoFrame.from_ndarray(draw_frame(number), format="rgb24")))
        out.mux(film.encode(None))
    source = probe_video(path)
    assert source.timecode == "00:59:59;28" and not source.notes  # its track is the timecode, which is kept
    codec = ending.partition(".")[0]
    assert copy_film(source, tmp_path / f"whole.{ending}", codec=codec).timecode == "00:59:59;28"
    assert copy_film(source, tmp_path / f"part.{ending}", range(3, 8), codec).timecode == "01:00:00;01"
    assert shift_timecode("00:00:59;29", 1, Fraction(30000, 1001)) == "00:01:00;02"


def test_c9_a_timecode_that_no_longer_counts_the_frames_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = probe_video(write_film(tmp_path / "a.mp4"))
    source = VideoMetadata(**{**plain.__dict__, "timecode": "10:00:00:00"})
    copy_film(source, tmp_path / "b.mp4", range(0, 8, 2))
    assert caplog.messages == ["b.mp4 does not hold these of the source: timecode"]
    assert "the timecode is left out" in schedule_frames(source, range(8), parse_timing(rate="30")).notes[0]


# --- pictures --------------------------------------------------------------------------------------------------------


def save_shot(folder: Path, ending: str = ".png", first: int = 1001) -> Path:
    folder.mkdir()
    for number in range(first, first + 8):
        (folder / f"shot.{number}{ending}").write_bytes(b"?")
        if ending == ".png":
            cv2.imwrite(str(folder / f"shot.{number}.png"), draw_frame(number - first))
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exr", ["8 .exr files, not read", "convert them to PNG"]),
        ("dpx", ["8 .dpx files, not read", "convert them to PNG"]),
        ("heic", ["8 .heic files, not read", "convert them to PNG"]),
        ("png/shot.%04d.png", ["patterns of names are not read", "name the folder of the numbered pictures"]),
        ("png/*.png", ["patterns of names are not read", "name the folder of the numbered pictures"]),
        ("above", ["no pictures in the folder", "such as"]),
    ],
)
def test_f19_unread_pictures(tmp_path: Path, name: str, words: list[str]) -> None:
    for ending in ("exr", "dpx", "heic", "png"):
        save_shot(tmp_path / ending, f".{ending}")
    (tmp_path / "above").mkdir()
    save_shot(tmp_path / "above" / "frames")
    with pytest.raises(UserError) as caught:
        probe_video(tmp_path / name)
    text = str(caught.value)
    assert all(word in text for word in words), text


def test_f19_an_address_is_shown_as_it_was_given() -> None:
    with pytest.raises(UserError, match="download it first") as caught:
        probe_video("https://a.example/film.mp4")
    assert caught.value.where == "https://a.example/film.mp4"


def test_f19_one_picture_of_a_sequence_names_the_others(tmp_path: Path) -> None:
    folder = save_shot(tmp_path / "f")
    assert any("7 more pictures" in note for note in probe_video(folder / "shot.1001.png").notes)
    assert not any("more pictures" in note for note in probe_video(folder).notes)


@pytest.mark.parametrize(("name", "form"), [("a.webp", "WEBP"), ("a.png", "PNG"), ("a.gif", "GIF"), ("a.apng", "PNG")])
def test_f20_a_picture_that_moves_is_read_as_a_film(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / name
    first, *others = [Image.fromarray(draw_frame(number)) for number in range(4)]
    more = {"lossless": True} if form == "WEBP" else {}
    first.save(path, form, save_all=True, append_images=others, duration=[100, 100, 100, 3000], **more)
    source = probe_video(path)
    assert seconds((*source.timestamps, source.end)) == [0, 100, 200, 300, 3300]
    assert not any("transparency" in note for note in source.notes)
    for number, frame in enumerate(source_frames(source, range(4))):
        assert np.abs(frame.astype(int) - draw_frame(number)).max() <= (6 if form == "GIF" else 0)
    assert np.array_equal(next(source_frames(source, range(2, 3))), list(source_frames(source, range(4)))[2])


def test_f20_several_pictures_in_one_frame_or_page_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for name in ("0.webp", "1.webp"):
        write_animation(tmp_path / "f" / name, "WEBP")
    pages = [Image.fromarray(draw_frame(number)) for number in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    for path, count in ((tmp_path / "f", 4), (tmp_path / "a.tif", 3)):
        with pytest.raises(UserError, match=f"holds {count} pictures"):
            probe_video(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_f21_a_floating_point_tiff_is_named(tmp_path: Path, channels: int) -> None:
    cv2.imwrite(str(tmp_path / "a.tif"), np.full((48, 64, channels), 0.5, np.float32))
    with pytest.raises(UserError) as caught:
        probe_video(tmp_path / "a.tif")
    assert "32 bit" in str(caught.value) and "none of them" not in str(caught.value)


def test_f43_png_numbers(tmp_path: Path) -> None:
    source = probe_video(save_shot(tmp_path / "f"))
    frames = source_frames(source, range(1003, 1006))
    times = source.find_times(range(1003, 1006))
    out = write_video(tmp_path / "out", frames, source, codec="png", timestamps=times)
    assert sorted(path.name for path in out.iterdir()) == ["01003.png", "01004.png", "01005.png"]


def test_s6_rate_of_pictures(tmp_path: Path) -> None:
    source = probe_video(save_shot(tmp_path / "f"))
    assert any("--rate 30 --speed 30/24" in note and "--codec png" in note for note in source.notes)
    plan = schedule_frames(source, source.numbers, parse_timing("30/24", "30"))
    assert plan.positions == tuple(range(8)) and plan.metadata.end == Fraction(8, 30)
    frames = source_frames(source, source.numbers)
    out = probe_video(write_video(tmp_path / "a.mp4", frames, plan.metadata, timestamps=plan.timestamps))
    assert out.rate == 30 and out.end == Fraction(8, 30)


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe")
def test_f06_and_c9_another_reader_sees_them(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mov", changes={"sample_aspect_ratio": Fraction(64, 45)}, sound="aac")
    plain = probe_video(path)
    source = VideoMetadata(**{**plain.__dict__, "timecode": "10:00:00:00"})
    write_video(tmp_path / "b.mkv", source_frames(source, range(8)), source, codec="ffv1")
    shown = subprocess.run(
        ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(tmp_path / "b.mkv")], capture_output=True
    )
    film = json.loads(shown.stdout)["streams"][0]
    assert film["sample_aspect_ratio"] == "64:45" and film["tags"]["TIMECODE"] == "10:00:00:00"
    assert film["start_time"] == "0.000000"
