"""Encodings: the hash grid against a slow obvious reference, the hand-over to tiny-cuda-nn, and the small networks."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from neural_fields.core.errors import UserError
from neural_fields.nn import hash_grid, tcnn
from neural_fields.nn.fourier import Fourier
from neural_fields.nn.grid import DenseGrid, DenseGridConfig
from neural_fields.nn.hash_grid import (
    HashGrid,
    HashGridConfig,
    choose_backend,
    compute_level_table,
    compute_release_weights,
)
from neural_fields.nn.hash_layout import compute_growth, find_fragile_levels
from neural_fields.nn.mlp import MLP
from tests.support.typed import as_one

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Two dense and two hashed levels in every dimension.
SMALL = {
    2: HashGridConfig(4, 2, 7, base_resolution=5, growth=1.7),
    3: HashGridConfig(4, 2, 9, base_resolution=4, growth=1.6),
    4: HashGridConfig(4, 2, 11, base_resolution=3, growth=1.7),
}


def smooth(config: HashGridConfig) -> HashGridConfig:
    return HashGridConfig(
        config.n_levels, config.n_features, config.log2_table, config.base_resolution, config.growth, "smoothstep"
    )


def filled(in_dim: int, config: HashGridConfig, backend: Any = "torch") -> HashGrid:
    grid = HashGrid(in_dim, config, backend)
    with torch.no_grad():
        grid.params.copy_(torch.randn(grid.params.shape, generator=torch.Generator().manual_seed(3)))
    return grid


def points(count: int, in_dim: int, seed: int = 1) -> Tensor:
    return torch.rand(count, in_dim, generator=torch.Generator().manual_seed(seed))


# The reference: one point, one level, one corner at a time, with Python's integers.


def reference_entry(corner: list[int], resolution: int, entries: int) -> int:
    corner = [c % 2**32 for c in corner]
    if resolution ** len(corner) <= entries:
        return sum(c * resolution**d for d, c in enumerate(corner)) % 2**32 % entries
    hashed = 0
    for c, prime in zip(corner, (1, 2654435761, 805459861, 3674653429), strict=False):
        hashed ^= c * prime % 2**32
    return hashed % entries


def reference(x: Tensor, grid: HashGrid, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features, gradient by x and gradient by params for the upstream gradient `grad`."""
    size, in_dim, soft = grid.config.n_features, grid.in_dim, grid.config.interpolation == "smoothstep"
    out, grad_x, grad_params = torch.zeros_like(grad), torch.zeros_like(x), torch.zeros_like(grid.params)
    for (n, point), (index, level) in itertools.product(enumerate(x.tolist()), enumerate(grid.levels)):
        place = [level.scale * c + 0.5 for c in point]
        cell = [math.floor(p) for p in place]
        linear = [p - c for p, c in zip(place, cell, strict=True)]
        upper = [w * w * (3 - 2 * w) if soft else w for w in linear]
        slope = [level.scale * (6 * w * (1 - w) if soft else 1) for w in linear]
        columns = slice(index * size, (index + 1) * size)
        for sides in itertools.product((0, 1), repeat=in_dim):
            entry = reference_entry([c + s for c, s in zip(cell, sides, strict=True)], level.resolution, level.entries)
            rows = slice((level.offset + entry) * size, (level.offset + entry + 1) * size)
            parts = [w if s else 1 - w for w, s in zip(upper, sides, strict=True)]
            out[n, columns] += math.prod(parts) * grid.params.data[rows]
            grad_params[rows] += math.prod(parts) * grad[n, columns]
            for d in range(in_dim):
                others = math.prod(parts[:d] + parts[d + 1 :]) * (1 if sides[d] else -1) * slope[d]
                grad_x[n, d] += others * (grid.params.data[rows] * grad[n, columns]).sum()
    return out, grad_x, grad_params


# Layout


@pytest.mark.parametrize(
    ("in_dim", "growth", "dense", "size"),
    [(2, 1.3819128, 12, 5_522_000), (3, 1.3819128, 5, 12_196_240), (3, compute_growth(1024, 16, 16), None, 11_445_040)],
)
def test_parameter_counts_are_those_of_tiny_cuda_nn(in_dim: int, growth: float, dense: int | None, size: int) -> None:
    levels = compute_level_table(HashGridConfig(growth=growth), in_dim)
    assert 2 * sum(level.entries for level in levels) == size
    assert dense in (None, sum(level.dense for level in levels))


