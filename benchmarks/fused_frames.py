"""Measures steadiness and style of frames that a style network paints one by one, before and after they are fused.

    python benchmarks/fused_frames.py RUN [RUN ...] [--style NAME] [--side 512]

For each run and network, the table has the warp error, along the source's flow, of the painted frames and of the edit
that the editor `frames` makes from them, rendered at the size of the fit. The remaining style is measured in three ways
on some frames, at the size at which they were painted; 0 is the source and 1 the painted frames:

    gram     distance of Gram matrices of trained features (the encoder of another style network)
    colors   distance of the sorted values of each channel
    detail   root mean square of what blurs of 1, 2, 4 and 8 pixels remove, relative to the painted frames
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from common import ROOT, finish, parser, table

STYLES = ("candy", "mosaic", "pointilism", "rain_princess", "udnie")
WEIGHTS = ROOT.parent / "shared" / "weights" / "style"
LOOKED_AT = 6
COLUMNS = ("run", "style", "before", "after", "ratio", "gram", "colors", "detail", "lit", "seconds")


def main() -> None:
    """Prints a row for each run and style, then JSON."""
    arguments = parser(__doc__)
    arguments.add_argument("runs", nargs="+", type=Path, help="fitted runs; nothing in them is changed")
    arguments.add_argument("--style", choices=STYLES, help="only this network")
    arguments.add_argument("--side", type=int, default=512, help="longer side at which frames are painted")
    given = arguments.parse_args()
    styles = [given.style] if given.style else STYLES
    rows = [measured(path, style, given.side) for path in given.runs for style in styles]
    print(*table(COLUMNS, rows), sep="\n")
    finish(rows, given.json, side=given.side)


def measured(path: Path, style: str, side: int) -> dict[str, Any]:
    """Paints the frames of a run one by one with a network, fuses them, and measures both.

    Args:
        path: folder of the run; it is not changed.
        style: name of the network.
        side: longer side at which frames are painted, in pixels.

    Returns:
        The row of the table, with the notes of the editor.
    """
    import cv2
    import numpy as np

    from editors.core.source import EditSource
    from editors.effects.external_frames import Frames
    from editors.effects.style_network import read_style_network, stylize_picture
    from neural_fields.core.progress import report_nothing
    from neural_fields.data.video.image_sequence import write_images
    from neural_fields.open_runs.opening import require_planar
    from neural_fields.rendering.base import OverlayOptions
    from neural_fields.rendering.overlay_pass import OverlayPass

    run = require_planar(path, "the benchmark")
    maps, network = run.maps, read_style_network(WEIGHTS / f"{style}.bin")
    plain = run.video.frames
    scale = side / max(plain.shape[1:3])
    size = round(plain.shape[2] * scale), round(plain.shape[1] * scale)
    small = [cv2.resize(np.asarray(frame), size, interpolation=cv2.INTER_AREA) for frame in plain]
    painted = [np.rint(255 * stylize_picture(network, f.astype(np.float32) / 255)).astype(np.uint8) for f in small]
    with tempfile.TemporaryDirectory() as home:
        write_images(Path(home) / "painted", iter(painted))
        begin = time.monotonic()
        result = Frames(frames=Path(home) / "painted").edit(EditSource(run, maps.layers), report_nothing)
        seconds = time.monotonic() - begin
    renderer = OverlayPass(maps, run.canonicals, result.overlays, OverlayOptions(lit=result.effects.lit))
    looked_at = np.unique(np.linspace(0, len(small) - 1, LOOKED_AT).round().astype(int))
    rendered = (renderer.render_frame(t, np.asarray(plain[t])) for t in looked_at)
    fused = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in rendered]
    eyes = read_style_network(WEIGHTS / f"{'mosaic' if style == 'candy' else 'candy'}.bin")  # not those that painted
    left = kept([small[t] for t in looked_at], [painted[t] for t in looked_at], fused, eyes)
    before, after = (cast("float", result.details[name]) for name in ("warp_error_of_frames", "warp_error"))
    return {
        "run": path.name,
        "style": style,
        "before": round(before, 5),
        "after": round(after, 5),
        "ratio": round(after / before, 3),
        **left,
        "lit": result.effects.lit,
        "seconds": round(seconds, 1),
        "notes": list(result.notes),
    }


def kept(plain: Sequence[Any], painted: Sequence[Any], fused: Sequence[Any], network: Any) -> dict[str, float]:
    """Measures how much of a style is left: 1 as in the painted frames, 0 as in the source.

    Args:
        plain: frames of the source, uint8 RGB.
        painted: the painted frames, of the same size.
        fused: the fused frames, of the same size.
        network: a style network whose features are compared.

    Returns:
        The shares by "gram", "colors" and "detail".
    """
    import cv2
    import numpy as np
    import torch

    def gram(frames: Sequence[Any]) -> Any:
        found = []
        for frame in frames:
            with torch.no_grad():
                seen = network.features(torch.from_numpy(frame.astype(np.float32)).movedim(2, 0)[None])[0].flatten(1)
            found.append(seen @ seen.T / seen.shape[1])
        return torch.stack(found).mean(0).numpy()

    def colors(frames: Sequence[Any]) -> Any:
        return np.sort(np.stack(frames).reshape(-1, 3).astype(np.float32) / 255, axis=0)

    def detail(frames: Sequence[Any]) -> float:
        blurred = [
            np.sqrt(np.mean((f - cv2.GaussianBlur(f, (0, 0), s)) ** 2))
            for f in (frame.astype(np.float32) / 255 for frame in frames)
            for s in (1, 2, 4, 8)
        ]
        return float(np.mean(blurred))

    def share(measure: Any) -> float:
        goal = measure(painted)
        return float(1 - np.abs(measure(fused) - goal).mean() / np.abs(measure(plain) - goal).mean())

    return {
        "gram": round(share(gram), 3),
        "colors": round(share(colors), 3),
        "detail": round(detail(fused) / detail(painted), 3),
    }


if __name__ == "__main__":
    main()
