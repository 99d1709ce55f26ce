"""Measures the delay of `unwrap watch` from the save of a painted picture to the preview, at 1080p.

    python benchmarks/watch.py [--saves 30] [--json FILE]

Makes a run of a synthetic clip with canonical pictures of 2048 x 2048 texels (its maps are those of a training at 480p
with one step: its quality does not matter here), watches it in a separate process, and saves pictures: in place, with a
temporary file and a rename, and with a backup, with small and large strokes in turn. The delay is the time from the end
of a save to the replacement of the preview. Further rows: pictures that need a comparison of all texels, and layered
documents.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import ROOT, Row, finish, parser, print_row

SIDE = 2048  # texels
ASKED = 1.0  # seconds, for 95 of 100 saves
PROGRAM = """
import json, sys
from neural_fields.core.threads import prepare_threads
prepare_threads()
from editors.live.watch import watch_pictures
for update in watch_pictures(sys.argv[1]):
    print(json.dumps(update.to_json()), flush=True)
"""

Save = Callable[[Path, bytes], None]


def made_run(work: Path) -> Path:
    """Makes a run of a clip of 1920 x 1080 with canonical pictures of `SIDE` x `SIDE` texels; returns its folder."""
    import cv2
    import numpy as np

    from editors.demo import make_clip_metadata
    from neural_fields.atlas import canonical
    from neural_fields.data.synthetic.planar_clips import make_demo_clip
    from neural_fields.data.video.io import write_video
    from neural_fields.training.options import TrainOptions
    from neural_fields.training.train_planar import train

    clip = make_demo_clip(4, 640, 360)
    large = [cv2.resize(frame, (1920, 1080), interpolation=cv2.INTER_CUBIC) for frame in clip.frames]
    write_video(
        work / "clip.mkv", iter(large), replace(make_clip_metadata(clip), width=1920, height=1080), codec="ffv1"
    )
    masks = [cv2.resize(mask.astype(np.uint8), (1920, 1080)) > 0 for mask in clip.masks[0]]
    np.save(work / "mask.npy", np.stack(masks))
    options = TrainOptions(
        work / "run", size="480p", masks=(f"foreground={work / 'mask.npy'}",), overrides={"training.steps": 1}
    )
    run = train(work / "clip.mkv", options).run
    pictures = [canonical.read_pristine(run.canonical, name) for name in ("background", "foreground")]
    shutil.rmtree(run.canonical)
    for picture in pictures:
        rgba = cv2.resize(picture.rgba, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        rgba[..., :3] += 0.02 * np.random.default_rng(0).standard_normal((SIDE, SIDE, 3))  # as noisy as a photo
        canonical.export_canonical(run.canonical, replace(picture, rgba=rgba.clip(0, 1)))
    return run.path


def in_place(path: Path, data: bytes) -> None:
    """Saves in place, like GIMP and most small programs."""
    path.write_bytes(data)


def by_rename(path: Path, data: bytes) -> None:
    """Saves to another name and renames, like Krita and programs with a portal."""
    part = path.with_name(f".{path.name}.kra-1234")
    part.write_bytes(data)
    os.replace(part, path)


def with_backup(path: Path, data: bytes) -> None:
    """Saves after renaming the old file, like programs that keep a backup."""
    os.replace(path, path.with_name(path.name + "~"))
    path.write_bytes(data)


class Watched:
    """Runs a watch in a separate process."""

    def __init__(self, run: Path) -> None:
        self.preview = run / "previews" / "watch.jpg"
        command = [sys.executable, "-c", PROGRAM, str(run)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.next()

    def next(self) -> dict[str, Any]:
        """Waits for the next update."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the watch ended")
        return json.loads(line)

    def shown(self, save: Save, path: Path, data: bytes) -> tuple[float, dict[str, float]]:
        """Saves a picture and waits for its preview.

        Args:
            save: a way to save.
            path: the file to save.
            data: its content.

        Returns:
            Seconds from the end of the save to the preview, and the seconds of each stage.
        """
        save(path, data)
        saved = time.time()
        while (update := self.next())["event"] in ("hint", "waiting"):
            pass
        if update["event"] != "painted":
            raise SystemExit(f"not shown: {update}")
        return max(0.0, self.preview.stat().st_mtime - saved), update["stages"]


