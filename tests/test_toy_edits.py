"""Editors with a model that really paints: the layer gets the colour asked for in every frame, nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from editors.api import edit_with
from editors.base import Editor, EditSource
from editors.diffusion.canvas import open_canvas
from editors.diffusion.img2img import Img2Img
from editors.diffusion.inpaint import Inpaint
from editors.diffusion.mediated import Mediated
from editors.diffusion.sds import Sds
from editors.diffusion.videdit import VidEdit
from editors.stack import undo
from neural_fields.baking import Maps
from neural_fields.data.synthetic import make_demo_clip
from neural_fields.edit_quality import render_edited_frames, measure_edit
from neural_fields.fit_options import TrainOptions
from neural_fields.fitting import train
from neural_fields.run import Run

TOY = Path(__file__).resolve().parents[1] / "examples" / "toy_diffusion"
HUES = {"red": 0, "green": 120, "blue": 240}  # degrees

HueShare = Callable[[np.ndarray, float], float]


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
        "sds": Sds(**{**common, "steps": 150}),
    }


@pytest.fixture(scope="module")
def hue_share() -> HueShare:
    """The share of colours within 40 degrees of a hue and of some saturation: the example's own rule."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOY))
        from pictures import hue_share
    return hue_share


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
    run: Run, hue_share: HueShare, name: str, prompt: str
) -> None:
    edit_with(run, editors(prompt)[name], layers=["turtle"])
    maps = Maps.open(run)
    for t, frame in enumerate(render_edited_frames(run)):
        size = (frame.source.shape[1], frame.source.shape[0])
        shown = maps.read_weights(t, size)[maps.layers.index("turtle")] >= 0.9
        assert hue_share(frame.edited[shown] / 255.0, HUES[prompt.split()[0]]) >= 0.9, t
    found = measure_edit(run)
    undo(run)
    assert found["changed_outside"] == 0
    assert found["warp_error_ratio_inside"] < 1.1


def test_an_edit_painted_elsewhere_is_left_by_an_edit_of_a_part(run: Run, hue_share: HueShare, tmp_path: Path) -> None:
    source = EditSource(run, Maps.open(run), ("turtle",))
    picture = source.pictures["turtle"]
    left = np.zeros((picture.size[1], picture.size[0]), np.uint8)
    left[:, : picture.size[0] // 2] = 255
    Image.fromarray(left).save(tmp_path / "left.png")
    edit_with(run, editors("red stripes")["img2img"], layers=["turtle"])
    before = EditSource(run, Maps.open(run), ("turtle",)).pictures["turtle"].to_array()
    edit_with(run, editors("blue dots")["inpaint"], layers=["turtle"], mask=tmp_path / "left.png")
    after = EditSource(run, Maps.open(run), ("turtle",)).pictures["turtle"].to_array()
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
