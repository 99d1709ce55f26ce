"""Makes the pictures of the documentation from the output of the demo.

unwrap demo --out demo
python examples/2_paint_on_a_frame.py demo
python docs/pictures/compose.py demo
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from editors.demo import blend_on_checkerboard
from neural_fields.data.video.io import probe_video, source_frames

HERE = Path(__file__).parent
WIDTH, GAP, LABEL = 960, 9, 24  # pixels
Panel = tuple[str, Image.Image]


def frames(video: Path, shares: tuple[float, ...]) -> list[Image.Image]:
    """Reads frames of a video at shares (0 to 1) of its length."""
    facts = probe_video(video)
    numbers = [round(share * (facts.frame_count - 1)) for share in shares]
    return [Image.fromarray(next(iter(source_frames(facts, range(k, k + 1))))) for k in numbers]


def canonical(path: Path) -> Image.Image:
    """Draws a canonical picture over the squares that stand for transparency, without its empty rim."""
    with Image.open(path) as picture:
        solid = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 127))
        rgba = np.asarray(picture.convert("RGBA").crop(solid.getbbox()), np.float32) / 255
    return Image.fromarray(blend_on_checkerboard(rgba, cell=8))


def row(panels: list[Panel], height: int) -> Image.Image:
    """Puts panels of one height side by side, each under its label, scaled to fill the width together."""
    shares = [picture.width / picture.height for _, picture in panels]
    height = min(height, round((WIDTH - GAP * (len(panels) - 1)) / sum(shares)))
    sheet = Image.new("RGB", (WIDTH, height + LABEL), "white")
    font = ImageFont.load_default(size=15)
    x = (WIDTH - round(sum(share * height for share in shares)) - GAP * (len(panels) - 1)) // 2
    for (label, picture), share in zip(panels, shares, strict=True):
        sheet.paste(picture.resize((round(share * height), height), Image.Resampling.LANCZOS), (x, LABEL))
        ImageDraw.Draw(sheet).text((x + 1, 2), label, fill=(60, 60, 60), font=font)
        x += round(share * height) + GAP
    return sheet


def stack_rows(rows: Sequence[Sequence[tuple[str, np.ndarray]]], height: int, gap: int = GAP) -> Image.Image:
    """Puts rows of labeled panels below each other."""
    parts = [row([(label, Image.fromarray(panel)) for label, panel in panels], height) for panels in rows]
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts) + gap * (len(parts) - 1)), "white")
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height + gap
    return sheet


def save_small(path: Path, picture: Image.Image, max_bytes: int) -> None:
    """Saves a picture of at most 256 colors, and refuses one that is too large for the documentation."""
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > max_bytes:
        raise SystemExit(f"{path}: {path.stat().st_size} bytes are more than {max_bytes}")


def save(name: str, rows: list[Image.Image]) -> None:
    """Saves the rows, one below the other, as `name` beside this file."""
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in rows) + GAP * (len(rows) - 1)), "white")
    y = 0
    for part in rows:
        sheet.paste(part, (0, y))
        y += part.height + GAP
    sheet.save(HERE / name, optimize=True)


def main(demo: Path) -> None:
    """Makes all pictures from the folder of `unwrap demo`."""
    pictures = demo / "run" / "canonical"
    before = [
        ("The sea floor as one picture", canonical(pictures / "background.png")),
        ("The turtle as one picture", canonical(pictures / "foreground.png")),
        ("The same, painted on", canonical(demo / "painted.png")),
    ]
    after = frames(demo / "edited.mp4", (0.1, 0.5, 0.9))
    labels = ("Three frames of the edited video", "", "")
    save("overview.png", [row(before, 400), row(list(zip(labels, after, strict=True)), 400)])
    with Image.open(demo / "painted-frame.png") as painted:
        shown = [painted.convert("RGB"), *frames(demo / "painted-frame.mp4", (0.45, 1.0))]
    labels = ("One frame, painted on", "Frames of the edited video", "")
    save("frame-edit.png", [row(list(zip(labels, shown, strict=True)), 400)])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
