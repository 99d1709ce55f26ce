"""Makes the pictures of the pages on editing and on exports, from the run of `unwrap demo`.

unwrap demo --out demo
python docs/pictures/pages.py demo [weights of a style network]
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from compose import row, save
from PIL import Image

from editors.api import edit
from editors.core.stack import add_edit
from editors.demo import blend_on_checkerboard
from editors.effects.adjust import Adjust
from editors.effects.drag import Drag
from editors.effects.external_frames import Frames
from editors.effects.place import Place
from editors.effects.python_function import Lift
from editors.effects.remove import Remove
from editors.effects.replace import Replace
from editors.effects.shape import ShapeEdit
from editors.effects.style import Style
from editors.effects.style_network import read_style_network, stylize_picture
from editors.live.preview import open_preview
from neural_fields.atlas.canonical import Overlay, read_pristine
from neural_fields.atlas.uv_maps import Maps
from neural_fields.data.video.io import rgba_frames, source_frames
from neural_fields.edits.arrangement import Arrangement
from neural_fields.export.base import export_run
from neural_fields.export.maps.stmap import STMapExporter
from neural_fields.export.options import ExportOptions
from neural_fields.export.pictures.canonical import CanonicalExporter
from neural_fields.export.pictures.mattes import LayersExporter, MatteExporter
from neural_fields.export.pictures.unwrapped import UnwrappedExporter
from neural_fields.export.tracks.labels import LabelsExporter
from neural_fields.export.tracks.tracks import track_points
from neural_fields.imaging.documents.layered import DocumentLayer, constant_pixels, flatten_layers, place_on_canvas
from neural_fields.imaging.documents.openraster import read_ora
from neural_fields.imaging.image_io import read_picture
from neural_fields.open_runs.opening import require_planar
from neural_fields.rendering.render_planar import open_passes
from neural_fields.rendering.retiming.interpolation import Retimer
from neural_fields.rendering.retiming.timeline import parse_timing, schedule_frames
from neural_fields.runs.run import Run

HERE = Path(__file__).parent
FRAMES = (2, 24, 45)
Panel = tuple[str, Image.Image]


class Bench:
    """Holds a copy of the demo's run in which edits are made."""

    def __init__(self, demo: Path, home: Path) -> None:
        self.run = Run.open(
            shutil.copytree(demo / "run", home / "run", ignore=shutil.ignore_patterns("edits", "renders"))
        )
        opened = require_planar(self.run, "the pictures")
        facts, chosen = opened.metadata, opened.frames
        self.sources = list(source_frames(facts, chosen))
        self.home = home

    def source(self, t: int) -> Image.Image:
        """Returns a frame of the source."""
        return Image.fromarray(self.sources[t])

    def shown(self, t: int) -> Image.Image:
        """Renders a frame with the active edits."""
        changer = open_passes(require_planar(self.run, "the pictures"))
        return Image.fromarray(changer.render_frame(t, self.sources[t]))

    def after(self, change: Callable[[Run], object], frames: Sequence[int]) -> list[Image.Image]:
        """Renders frames with a single edit."""
        change(self.run)
        found = [self.shown(t) for t in frames]
        shutil.rmtree(self.run.edits)
        return found

    def middle(self, t: int) -> tuple[float, float]:
        """Returns the center of the object in a frame, in pixels."""
        weight = Maps.open(self.run.maps).read_layer_weight(t, 0, self.sources[0].shape[1::-1])
        y, x = np.nonzero(weight > 0.5)
        return float(x.mean()), float(y.mean())


def sheet(name: str, *rows: Sequence[Panel]) -> None:
    """Saves rows of panels as one picture."""
    save(name, [row(list(panels), 260) for panels in rows])


def adjusting(bench: Bench) -> None:
    """Makes adjust.png."""
    (floor,) = bench.after(
        lambda run: edit(run, editor=Adjust(exposure=-0.8, saturation=0.2), layers=("background",)), [24]
    )
    (turtle,) = bench.after(lambda run: edit(run, editor=Adjust(hue=150.0)), [24])
    sheet(
        "adjust.png",
        [("The source", bench.source(24)), ("--exposure -0.8 --saturation 0.2", floor), ("--hue 150", turtle)],
    )


