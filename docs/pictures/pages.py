"""Makes the pictures of the pages on editing and on exports, from the run of `unwrap demo`.

unwrap demo --out demo
python docs/pictures/pages.py demo [weights of a style network]
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from compose import row, save
from PIL import Image

from editors.adjust import Adjust
from editors.api import edit_painted_frames, edit_with
from editors.drag import Drag
from editors.frames import Frames
from editors.function import Lift
from editors.place import Place
from editors.remove import Remove
from editors.replace import Replace
from editors.stack import add_edit
from editors.style import Style
from neural_fields.arrangement import Arrangement
from neural_fields.baking import Maps
from neural_fields.canonical import Overlay, pristine
from neural_fields.data.video import source_frames
from neural_fields.output import open_renderer, source_facts
from neural_fields.run import Run

HERE = Path(__file__).parent
FRAMES = (2, 24, 45)
Panel = tuple[str, Image.Image]


class Bench:
    """A copy of the demo's run, to edit."""

    def __init__(self, demo: Path, home: Path) -> None:
        self.run = Run.open(
            shutil.copytree(demo / "run", home / "run", ignore=shutil.ignore_patterns("edits", "renders"))
        )
        facts, chosen = source_facts(self.run)
        self.sources = list(source_frames(facts, chosen))
        self.home = home

    def source(self, t: int) -> Image.Image:
        return Image.fromarray(self.sources[t])

    def shown(self, t: int) -> Image.Image:
        changer = open_renderer(self.run, Maps.open(self.run))
        return Image.fromarray(changer.render_frame(t, self.sources[t]))

    def after(self, change: Callable[[Run], object], frames: Sequence[int]) -> list[Image.Image]:
        """Frames with one edit alone on them."""
        change(self.run)
        found = [self.shown(t) for t in frames]
        shutil.rmtree(self.run.edits)
        return found

    def middle(self, t: int) -> tuple[float, float]:
        """The middle of the object in a frame, in pixels."""
        weight = Maps.open(self.run).layer_weight(t, 0, self.sources[0].shape[1::-1])
        y, x = np.nonzero(weight > 0.5)
        return float(x.mean()), float(y.mean())


def sheet(name: str, *rows: Sequence[Panel]) -> None:
    save(name, [row(list(panels), 260) for panels in rows])


def adjusting(bench: Bench) -> None:
    """adjust.png"""
    (floor,) = bench.after(
        lambda run: edit_with(run, Adjust(exposure=-0.8, saturation=0.2), layers=("background",)), [24]
    )
    (turtle,) = bench.after(lambda run: edit_with(run, Adjust(hue=150.0)), [24])
    sheet(
        "adjust.png",
        [("The source", bench.source(24)), ("--exposure -0.8 --saturation 0.2", floor), ("--hue 150", turtle)],
    )


def lifting(bench: Bench) -> None:
    """lift.png"""
    looks = bench.home / "looks.py"
    looks.write_text("def poster(rgb):\n    return (rgb * 4).round() / 4\n")
    frames = bench.after(lambda run: edit_with(run, Lift(function=f"{looks}:poster"), layers=("background",)), [2, 45])
    picture = pristine(bench.run.canonical, "background").array()
    rgb = Image.fromarray((255 * (picture[..., :3] * 4).round() / 4).clip(0, 255).astype(np.uint8))
    sheet(
        "lift.png",
        [("The picture through the function", rgb)],
        [("Two frames of the video", frames[0]), ("", frames[1])],
    )


def removing(bench: Bench) -> None:
    """remove.png"""
    frames = bench.after(lambda run: edit_with(run, Remove()), [24, 45])
    sheet("remove.png", [("The source", bench.source(24)), ("Without the turtle", frames[0]), ("Later", frames[1])])


