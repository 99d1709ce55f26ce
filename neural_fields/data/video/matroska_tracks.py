"""Two facts about tracks of Matroska files that FFmpeg's muxer takes from fields that PyAV cannot set.

A track gets a name that is longer than needed. Once the file is complete, the surplus gives its bytes to the elements
that say the fact, so that nothing else in the file moves. Files must be written without checksums for that.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

_VIDEO, _NAME, _CODEC_DELAY = b"\xe0", b"\x53\x6e", b"\x56\xaa"
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = b"\x54\xb0", b"\x54\xba", b"\x54\xb2"


def reserve_name(name: str, fact: str, track: int) -> str:
    """Returns a name for a track that has room for a fact.

    Args:
        name: the name that the track is to have; it may be empty.
        fact: "aspect" or "delay".
        track: the number of the track.
    """
    return name + f"{fact:{'-'}<{8 if fact == 'aspect' else 5}}{track:02d}"


def write_pixel_aspect(path: Path, name: str, size: tuple[int, int], aspect: Fraction) -> None:
    """Says in a finished file how wide the pixels of its film, which is track 0, are.

    Args:
        path: the file.
        name: the name that the film is to have; until now it has the one of `reserve_name`.
        size: (width, height) in pixels.
        aspect: width of a pixel divided by its height.

    Raises:
        ValueError: the file has another form than FFmpeg gives it.
    """
    width, height = aspect * size[0], Fraction(size[1])
    exact = width.denominator == 1 and width < 0x10000
    shown = (int(width), int(height)) if exact else (width / height).limit_denominator(0x3FFF).as_integer_ratio()
    elements = b"".join(
        key + b"\x82" + value.to_bytes(2, "big")
        for key, value in zip((_DISPLAY_WIDTH, _DISPLAY_HEIGHT), shown, strict=True)
    )
    _replace_surplus(path, name, reserve_name(name, "aspect", 0), elements, _VIDEO)
    # FFmpeg itself has written that the unit is unknown.
    unit = _DISPLAY_UNIT + b"\x81"
    with path.open("r+b") as file:
        start = file.read(1 << 18).index(unit + b"\x04")
        file.seek(start)
        file.write(unit + (b"\x00" if exact else b"\x03"))  # pixels, or a ratio


def write_codec_delay(path: Path, name: str, track: int, delay: Fraction) -> None:
    """Says in a finished file how far before its stamps a sound track starts.

    Args:
        path: the file.
        name: the name that the track is to have; until now it has the one of `reserve_name`.
        track: the number of the track.
        delay: seconds, at most four.

    Raises:
        ValueError: the file has another form than FFmpeg gives it.
    """
    element = _CODEC_DELAY + b"\x84" + round(delay * 1_000_000_000).to_bytes(4, "big")
    _replace_surplus(path, name, reserve_name(name, "delay", track), element, None)


def _replace_surplus(path: Path, name: str, reserved: str, elements: bytes, parent: bytes | None) -> None:
    """Shortens a reserved name and puts elements of the length of its surplus into the track, or a parent in it."""
    with path.open("r+b") as file:
        head = file.read(1 << 18)
        old, kept = reserved.encode(), name.encode()
        width, mark = (1, 0x80) if len(old) < 127 else (2, 0x4000)  # of a length
        start = head.index(_NAME + (mark | len(old)).to_bytes(width, "big") + old)
        at = rest = start + len(_NAME) + width + len(old)
        moved = _NAME + (mark | len(kept)).to_bytes(width, "big") + kept
        if parent is None:
            moved += elements
        else:
            while head[at : at + 1] != parent:  # the other elements: each an identity, a length and a content
                at += 9 - head[at].bit_length()
                count = 9 - head[at].bit_length()
                at += count + (int.from_bytes(head[at : at + count], "big") & ((1 << 7 * count) - 1))
            count = 9 - head[at + 1].bit_length()
            length = int.from_bytes(head[at + 1 : at + 1 + count], "big")
            if length % (1 << 7 * count) + len(elements) >= (1 << 7 * count) - 1:
                raise ValueError("no room in the track")
            moved += head[rest:at] + parent + (length + len(elements)).to_bytes(count, "big") + elements
            rest = at + 1 + count
        if start + len(moved) != rest:
            raise ValueError("the elements have another length than the surplus of the name")
        file.seek(start)
        file.write(moved)