def lifting(bench: Bench) -> None:
    """Makes lift.png."""
    looks = bench.home / "looks.py"
    looks.write_text("def poster(rgb):\n    return (rgb * 4).round() / 4\n")
    poster = Lift(function=f"{looks}:poster")
    frames = bench.after(lambda run: edit(run, editor=poster, layers=("background",)), [2, 45])
    picture = read_pristine(bench.run.canonical, "background").rgba
    rgb = Image.fromarray((255 * (picture[..., :3] * 4).round() / 4).clip(0, 255).astype(np.uint8))
    sheet(
        "lift.png",
        [("The picture through the function", rgb)],
        [("Two frames of the video", frames[0]), ("", frames[1])],
    )


def removing(bench: Bench) -> None:
    """Makes remove.png."""
    frames = bench.after(lambda run: edit(run, editor=Remove()), [24, 45])
    sheet("remove.png", [("The source", bench.source(24)), ("Without the turtle", frames[0]), ("Later", frames[1])])


def replacing(bench: Bench) -> None:
    """Makes replace.png."""
    y, x = np.mgrid[:480, :854]
    checks = np.where(((x // 60 + y // 60) % 2)[..., None] > 0, (238, 224, 190), (150, 90, 60)).astype(np.uint8)
    Image.fromarray(checks).save(bench.home / "floor.png")
    sky = np.stack([90 + 0 * y, 140 + y // 6, 215 + 0 * y], -1).clip(0, 255).astype(np.uint8)
    sky = cv2.circle(np.ascontiguousarray(sky), (650, 110), 55, (255, 240, 170), -1, cv2.LINE_AA)
    Image.fromarray(sky).save(bench.home / "sky.png")
    floor = bench.after(lambda run: edit(run, editor=Replace(image=bench.home / "floor.png")), [2, 45])
    still = bench.after(lambda run: edit(run, editor=Replace(image=bench.home / "sky.png", still=True)), [45])
    sheet("replace.png", [("It moves with the camera", floor[0]), ("", floor[1]), ("--still", still[0])])


def arranging(bench: Bench) -> None:
    """Makes arranging.png."""
    box = read_pristine(bench.run.canonical, "foreground").box
    red = {"foreground": Overlay(np.full((8, 8, 4), (0.9, 0.15, 0.1, 1), np.float32), box)}
    panels = []
    for label, lies in [
        ("--blend normal --opacity 0.6", Arrangement(0.6)),
        ("--blend multiply", Arrangement(blend="multiply")),
        ("--blend color", Arrangement(blend="color")),
    ]:
        (frame,) = bench.after(lambda run, lies=lies: add_edit(run, "red", red, arrangement=lies), [24])
        panels.append((label, frame))
    lies = Arrangement(blend="color", start=10, fade_in=20)
    faded = bench.after(lambda run: add_edit(run, "red", red, arrangement=lies), [10, 19, 30])
    labels = ("Frame 10 of --start 10 --fade-in 20", "Frame 19", "Frame 30")
    sheet("arranging.png", panels, list(zip(labels, faded, strict=True)))


def placing(bench: Bench) -> None:
    """Makes place.png."""
    x, y = bench.middle(2)
    text = Place(text="TURTLE", color="#ffe27a", point=f"{x:.0f},{y:.0f}", width=120.0, angle=-12.0, frame=2)
    frames = bench.after(lambda run: edit(run, editor=text, layers=("foreground",)), FRAMES)
    quad = Place(text="SEA FLOOR", color="#c02020", quad="330,235 560,215 575,300 320,330", frame=2)
    floor = bench.after(lambda run: edit(run, editor=quad, layers=("background",)), FRAMES)
    labels = ("A text at a point of frame 2", "Frame 24", "Frame 45")
    again = ("A text between four corners", "", "")
    sheet("place.png", list(zip(labels, frames, strict=True)), list(zip(again, floor, strict=True)))


def dragging(bench: Bench) -> None:
    """Makes drag.png."""
    x, y = bench.middle(24)
    drag = Drag(drag=(f"{x + 40:.0f},{y:.0f}>{x + 75:.0f},{y - 12:.0f}",), frame=24)
    frames = bench.after(lambda run: edit(run, editor=drag), [24, 45])
    sheet(
        "drag.png",
        [("The source", bench.source(24)), ("A point of the shell, dragged", frames[0]), ("Later", frames[1])],
    )


def shaping(bench: Bench) -> None:
    """Makes shape.png."""
    x, y = bench.middle(24)
    around = [(-60, 0, -85, 0), (60, 0, 85, 0), (0, -55, 0, -40), (0, 55, 0, 40)]
    pairs = tuple(f"{x + a:.0f},{y + b:.0f}>{x + c:.0f},{y + d:.0f}" for a, b, c, d in around)
    frames = bench.after(lambda run: edit(run, editor=ShapeEdit(pairs=pairs, frame=24)), [24, 45])
    sheet("shape.png", [("The source", bench.source(24)), ("Four points moved", frames[0]), ("Later", frames[1])])


def painting(bench: Bench) -> None:
    """Makes painted-frames.png."""
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
    frames = bench.after(lambda run: edit(run, first), [2, 45])
    with Image.open(painted[2]) as picture:
        shown = picture.convert("RGB")
    sheet("painted-frames.png", [("Frame 2, painted on", shown), ("Rendered", frames[0]), ("Frame 45", frames[1])])


def guiding(bench: Bench) -> None:
    """Makes guides.png."""
    out = bench.home / "documents"
    export_run(bench.run, CanonicalExporter(layer=("background",)), ExportOptions(out=out))
    document = read_ora(out / "background.ora", 64_000_000)
    outlines, _, coverage = document.layers[0].layers
    panels = []
    for label, top in (("guide: frame outlines", outlines), ("guide: coverage", coverage)):
        guide = DocumentLayer("guide", constant_pixels(place_on_canvas(top, document.size)), opacity=top.opacity)
        seen = flatten_layers([guide, document.layers[-1]], document.size)
        panels.append((label, Image.fromarray(blend_on_checkerboard(seen, cell=8))))
    sheet("guides.png", panels)


def mapping(bench: Bench) -> None:
    """Makes stmap.png."""
    export_run(
        bench.run,
        STMapExporter(layer=("background",), convention="opencv", every=24),
        ExportOptions(out=bench.home / "stmap"),
    )
    x, y, _ = np.load(bench.home / "stmap" / "forward" / "background.0024.npy")
    width, height = read_pristine(bench.run.canonical, "background").size
    shown = np.dstack([x / width, y / height, np.full(x.shape, 0.25)])
    x, y, seen = np.load(bench.home / "stmap" / "inverse" / "background.0024.npy")
    flat = cv2.remap(bench.sources[24], x, y, cv2.INTER_LINEAR)
    flat[seen < 0.5] = 255
    panels = [bench.source(24), Image.fromarray((255 * shown.clip(0, 1)).astype(np.uint8)), Image.fromarray(flat)]
    labels = ("A frame", "Its map of the sea floor", "Laid flat by the inverse")
    sheet("stmap.png", list(zip(labels, panels, strict=True)))


def laying_flat(bench: Bench) -> None:
    """Makes unwrapped.png and mattes.png."""
    export_run(bench.run, UnwrappedExporter(layer="foreground"), ExportOptions(out=bench.home / "flat"))
    (film,) = (bench.home / "flat").glob("*.mkv")
    flat = [frame for t, frame in enumerate(rgba_frames(film)) if t in FRAMES]
    pictures = [Image.fromarray(blend_on_checkerboard(frame.astype(np.float32) / 255, cell=8)) for frame in flat]
    labels = ("The turtle laid flat, frame 2", "Frame 24", "Frame 45")
    sheet("unwrapped.png", [(f"Frame {t}", bench.source(t)) for t in FRAMES], list(zip(labels, pictures, strict=True)))
    export_run(bench.run, MatteExporter(layer=("foreground",), every=24), ExportOptions(out=bench.home / "matte"))
    export_run(bench.run, LayersExporter(every=24), ExportOptions(out=bench.home / "layers"))
    matte = Image.open(sorted((bench.home / "matte").rglob("*0024.png"))[0])
    matte = Image.fromarray((np.asarray(matte, np.float32) / 257).astype(np.uint8)).convert("RGB")
    layer = {path.parent.name: path for path in (bench.home / "layers").rglob("*0024.png")}
    shown = {
        name: Image.fromarray(blend_on_checkerboard(read_picture(path).rgba, cell=8)) for name, path in layer.items()
    }
    sheet(
        "mattes.png",
        [("Matte of the turtle", matte), ("Its layer", shown["foreground"]), ("The layer behind", shown["background"])],
    )


def following(bench: Bench) -> None:
    """Makes tracks.png and labels.png."""
    x, y = bench.middle(24)
    points = [(x + dx, y + dy) for dx in (-40, 0, 40) for dy in (-30, 0, 30)] + [(80 + 60 * k, 300.0) for k in range(8)]
    tracks = track_points(bench.run, np.array(points), 24)
    panels = []
    for t in FRAMES:
        frame = bench.sources[t].copy()
        for k, (place, seen) in enumerate(zip(tracks.positions[:, t], tracks.visibility[:, t], strict=True)):
            if seen:
                color = tuple(int(v) for v in cv2.cvtColor(np.uint8([[[k * 10, 220, 255]]]), cv2.COLOR_HSV2RGB)[0, 0])
                cv2.circle(frame, (round(place[0] * 16), round(place[1] * 16)), 5 * 16, color, -1, cv2.LINE_AA, 4)
                cv2.circle(frame, (round(place[0] * 16), round(place[1] * 16)), 5 * 16, (0, 0, 0), 1, cv2.LINE_AA, 4)
        panels.append((f"Frame {t}", Image.fromarray(frame)))
    sheet("tracks.png", panels)
    height, width = bench.sources[24].shape[:2]
    classes = np.zeros((height, width, 3), np.uint8)
    classes[Maps.open(bench.run.maps).read_layer_weight(24, 0, (width, height)) > 0.5] = (230, 70, 60)
    classes[(np.arange(height)[:, None] > 0.8 * height) & (classes.max(-1) == 0)] = (60, 120, 230)
    Image.fromarray(classes).save(bench.home / "classes.png")
    export_run(
        bench.run, LabelsExporter(labels=bench.home / "classes.png", frame=24), ExportOptions(out=bench.home / "labels")
    )
    files = [path for path in sorted((bench.home / "labels").rglob("*.png"))]
    panels = []
    for t in FRAMES:
        label = np.asarray(Image.open(files[t]).convert("RGB"), np.float32)
        mixed = 0.5 * bench.sources[t] + 0.5 * label
        panels.append((f"Frame {t}" + (", labeled" if t == 24 else ""), Image.fromarray(mixed.astype(np.uint8))))
    sheet("labels.png", panels)


def watching(bench: Bench) -> None:
    """Makes watch.png."""
    painted = np.asarray(Image.open(bench.run.canonical / "foreground.png")).copy()
    height, width = painted.shape[:2]
    cv2.circle(painted, (width // 2, height // 2), height // 9, (225, 40, 50, 255), -1, cv2.LINE_AA)
    path = bench.home / "foreground-painted.png"
    Image.fromarray(painted).save(path)
    easel = open_preview(bench.run, (FRAMES[0], FRAMES[-1]), 480)
    strip = Image.fromarray(easel.render_picture(easel.read_overlays(path, "foreground")))
    picture = Image.fromarray(blend_on_checkerboard(painted.astype(np.float32) / 255, cell=8))
    sheet("watch.png", [("Painted and saved", picture), ("previews/watch.jpg", strip)])


def slowing(bench: Bench) -> None:
    """Makes slow-motion.png."""
    opened = require_planar(bench.run, "the pictures")
    facts, chosen = opened.metadata, opened.frames
    maps = Maps.open(bench.run.maps)
    asked = schedule_frames(facts, chosen, parse_timing("1/2"))
    made = list(islice(Retimer(maps).interpolate_frames(iter(bench.sources), asked), 50))
    labels = ("Frame 24", "Made in between", "Frame 25")
    sheet("slow-motion.png", [(label, Image.fromarray(made[k])) for label, k in zip(labels, (48, 49, 48), strict=True)])


def styling(bench: Bench, weights: Path) -> None:
    """Makes style.png and fused-frames.png."""
    frames = bench.after(lambda run: edit(run, editor=Style(weights=weights), layers=("background",)), [2, 45])
    sheet("style.png", [("The source", bench.source(2)), ("The sea floor in a style", frames[0]), ("Later", frames[1])])
    network, folder = read_style_network(weights), bench.home / "styled"
    folder.mkdir()
    for t, source in enumerate(bench.sources):
        shown = stylize_picture(network, source.astype(np.float32) / 255)
        Image.fromarray((255 * shown.clip(0, 1)).astype(np.uint8)).save(folder / f"{t:05d}.png")
    fused = bench.after(lambda run: edit(run, editor=Frames(frames=folder)), [24])
    with Image.open(folder / "00024.png") as picture:
        alone = picture.convert("RGB")
    panels = [
        ("The source", bench.source(24)),
        ("Painted on its own: it flickers", alone),
        ("Fused with the others", fused[0]),
    ]
    sheet("fused-frames.png", panels)


def main(demo: Path, weights: Path | None) -> None:
    """Makes all pictures."""
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(demo, Path(home))
        for make in (adjusting, lifting, removing, replacing, arranging, placing, dragging, shaping, painting):
            make(bench)
        for make in (guiding, mapping, laying_flat, following, watching, slowing):
            make(bench)
        if weights is not None:
            styling(bench, weights)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
