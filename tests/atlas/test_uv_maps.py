"""Baked maps are the model's own answers, at any size, and a damaged map is never read as a good one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from neural_fields.atlas.uv_maps import Maps, _add_rim, uv_step
from neural_fields.core import coords
from neural_fields.core.box import Box
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.progress import Progress
from neural_fields.imaging.resampling import warp_part
from neural_fields.planar.appearance.gain import NoGainConfig
from neural_fields.planar.appearance.grid_gain import GridGain, GridGainConfig
from neural_fields.planar.appearance.pixel_opacity import PixelOpacity
from neural_fields.planar.build import build_model
from neural_fields.planar.composition.model import PlanarModel
from neural_fields.planar.config import PlanarConfig
from neural_fields.planar.init.model_shape import LayerShape, ModelShape
from neural_fields.planar.mappings.grid import GridMapping, GridMappingConfig
from neural_fields.runs.run import Run
from neural_fields.training.bake import bake_maps
from tests.support.map_arrays import load_map, save_map
from tests.support.typed import as_all, as_one

FRAMES = 3
BOX = Box(-1.6, -1.3, 1.7, 1.4)
NAMES = ("foreground", "background")


def affine_model(size: tuple[int, int], gain: bool = True) -> PlanarModel:
    """Two layers that turn, shrink and drift over the frames, under a gain and an opacity that vary."""
    layers = tuple(LayerShape(name, BOX, 90, 70) for name in NAMES)
    config = PlanarConfig(gain=GridGainConfig() if gain else NoGainConfig())
    model = build_model(config, ModelShape(*size, FRAMES, layers))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for number, mapping in enumerate(as_all(GridMapping, model.mappings)):
            for t in range(FRAMES):
                angle, scale = 0.1 * (t + 1) * (1 - 2 * number), 1 - 0.05 * t
                turn = [[np.cos(angle), -np.sin(angle), 0.1 * t], [np.sin(angle), np.cos(angle), -0.07 * number]]
                mapping.homography[t, :2] = scale * torch.tensor(turn)
        for part in [
            as_one(PixelOpacity, model.opacity).table,
            *(gain.table for gain in as_all(GridGain, model.gains)),
        ]:
            part.flat.copy_(0.1 * torch.randn(part.flat.shape, generator=generator))
    return model.eval()


def points_of(size: tuple[int, int], fit: tuple[int, int], t: int) -> torch.Tensor:
    """xyt of the pixel centers of frame `t` at another size, whose frame is the same rectangle of the scene."""
    pixels = coords.pixel_centers(*size).view(-1, 2) * torch.tensor([fit[0] / size[0], fit[1] / size[1]])
    xy = coords.normalize_pixels(pixels, *fit)
    return torch.cat([xy, torch.full((len(xy), 1), float(coords.normalize_time(t, FRAMES)))], 1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run")


@pytest.mark.parametrize("fit", [(48, 27), (32, 32), (27, 48), (37, 23)])
@pytest.mark.parametrize("times", [1.0, 2.0, 2.37, 0.6])
def test_maps_brought_to_any_size_agree_with_the_model_at_that_size(
    run: Run, fit: tuple[int, int], times: float
) -> None:
    model = affine_model(fit)
    maps = bake_maps(run, model, 7)
    size = (round(fit[0] * times), round(fit[1] * times))
    pixel = 2 / max(size)
    for t in range(FRAMES):
        with torch.no_grad():
            truth = model(points_of(size, fit, t)).uv.view(size[1], size[0], len(NAMES), 2).numpy()
        for layer in range(len(NAMES)):
            off = np.abs(maps.read_uv(t, layer, size) - truth[:, :, layer]).max() / pixel
            # OpenCV 4 rounds the places between samples. Stored uv are rounded to 1/512 pixel of the fit.
            limit = 1e-3 * max(2, 1 + times) if cv2.__version__ >= "5" else 0.05
            assert off < limit, f"frame {t} layer {layer}: {off} pixels"


def test_maps_hold_weight_and_gain_of_the_model_at_the_training_size(run: Run) -> None:
    size = (48, 28)
    model = affine_model(size)
    maps = bake_maps(run, model, 7)
    with torch.no_grad():
        samples = model.sample_frame(1, size)
    weight = samples.weight.view(size[1], size[0], 2).permute(2, 0, 1).numpy()
    assert np.abs(maps.read_weights(1, size) - weight).max() <= 1 / 255
    assert np.abs(maps.read_layer_weight(1, 0, size) - weight[0]).max() <= 0.51 / 255
    # The gain has a knot every 16 pixels and is stored every 4: no more than the rounding of a bend is lost.
    assert samples.gain is not None
    gain = samples.gain.view(size[1], size[0], 2, 3).numpy()
    for layer in range(2):
        assert np.abs(maps.read_gain(1, layer, size) - gain[:, :, layer]).max() < 0.05


@pytest.mark.parametrize("size", [(48, 27), (109, 61)])
def test_weights_of_a_pixel_sum_to_one_at_any_size(run: Run, size: tuple[int, int]) -> None:
    maps = bake_maps(run, affine_model((48, 27)), 7)
    assert np.abs(maps.read_weights(2, size).sum(0) - 1).max() < 1e-5


@pytest.mark.parametrize("size", [(48, 27), (109, 61)])
@pytest.mark.parametrize("gain", [True, False])
def test_a_part_and_scattered_pixels_are_cut_out_of_the_whole(run: Run, size: tuple[int, int], gain: bool) -> None:
    maps = bake_maps(run, affine_model((48, 27), gain), 7)
    part = (slice(5, 21), slice(11, 40))
    y, x = np.array([0, 5, 20, size[1] - 1]), np.array([0, 11, 39, size[0] - 1])
    found = maps.sample_at_points(1, x.astype(np.float32), y.astype(np.float32), size)
    assert np.allclose(found.weight, maps.read_weights(1, size)[:, y, x], atol=0.02)
    for layer in range(2):
        uv, lit = maps.read_uv(1, layer, size), maps.read_gain(1, layer, size)
        assert np.allclose(maps.read_uv_part(1, layer, size, part), uv[part], atol=1e-4)
        assert np.allclose(maps.read_gain(1, layer, size, part), lit[part], atol=1e-3)
        weight = maps.read_layer_weight(1, layer, size)
        assert np.abs(maps.read_layer_weight(1, layer, size, part) - weight[part]).max() <= 1.01 / 255
        # OpenCV's remap looks up in steps of 1/32 of a sample.
        assert np.allclose(found.uv[layer], uv[y, x], atol=2 / 48 / 32)
        assert np.allclose(found.gain[layer], lit[y, x], atol=0.01)


def test_maps_of_a_transposed_model_are_the_transposed_maps(tmp_path: Path) -> None:
    model, turned = affine_model((40, 24)), affine_model((24, 40))
    with torch.no_grad():
        for mine, other in zip(as_all(GridMapping, model.mappings), as_all(GridMapping, turned.mappings), strict=True):
            swap = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
            other.homography.copy_(swap @ mine.homography @ swap)
    wide = bake_maps(Run.create(tmp_path / "wide"), model, 1)
    tall = bake_maps(Run.create(tmp_path / "tall"), turned, 1)
    for t in range(FRAMES):
        assert np.allclose(
            wide.read_uv(t, 0, (80, 48)), tall.read_uv(t, 0, (48, 80)).transpose(1, 0, 2)[..., ::-1], atol=1e-5
        )


def test_an_identity_mapping_puts_texel_centers_under_pixel_centers(run: Run) -> None:
    size = (30, 20)
    box = coords.frame_box(*size)
    maps = bake_maps(
        run, build_model(PlanarConfig(), ModelShape(*size, 1, (LayerShape("background", box, *size),))).eval(), 1
    )
    texels = coords.uv_to_texels(torch.from_numpy(maps.read_uv(0, 0, size)), box, *size)
    assert torch.allclose(texels, coords.pixel_centers(*size), atol=1e-4)


def test_a_grid_mapping_is_kept_by_its_knots_and_loses_nothing() -> None:
    size, generator = (61, 35), torch.Generator().manual_seed(0)
    mapping = GridMapping(GridMappingConfig(), FRAMES, size)
    pixel = 2 / max(size)
    with torch.no_grad():
        mapping.residual.flat.copy_(2 * pixel * torch.randn(mapping.residual.flat.shape, generator=generator))
        mapping.homography[1] = torch.tensor([[1.1, 0.1, 0.2], [-0.1, 0.9, 0.1], [0.004, -0.003, 1.0]])
        truth = _add_rim(mapping.map_frames(torch.tensor([1]), FRAMES, size)[0].numpy())
        knots = mapping.sample_knots(1, FRAMES, size).numpy()
    columns, rows = knots.shape[1] - 2, knots.shape[0] - 2
    assert (rows, columns) == mapping.knot_grid(size) == mapping.residual.shape[2:]
    found = warp_part(knots, (0, 0), (columns, rows), size, (slice(-1, size[1] + 1), slice(-1, size[0] + 1)))
    assert np.abs(found - truth).max() < uv_step(size)


def test_opening_maps_returns_what_was_baked(run: Run) -> None:
    baked = bake_maps(run, affine_model((32, 18)), 7)
    opened = Maps.open(run.maps)
    assert opened == baked
    assert opened.layers == NAMES and opened.boxes == (BOX, BOX) and opened.frame_count == FRAMES
    assert json.loads((run.maps / "maps.json").read_text())["step"] == 7


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def another_shape(path: Path) -> None:
    save_map(path.parent, path.stem, load_map(path.parent, path.stem)[:, 1:])


def not_an_array(path: Path) -> None:
    path.write_text("not an array")


@pytest.mark.parametrize("damage", [cut, another_shape, not_an_array, Path.unlink])
@pytest.mark.parametrize("name", ["uv-background.bin", "weight.bin", "gain-foreground.bin"])
def test_a_damaged_map_is_named_and_not_read(run: Run, name: str, damage) -> None:
    bake_maps(run, affine_model((32, 18)), 7)
    damage(run.maps / name)
    with pytest.raises(UserError) as caught:
        Maps.open(run.maps)
    assert caught.value.code == ExitCode.DAMAGED_RUN
    assert name in str(caught.value) and "unwrap train" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layers": None}, "layers: expected a list, got null"),
        ({"size": [32]}, "size: expected 2 items, got 1"),
        ({"boxes": [[0, 0, 1, 1]]}, "1 boxes for 2 layers"),
        ({"boxes": [[0, 0, 1], [0, 0, 1, 1]]}, "boxes[0]: expected 4 items, got 3"),
        ({"frame_count": "x"}, "frame_count: expected a whole number, got 'x'"),
        ({"has_gains": True}, "has_gains: unknown key; did you mean 'has_gain'?"),
    ],
)
def test_facts_that_do_not_describe_maps_are_refused(run: Run, change: dict, why: str) -> None:
    bake_maps(run, affine_model((32, 18)), 7)
    path = run.maps / "maps.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as caught:
        Maps.open(run.maps)
    assert caught.value.code == ExitCode.DAMAGED_RUN and caught.value.where == str(path)
    assert why in caught.value.why and "unwrap train" in caught.value.fix


def test_baking_that_is_broken_off_leaves_no_maps_that_look_whole(run: Run) -> None:
    bake_maps(run, affine_model((32, 18)), 7)

    def break_off(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bake_maps(run, affine_model((32, 18)), 8, break_off)
    assert not [path.name for path in run.maps.iterdir() if path.name.startswith(".")]
    with pytest.raises(UserError, match="no baked maps") as caught:
        Maps.open(run.maps)
    assert "unwrap train" in caught.value.fix


def test_without_room_the_maps_of_before_stay(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bake_maps(run, affine_model((32, 18)), 7)
    before = {path.name: path.read_bytes() for path in run.maps.iterdir()}
    usage = shutil.disk_usage(run.maps)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError) as caught:
        bake_maps(run, affine_model((64, 36)), 8)
    assert caught.value.code == ExitCode.NO_ROOM
    assert {path.name: path.read_bytes() for path in run.maps.iterdir()} == before
