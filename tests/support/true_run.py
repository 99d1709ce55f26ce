"""A run with the exact maps and pictures of a synthetic clip: what an edit does, without the error of a fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from editors.demo import make_clip_metadata
from neural_fields.atlas import canonical
from neural_fields.atlas.canonical import CanonicalImage
from neural_fields.atlas.uv_maps import _add_rim, gain_size
from neural_fields.core import coords
from neural_fields.data.synthetic.planar_clips import SyntheticClip, make_demo_clip
from neural_fields.data.video.io import write_video
from neural_fields.runs.run import Run
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train
from tests.support.map_arrays import save_map


@dataclass(frozen=True)
class TrueRun:
    """A run, and the clip whose truth it holds."""

    run: Run
    clip: SyntheticClip


def make(home: Path, clip: SyntheticClip | None = None) -> TrueRun:
    """Fits a clip with no steps to speak of, and puts the truth in the place of what was fitted.

    Afterwards edits, rendering and exports that read maps and canonical pictures are exact; whatever asks the model
    itself (reconstructions, `load_model`) is not.
    """
    clip = clip or make_demo_clip(12, 192, 108)
    write_video(home / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    np.save(home / "mask.npy", clip.masks[0])
    masks = (f"foreground={home / 'mask.npy'}",)
    size = f"{clip.width}x{clip.height}"
    options = TrainOptions(home / "run", size=size, masks=masks, overrides={"training.steps": 1})
    run = train(home / "clip.mkv", options).run
    _write_maps(run, clip)
    for surface in clip.surfaces:
        rgb = torch.from_numpy(np.ascontiguousarray(surface.texture)).float().permute(2, 0, 1)
        seen = _seen(clip, surface.name, rgb.shape[1:])
        rgba = torch.cat([rgb, seen[None]]).movedim(0, -1).contiguous().numpy()
        canonical.export_canonical(run.canonical, CanonicalImage(rgba, surface.box, surface.name))
    return TrueRun(run, clip)


def _write_maps(run: Run, clip: SyntheticClip) -> None:
    metadata = json.loads((run.maps / "maps.json").read_text())
    front = clip.alpha[0]
    weights = np.stack([front, 1 - front], axis=-1)
    small, has_gain = gain_size((clip.width, clip.height)), metadata["has_gain"]
    xy = coords.frame_xy(*small)
    gains = np.stack([_add_rim(clip.lighting.compute_gain(xy, t).numpy()) for t in range(clip.count)])
    for number, surface in enumerate(clip.surfaces):
        uv = np.stack([_add_rim(clip.uv[number, t]) for t in range(clip.count)])
        save_map(run.maps, f"uv-{surface.name}", uv)
        if has_gain:
            save_map(run.maps, f"gain-{surface.name}", gains)
    packed = np.stack([(255 * _add_rim(w)).round().clip(0, 255).transpose(2, 0, 1) for w in weights])
    save_map(run.maps, "weight", packed.astype(np.uint8))
    metadata["boxes"] = [list(surface.box.as_tuple()) for surface in clip.surfaces]
    (run.maps / "maps.json").write_text(json.dumps(metadata))


def _seen(clip: SyntheticClip, layer: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Coverage: one where the layer's outline covers a texel (the background: where a frame shows it)."""
    number = clip.layer_names.index(layer)
    surface, (height, width) = clip.surfaces[number], shape
    hit = np.zeros((height, width), np.float32)
    shown = clip.alpha[0] if number == 0 else 1 - clip.alpha[0]
    for t in range(clip.count):
        uv = clip.uv[number, t][shown[t] > 0.5]
        box = surface.box
        x = ((uv[:, 0] - box.u0) / box.width * width).astype(int).clip(0, width - 1)
        y = ((uv[:, 1] - box.v0) / box.height * height).astype(int).clip(0, height - 1)
        hit[y, x] = 1
    import cv2

    return torch.from_numpy(cv2.morphologyEx(hit, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8)))
