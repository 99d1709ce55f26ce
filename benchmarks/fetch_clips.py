"""Fetches two small real clips with true masks, for tests and benchmarks on real video.

    python benchmarks/fetch_clips.py [--out ../shared/data] [--source URL]

The clips are `car-shadow` and `blackswan` of DAVIS (Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for
Video Object Segmentation", CVPR 2016): 854x480 JPEG frames and hand-made masks, 6 MB together. They are written beside
the checkout, where tests and benchmarks look for real clips. Existing files are kept, and all files are checked.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A copy of DAVIS that serves single files, at a fixed commit.
SOURCE = "https://raw.githubusercontent.com/MathLee/EOR-VOS/1bde4d5f936304c5ad69e301956e9d65082dfbc8/DAVIS"


@dataclass(frozen=True)
class RemoteClip:
    """Describes a clip of DAVIS, with the checksums of its files."""

    name: str
    count: int  # number of frames
    sha256: str  # hash of the sorted lines "sha256  folder/file" of its frames and masks


CLIPS = (
    RemoteClip("car-shadow", 40, "967084e343563e881eef354d08eba1209d79a1937f7b224362edca7339f5ceb1"),
    RemoteClip("blackswan", 50, "613578eb948a6c476eddf93136482c789f6872e1d4abe611f14ff8885c3cb0db"),
)


def main() -> int:
    """Downloads what is missing; returns 1 if a file cannot be downloaded or does not have its checksum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--source", default=SOURCE, help="another place of DAVIS")
    chosen = parser.parse_args()
    for clip in CLIPS:
        try:
            fetch_clip(clip, chosen.source, chosen.out / f"davis-{clip.name}")
        except (OSError, ValueError) as error:
            print(f"{clip.name}: {error}", file=sys.stderr)
            return 1
    return 0


def fetch_clip(clip: RemoteClip, source: str, folder: Path) -> None:
    """Downloads the frames and masks of a clip that are not in `folder` yet, and checks all of them.

    Args:
        clip: What to fetch.
        source: Address of the folder that holds `JPEGImages` and `Annotations`.
        folder: Where `frames/` and `masks/` go.

    Raises:
        OSError: The address cannot be read, or the folder cannot be written.
        ValueError: The files are not those of the clip.
    """
    lines = []
    for number in range(clip.count):
        for part, kind, ending in (("frames", "JPEGImages", "jpg"), ("masks", "Annotations", "png")):
            path = folder / part / f"{number:05d}.{ending}"
            if not path.is_file():
                address = f"{source}/{kind}/480p/{clip.name}/{number:05d}.{ending}"
                with urllib.request.urlopen(address, timeout=60) as answer:
                    content = answer.read()
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_suffix(".part")
                beside.write_bytes(content)
                beside.rename(path)
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {part}/{path.name}\n")
    found = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    if found != clip.sha256:
        raise ValueError(f"the files in {folder} are not those of the clip (sha256 {found}); remove it and try again")
    print(f"{clip.name}: {clip.count} frames with masks in {folder}")


if __name__ == "__main__":
    sys.exit(main())
