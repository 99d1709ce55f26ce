"""The presets as fits: each lowers its loss on a small clip, goes on where it stopped, and follows a moving picture."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neural_fields.atlas.canonical import read_pristine
from neural_fields.atlas.uv_maps import Maps
from neural_fields.config.presets import planar_presets, volume_presets
from neural_fields.core import coords
from neural_fields.core.errors import ExitCode
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.flow.compute import FlowField, compute_flow
from neural_fields.data.masks.layer_masks import LayerMasks
from neural_fields.data.synthetic.planar_clips import make_demo_clip, make_translation_clip
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.canonical_extent import measure_shape
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.planar.config import PlanarConfig, load_planar_config
from neural_fields.planar.losses.objective import compute_losses, sample_batch
from neural_fields.runs.run import Run
from neural_fields.training.initialize import initialize_model, plan_model
from neural_fields.training.loop import train_steps
from neural_fields.training.options import TrainOptions
from neural_fields.training.planar_task import PlanarTask, draw_batch
from neural_fields.training.train_planar import train
from tests.support.small_pictures import draw_small_canonical_images

pytestmark = pytest.mark.slow

SMALL: dict[str, dict[str, object]] = {
    "atlas": {"training.frame_pixels": 1200},
    "roi": {"training.frame_pixels": 1200},
    "deformable_sprites": {"training.frame_pixels": 1200, "texture.learning_rate": 0.02},
    "lna": {
        "mapping.layers": [3, 3], "mapping.width": 32, "mapping.warm_up": 8, "mapping.learning_rate": 2e-3,
        "texture.layers": 4, "texture.width": 32, "texture.octaves": 4, "texture.skips": [2],
        "texture.learning_rate": 2e-3, "opacity.layers": 3, "opacity.width": 32, "opacity.octaves": 3,
        "opacity.learning_rate": 2e-3, "training.pixels": 300,
    },
    "codef": {
        "mapping.levels": 4, "mapping.log2_table": 10, "mapping.width": 16, "mapping.hidden_layers": 3,
        "mapping.release": [10, 30], "texture.levels": 6, "texture.growth": 1.6, "texture.log2_table": 11,
        "texture.width": 32, "texture.learning_rate": 1e-2,
    },
    "hashing_nvd": {
        "mapping.layers": [3, 3], "mapping.width": 32, "mapping.warm_up": 8, "mapping.learning_rate": 2e-3,
        "texture.levels": 4, "texture.log2_table": 11, "texture.growth": 1.5, "texture.learning_rate": 2e-3,
        "opacity.levels": 3, "opacity.log2_table": 10, "opacity.learning_rate": 2e-3, "gain.levels": 2,
        "gain.log2_table": 9, "gain.width": 16, "gain.learning_rate": 2e-3, "training.pixels": 300,
    },
    "narcan": {
        "mapping.pretrain": 20, "mapping.homography_width": 16, "mapping.width": 32, "mapping.hidden_layers": 1,
        "mapping.learning_rate": 1e-3, "texture.width": 32, "texture.hidden_layers": 1, "texture.learning_rate": 2e-3,
        "training.pixels": 300,
    },
}  # fmt: skip


def small(preset: str) -> PlanarConfig:
    return load_planar_config(preset, SMALL[preset])


def turtle(frames: int = 6) -> ClipDataset:
    truth = make_demo_clip(frames, 32, 18)
    flow = FlowField(truth.forward_flow, truth.backward_flow, truth.forward_visible, truth.backward_visible)
    return ClipDataset(truth.frames, LayerMasks(("foreground",), truth.masks), flow)


def start(config: PlanarConfig, clip: ClipDataset) -> PlanarModel:
    begun = plan_model(config, clip)
    model = build_model(config, begun.shape)
    initialize_model(model, begun, clip)
    return model


def whole_loss(model: PlanarModel, clip: ClipDataset) -> float:
    """Mean squared error of the model's frames."""
    with torch.no_grad():
        shown = composite_layers(model.sample_frames(torch.arange(clip.frame_count), clip.size))
    return float((shown - torch.from_numpy(clip.frames).reshape(-1, 3) / 255).square().mean())


def test_the_presets_are_those_that_are_documented() -> None:
    pages = Path(__file__).parents[2] / "docs" / "presets"
    assert set(planar_presets()) == set(SMALL)
    assert {*planar_presets(), *volume_presets()} == {page.stem for page in pages.glob("*.md")}


@pytest.mark.parametrize("preset", SMALL)
def test_a_few_dozen_steps_bring_the_picture_closer(preset: str, tmp_path: Path) -> None:
    clip, config = turtle(), small(preset)
    model = start(config, clip)
    before = whole_loss(model, clip)
    records = list(train_steps(PlanarTask(model, clip, config.training, 36), Run.create(tmp_path / "run")))
    assert len(records) == 36 and records[-1].skipped == 0
    assert whole_loss(model, clip) < 0.6 * before
    boxes = [layer.box for layer in measure_shape(model).layers]
    assert all(box.width > 0 and box.height > 0 for box in boxes)