def test_vertices_are_those_of_tiny_cuda_nn() -> None:
    vertices = [level.resolution for level in compute_level_table(HashGridConfig(growth=1.3819128), 3)]
    assert vertices == [16, 23, 31, 43, 59, 81, 112, 154, 213, 295, 407, 562, 777, 1073, 1483, 2048]


def test_levels_follow_each_other_without_a_gap_and_dense_tables_are_padded_to_eight() -> None:
    levels = compute_level_table(SMALL[3], 3)
    assert [level.dense for level in levels] == [True, True, False, False]
    assert [level.offset for level in levels] == [0, 64, 64 + 344, 64 + 344 + 512]
    assert levels[1].resolution == 7 and levels[1].entries == 344


def test_growth_two_is_never_fragile_and_a_scale_close_to_an_integer_is() -> None:
    assert find_fragile_levels(compute_level_table(HashGridConfig(n_levels=5, growth=2.0), 2)) == ()
    assert 10 in find_fragile_levels(compute_level_table(HashGridConfig(growth=compute_growth(1024, 16, 16)), 2))


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_levels", 0), ("n_features", 3), ("log2_table", 40), ("growth", 0.5)],
)
def test_an_impossible_grid_names_the_field_and_the_value(field: str, value: Any) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(UserError, match=f"{field} is {value!r}"):
        HashGridConfig(**arguments)


