"""Makes the pictures of docs/masks.md: clips of our own, and what `unwrap mask` finds in them.

python docs/pictures/pointing.py FOLDER     (some minutes; clips and masks stay in FOLDER)
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from compose import HERE, WIDTH, save_small, stack_rows
from PIL import Image

from editors.demo import make_clip_metadata
from neural_fields import BoxHint, MaskOptions, PointHint, segment_video
from neural_fields.data.synthetic.planar_clips import SyntheticClip, make_demo_clip
from neural_fields.data.synthetic.suite import SuiteSettings, make_crossing_clip
from neural_fields.data.video.io import probe_video, source_frames, write_video
from neural_fields.masking.hints import AnyHint
from neural_fields.masking.segment_video import SegmentedVideo

FRAMES, SIZE = 24, (640, 360)  # of the clips
COLORS = {"turtle": (60, 255, 60), "front": (60, 255, 60), "back": (255, 220, 0)}
MARK = (255, 60, 220)
MAX_BYTES = 250_000
Panel = tuple[str, np.ndarray]


def save_sheet(name: str, *rows: Sequence[Panel], height: int = 200) -> None:
    """Saves rows of labeled panels as a small PNG."""
    save_small(HERE / f"masks-{name}.png", stack_rows(rows, height), MAX_BYTES)


def write_clip(path: Path, clip: SyntheticClip) -> list[np.ndarray]:
    """Writes a clip, unless it is there, and returns its frames as a program reads them."""
    if not path.exists():
        write_video(path, clip.render_frames(), make_clip_metadata(clip), overwrite=True)
    metadata = probe_video(path)
    return list(source_frames(metadata, range(metadata.frame_count)))


def read_mask(masks: SegmentedVideo, name: str, number: int) -> np.ndarray:
    """Reads the matte of an object in a frame, 0 to 255."""
    return np.asarray(Image.open(masks.folder / name / f"{number:05d}.png"))


def draw_objects(frame: np.ndarray, masks: SegmentedVideo, number: int) -> np.ndarray:
    """Draws a frame, darker where no object is, with the outline of each object."""
    drawn, names = frame.copy(), [item.name for item in masks.objects]
    inside = {name: read_mask(masks, name, number) >= 128 for name in names}
    drawn[~np.logical_or.reduce(list(inside.values()))] //= 2
    for name in names:
        outlines, _ = cv2.findContours(inside[name].astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, COLORS[name], 2, cv2.LINE_AA)
    return drawn


def draw_hints(frame: np.ndarray, hints: Sequence[AnyHint]) -> np.ndarray:
    """Draws boxes and points on a frame."""
    drawn = frame.copy()
    for hint in hints:
        if isinstance(hint, BoxHint):
            corner = (round(hint.x + hint.width), round(hint.y + hint.height))
            cv2.rectangle(drawn, (round(hint.x), round(hint.y)), corner, COLORS[hint.object], 3)
        elif isinstance(hint, PointHint):
            for color, radius in (((255, 255, 255), 11), (MARK, 8)):
                cv2.circle(drawn, (round(hint.x), round(hint.y)), radius, color, -1, cv2.LINE_AA)
    return drawn


def show_box_and_correction(home: Path) -> None:
    """Makes masks-box.png and masks-correction.png: a turtle from a box, and from a click with five more."""
    frames = write_clip(home / "turtle.mp4", make_demo_clip(FRAMES, *SIZE))
    box = BoxHint("turtle", 0, 66, 51, 260, 276)
    masks = segment_video(home / "turtle.mp4", MaskOptions(hints=(box,), out=home / "box"))
    panels = [("--frame 0 --box 66,51,260,276", draw_hints(frames[0], [box]))]
    panels += [(f"Frame {t}", draw_objects(frames[t], masks, t)) for t in (0, FRAMES - 1)]
    save_sheet("box", panels)

    click, out = PointHint("turtle", 0, 196, 190), home / "correction"
    places = ((224, 76), (102, 109), (113, 250), (235, 289), (298, 189))
    more = tuple(PointHint("turtle", 0, x, y) for x, y in places)
    shell = segment_video(home / "turtle.mp4", MaskOptions(hints=(click,), out=out))
    before = draw_hints(draw_objects(frames[0], shell, 0), [click])
    whole = segment_video(home / "turtle.mp4", MaskOptions(hints=more, out=out))
    after = draw_hints(draw_objects(frames[0], whole, 0), more)
    panels = [("One click gives the shell", before), ("Five more give the turtle", after)]
    save_sheet("correction", [*panels, (f"Frame {FRAMES - 1}", draw_objects(frames[-1], whole, FRAMES - 1))])


def show_crossing(home: Path) -> None:
    """Makes masks-crossing.png and masks-contact.png: two turtles that swim past each other, from a box each."""
    frames = write_clip(home / "crossing.mp4", make_crossing_clip(SuiteSettings(FRAMES, *SIZE)))
    hints = (BoxHint("front", 0, 72, 77, 151, 161), BoxHint("back", 0, 417, 122, 151, 161))
    masks = segment_video(home / "crossing.mp4", MaskOptions(hints=hints, out=home / "crossing"))
    shown = [(f"Frame {t}", draw_objects(frames[t], masks, t)) for t in (5, 9, 12, 15, 20)]
    save_sheet("crossing", [("A box each in frame 0", draw_hints(frames[0], hints)), *shown[:2]], shown[2:])
    assert masks.contact_sheet is not None
    with Image.open(masks.contact_sheet) as sheet:
        top = sheet.convert("RGB").crop((0, 0, sheet.width, sheet.height // 2))  # as wide as the page
        resized = top.resize((WIDTH, round(top.height * WIDTH / top.width)), Image.Resampling.LANCZOS)
        save_small(HERE / "masks-contact.png", resized, MAX_BYTES)


def show_soft_edge(home: Path) -> None:
    """Makes masks-soft.png: hair at 400 %, in the frame and over white, with a hard and with a soft mask."""
    sys.path.append(str(HERE.parents[1] / "benchmarks"))
    from mattes import make_clip

    folder = home / "hair"
    folder.mkdir(exist_ok=True)
    frames, alphas, _ = make_clip("hair", (854, 480), 3)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number:05d}.png")
    y, x = np.nonzero(alphas[0] > 0.5)
    box = BoxHint("ball", 0, float(x.min()), float(y.min()), float(np.ptp(x) + 1), float(np.ptp(y) + 1))
    left, top = int(x.max()) - 60, int(np.median(y)) - 68
    panels = [("The frame", frames[1])]
    for edges, label in (("hard", "--edges hard, over white"), ("soft", "--edges soft, over white")):
        masks = segment_video(folder, MaskOptions(hints=(box,), out=home / f"hair-{edges}", edges=edges))
        share = read_mask(masks, "ball", 1)[..., None] / np.float32(255)
        panels.append((label, (share * frames[1] + (1 - share) * 255).astype(np.uint8)))
    crops = [(label, picture[top : top + 136, left : left + 78]) for label, picture in panels]
    large = [(label, cv2.resize(crop, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)) for label, crop in crops]
    save_sheet("soft", large, height=4 * 136)


def main(home: Path) -> None:
    """Makes all pictures."""
    home.mkdir(parents=True, exist_ok=True)
    show_box_and_correction(home)
    show_crossing(home)
    show_soft_edge(home)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
