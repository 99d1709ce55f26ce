"""Editors with a model that really paints: the layer gets the color asked for in every frame, nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from editors.api import edit
from editors.core.editor import Editor
from editors.core.history import undo
from editors.core.source import EditSource
from editors.diffusion.common.canvas import open_canvas
from editors.diffusion.methods.img2img import Img2Img
from editors.diffusion.methods.inpaint import Inpaint
from editors.diffusion.methods.mediated import Mediated
from editors.diffusion.methods.sds import Sds
from editors.diffusion.methods.videdit import VidEdit
from examples.toy_diffusion.pictures import hue_share
from neural_fields.atlas.uv_maps import Maps
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.evaluation.edit_quality import measure_edit, render_edited_frames
from neural_fields.open_runs.opening import require_planar
from neural_fields.runs.run import Run
from neural_fields.training.options import TrainOptions
from neural_fields.training.train_planar import train

pytestmark = pytest.mark.slow

TOY = Path(__file__).resolve().parents[3] / "examples" / "toy_diffusion"
HUES = {"red": 0, "green": 120, "blue": 240}  # degrees


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A turtle over a sea floor, fitted."""
    pytest.importorskip("diffusers", reason="diffusers is not installed: the extra `diffusion`")
    folder = tmp_path_factory.mktemp("toy")
    clip = make_demo_clip(6, 128, 72)
    for name, pictures in (("frames", clip.frames), ("masks", 255 * clip.masks[0].astype(np.uint8))):
        (folder / name).mkdir()
        for t, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / name / f"{t:04d}.png")
    options = TrainOptions(out=folder / "run", quality="draft", masks=(f"turtle={folder / 'masks'}",))
    return train(folder / "frames", options).run


def editors(prompt: str) -> dict[str, Editor]:
    common: dict[str, Any] = {"model": str(TOY / "model"), "prompt": prompt, "device": "cpu", "steps": 12}
    return {
        "inpaint": Inpaint(**common),
        "img2img": Img2Img(**common),
        "videdit": VidEdit(**common, control=str(TOY / "controlnet")),
        "mediated": Mediated(**common),
        "sds": Sds(**{**common, "steps": 80}),
    }


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("inpaint", "blue dots"),
        ("inpaint", "red stripes"),
        ("img2img", "blue dots"),
        ("videdit", "green checks"),
        ("mediated", "blue dots"),
        ("sds", "blue dots"),
    ],
)
def test_the_layer_shows_what_was_asked_for_in_every_frame_and_nothing_else_changes(
    run: Run, name: str, prompt: str
) -> None:
    edit(run, editor=editors(prompt)[name], layers=["turtle"])
    maps = Maps.open(run.maps)
    for t, frame in enumerate(render_edited_frames(require_planar(run, "the test"))):
        size = (frame.source.shape[1], frame.source.shape[0])
        shown = maps.read_weights(t, size)[maps.layers.index("turtle")] >= 0.9
        assert hue_share(frame.edited[shown] / 255.0, HUES[prompt.split()[0]]) >= 0.9, t
    found = measure_edit(require_planar(run, "the test"))
    undo(run)
    assert found["changed_outside"] == 0
    assert found["warp_error_ratio_inside"] < 1.1


def test_an_edit_painted_elsewhere_is_left_by_an_edit_of_a_part(run: Run, tmp_path: Path) -> None:
    source = EditSource(require_planar(run, "the test"), ("turtle",))
    picture = source.pictures["turtle"]
    left = np.zeros((picture.size[1], picture.size[0]), np.uint8)
    left[:, : picture.size[0] // 2] = 255
    Image.fromarray(left).save(tmp_path / "left.png")
    edit(run, editor=editors("red stripes")["img2img"], layers=["turtle"])
    before = EditSource(require_planar(run, "the test"), ("turtle",)).pictures["turtle"].rgba
    edit(run, editor=editors("blue dots")["inpaint"], layers=["turtle"], mask=tmp_path / "left.png")
    after = EditSource(require_planar(run, "the test"), ("turtle",)).pictures["turtle"].rgba
    undo(run)
    undo(run)
    seen = source.read_region("turtle") > 0
    right = np.arange(picture.size[0]) > picture.size[0] // 2 + 2
    assert np.abs(after - before)[:, right].max() < 1e-3
    canvas = open_canvas(picture, np.where(right[None], 0, seen).astype(np.float32), 32, 4)
    assert canvas.box.u1 < picture.box.u1
    inside = seen & ~right[None]
    inside[:, picture.size[0] // 2 - 2 :] = False
    assert hue_share(after[inside][:, :3].astype(np.float64), HUES["blue"]) > 0.9
