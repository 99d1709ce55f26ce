"""The preset `narcan`: segments that fade into each other, homographies taught first, shifts that stay small."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neural_fields.atlas.canonical import Overlay
from neural_fields.atlas.uv_maps import Maps
from neural_fields.core import coords
from neural_fields.core.errors import UserError
from neural_fields.data.dataset import ClipDataset
from neural_fields.data.synthetic.planar_clips import make_translation_clip
from neural_fields.nn.siren import Siren
from neural_fields.planar.appearance.opacity import compute_layer_weights
from neural_fields.planar.appearance.siren_texture import SirenTexture
from neural_fields.planar.appearance.window_opacity import (
    ChartSpans,
    WindowOpacityConfig,
    make_chart_masks,
    plan_chart_spans,
)
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.planar.config import PlanarConfig, load_planar_config, scale_steps
from neural_fields.planar.init.warm_up import WarmUpOptions
from neural_fields.planar.losses.objective import compute_losses, sample_batch
from neural_fields.planar.mappings.homography_mlp import ChartMapping, HomographyMlpMappingConfig, HomographyNetwork
from neural_fields.rendering.overlay_pass import OverlayPass
from neural_fields.runs.run import Run
from neural_fields.training.bake import bake_maps
from neural_fields.training.export_canonical import make_canonical_images
from neural_fields.training.initialize import initialize_model, plan_model
from neural_fields.training.loop import train_steps
from neural_fields.training.options import TrainOptions
from neural_fields.training.planar_task import PlanarTask, draw_batch
from neural_fields.training.train_planar import train
from tests.support.typed import as_all, as_one

pytestmark = pytest.mark.slow

SMALL: dict[str, object] = {
    "mapping.pretrain": 200, "mapping.homography_width": 16, "mapping.width": 32, "mapping.hidden_layers": 1,
    "mapping.learning_rate": 1e-3, "texture.width": 48, "texture.hidden_layers": 1, "texture.learning_rate": 2e-3,
    "opacity.overlap": 3, "training.pixels": 500,
}  # fmt: skip
SIZE, FRAMES, VELOCITY = (48, 27), 12, (1.0, 0.5)


def small(**changes: object) -> PlanarConfig:
    return load_planar_config("narcan", {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}})


def sliding(config: PlanarConfig) -> ClipDataset:
    """A picture that slides by `VELOCITY`, cut into the segments that the config asks for."""
    assert isinstance(config.opacity, WindowOpacityConfig)
    truth = make_translation_clip(FRAMES, *SIZE, velocity=VELOCITY)
    return ClipDataset(truth.frames, make_chart_masks(config.opacity, FRAMES, SIZE), None)


@pytest.fixture(scope="module")
def taught() -> tuple[PlanarConfig, ClipDataset, PlanarModel]:
    """A model with its start: homographies taught, everything else as it was drawn."""
    config = small()
    clip = sliding(config)
    begun = plan_model(config, clip)
    model = build_model(config, begun.shape)
    initialize_model(model, begun, clip)
    return config, clip, model


def points(t: float, count: int = FRAMES, size: tuple[int, int] = SIZE) -> torch.Tensor:
    """xyt of all pixels of a frame."""
    xy = coords.frame_xy(*size).view(-1, 2)
    return torch.cat([xy, torch.full((len(xy), 1), float(coords.normalize_time(t, count)))], 1)


# --- segments -------------------------------------------------------------------------------------------------------


def test_charts_lie_and_fade_as_the_papers_scripts_cut_and_mix_them() -> None:
    segments = ChartSpans(50, 3, 10)
    assert segments.spans == ((0, 20), (11, 36), (27, 49))  # lengths of 16, 5 frames more on each side
    weight = compute_layer_weights(segments.remaining_share(torch.arange(50).float()))
    assert torch.allclose(weight.sum(1), torch.ones(50))
    assert weight[:11, 0].eq(1).all() and weight[21:27, 1].eq(1).all() and weight[37:, 2].eq(1).all()
    new = (torch.arange(10) + 1) / 11  # the i-th shared picture has (i + 1) / (shared + 1) of the new segment
    assert torch.allclose(weight[11:21, 1], new) and torch.allclose(weight[27:37, 2], new)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 31])
@pytest.mark.parametrize("overlap", [0, 1, 10])
def test_every_frame_belongs_to_one_chart_or_two_at_any_length(frames: int, overlap: int) -> None:
    segments = plan_chart_spans(WindowOpacityConfig(segments=3, overlap=overlap), frames)
    weight = compute_layer_weights(segments.remaining_share(torch.arange(frames).float()))
    assert segments.count == max(1, min(3, frames // 2)) == weight.shape[1]
    assert torch.allclose(weight.sum(1), torch.ones(frames))
    assert ((weight > 0).sum(1) <= 2).all()
    for number, (first, last) in enumerate(segments.spans):
        seen = torch.nonzero(weight[:, number] > 0)[:, 0]
        assert (int(seen.min()), int(seen.max())) == (first, last)
    masks = make_chart_masks(WindowOpacityConfig(segments=3, overlap=overlap), frames, (7, 5))
    assert masks.names == tuple(f"segment{number + 1}" for number in range(segments.count - 1))
    assert np.array_equal(masks.masks[:, :, 0, 0], (weight[:, :-1].T >= 0.5 - 1e-6).numpy())
    assert masks.masks.strides[2:] == (0, 0)  # one value a frame, whatever its size


def test_opacity_of_a_frame_is_exact_and_nothing_in_it_is_trained(
    taught: tuple[PlanarConfig, ClipDataset, PlanarModel],
) -> None:
    _, clip, model = taught
    assert clip.layer_names == ("segment1", "segment2", "background")
    assert not list(model.opacity.parameters())
    for t in range(FRAMES):
        weight = compute_layer_weights(model.opacity(points(t)))
        assert torch.equal(weight, weight[:1].expand_as(weight))
        expected = compute_layer_weights(ChartSpans(FRAMES, 3, 3).remaining_share(torch.tensor([float(t)])))
        assert torch.allclose(weight[:1], expected, atol=1e-6)
        assert torch.equal(weight[:1] > 0, expected > 0)  # no sliver of a segment that has ended


# --- networks -------------------------------------------------------------------------------------------------------


def test_the_networks_are_those_of_the_paper() -> None:
    config = load_planar_config("narcan")
    model = build_model(config, plan_model(config, sliding(config)).shape)
    mapping = model.mappings[0]
    assert isinstance(mapping, ChartMapping)
    linear = [layer for layer in mapping.shared_network.network if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (1, 256), (256, 256), (256, 256), (256, 8),
    ]  # fmt: skip
    shapes = [(layer.in_features, layer.out_features) for layer in as_all(torch.nn.Linear, mapping.shift.layers)]
    assert shapes == [(3, 256), *[(256, 256)] * 5, (256, 2)]
    texture = as_one(SirenTexture, model.textures[0]).network
    assert [layer.out_features for layer in as_all(torch.nn.Linear, texture.layers)] == [256] * 6 + [3]
    assert all(part.shared_network is mapping.shared_network for part in as_all(ChartMapping, model.mappings))
    assert len([name for name in model.state_dict() if "homography" in name]) == 8  # kept once, for all segments


def test_sines_spread_alike_in_every_layer() -> None:
    torch.manual_seed(0)
    network = Siren(3, 2, 256, 5, 30.0)
    x = torch.rand(2000, 3) * 2 - 1
    with torch.no_grad():
        for layer in network.layers[:-1]:
            x = torch.sin(30 * layer(x))
            assert float(x.std()) == pytest.approx(0.5**0.5, abs=0.03)  # arcsine law
    assert network(torch.zeros(4, 3)).shape == (4, 2)


def test_homographies_start_near_the_identity_and_bend_points_as_matrices_do() -> None:
    torch.manual_seed(0)
    network = HomographyNetwork(HomographyMlpMappingConfig()).requires_grad_(False)
    times = torch.linspace(-1, 1, 9)
    start = network(times)
    assert float((start - torch.eye(3)).abs().max()) < 0.1
    xyt = torch.cat([torch.rand(9, 2), times[:, None]], 1)
    moved = torch.einsum("nij,nj->ni", start, torch.cat([xyt[:, :2], torch.ones(9, 1)], 1))
    assert torch.allclose(network.map_points(xyt), moved[:, :2] / moved[:, 2:], atol=1e-6)


def test_teaching_finds_the_motion_of_the_camera_and_then_leaves_it(
    taught: tuple[PlanarConfig, ClipDataset, PlanarModel],
) -> None:
    _, _, model = taught
    shared = as_one(ChartMapping, model.mappings[0]).shared_network
    places = []
    for t in range(FRAMES):
        xyt = points(t)[::5]
        xyt[:, :2] += (t - 6) * torch.tensor(VELOCITY) * 2 / SIZE[0]  # the same places of the picture in every frame
        with torch.no_grad():
            places.append(shared.map_points(xyt))
    drift = (torch.stack(places) - places[6]).norm(dim=2) * SIZE[0] / 2
    assert float(drift.mean()) < 0.25  # pixels; 3.4 with a camera that stands still
    trained = {id(p) for group in model.param_groups() for p in group["params"]}
    assert not any(id(p) in trained or p.requires_grad for p in shared.parameters())


def test_teaching_ends_when_it_is_told_to() -> None:
    config = small()
    clip = sliding(config)
    begun = plan_model(config, clip)
    for options in (WarmUpOptions(stop=lambda: True), WarmUpOptions(seconds=-1.0)):
        model, untouched = build_model(config, begun.shape), build_model(config, begun.shape)
        initialize_model(model, begun, clip, options)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_the_box_of_a_chart_holds_its_frames(taught: tuple[PlanarConfig, ClipDataset, PlanarModel]) -> None:
    _, _, model = taught
    for mapping, shape in zip(as_all(ChartMapping, model.mappings), model.shape.layers, strict=True):
        first, last = mapping.span
        for t in (first, last):
            with torch.no_grad():
                uv = mapping.shared_network.map_points(points(t))
            assert (uv >= torch.tensor([shape.box.u0, shape.box.v0])).all()
            assert (uv <= torch.tensor([shape.box.u1, shape.box.v1])).all()
        assert max(shape.width, shape.height) == 1000


def test_a_chart_has_shifts_in_its_own_frames_only(taught: tuple[PlanarConfig, ClipDataset, PlanarModel]) -> None:
    _, _, model = taught
    for mapping in as_all(ChartMapping, model.mappings):
        for t in range(FRAMES):
            with torch.no_grad():
                xyt = points(t)
                shift = mapping(xyt) - mapping.shared_network.map_points(xyt)
                first, last = mapping.span
                own = 2 * (t - first + 0.5) / (last - first + 1) - 1  # from -1 to 1 across the segment
                expected = mapping.shift(torch.cat([xyt[:, :2], torch.full((len(xyt), 1), own)], 1))
            if first <= t <= last:
                assert torch.allclose(shift, expected, atol=1e-4)
            else:
                assert not shift.any()


# --- terms ----------------------------------------------------------------------------------------------------------


def test_each_chart_shows_the_frame_alone_and_the_sizes_of_slopes_are_added(
    taught: tuple[PlanarConfig, ClipDataset, PlanarModel],
) -> None:
    config, clip, model = taught
    batch = draw_batch(clip, config.training, 1, 0)
    samples = sample_batch(model, batch)
    found = compute_losses(model, batch, samples, 0)
    assert set(found) == {"color_l1", "residual_jacobian"}
    colors = slopes = 0.0
    for number, mapping in enumerate(as_all(ChartMapping, model.mappings)):
        first, last = mapping.span
        inside = (batch.positions[:, 0] >= first) & (batch.positions[:, 0] <= last)
        xyt = batch.xyt[inside].double()
        with torch.no_grad():
            own = model.textures[number](mapping(batch.xyt[inside]))
            colors += float((own - batch.rgb[inside]).abs().mean(1).sum()) / len(batch.positions)
            t = (xyt[:, 2:] - mapping.middle) / mapping.reach
            here = torch.cat([xyt[:, :2], t], 1)
            network = deepcopy(mapping.shift).double()
            for axis in range(3):
                step = 1e-5 * torch.eye(3, dtype=torch.float64)[axis]
                slope = (network(here + step) - network(here - step)) / 2e-5
                slopes += float(slope.abs().sum()) / 6 / len(batch.positions)
    assert float(found["color_l1"].detach()) == pytest.approx(2 * colors, rel=1e-4)
    assert float(found["residual_jacobian"].detach()) == pytest.approx(0.03 * slopes, rel=1e-4)
    for value in found.values():
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0


# --- fits -----------------------------------------------------------------------------------------------------------


def test_an_edit_of_a_chart_follows_the_picture_and_fades_with_it(
    taught: tuple[PlanarConfig, ClipDataset, PlanarModel], tmp_path: Path
) -> None:
    config, clip, model = taught
    run = Run.create(tmp_path / "run")
    list(train_steps(PlanarTask(model, clip, config.training, 120), run))
    with torch.no_grad():
        shown = composite_layers(model.sample_frames(torch.arange(FRAMES), SIZE)).view(clip.frames.shape) * 255
    assert float((shown - torch.from_numpy(clip.frames)).abs().mean()) < 12  # of 255; a gray picture misses by more
    maps = bake_maps(run, model, 1)
    with torch.no_grad():
        canonicals = {image.layer: image for image, _ in make_canonical_images(model, maps)}
    shape = model.shape.layers[0]
    box, width, height = shape.box, shape.width, shape.height
    spot = np.zeros((height, width, 4), np.float32)
    place = maps.read_uv(1, 0, SIZE)[13, 20]  # where frame 1 has pixel (20, 13)
    uv = coords.texel_centers(box, width, height).numpy()
    spot[np.linalg.norm(uv - place, axis=-1) < 5 / SIZE[0]] = (1, 0, 1, 1)  # 2.5 pixels
    renderer = OverlayPass(maps, canonicals, {"segment1": Overlay(spot, box)})
    first, last = as_one(ChartMapping, model.mappings[0]).span
    for t in range(FRAMES):
        frame = clip.frames[t]
        edited = renderer.render_frame(t, frame)
        if not first <= t <= last:
            assert np.array_equal(edited, frame)
            continue
        change = np.abs(edited.astype(float) - frame).sum(-1)
        rows, columns = np.nonzero(change)
        center = np.average([columns, rows], axis=1, weights=change[rows, columns])
        assert np.linalg.norm(center - [20 + (t - 1) * VELOCITY[0], 13 + (t - 1) * VELOCITY[1]]) < 0.8  # pixels
        weight = float(maps.read_weights(t, SIZE)[0, 0, 0])
        y, x = (round(float(value)) for value in center[::-1])
        expected = (1 - weight) * frame[y, x] + weight * np.array([255, 0, 255])
        assert np.abs(edited[y, x] - expected).max() < 40 * weight + 2  # what the model missed stays in the picture


def test_a_clip_is_cut_by_the_preset_and_a_mask_is_refused(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for t, picture in enumerate(make_translation_clip(6, 32, 18).frames):
        Image.fromarray(picture).save(tmp_path / "frames" / f"{t:03d}.png")
    overrides = {**SMALL, "mapping.pretrain": 5, "training.steps": 4, "training.pixels": 100}
    options = TrainOptions(out=tmp_path / "run", config="narcan", overrides=overrides, device="cpu")
    result = train(tmp_path / "frames", options)
    assert Maps.open(result.run.maps).layers == ("segment1", "segment2", "background")
    assert not list(result.run.cache.glob("*flow*"))  # nothing of it asks for flow
    assert train(tmp_path / "frames", options).was_finished
    refused = TrainOptions(
        out=tmp_path / "other", config="narcan", overrides=overrides, masks=(str(tmp_path / "frames"),), device="cpu"
    )
    with pytest.raises(UserError) as caught:
        train(tmp_path / "frames", refused)
    assert "--config narcan" in caught.value.what and "--config atlas --masks" in caught.value.fix


def test_the_teaching_takes_at_most_a_quarter_of_the_steps() -> None:
    for steps, expected in ((12500, 3000), (5000, 1250), (100_000, 3000)):
        mapping = scale_steps(load_planar_config("narcan"), steps).mapping
        assert isinstance(mapping, HomographyMlpMappingConfig) and mapping.pretrain == expected


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("narcan", {"opacity.kind": "mlp"}, "terms.color_l1 needs opacity kind mask or window"),
        ("lna", {"terms.residual_jacobian": 1.0}, "terms.residual_jacobian needs mapping kind homography_mlp"),
        ("narcan", {"opacity.segments": 0}, "segments must be at least 1"),
        ("narcan", {"texture.omega": 0.0}, "omega must be above 0"),
    ],
)
def test_parts_and_terms_that_do_not_go_together_are_named(
    preset: str, overrides: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_planar_config(preset, overrides)
    assert words in str(caught.value)
