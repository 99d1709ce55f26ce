"""ICC profiles of three curves and a matrix, as image tools embed them."""

from __future__ import annotations

import struct

D50 = (0.9642, 1.0, 0.8249)
SRGB_COLUMNS = ((0.43607, 0.22250, 0.01393), (0.38506, 0.71688, 0.09710), (0.14308, 0.06062, 0.71417))
LINEAR_CURVE = b"curv" + bytes(8)


def make_profile(name: str, curve: bytes) -> bytes:
    """Makes a profile with the primaries of sRGB.

    Args:
        name: the description of the profile.
        curve: a tag of the type curv or para, for all channels.
    """

    def pack(values: tuple[float, ...]) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))

    text = name.encode()
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(80)}
    tags |= {b"cprt": b"text" + bytes(8), b"wtpt": b"XYZ " + bytes(4) + pack(D50)}
    tags |= {
        key: b"XYZ " + bytes(4) + pack(xyz) for key, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), SRGB_COLUMNS, strict=True)
    }
    tags |= {key: curve for key in (b"rTRC", b"gTRC", b"bTRC")}
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for key, data in tags.items():
        padded = data + bytes(-len(data) % 4)
        table += key + struct.pack(">II", start + len(body), len(padded))
        body += padded
    head = struct.pack(">I4sI", start + len(body), b"lcms", 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return head + bytes(28) + pack(D50) + bytes(48) + struct.pack(">I", len(tags)) + table + body
