"""What a video file says about itself and its tracks: carried from the source to the output, or named.

Titles, artists, dates, places, languages, names of tracks, which track plays first, chapters and the timecode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from av.stream import Disposition

from neural_fields.data.video.metadata import Chapter

# Tags about the old file or its encoder, which are wrong in a new one.
_OWN_TAGS = re.compile(
    r"major_brand|minor_version|compatible_brands|encoder|duration|vendor_id|number_of_(frames|bytes)|bps|_statistics.*|"
    r"creation_?time_?utc|source_id|timecode|variant_bitrate|service_(name|provider)|metadatacreator|hasaudio|hasvideo|"
    r"hasmetadata|hascuepoints|cankeepmetadata|totalframes|totalduration|canseektoend|videosize|audiosize|datasize|"
    r"software|.*_?uid|product_.*|operational_pattern_ul|company_name|application_platform|toolkit_.*|"
    r"material_package_.*|modification_date",
    re.IGNORECASE,
)
# iPhones and others write these; the muxers know the short names.
_SHORT_NAMES = {
    f"com.apple.quicktime.{name}": name for name in ("make", "model", "title", "artist", "album", "comment")
}
_SHORT_NAMES |= {"com.apple.quicktime.location.iso6709": "location", "location-eng": "location"}
_DEFAULT_HANDLERS = {
    *("videohandler", "soundhandler", "subtitlehandler", "datahandler"),
    *("core media video", "core media audio", "core media text", "core media closed caption", "core media metadata"),
}
# What a frame has beside its pixels, by FFmpeg's names.
_FRAME_MARKS = {
    "data about the display of its high dynamic range (HDR10 and the like)": {
        *("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL", "DYNAMIC_HDR_PLUS", "DOVI_METADATA")
    },
    "closed captions": {"A53_CC"},
    "mark of a 360 degree film": {"SPHERICAL"},
    "mark of a 3D film of two eyes": {"STEREO3D"},
}


def read_file_tags(container: Any) -> dict[str, str]:
    """Reads the tags of a whole file that are worth keeping, by their usual names in lower case."""
    found: dict[str, str] = {}
    for name, text in container.metadata.items():
        short = _SHORT_NAMES.get(name.lower(), name.lower())
        if text.strip() and not _OWN_TAGS.fullmatch(short):
            found.setdefault(short, text)
    return found


def read_track_tags(stream: Any) -> dict[str, str]:
    """Reads the language and the name of a track, by their usual names."""
    tags = {name.lower(): text for name, text in stream.metadata.items()}
    found = {"language": tags.get("language", "und"), "title": tags.get("title") or tags.get("name", "")}
    handler = tags.get("handler_name", "")
    if not found["title"] and handler.strip("\0 ").lower() not in _DEFAULT_HANDLERS and "@" not in handler:
        found["title"] = handler.strip("\0 ")
    return {name: text for name, text in found.items() if text and text != "und"}


def read_chapters(container: Any, zero: Fraction) -> tuple[Chapter, ...]:
    """Reads the chapters of a file, in seconds after `zero` of its count."""
    found = []
    for chapter in container.chapters():
        base = Fraction(chapter["time_base"] or 1)
        start, end = chapter["start"] * base - zero, chapter["end"] * base - zero
        title = next((text for name, text in chapter["metadata"].items() if name.lower() == "title"), "")
        found.append(Chapter(title, start, end))
    return tuple(found)


def read_timecode(container: Any, film: Any) -> str | None:
    """Reads the timecode of the first frame, wherever the format keeps it."""
    for tags in (film.metadata, container.metadata, *(stream.metadata for stream in container.streams)):
        for name, text in tags.items():
            if name.lower() == "timecode" and re.fullmatch(r"\d\d:\d\d:\d\d[:;.]\d\d", text.strip()):
                return text.strip()
    return None


def cut_chapters(
    chapters: Sequence[Chapter], start: Fraction | None, end: Fraction, shift: Fraction
) -> tuple[Chapter, ...]:
    """Returns the chapters of a part of the source, in the time of the output.

    Args:
        chapters: those of the source.
        start: seconds where the part starts, and with it the chapter that it lies in; None from the beginning.
        end: seconds where the part ends.
        shift: seconds to subtract.
    """
    inside = [one for one in chapters if one.start < end and (start is None or one.end > start)]
    first = min((one.start for one in inside), default=Fraction(0)) if start is None else start
    return tuple(replace(one, start=max(one.start, first) - shift, end=min(one.end, end) - shift) for one in inside)


def name_other_tracks(container: Any) -> list[str]:
    """Names the tracks that are neither film nor sound, nor the form in which a file keeps its chapters or timecode."""
    found = []
    for stream in container.streams:
        tags = read_track_tags(stream)
        is_chapters = stream.type == "data" and bool(container.chapters()) and stream.container.format.name[:3] == "mov"
        if stream.type in ("video", "audio") or is_chapters or "timecode" in stream.metadata:
            continue
        codec = stream.codec_context.codec.canonical_name if stream.codec_context else getattr(stream, "name", None)
        words = [stream.type, codec, tags.get("language"), tags.get("title")]
        found.append(" ".join(word for word in words if word))
    return found


def name_frame_marks(frame: Any) -> list[str]:
    """Names what belongs to a decoded frame, is not pixels, and is not in renders."""
    kinds = {data.type.name for data in frame.side_data}
    return [name for name, marks in _FRAME_MARKS.items() if kinds & marks]


def copy_track_tags(source: Any, target: Any, is_default: bool) -> None:
    """Gives a track of the output the language, name and flags of a track of the source.

    Args:
        source: the track of the source.
        target: the track of the output.
        is_default: whether players are to choose it, whatever the source says.
    """
    tags = read_track_tags(source)
    target.metadata.update(tags)
    if "title" in tags:
        target.metadata["handler_name"] = tags["title"]
    target.disposition = int(source.disposition) | (int(Disposition.default) if is_default else 0)


def write_chapters(out: Any, chapters: Sequence[Chapter]) -> None:
    """Gives the output its chapters."""
    tick = Fraction(1, 1_000_000)
    out.set_chapters(
        [
            {
                "id": number,
                "start": round(chapter.start / tick),
                "end": round(chapter.end / tick),
                "time_base": tick,
                "metadata": {"title": chapter.title} if chapter.title else {},
            }
            for number, chapter in enumerate(chapters)
        ]
    )


def list_lost_tags(
    written: Any, wanted: Mapping[str, str], chapters: Sequence[Chapter], timecode: str | None
) -> list[str]:
    """Compares a finished file with what it was given.

    Args:
        written: the file, open.
        wanted: tags of the file.
        chapters: its chapters.
        timecode: its timecode.

    Returns:
        What is not there, in words.
    """
    there = {name.lower(): text for name, text in written.metadata.items()}
    lost = [name for name in wanted if name not in there]
    if len(written.chapters()) < len(chapters):
        lost.append("chapters")
    if timecode is not None and read_timecode(written, written.streams.video[0]) is None:
        lost.append("timecode")
    return lost
