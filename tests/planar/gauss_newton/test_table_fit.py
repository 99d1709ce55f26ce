"""Passes over a clip: what they solve, how they are accelerated, and that they can be stopped anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neural_fields.core.errors import UserError
from neural_fields.planar.appearance.grid_gain import GridGain
from neural_fields.planar.composition.samples import composite_layers
from neural_fields.planar.config import load_planar_config
from neural_fields.planar.gauss_newton import grid_stencil, texture_update
from neural_fields.planar.gauss_newton.anderson import AndersonAcceleration
from neural_fields.planar.gauss_newton.grid_stencil import (
    GridInterpolation,
    add_smoothness,
    interpolation_matrix,
    multiply_stencil,
    solve_scalars,
    solve_vectors,
)
from neural_fields.planar.gauss_newton.table_fit import TableFit
from neural_fields.planar.gauss_newton.texture_update import solve_texture_step
from neural_fields.planar.init.frame_patch import FramePatch
from neural_fields.runs.run import Run
from neural_fields.training.loop import train_steps
from neural_fields.training.table_task import TableTask
from tests.planar.gauss_newton.test_frame_looks import shake_model
from tests.support.typed import as_all


def measure_error(fit: TableFit) -> float:
    """Runs a pass and returns the mean error of its steps."""
    return sum(fit.take_step(step) for step in range(fit.steps_per_pass)) / fit.steps_per_pass


@pytest.mark.parametrize(("front", "overrides"), [(0, {}), (2, {}), (1, {"opacity.max_megapixels": 0.0005})])
def test_passes_bring_the_picture_closer(front: int, overrides: dict) -> None:
    model, clip = shake_model(front, **overrides)
    fit = TableFit(model, clip, frames_per_step=2)
    errors = [measure_error(fit) for _ in range(6)]
    assert errors[1] < 0.7 * errors[0]
    assert errors[5] < errors[2] < errors[1]


def test_threads_share_the_frames_and_find_the_same() -> None:
    (one, clip), (two, _) = shake_model(2), shake_model(2)
    alone, together = TableFit(one, clip, frames_per_step=4), TableFit(two, clip, frames_per_step=4)
    together.threads = 2
    for step in range(2):
        assert together.take_step(step) == pytest.approx(alone.take_step(step), rel=1e-4)


def test_an_acceleration_that_makes_it_worse_is_taken_back() -> None:
    model, clip = shake_model(1)
    fit = TableFit(model, clip, frames_per_step=4)
    for _ in range(3):
        measure_error(fit)
    assert fit.acceleration.last is not None
    plain = fit.acceleration.last[0] + fit.acceleration.last[1]
    with torch.no_grad():
        for texture in fit.textures:
            texture.image.add_(0.2)
    measure_error(fit)
    assert torch.allclose(fit._pack_state(), plain, atol=1e-4)
    assert fit.acceleration.last is None


def test_a_pinned_frame_keeps_its_shifts() -> None:
    model, clip = shake_model(1)
    fit = TableFit(model, clip, frames_per_step=4)
    fit.mappings[0].pinned = 1
    before = fit.mappings[0].residual.values.detach().clone()
    measure_error(fit)
    after = fit.mappings[0].residual.values
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])


def test_a_fit_that_is_stopped_after_every_step_ends_with_the_same_numbers(tmp_path: Path) -> None:
    through, clip = shake_model(2)
    config = load_planar_config("atlas")
    steps, training = 9, config.training  # a pass has two steps: four passes and a half
    task = TableTask(through, clip, training, steps)
    task.fit = TableFit(through, clip, frames_per_step=2)
    list(train_steps(task, Run.create(tmp_path / "through")))
    stopped, run = shake_model(2)[0], Run.create(tmp_path / "stopped")
    for _ in range(steps):
        task = TableTask(stopped, clip, training, steps)
        task.fit = TableFit(stopped, clip, frames_per_step=2)
        asked = iter([False, True])
        list(train_steps(task, run, stop=lambda asked=asked: next(asked)))  # type: ignore[misc]
        stopped = shake_model(2)[0]  # its tables come from the checkpoint
    task = TableTask(stopped, clip, training, steps)
    task.fit = TableFit(stopped, clip, frames_per_step=2)
    list(train_steps(task, run))
    for name, value in through.state_dict().items():
        assert torch.equal(stopped.state_dict()[name], value), name


def test_a_fit_ends_when_a_pass_brings_little(tmp_path: Path) -> None:
    model, clip = shake_model(0)
    for steps, wanted in ((0, 2), (5, 5)):  # passes of one step; a number of steps that is asked for is kept
        limits = {"training.min_gain": 30.0, "training.min_move": 99.0}
        config = load_planar_config("atlas", {**limits, "training.steps": steps})
        task = TableTask(model, clip, config.training, 5)
        assert len(list(train_steps(task, Run.create(tmp_path / f"run{steps}")))) == wanted
        assert task.has_converged == (not steps)


def test_a_fit_goes_on_while_points_move(tmp_path: Path) -> None:
    model, clip = shake_model(0)
    config = load_planar_config("atlas", {"training.min_gain": 30.0, "training.min_move": 1e-6})
    task = TableTask(model, clip, config.training, 5)
    list(train_steps(task, Run.create(tmp_path / "run")))
    assert not task.has_converged
    mapping, fit = task.fit.mappings[0], task.fit
    before = fit._pack_state().detach()
    with torch.no_grad():
        mapping.residual.flat[:, 0::2] += 0.3 * fit.pixel
        mapping.residual.flat[:, 1::2] -= 0.3 * fit.pixel
    assert fit._measure_move(before, fit._pack_state().detach()) == pytest.approx(0.3 * 2**0.5, rel=1e-3)


def test_normal_equations_are_those_of_the_dense_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    down, across = interpolation_matrix(5, 17), interpolation_matrix(6, 23)
    grid = GridInterpolation.between(down, across)
    dense = torch.einsum("ip,jq->ijpq", down, across).reshape(17 * 23, 30)
    weights = torch.rand(1, 17, 23, generator=generator)
    values = torch.rand(1, 17, 23, generator=generator)
    matrix = dense.T @ (weights.view(-1, 1) * dense)
    stencil = grid.collect_matrix(weights)
    vector = torch.rand(1, 5, 6, generator=generator)
    assert torch.allclose(multiply_stencil(stencil, vector).view(-1), matrix @ vector.view(-1), atol=1e-4)
    assert torch.allclose(grid.collect_vector(values).view(-1), dense.T @ values.view(-1), atol=1e-4)
    assert torch.allclose(grid.interpolate(vector).view(-1), dense @ vector.view(-1), atol=1e-5)
    wanted = F.interpolate(vector[None], (17, 23), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(grid.interpolate(vector), wanted, atol=1e-6)
    part = FramePatch(3, 11, 5, 20)
    assert torch.allclose(grid.crop(part).interpolate(vector), part.crop(wanted), atol=1e-6)
    # Smoothness, against the gradient and the curvature of its energy.
    away = torch.rand(1, 5, 6, generator=generator, requires_grad=True)

    def energy(at: torch.Tensor) -> torch.Tensor:
        return 0.3 * (at.diff(dim=1).square().sum() + at.diff(dim=2).square().sum()) + 0.7 * at.square().sum()

    (gradient,) = torch.autograd.grad(energy(away), away)
    stencil, right = torch.zeros(5, 1, 5, 6), torch.zeros(1, 5, 6)
    add_smoothness(stencil, right, away.detach(), 0.3, 0.7)
    assert torch.allclose(-2 * right, gradient, atol=1e-5)
    assert torch.allclose(2 * multiply_stencil(stencil, vector), torch.autograd.functional.hvp(energy, away, vector)[1])


def test_conjugate_gradients_find_the_solution() -> None:
    generator = torch.Generator().manual_seed(1)
    grid = GridInterpolation.between_sizes((4, 5), (30, 24))
    x, y = torch.randn(2, 24, 30, generator=generator)
    vectors = grid.collect_matrix(torch.stack([x * x + 0.1, x * y, y * y + 0.1]))[:, None]
    right = torch.randn(1, 2, 4, 5, generator=generator)
    found = solve_vectors(vectors, right, 80)
    xx, xy, yy = vectors[:, 0].unbind(1)
    image = [multiply_stencil(xx, found[0, 0]) + multiply_stencil(xy, found[0, 1])]
    image.append(multiply_stencil(xy, found[0, 0]) + multiply_stencil(yy, found[0, 1]))
    assert torch.allclose(torch.stack(image), right[0], atol=1e-3)
    scalars = grid.collect_matrix(torch.rand(3, 24, 30, generator=generator) + 0.1)[:, None]
    right = torch.randn(1, 3, 4, 5, generator=generator)
    assert torch.allclose(multiply_stencil(scalars, solve_scalars(scalars, right, 60)), right, atol=1e-3)


def compute_both_ways(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], Tensor]) -> list[Tensor]:
    """Computes something with compiled loops, and with torch alone."""
    found = [compute()]
    for module in (grid_stencil, texture_update):
        monkeypatch.setattr(module, "can_compile_loops", lambda: False)
    return [*found, compute()]


@pytest.mark.parametrize("size", [(2, 2), (2, 7), (9, 2), (13, 17)])
def test_compiled_products_equal_those_with_torch(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    stencil, values = torch.randn(5, 2, 3, *size, generator=generator), torch.randn(2, 3, *size, generator=generator)
    compiled, plain = compute_both_ways(monkeypatch, lambda: multiply_stencil(stencil, values))
    assert torch.allclose(compiled, plain, atol=1e-5)


@pytest.mark.parametrize("size", [(2, 2), (2, 7), (9, 2), (13, 17)])
def test_a_compiled_texture_step_equals_the_one_with_torch(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.rand(1, *size, generator=generator)
    weight[:, 0] = 0
    sums = torch.cat([torch.randn(3, *size, generator=generator) * weight, weight])
    image = torch.rand(3, *size, generator=generator)
    compiled, plain = compute_both_ways(monkeypatch, lambda: solve_texture_step(sums, image, 0.1, stiffness=0.05))
    assert torch.allclose(compiled, plain, atol=1e-4)


def test_a_texture_step_solves_its_equations_and_leaves_unseen_texels_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(9, 11, generator=generator) + 0.2
    weight[:, 8:] = 0
    image = torch.rand(3, 9, 11, generator=generator)
    truth = torch.randn(3, 9, 11, generator=generator) * (weight > 0)
    root, line = weight.sqrt(), torch.tensor([1 / 8, 3 / 4, 1 / 8])
    kernel = (line[:, None] * line)[None, None]
    gradient = root * F.conv2d((root * truth)[:, None], kernel, padding=1)[:, 0]
    step = solve_texture_step(
        torch.cat([gradient, weight[None]]), image, 0.0, stiffness=0.0, damping=0.0, iterations=60
    )
    assert torch.allclose(step, truth, atol=1e-3)
    assert not step[:, :, 8:].any()


def test_a_texel_of_which_frames_say_next_to_nothing_stays_where_it_is() -> None:
    weight, asked = torch.ones(7, 7), torch.full((7, 7), 0.3)
    weight[3, 3], asked[3, 3] = 1e-3, 40.0  # a sliver of a pixel that is not of the layer, say
    sums = torch.cat([(weight * asked).expand(3, 7, 7), weight[None]])
    step = solve_texture_step(sums, torch.full((3, 7, 7), 0.5), 0.0, stiffness=0.0, iterations=20)
    assert step[:, 3, 3].abs().max() < 1
    assert (step[:, :2] - 0.3).abs().max() < 0.15


def test_what_hardly_any_frame_shows_becomes_as_smooth_as_its_surroundings() -> None:
    weight, image = torch.full((24, 24), 20.0), torch.full((3, 24, 24), 0.4)
    weight[8:16, 8:16] = 0.02  # behind a thing, seen through what it leaves open
    image[:, 8:16, 8:16:2] = 0.0  # stripes that frames cannot tell from a plain texture
    sums = torch.cat([torch.zeros(3, 24, 24), weight[None]])
    for _ in range(20):
        image += solve_texture_step(sums, image, 0.0, stiffness=0.05)
    assert (image - 0.4).abs().max() < 0.02


def test_a_checkered_texture_that_pixels_between_its_texels_see_as_plain_fades() -> None:
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    checks = 0.1 * (1.0 - 2 * ((rows + columns) % 2))
    image = 0.5 + checks.expand(3, -1, -1)
    sums = torch.cat([torch.zeros(3, 24, 24), torch.full((1, 24, 24), 2.0)])  # each frame shows 0.5, as it should
    for _ in range(8):
        image = image + solve_texture_step(sums, image, 0.0, stiffness=0.05)
    assert (image - 0.5).abs().mean() < 0.01


def test_detail_that_many_frames_show_is_hardly_softened() -> None:
    x = torch.arange(64).float()
    waves = (0.1 * torch.cos(2 * torch.pi * x / 6)).expand(3, 64, 64)  # six texels a wave: five pixels
    weight = torch.full((1, 64, 64), 13.0)  # of 20 frames
    image, factor = torch.zeros(3, 64, 64), (3 / 4 + 1 / 4 * torch.cos(torch.tensor(2 * torch.pi / 6))) ** 2
    for _ in range(8):
        image += solve_texture_step(torch.cat([13 * factor * (waves - image), weight]), image, 0.002, stiffness=0.05)
    assert float(image[0, 32].abs().max()) > 0.09


def test_acceleration_solves_a_linear_iteration_in_as_many_passes_as_it_has_unknowns() -> None:
    matrix = torch.tensor([[0.9, 0.05, 0.0], [0.05, 0.8, 0.1], [0.0, 0.1, 0.7]])
    offset = torch.tensor([1.0, -2.0, 0.5])
    solution = torch.linalg.solve(torch.eye(3) - matrix, offset)
    acceleration, x, plain = AndersonAcceleration(4, 1.0), torch.zeros(3), torch.zeros(3)
    for _ in range(6):
        x = acceleration.accelerate(x, matrix @ x + offset)
        plain = matrix @ plain + offset
    assert torch.allclose(x, solution, atol=1e-2)
    assert float((plain - solution).norm()) > 10 * float((x - solution).norm())


def test_long_states_are_accelerated_with_fewer_passes() -> None:
    acceleration = AndersonAcceleration(4, mib=8 * 1000 * 2 / 2**20)  # two pairs of vectors of a thousand numbers
    x = torch.zeros(1000)
    for step in range(5):
        x = acceleration.accelerate(x, 0.5 * x + torch.arange(1000) * 1e-3 + step * 0)
    assert len(acceleration.moves) == 2


@pytest.mark.parametrize("change", [{"opacity.kind": "hash"}, {"terms.sparsity": 1.0}, {"terms.mask_until": 10}])
def test_what_passes_cannot_solve_is_refused_with_the_way_out(change: dict) -> None:
    with pytest.raises(UserError, match=r"training\.solver adam"):
        load_planar_config("atlas", change)
    assert load_planar_config("atlas", {**change, "training.solver": "adam"}).training.solver == "adam"


def test_frames_of_soft_and_of_hard_masks_are_read_alike() -> None:
    model, clip = shake_model(2)
    fit = TableFit(model, clip, frames_per_step=4)
    with torch.no_grad():
        tables = fit._read_tables(0)
    visible = tables.visible.numpy()
    rows, columns = tables.window.slices
    masks = clip.masks.masks[:, 0, rows, columns]
    assert np.array_equal(visible[0] == 255, masks[0])
    assert np.array_equal(visible[1] == 255, masks[1] & ~masks[0])


def test_a_layer_is_not_seen_far_from_its_mask() -> None:
    model, clip = shake_model(1)  # with random opacities everywhere
    fit = TableFit(model, clip, frames_per_step=4)
    measure_error(fit)
    with torch.no_grad():
        alpha = model.opacity.sample_frames(torch.arange(3), 3, clip.size)[..., 0].numpy()
    near = np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) for mask in clip.masks.masks[0]])
    assert alpha[near == 0].max() == 0 < alpha[near > 0].max()


@pytest.mark.parametrize(("front", "overrides"), [(0, {}), (2, {}), (1, {"opacity.max_megapixels": 0.0005})])
@torch.no_grad()
def test_light_moves_to_textures_until_the_mean_gain_is_1_and_frames_look_as_before(
    front: int, overrides: dict
) -> None:
    model, clip = shake_model(front, **overrides)
    tables = [gain.table.flat for gain in as_all(GridGain, model.gains)]
    for table in tables:
        table.add_(0.3)
    fit = TableFit(model, clip, frames_per_step=4)
    before = [model.sample_frame(t, clip.size) for t in range(3)]
    fit._move_light_to_textures()
    after = [model.sample_frame(t, clip.size) for t in range(3)]
    for one, two in zip(before, after, strict=True):
        assert torch.allclose(composite_layers(one), composite_layers(two), atol=1e-5)
    for layer, table in enumerate(tables):
        seen = torch.stack([samples.weight[..., layer, None] for samples in after])
        light = torch.stack([samples.gain[..., layer, :] for samples in after if samples.gain is not None]).log()
        assert float(((seen * light).flatten(0, -2).sum(0) / seen.sum()).abs().max()) < 0.02
        assert float(table.square().mean().sqrt()) < 0.1  # above 0.3 before


@torch.no_grad()
def test_every_pass_ends_with_mean_gains_of_1() -> None:
    model, clip = shake_model(1)
    fit = TableFit(model, clip, frames_per_step=4)
    measure_error(fit)  # the first pass is not extrapolated
    tables = [gain.table.flat for gain in fit.gains]
    before = [table.clone() for table in tables]
    fit._move_light_to_textures()
    for table, values in zip(tables, before, strict=True):
        assert torch.allclose(table, values, atol=1e-6)