def strokes(run: Path, layer: str) -> Iterator[Any]:
    """Yields the picture of a layer with a stroke, small and large ones in turn, each in another place and color."""
    import cv2
    import numpy as np
    from PIL import Image

    base = np.asarray(Image.open(run / "canonical" / f"{layer}.png")).copy()
    generator = np.random.default_rng(1)
    number = 0
    while True:
        pixels, (x, y) = base.copy(), generator.integers(SIDE // 3, 2 * SIDE // 3, 2).tolist()
        color = (*generator.integers(0, 256, 3).tolist(), 255)
        cv2.circle(pixels, (x, y), (40, 400)[number % 2], color, -1, cv2.LINE_AA)
        number += 1
        yield Image.fromarray(pixels)


def encoded(image: Any, kind: str, **options: Any) -> bytes:
    """Encodes a picture as a program would save it."""
    import io

    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def documents(run: Path, work: Path, pictures: Iterator[Any]) -> Iterator[bytes]:
    """Yields OpenRaster documents with strokes on the layer to paint on.

    Args:
        run: folder of the run.
        work: folder for the documents.
        pictures: the background without and then with strokes.
    """
    import numpy as np

    from neural_fields.export.base import export_run
    from neural_fields.export.options import ExportOptions
    from neural_fields.export.pictures.canonical import CanonicalExporter
    from neural_fields.imaging.documents.layered import PAINT, constant_pixels
    from neural_fields.imaging.documents.openraster import read_ora, write_ora
    from neural_fields.runs.run import Run

    export_run(Run.open(run), CanonicalExporter(format="ora"), ExportOptions(out=work / "ora"))
    document = read_ora(next((work / "ora").rglob("*background*.ora")), 16 * SIDE * SIDE)
    base = np.asarray(next(pictures))
    for picture in pictures:
        pixels = np.asarray(picture)
        stroke = np.where((pixels != base).any(-1, keepdims=True), pixels, 0).astype(np.float32) / 255
        layers = tuple(
            replace(la, pixels=constant_pixels(stroke)) if la.name == PAINT else la for la in document.layers
        )
        write_ora(work / "painted.ora", replace(document, layers=layers))
        yield (work / "painted.ora").read_bytes()


def measured(on: str, watched: Watched, save: Save, path: Path, files: Iterator[bytes], count: int) -> Row:
    """Measures the delay of several saves.

    Args:
        on: what the row says about the saves.
        watched: the watch.
        save: a way to save.
        path: the file to save.
        files: the contents to save.
        count: number of saves.

    Returns:
        The row of the table.
    """
    taken = [watched.shown(save, path, next(files)) for _ in range(count)]
    seconds = sorted(value for value, _ in taken)
    late = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    stages = ", ".join(f"{name} {statistics.median(parts[name] for _, parts in taken):.2f}" for name in taken[0][1])
    text = f"{statistics.median(seconds):.2f} s, 95 %: {late:.2f} s, worst {seconds[-1]:.2f} s ({stages})"
    return Row(on, "save to preview", f"{ASKED:g} s for 95 %", text, late <= ASKED)


def rows(work: Path, saves: int) -> Iterator[Row]:
    """Yields the row of each way to save and each kind of file."""
    run = made_run(work)
    pictures = strokes(run, "background")
    watched = Watched(run)
    path = run / "canonical" / "background.png"
    try:
        packed = (encoded(picture, "PNG", compress_level=4) for picture in pictures)
        ways: dict[str, Save] = {"in place": in_place, "by a rename": by_rename, "with a backup": with_backup}
        for name, save in ways.items():
            yield measured(f"{saves} PNG, {name}", watched, save, path, packed, saves)
        few = max(3, saves // 6)
        flat = (encoded(picture.convert("RGB"), "PNG", compress_level=4) for picture in pictures)
        yield measured(f"{few} PNG without alpha", watched, by_rename, path, flat, few)
        lossy = (encoded(picture.convert("RGB"), "JPEG", quality=90) for picture in pictures)
        yield measured(f"{few} JPEG", watched, by_rename, path.with_suffix(".jpg"), lossy, few)
        layered = documents(run, work, pictures)
        yield measured(f"{few} OpenRaster", watched, by_rename, path.with_suffix(".ora"), layered, few)
    finally:
        watched.process.terminate()
        watched.process.wait()


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    options = parser(__doc__)
    options.add_argument("--saves", type=int, default=30, help="number of saves for each way to save")
    chosen = options.parse_args()
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), chosen.saves):
            found.append(row)
            print_row(row)
    finish(found, chosen.json)


if __name__ == "__main__":
    main()
