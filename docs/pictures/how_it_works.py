"""Makes the pictures of docs/how-it-works.md: trains a small run on a synthetic clip, and draws what each step makes.

python docs/pictures/how_it_works.py FOLDER     (a minute; the run stays in FOLDER)
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from compose import HERE, WIDTH, save_small, stack_rows
from PIL import Image, ImageDraw, ImageFont

from editors import edit
from editors.demo import blend_on_checkerboard, make_clip_metadata
from neural_fields import RenderOptions, TrainOptions, evaluate, render, train
from neural_fields.data.segmentation.moving_objects import find_moving_objects
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.video.io import probe_video, source_frames, write_video
from neural_fields.open_runs.opening import require_planar
from neural_fields.open_runs.planar_run import PlanarRun

FRAMES, SIZE = 32, (640, 360)  # of the clip
SHOWN = (3, 16, 29)
GAP = 8  # pixels between rows
MAX_BYTES = 150_000
Panel = tuple[str, np.ndarray]


def train_small_run(home: Path) -> PlanarRun:
    """Makes the clip and trains on it; an existing run is used again."""
    clip = make_demo_clip(FRAMES, *SIZE)
    source = home / "clip.mp4"
    if not source.exists():
        write_video(source, clip.render_frames(), make_clip_metadata(clip), overwrite=True)
    run = train(source, TrainOptions(out=home / "run", size="240p", quality="normal")).run
    return require_planar(run, "how it works")


def save_sheet(name: str, *rows: list[Panel], height: int = 200) -> None:
    """Saves rows of labeled panels as a small PNG."""
    save_small(HERE / f"how-{name}.png", stack_rows(rows, height, GAP), MAX_BYTES)


def read_video_frames(path: Path) -> list[np.ndarray]:
    """Reads all frames of a video."""
    metadata = probe_video(path)
    return list(source_frames(metadata, range(metadata.frame_count)))


def draw_flow(vectors: np.ndarray) -> np.ndarray:
    """Draws flow [height, width, 2] as colors: the hue is the direction, the saturation the length."""
    length = np.linalg.norm(vectors, axis=-1)
    hue = (np.arctan2(vectors[..., 1], vectors[..., 0]) / np.pi * 90 + 90) % 180
    hsv = np.dstack([hue, 255 * (length / np.percentile(length, 99)).clip(0, 1), np.full_like(hue, 245)])
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def draw_arrows(frame: np.ndarray, vectors: np.ndarray, step: int = 40, stretch: float = 5.0) -> np.ndarray:
    """Draws flow as arrows on a frame.

    Args:
        frame: RGB, 8 bits.
        vectors: flow [height, width, 2] in pixels of its own size.
        step: distance of the arrows in pixels of the frame.
        stretch: factor by which the arrows are lengthened.
    """
    drawn = (0.55 * frame + 0.45 * 255).astype(np.uint8)
    scale = frame.shape[1] / vectors.shape[1]
    for y in range(step // 2, frame.shape[0], step):
        for x in range(step // 2, frame.shape[1], step):
            dx, dy = stretch * scale * vectors[int(y / scale), int(x / scale)]
            cv2.arrowedLine(drawn, (x, y), (round(x + dx), round(y + dy)), (20, 60, 120), 2, cv2.LINE_AA, tipLength=0.3)
    return drawn


def tint(frame: np.ndarray, mask: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """Tints a part of a frame and draws its outline.

    Args:
        frame: RGB, 8 bits.
        mask: the part, at any size.
        rgb: color of the tint, 0 to 255.
    """
    mask = cv2.resize(mask.astype(np.uint8), frame.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    drawn = np.where(mask[..., None] > 0, 0.45 * frame + 0.55 * np.array(rgb), frame).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(drawn, outlines, -1, rgb, 2, cv2.LINE_AA)


def lay_flat(run: PlanarRun, layer: str, number: int, width: int) -> np.ndarray:
    """Resamples a frame to the canonical plane of a layer.

    Args:
        run: the run.
        layer: name of the layer.
        number: number of the frame in the source.
        width: width of the result in pixels.

    Returns:
        RGBA in [0, 1], transparent where the frame shows nothing.
    """
    picture = run.canonical(layer)
    height = round(width * picture.size[1] / picture.size[0])
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    u = picture.box.u0 + picture.box.width * x / width
    v = picture.box.v0 + picture.box.height * y / height
    points = run.canonical_to_frame(layer, number, np.stack([u, v], -1).reshape(-1, 2).astype(np.float32))
    where = np.nan_to_num(points.pixels - 0.5, nan=-1.0).astype(np.float32).reshape(height, width, 2)
    color = cv2.remap(run.read_frame(number), where[..., 0], where[..., 1], cv2.INTER_LINEAR)
    seen = cv2.erode(points.visible.reshape(height, width).astype(np.uint8), np.ones((7, 7)))  # without soft rims
    return np.dstack([color / 255, seen]).astype(np.float32)


def trace_frame(run: PlanarRun, layer: str, number: int, width: int) -> np.ndarray:
    """Finds the border of a frame in the canonical picture of a layer.

    Args:
        run: the run.
        layer: name of the layer.
        number: number of the frame in the source.
        width: width in pixels at which the picture is drawn.

    Returns:
        Corners of a polygon, in pixels.
    """
    columns, rows = np.linspace(1, SIZE[0] - 1, 80), np.linspace(1, SIZE[1] - 1, 45)
    sides = [(columns, rows[0]), (columns[-1], rows), (columns[::-1], rows[-1]), (columns[0], rows[::-1])]
    border = np.concatenate([np.stack(np.broadcast_arrays(x, y), -1) for x, y in sides])
    found = run.frame_to_canonical(layer, number, border).texels
    return np.round(found * width / run.canonical(layer).size[0]).astype(np.int32)


def place_frames(run: PlanarRun, layer: str, numbers: tuple[int, ...], width: int = 620) -> np.ndarray:
    """Draws frames over each other on the canonical plane, each with its outline.

    Args:
        run: the run.
        layer: name of the layer.
        numbers: frame numbers in the source, the lowest picture first.
        width: width of the result in pixels.
    """
    flat = [lay_flat(run, layer, number, width) for number in numbers]
    sheet = np.zeros_like(flat[0])
    for picture in flat:
        sheet = np.where(picture[..., 3:] > 0, picture, sheet)
    drawn = blend_on_checkerboard(sheet, cell=8)
    for color, number in zip([(230, 60, 50), (250, 200, 40), (40, 110, 230)], numbers, strict=True):
        cv2.polylines(drawn, [trace_frame(run, layer, number, width)], True, color, 2, cv2.LINE_AA)
    return drawn


def sample_checkers(run: PlanarRun, number: int, cells: float = 14.0) -> np.ndarray:
    """Draws a frame with checkerboards on the canonical planes, in the colors of the layers.

    Args:
        run: the run.
        number: number of the frame in the source.
        cells: squares per uv unit.
    """
    maps, time = run.maps, run.frames.index(number)
    weights = maps.read_weights(time, SIZE)
    shown = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for layer, colors in enumerate((((250, 190, 90), (200, 80, 40)), ((225, 240, 245), (90, 150, 190)))):
        u, v = np.moveaxis(maps.read_uv(time, layer, SIZE), -1, 0)
        odd = (np.floor(u * cells).astype(int) + np.floor(v * cells).astype(int)) % 2
        shown += weights[layer][..., None] * np.array(colors, np.float32)[odd]
    return (0.25 * run.read_frame(number) + 0.75 * shown).clip(0, 255).astype(np.uint8)


def draw_gain(gain: np.ndarray) -> np.ndarray:
    """Draws a gain: gray is 1, orange brighter, blue darker."""
    change = ((gain.mean(-1) - 1)[..., None] / np.percentile(np.abs(gain - 1), 98)).clip(-1, 1)
    ends = np.where(change > 0, np.array([255, 150, 40]), np.array([40, 110, 220]))
    return (150 + np.abs(change) * (ends - 150)).clip(0, 255).astype(np.uint8)


def paint_shell(run: PlanarRun, path: Path) -> np.ndarray:
    """Paints a number on the picture of the object, as a person would in an image tool."""
    rgba = run.canonical("foreground").rgba
    picture = Image.fromarray((255 * rgba).round().astype(np.uint8))
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    x, y, radius = width * 0.46, height * 0.52, 0.17 * width
    edge = (x - radius, y - radius, x + radius, y + radius)
    draw.ellipse(edge, fill=(205, 40, 55), outline=(250, 250, 250), width=round(0.02 * width))
    draw.text((x, y), "7", anchor="mm", fill=(250, 250, 250), font=ImageFont.load_default(size=round(0.26 * width)))
    picture.save(path)
    return np.asarray(picture, np.float32) / 255


def draw_bars(values: list[float], size: tuple[int, int] = (WIDTH, 120), margin: int = 46) -> np.ndarray:
    """Draws one bar a frame, from 20 dB up, the lowest in red.

    Args:
        values: PSNR of each frame in dB.
        size: (width, height) of the picture.
        margin: width of the axis in pixels.
    """
    drawn = Image.new("RGB", size, "white")
    draw, step = ImageDraw.Draw(drawn), (size[0] - margin) / len(values)
    top = max(values) + 3
    for k, value in enumerate(values):
        height = size[1] * (value - 20) / (top - 20)
        color = (215, 60, 50) if value == min(values) else (0, 140, 125)
        left = margin + k * step
        draw.rectangle((left + 2, size[1] - height, left + step - 2, size[1]), fill=color)
    for mark in range(25, int(top), 5):
        y = size[1] * (1 - (mark - 20) / (top - 20))
        draw.line((margin, y, size[0], y), fill=(225, 228, 230))
        draw.text((2, y), f"{mark} dB", anchor="lm", fill=(90, 90, 90), font=ImageFont.load_default(size=13))
    return np.asarray(drawn)


def draw_analysis(run: PlanarRun) -> None:
    """Makes the pictures of steps 1 to 7: from the frames to the layers."""
    save_sheet("frames", [(f"Frame {k}", run.read_frame(k)) for k in SHOWN])
    flow, frame = run.flow, run.read_frame(SHOWN[1])
    vectors = np.array(flow.forward[SHOWN[1]], np.float32)
    arrows = draw_arrows(frame, vectors)
    save_sheet("flow", [("Motion to the next frame", arrows), ("As colors: direction and speed", draw_flow(vectors))])
    masks = find_moving_objects(run.video.frames, flow).layers
    tinted = [tint(run.read_frame(k), masks.masks[0, k], (235, 70, 50)) for k in SHOWN]
    save_sheet("masks", [(f"Frame {k}", picture) for k, picture in zip(SHOWN, tinted, strict=True)])
    placed = place_frames(run, "background", SHOWN)
    save_sheet("placing", [("Frames 3 (red), 16 (yellow) and 29 (blue), laid over each other", placed)], height=300)
    pictures = {name: blend_on_checkerboard(run.canonical(name).rgba, cell=10) for name in run.layers}
    labels = {"background": "Canonical picture of the background", "foreground": "... of the foreground"}
    save_sheet("canonical", [(labels[name], pictures[name]) for name in reversed(run.layers)], height=240)
    save_sheet("uv", [(f"Frame {k}", sample_checkers(run, k)) for k in SHOWN])
    time = run.frames.index(SHOWN[1])
    weight = (255 * run.maps.read_layer_weight(time, 0, SIZE)).astype(np.uint8)
    gain = draw_gain(run.maps.read_gain(time, 1, SIZE))
    panels = [
        ("Frame 16", frame),
        ("Opacity of the foreground", np.dstack([weight] * 3)),
        ("Gain of the background", gain),
    ]
    save_sheet("opacity-gain", panels)


def draw_editing(run: PlanarRun, home: Path) -> None:
    """Makes the pictures of steps 8 to 10: from the paint to the edited frames."""
    painted = paint_shell(run, home / "painted.png")
    if not list(run.files.edits.glob("*-painted")):
        edit(run.path, home / "painted.png", layer="foreground")
    (stored,) = run.files.edits.glob("*-painted/foreground.png")
    before = run.canonical("foreground").rgba
    with Image.open(stored) as picture:
        overlay = np.asarray(picture.convert("RGBA"), np.float32) / 255
    panels = [("As exported", before), ("Painted on", painted), ("The edit: the change alone", overlay)]
    save_sheet("edit", [(label, blend_on_checkerboard(rgba, cell=10)) for label, rgba in panels], height=230)

    video = home / "edited.mkv"
    render(run.path, RenderOptions(out=video, codec="ffv1", overwrite=True))
    edited = read_video_frames(video)
    save_sheet("edited", [(f"Frame {k}, edited", edited[k]) for k in SHOWN])
    dimmed = []
    for k in SHOWN:
        source = run.read_frame(k)
        changed = (edited[k] != source).any(-1)
        gray = cv2.cvtColor(source, cv2.COLOR_RGB2GRAY)[..., None] * 0.35 + 150
        share = 1 - changed.mean()
        shown = np.where(changed[..., None], edited[k], gray).astype(np.uint8)
        dimmed.append((f"Frame {k}: {share:.1%} of the pixels are the source's", shown))
    save_sheet("untouched", dimmed)


def draw_report(run: PlanarRun, home: Path) -> None:
    """Makes the picture of the report: a frame, its reconstruction, their difference, and the quality of each frame."""
    video = home / "reconstruction.mkv"
    render(run.path, RenderOptions(what="reconstruction", out=video, codec="ffv1", overwrite=True))
    figures = evaluate(run.path)
    values = [float(value) for value in figures["psnr_per_frame"]]
    worst = int(np.argmin(values))
    source, model = run.read_frame(run.frames[worst]), read_video_frames(video)[worst]
    error = np.abs(source.astype(np.int16) - model).mean(-1)
    heat = cv2.applyColorMap((error * 8).clip(0, 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    panels = [
        (f"Frame {run.frames[worst]}, the worst", source),
        ("Reconstruction", model),
        ("Difference, 8 times", heat),
    ]
    save_sheet("report", panels, [("PSNR of each frame", draw_bars(values))])


def main(home: Path) -> None:
    """Trains the run and makes all pictures."""
    home.mkdir(parents=True, exist_ok=True)
    run = train_small_run(home)
    draw_analysis(run)
    draw_editing(run, home)
    draw_report(run, home)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "how-it-works"))