def replacing(bench: Bench) -> None:
    """replace.png"""
    y, x = np.mgrid[:480, :854]
    checks = np.where(((x // 60 + y // 60) % 2)[..., None] > 0, (238, 224, 190), (150, 90, 60)).astype(np.uint8)
    Image.fromarray(checks).save(bench.home / "floor.png")
    sky = np.stack([90 + 0 * y, 140 + y // 6, 215 + 0 * y], -1).clip(0, 255).astype(np.uint8)
    sky = cv2.circle(np.ascontiguousarray(sky), (650, 110), 55, (255, 240, 170), -1, cv2.LINE_AA)
    Image.fromarray(sky).save(bench.home / "sky.png")
    floor = bench.after(lambda run: edit_with(run, Replace(picture=bench.home / "floor.png")), [2, 45])
    still = bench.after(lambda run: edit_with(run, Replace(picture=bench.home / "sky.png", still=True)), [45])
    sheet("replace.png", [("It moves with the camera", floor[0]), ("", floor[1]), ("--still", still[0])])


def arranging(bench: Bench) -> None:
    """arranging.png"""
    box = pristine(bench.run.canonical, "foreground").box
    red = {"foreground": Overlay(np.full((8, 8, 4), (0.9, 0.15, 0.1, 1), np.float32), box)}
    panels = []
    for label, lies in [
        ("--blend normal --opacity 0.6", Arrangement(0.6)),
        ("--blend multiply", Arrangement(blend="multiply")),
        ("--blend color", Arrangement(blend="color")),
    ]:
        (frame,) = bench.after(lambda run, lies=lies: add_edit(run, "red", red, {}, arrangement=lies), [24])
        panels.append((label, frame))
    lies = Arrangement(blend="color", start=10, fade_in=20)
    faded = bench.after(lambda run: add_edit(run, "red", red, {}, arrangement=lies), [10, 19, 30])
    labels = ("Frame 10 of --start 10 --fade-in 20", "Frame 19", "Frame 30")
    sheet("arranging.png", panels, list(zip(labels, faded, strict=True)))


def placing(bench: Bench) -> None:
    """place.png"""
    x, y = bench.middle(2)
    text = Place(text="TURTLE", color="#ffe27a", point=f"{x:.0f},{y:.0f}", width=120.0, angle=-12.0, frame=2)
    frames = bench.after(lambda run: edit_with(run, text, layers=("foreground",)), FRAMES)
    quad = Place(text="SEA FLOOR", color="#c02020", quad="330,235 560,215 575,300 320,330", frame=2)
    floor = bench.after(lambda run: edit_with(run, quad, layers=("background",)), FRAMES)
    labels = ("A text at a point of frame 2", "Frame 24", "Frame 45")
    again = ("A text between four corners", "", "")
    sheet("place.png", list(zip(labels, frames, strict=True)), list(zip(again, floor, strict=True)))


def dragging(bench: Bench) -> None:
    """drag.png"""
    x, y = bench.middle(24)
    drag = Drag(drag=(f"{x + 40:.0f},{y:.0f}>{x + 75:.0f},{y - 12:.0f}",), frame=24)
    frames = bench.after(lambda run: edit_with(run, drag), [24, 45])
    sheet(
        "drag.png",
        [("The source", bench.source(24)), ("A point of the shell, dragged", frames[0]), ("Later", frames[1])],
    )


def painting(bench: Bench) -> None:
    """frames.png"""
    painted = {}
    for t in (2, 24, 45):
        frame = bench.sources[t].copy()
        x, y = bench.middle(t)
        cv2.putText(
            frame, f"{t}", (round(x) - 20, round(y) + 12), cv2.FONT_HERSHEY_DUPLEX, 1.4, (255, 240, 120), 3, cv2.LINE_AA
        )
        path = bench.home / f"frame-{t}.png"
        Image.fromarray(frame).save(path)
        painted[t] = path
    first = {2: painted[2]}
    frames = bench.after(lambda run: edit_painted_frames(run, first), [2, 45])
    with Image.open(painted[2]) as picture:
        shown = picture.convert("RGB")
    sheet("painted-frames.png", [("Frame 2, painted on", shown), ("Rendered", frames[0]), ("Frame 45", frames[1])])


def styling(bench: Bench, weights: Path) -> None:
    """style.png, fused-frames.png"""
    from editors.style_network import load_network

    frames = bench.after(lambda run: edit_with(run, Style(weights=weights), layers=("background",)), [2, 45])
    sheet("style.png", [("The source", bench.source(2)), ("The sea floor in a style", frames[0]), ("Later", frames[1])])
    network = load_network(weights)
    folder = bench.home / "styled"
    folder.mkdir()
    for t, source in enumerate(bench.sources):
        Image.fromarray(network.styled(source)).save(folder / f"{t:05d}.png")
    fused = bench.after(lambda run: edit_with(run, Frames(frames=folder)), [24])
    with Image.open(folder / "00024.png") as picture:
        alone = picture.convert("RGB")
    sheet(
        "fused-frames.png",
        [("The source", bench.source(24)), ("Styled alone: it flickers", alone), ("Fused", fused[0])],
    )


def main(demo: Path, weights: Path | None) -> None:
    """All pictures."""
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(demo, Path(home))
        for make in (adjusting, lifting, removing, replacing, arranging, placing, dragging, painting):
            make(bench)
        if weights is not None:
            styling(bench, weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