@pytest.mark.parametrize("preset", SMALL)
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(preset: str, tmp_path: Path) -> None:
    clip, config = turtle(4), small(preset)
    through = start(config, clip)
    list(train_steps(PlanarTask(through, clip, config.training, 12), Run.create(tmp_path / "through")))
    run = Run.create(tmp_path / "stopped")
    first = start(config, clip)
    stop = itertools.count()
    list(train_steps(PlanarTask(first, clip, config.training, 12), run, stop=lambda: next(stop) >= 7))
    second = build_model(config, first.shape, seed=9)  # its weights come from the checkpoint
    records = list(train_steps(PlanarTask(second, clip, config.training, 12), run))
    assert [record.step for record in records] == list(range(8, 13))
    expected, found = through.state_dict(), second.state_dict()
    assert set(expected) == set(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    if preset == "codef":
        assert float(found["mappings.0.released"]) == pytest.approx((11 - 10) / 20)


@pytest.mark.parametrize("preset", ["lna", "codef"])
def test_each_preset_asks_for_every_term_of_its_paper(preset: str) -> None:
    clip, config = turtle(4), small(preset)
    model = start(config, clip)
    wanted = {
        "lna": {
            "color", "gradient", "sparsity", "rigidity", "global_rigidity", "flow", "alpha_flow", "mask",
        },
        "codef": {"color", "sobel", "flow_l1", "background_color"},
    }[preset]  # fmt: skip
    batches = (draw_batch(clip, config.training, step, 0) for step in range(4))
    batch = next(batch for batch in batches if batch.frames.tolist() != [3])  # the last frame has no forward flow
    found = compute_losses(model, batch, sample_batch(model, batch), 0)
    assert set(found) == wanted
    for name, value in found.items():
        gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
        assert float(value.detach()) > 0, name
        assert any(g is not None and float(g.abs().sum()) > 0 for g in gradients), name


@pytest.mark.parametrize("preset", ["lna", "codef", "hashing_nvd"])
def test_a_training_ends_in_maps_and_canonical_images_of_what_it_uses(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if preset != "lna":  # it alone is asked for its size
        draw_small_canonical_images(monkeypatch)
    truth = make_demo_clip(3, 48, 27)
    for kind, pictures in (("frames", truth.frames), ("masks", truth.masks[0] * np.uint8(255))):
        (tmp_path / kind).mkdir()
        for t, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / kind / f"{t:03d}.png")
    overrides = {**SMALL[preset], "training.steps": 8}
    options = TrainOptions(
        out=tmp_path / "run", config=preset, overrides=overrides, masks=(str(tmp_path / "masks"),), device="cpu"
    )
    result = train(tmp_path / "frames", options)
    assert (result.step, result.exit_code) == (8, ExitCode.OK)
    maps = Maps.open(result.run.maps)
    for number, layer in enumerate(("foreground", "background")):
        image = read_pristine(result.run.canonical, layer)
        assert image.box.as_tuple() == pytest.approx(maps.boxes[number].as_tuple())
        uv = maps.read_uv(1, number, (48, 27)).reshape(-1, 2)
        seen = maps.read_weights(1, (48, 27))[number].reshape(-1) > 0.6
        assert (uv[seen] >= [image.box.u0, image.box.v0]).all() and (uv[seen] <= [image.box.u1, image.box.v1]).all()
        if preset == "lna":
            assert max(image.size) == 1000
    assert train(tmp_path / "frames", options).was_finished


@pytest.mark.parametrize("size", [(96, 54), (72, 72), (54, 96)])
def test_atlas_follows_a_translation_at_every_aspect(size: tuple[int, int], tmp_path: Path) -> None:
    velocity = (2.0, 1.0)
    truth = make_translation_clip(8, *size, velocity=velocity)
    flow = compute_flow(truth.frames, tmp_path, "dis")
    clip = ClipDataset(truth.frames, LayerMasks((), np.zeros((0, *truth.frames.shape[:3]), bool)), flow)
    model = start(small("atlas"), clip)
    points = torch.cartesian_prod(torch.linspace(20, size[0] - 20, 6), torch.linspace(12, size[1] - 12, 6))
    places = []
    for t in range(8):
        xy = coords.normalize_pixels(points + (t - 4) * torch.tensor(velocity), *size)
        time = float(coords.normalize_time(float(t), 8))
        with torch.no_grad():
            places.append(model.mappings[0](torch.cat([xy, torch.full((len(xy), 1), time)], 1)))
    drift = torch.stack([(place - places[4]).norm(dim=1) for place in places]) * max(size) / 2
    assert float(drift.max()) < 0.5  # pixels
    assert float(drift.mean()) < 0.2