# Values and gradients


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("in_dim", [2, 3, 4])
def test_features_and_both_gradients_equal_the_slow_reference(in_dim: int, soft: bool) -> None:
    grid = filled(in_dim, smooth(SMALL[in_dim]) if soft else SMALL[in_dim]).double()
    assert {level.dense for level in grid.levels} == {True, False}
    edges = torch.tensor([[0.0] * in_dim, [1.0] * in_dim, [-0.07] * in_dim, [1.06] * in_dim, [-0.9] * in_dim])
    x = torch.cat([edges, points(12, in_dim)]).double().requires_grad_()
    grad = torch.randn(len(x), grid.out_dim, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    features = grid(x)
    features.backward(grad)
    expected = reference(x.detach(), grid, grad)
    for found, wanted in zip((features.detach(), x.grad, grid.params.grad), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("in_threads", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("in_dim", [2, 3, 4])
def test_compiled_loops_equal_torch_forward_and_backward(
    in_dim: int, soft: bool, in_threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_grid, "_LEAST_IN_THREADS", 0)
    monkeypatch.setattr(hash_grid, "thread_count", lambda: 1 + in_threads)
    config = smooth(SMALL[in_dim]) if soft else SMALL[in_dim]
    edges = torch.tensor([[0.0] * in_dim, [1.0] * in_dim, [-0.07] * in_dim, [1.06] * in_dim, [-0.9] * in_dim])
    found = []
    for backend in ("torch", "loops"):
        grid = filled(in_dim, config, backend)
        x = torch.cat([edges, points(50, in_dim)]).requires_grad_()
        features = grid(x)
        features.backward(torch.randn(features.shape, generator=torch.Generator().manual_seed(5)))
        found.append((features.detach(), x.grad, grid.params.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_compiled_loops_leave_out_gradients_that_nobody_wants_and_can_be_differentiated_twice() -> None:
    grid, x = filled(2, smooth(SMALL[2]), "loops"), points(9, 2).requires_grad_()
    grid.params.requires_grad_(False)
    (slope,) = torch.autograd.grad(grid(x).sum(), x, create_graph=True)
    plain = filled(2, smooth(SMALL[2]), "torch")
    y = x.detach().clone().requires_grad_()
    (other,) = torch.autograd.grad(plain(y).sum(), y, create_graph=True)
    slope.square().sum().backward()
    other.square().sum().backward()
    assert x.grad is not None and y.grad is not None and grid.params.grad is None
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-2)
    table = filled(2, SMALL[2], "loops")
    table(x.detach()).sum().backward()
    assert table.params.grad is not None and table.params.grad.abs().sum() > 0


@pytest.mark.parametrize("n_features", [1, 2, 4])
@pytest.mark.parametrize("backend", ["torch", "loops"])
def test_float32_agrees_with_float64_for_any_number_of_features(n_features: int, backend: str) -> None:
    grid = filled(2, HashGridConfig(5, n_features, 8, base_resolution=6, growth=1.8), backend)
    x = points(300, 2).requires_grad_()
    grid(x).square().sum().backward()
    exact = filled(2, grid.config).double()
    y = x.detach().double().requires_grad_()
    exact(y).square().sum().backward()
    assert grid(x).dtype == torch.float32
    torch.testing.assert_close(grid(x), exact(y).float(), rtol=1e-4, atol=1e-4)
    assert exact.params.grad is not None
    torch.testing.assert_close(grid.params.grad, exact.params.grad.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("in_dim", [2, 3])
def test_first_and_second_derivatives_pass_the_numerical_check(in_dim: int, soft: bool) -> None:
    config = HashGridConfig(2, 2, 4, base_resolution=3, growth=1.6, interpolation="smoothstep" if soft else "linear")
    grid = filled(in_dim, config).double()

    def features(x: Tensor, params: Tensor) -> Tensor:
        return torch.func.functional_call(grid, {"params": params}, (x,))

    x = (0.1 + 0.03 * points(2, in_dim)).double().requires_grad_()
    params = grid.params.detach().clone().requires_grad_()
    assert gradcheck(features, (x, params))
    assert gradgradcheck(features, (x, params))


def test_at_one_the_upper_corner_carries_into_the_next_row_and_then_wraps() -> None:
    grid = filled(2, HashGridConfig(1, 2, 10, base_resolution=16))
    table = grid.params.detach().view(256, 2)
    features = grid(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).detach()
    torch.testing.assert_close(features[0], table[[15, 16, 31, 32]].mean(dim=0))
    torch.testing.assert_close(features[1], table[[255, 0, 15, 16]].mean(dim=0))


def test_the_entries_that_pad_a_dense_table_are_live() -> None:
    grid = filled(2, HashGridConfig(1, 2, 10, base_resolution=3))
    table = grid.params.detach().view(16, 2)  # 9 vertices and 7 entries of padding
    torch.testing.assert_close(grid(torch.ones(1, 2)).detach()[0], table[[8, 9, 11, 12]].mean(dim=0))


@pytest.mark.parametrize("backend", ["torch", "loops"])
def test_points_far_outside_or_not_finite_neither_fail_nor_reach_the_others(backend: str) -> None:
    grid = filled(3, SMALL[3], backend)
    x = torch.tensor([[0.5, 0.5, 0.5], [1e9, -1e9, 3.0], [math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0]])
    features = grid(x)
    torch.testing.assert_close(features[:1], grid(x[:1]))
    assert features[2].isnan().all()


def test_no_points_give_no_features_and_no_error() -> None:
    grid = filled(2, SMALL[2])
    features = grid(torch.zeros(0, 2))
    features.sum().backward()
    assert features.shape == (0, 8)
    assert grid.params.grad is not None and not grid.params.grad.any()


def test_splitting_many_points_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[Tensor, ...]:
        grid, x = filled(3, SMALL[3]).double(), points(100, 3).double().requires_grad_()
        features = grid(x)
        features.square().sum().backward()
        assert x.grad is not None and grid.params.grad is not None
        return features.detach(), x.grad, grid.params.grad

    whole = run()
    monkeypatch.setattr(hash_grid, "_CHUNK", 33)
    for found, wanted in zip(run(), whole, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_grid_first_used_in_inference_mode_can_still_be_differentiated_twice() -> None:
    hash_grid._make_layout.cache_clear()
    grid, x = filled(2, SMALL[2]), points(4, 2).requires_grad_()
    with torch.inference_mode():
        grid(x)
    (slope,) = torch.autograd.grad(grid(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert grid.params.grad is not None and grid.params.grad.any()


def test_level_weights_multiply_the_features_of_a_level_and_stop_its_gradient_at_zero() -> None:
    grid = filled(2, SMALL[2])
    x = points(20, 2)
    features = grid(x, torch.tensor([1.0, 0.5, 0.0, 2.0]))
    plain = grid(x).view(20, 4, 2)
    torch.testing.assert_close(features.view(20, 4, 2), plain * torch.tensor([1.0, 0.5, 0.0, 2.0])[:, None])
    features.sum().backward()
    start, end = 2 * grid.levels[2].offset, 2 * grid.levels[3].offset
    assert grid.params.grad is not None
    assert not grid.params.grad[start:end].any() and grid.params.grad[:start].any()


def test_levels_are_released_from_coarse_to_fine() -> None:
    assert compute_release_weights(4, 0.0).tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(compute_release_weights(4, 0.375), torch.tensor([1.0, 0.5, 0.0, 0.0]))
    torch.testing.assert_close(compute_release_weights(4, 1.0), torch.ones(4))


# Back ends


def test_the_state_dict_is_one_flat_float32_vector() -> None:
    state = HashGrid(3, SMALL[3]).state_dict()
    assert list(state) == ["params"] and state["params"].ndim == 1 and state["params"].dtype == torch.float32
    assert 0 < state["params"].abs().max() <= 1e-4


def test_levels_taken_together_as_on_a_gpu_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hash_grid, "_compile", lambda function: function)
    monkeypatch.setattr(hash_grid, "explain_missing_compiler", lambda device: "")
    found = {}
    for backend in ("torch", "compiled"):
        grid, x = filled(3, SMALL[3], backend), points(50, 3).requires_grad_()
        features = grid(x)
        features.square().sum().backward()
        found[backend] = (features.detach(), x.grad, grid.params.grad)
    for one_by_one, together in zip(found["torch"], found["compiled"], strict=True):
        torch.testing.assert_close(one_by_one, together, rtol=1e-4, atol=1e-4)


class FakeEncoding(nn.Module):
    """tinycudann.Encoding as its binding behaves: own parameters, rows padded to 256 and trimmed, its own precision."""

    result_dtype = torch.float32
    spare_parameters = 0

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: Any = None) -> None:
        super().__init__()
        assert encoding_config["otype"] == "HashGrid" and dtype == torch.float32
        config = HashGridConfig(
            encoding_config["n_levels"],
            encoding_config["n_features_per_level"],
            encoding_config["log2_hashmap_size"],
            encoding_config["base_resolution"],
            encoding_config["per_level_scale"],
            encoding_config["interpolation"].lower(),
        )
        self.inner = [HashGrid(n_input_dims, config, "torch")]  # in a list: not a part of this module
        self.params = nn.Parameter(torch.zeros(self.inner[0].params.numel() + self.spare_parameters))

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, [0, 0, 0, -len(x) % 256])
        features = torch.func.functional_call(self.inner[0], {"params": self.params}, (padded,))
        return features.to(self.result_dtype)[: len(x)]


@pytest.fixture
def clean_probe() -> Iterator[None]:
    tcnn._import_tinycudann.cache_clear()
    tcnn._build_native.cache_clear()
    yield
    tcnn._import_tinycudann.cache_clear()
    tcnn._build_native.cache_clear()


@pytest.fixture
def fake_tcnn(monkeypatch: pytest.MonkeyPatch, clean_probe: None) -> type[FakeEncoding]:
    fake = types.ModuleType("tinycudann")
    encoding = type("Encoding", (FakeEncoding,), {})
    monkeypatch.setattr(fake, "Encoding", encoding, raising=False)
    monkeypatch.setitem(sys.modules, "tinycudann", fake)
    return encoding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tcnn_shares_the_parameters_and_their_gradient(
    fake_tcnn: type[FakeEncoding], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(tcnn, "NEEDED_DEVICE", "cpu")
    monkeypatch.setattr(fake_tcnn, "result_dtype", dtype)
    plain, fast = filled(3, smooth(SMALL[3])), HashGrid(3, smooth(SMALL[3]), "tcnn")
    fast.load_state_dict(plain.state_dict())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    x, y = points(300, 3).requires_grad_(), points(300, 3).requires_grad_()
    features = fast(x)
    assert features.shape == (300, 8) and features.dtype == torch.float32
    torch.testing.assert_close(features, plain(y), rtol=tolerance, atol=tolerance)
    features.square().mean().backward()
    plain(y).square().mean().backward()
    torch.testing.assert_close(fast.params.grad, plain.params.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(x.grad, y.grad, rtol=tolerance, atol=tolerance)
    assert list(fast.state_dict()) == ["params"]
    back = HashGrid(3, smooth(SMALL[3]), "torch")
    back.load_state_dict(fast.state_dict())
    torch.testing.assert_close(back(x), plain(x))


def test_tcnn_with_another_layout_is_refused_with_both_counts(
    fake_tcnn: type[FakeEncoding], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcnn, "NEEDED_DEVICE", "cpu")
    monkeypatch.setattr(fake_tcnn, "spare_parameters", 8)
    grid = HashGrid(2, SMALL[2], "tcnn")
    size = grid.params.numel()
    with pytest.raises(UserError, match=rf"wants {size + 8:,} parameters .* has {size:,}"):
        grid(points(4, 2))


def test_auto_takes_tcnn_on_a_gpu_only(fake_tcnn: type[FakeEncoding]) -> None:
    assert choose_backend("auto", CUDA) == "tcnn"
    assert choose_backend("auto", CPU) == "loops"
    assert choose_backend("torch", CUDA) == "torch"
    with pytest.raises(UserError, match="'tcnn' does not work here"):
        choose_backend("tcnn", CPU)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("Unknown compute capability"), "does not work here: Unknown compute capability"),
        (ImportError("libcudart.so: cannot open"), "does not load: libcudart.so"),
        (ModuleNotFoundError("No module named 'tinycudann'", name="tinycudann"), "is not installed"),
    ],
)
def test_a_tcnn_that_fails_to_import_is_a_reason_not_a_crash(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, clean_probe: None
) -> None:
    class Finder:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "tinycudann":
                raise error

    monkeypatch.delitem(sys.modules, "tinycudann", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    monkeypatch.setattr(hash_grid, "explain_missing_compiler", lambda device: "no C++ compiler was found")
    assert reason in tcnn.explain_unavailable(CUDA)
    assert choose_backend("auto", CUDA) == "torch"
    with pytest.raises(UserError, match="'tcnn' does not work here") as caught:
        choose_backend("tcnn", CUDA)
    assert reason in caught.value.why


def test_without_tcnn_a_gpu_runs_compiled_torch_where_there_is_a_compiler(
    monkeypatch: pytest.MonkeyPatch, clean_probe: None
) -> None:
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    monkeypatch.setattr(hash_grid, "explain_missing_compiler", lambda device: "")
    assert choose_backend("auto", CUDA) == "compiled"
    assert choose_backend("auto", CPU) == "loops"
    with pytest.raises(UserError, match="'loops' does not work here"):
        choose_backend("loops", CUDA)
    monkeypatch.setattr(hash_grid, "can_compile_loops", lambda: False)
    assert choose_backend("auto", CPU) == "torch"
    monkeypatch.setattr(hash_grid, "explain_missing_compiler", lambda device: "no C++ compiler was found")
    with pytest.raises(UserError, match="'compiled' does not work here"):
        choose_backend("compiled", CPU)


@pytest.mark.slow
def test_a_grid_on_the_cpu_never_imports_an_installed_tcnn_and_a_config_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "tinycudann.py").write_text("raise OSError('Unknown compute capability')")
    program = """
        import sys
        from neural_fields.nn.hash_layout import HashGridConfig, compute_level_table
        compute_level_table(HashGridConfig(), 3)
        assert "torch" not in sys.modules
        import torch
        from neural_fields.nn.hash_grid import HashGrid
        HashGrid(2, HashGridConfig(n_levels=2, log2_table=8))(torch.rand(3, 2)).sum().backward()
        assert "tinycudann" not in sys.modules
    """
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(tmp_path)])}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "compiled", "tcnn"])
def test_a_gpu_computes_what_the_cpu_computes(backend: Any) -> None:
    reasons: dict[str, Callable[[torch.device], str | None]] = {
        "tcnn": tcnn.explain_unavailable,
        "compiled": hash_grid.explain_missing_compiler,
    }
    if backend in reasons and (reason := reasons[backend](CUDA)):
        pytest.skip(reason)
    found = {}
    for device, name in ((CPU, "torch"), (CUDA, backend)):
        grid, x = filled(3, SMALL[3], name).to(device), points(500, 3).to(device).requires_grad_()
        features = grid(x)
        features.square().mean().backward()
        assert x.grad is not None and grid.params.grad is not None
        found[device] = (features.detach().cpu(), x.grad.cpu(), grid.params.grad.cpu())
    for on_cpu, on_gpu in zip(found[CPU], found[CUDA], strict=True):
        torch.testing.assert_close(on_cpu, on_gpu, rtol=1e-3, atol=1e-4)


