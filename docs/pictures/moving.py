"""Makes the moving picture of the README from the output of the demo.

unwrap demo --out demo
python docs/pictures/moving.py demo
"""

import sys
from pathlib import Path

import numpy as np
from compose import HERE, canonical
from PIL import Image, ImageDraw, ImageFont

from neural_fields.data.video.io import probe_video, source_frames

HEIGHT, LABEL, GAP = 270, 26, 10  # pixels
MILLISECONDS = 83  # a frame: half of the clip's rate
MAX_BYTES = 2_000_000


def read_frames(video: Path, step: int = 2) -> list[Image.Image]:
    """Reads every other frame of a video, scaled to the height of the picture."""
    metadata = probe_video(video)
    frames = source_frames(metadata, range(0, metadata.frame_count, step))
    return [scale(Image.fromarray(np.asarray(frame))) for frame in frames]


def scale(picture: Image.Image) -> Image.Image:
    """Scales a picture to the height of a panel."""
    return picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT), Image.Resampling.LANCZOS)


def put_side_by_side(left: Image.Image, right: Image.Image, labels: tuple[str, str]) -> Image.Image:
    """Puts the canonical picture and a frame of the video side by side, each under its label.

    Args:
        left: the canonical picture, at the height of a panel.
        right: the frame, at the height of a panel.
        labels: the two labels.
    """
    sheet = Image.new("RGB", (left.width + GAP + right.width, HEIGHT + LABEL), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=16)
    for x, picture, label in ((0, left, labels[0]), (left.width + GAP, right, labels[1])):
        sheet.paste(picture, (x, LABEL))
        draw.text((x + 1, 3), label, fill=(50, 50, 50), font=font)
    return sheet


def main(demo: Path) -> None:
    """Makes demo.webp: the source and the picture of its object, then the same with a star painted on."""
    source, edited = read_frames(demo / "clip.mp4"), read_frames(demo / "edited.mp4")
    plain = scale(canonical(demo / "run" / "canonical" / "foreground.png"))
    painted = scale(canonical(demo / "painted.png"))
    sheets = [put_side_by_side(plain, frame, ("The turtle as one picture", "The video")) for frame in source]
    sheets += [put_side_by_side(painted, frame, ("Painted on once", "The edited video")) for frame in edited]
    path = HERE / "demo.webp"
    sheets[0].save(path, save_all=True, append_images=sheets[1:], duration=MILLISECONDS, loop=0, quality=70, method=6)
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path}: {path.stat().st_size} bytes are more than {MAX_BYTES}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