# Dense grid


@pytest.mark.parametrize("in_dim", [2, 3])
def test_a_dense_grid_reproduces_a_linear_function_from_border_to_border(in_dim: int) -> None:
    grid = DenseGrid(in_dim, DenseGridConfig(2, 1, base_resolution=tuple(range(3, 3 + in_dim))))
    slopes = torch.tensor([1.0, -2.0, 0.5][:in_dim])
    with torch.no_grad():
        for table, sides in zip(grid.tables, grid.resolutions, strict=True):
            axes = torch.meshgrid(*[torch.linspace(0, 1, side) for side in sides], indexing="ij")
            values = (torch.stack(axes, dim=-1) * slopes).sum(dim=-1)
            table.copy_(values.permute(*reversed(range(in_dim)))[None, None])
    x = torch.cat([torch.zeros(1, in_dim), torch.ones(1, in_dim), points(50, in_dim)]).requires_grad_()
    features = grid(x)
    torch.testing.assert_close(features, (x @ slopes)[:, None].expand(-1, 2), rtol=1e-5, atol=1e-5)
    features[2:].sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[2:], 2 * slopes.expand(50, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_dim", [2, 3])
def test_dense_grid_gradients_pass_the_numerical_check(in_dim: int) -> None:
    grid = DenseGrid(in_dim, DenseGridConfig(2, 2, base_resolution=(3,))).double()
    names = [name for name, _ in grid.named_parameters()]

    def features(x: Tensor, *tables: Tensor) -> Tensor:
        return torch.func.functional_call(grid, dict(zip(names, tables, strict=True)), (x,))

    x = (0.05 + 0.1 * points(3, in_dim)).double().requires_grad_()
    tables = [torch.randn_like(p, requires_grad=True) for p in grid.parameters()]
    assert gradcheck(features, (x, *tables))


def test_a_dense_grid_takes_level_weights_and_no_points() -> None:
    grid = DenseGrid(2, DenseGridConfig(2, 3))
    x = points(5, 2)
    torch.testing.assert_close(grid(x, torch.tensor([1.0, 0.0]))[:, :3], grid(x)[:, :3])
    assert not grid(x, torch.tensor([1.0, 0.0]))[:, 3:].any()
    assert grid(torch.zeros(0, 2)).shape == (0, 6)
    with pytest.raises(UserError, match="base_resolution"):
        DenseGrid(3, DenseGridConfig(base_resolution=(4, 4)))


# Fourier, networks


def test_fourier_features_are_octave_by_octave_sines_before_cosines() -> None:
    x = torch.tensor([[0.25, -0.5]])
    expected = [f(2.0**k * math.pi * v) for k in (0, 1) for f in (math.sin, math.cos) for v in (0.25, -0.5)]
    torch.testing.assert_close(Fourier(2, 2)(x), torch.tensor([expected]), rtol=1e-5, atol=1e-6)
    assert Fourier(2, 2).out_dim == 8 and Fourier(2, 10).out_dim == 40


def test_the_atlas_network_of_layered_neural_atlases_has_its_published_shape() -> None:
    net = MLP(40, 3, width=256, layers=8, skips=(4, 7), output="tanh")
    assert [layer.in_features for layer in net.layers] == [40, 256, 256, 256, 296, 256, 256, 296]
    assert net.layers[-1].out_features == 3 and all(layer.bias is not None for layer in net.layers)
    assert net(torch.randn(5, 40)).abs().max() <= 1


def test_a_skip_reads_the_input_but_passes_no_gradient_to_it() -> None:
    x = points(6, 3).requires_grad_()
    net = MLP(3, 2, width=8, layers=3, skips=(2,))
    with torch.no_grad():
        as_one(torch.nn.Linear, net.layers[2]).weight[:, :8] = 0  # only the skipped input is left
    features = net(x)
    assert features.std(dim=0).min() > 0
    features.sum().backward()
    assert x.grad is not None and not x.grad.any()


def test_a_network_with_an_output_bound_starts_near_zero() -> None:
    net = MLP(3, 2, width=16, layers=3, output_bound=1e-4)
    assert net(points(10, 3)).abs().max() < 1e-2
    with pytest.raises(ValueError, match="skips"):
        MLP(3, 2, layers=3, skips=(3,))
