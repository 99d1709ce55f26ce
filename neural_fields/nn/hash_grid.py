"""Multi-resolution hash grid with the exact parameter layout of tiny-cuda-nn, in torch.

Müller, Evans, Schied and Keller, "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding" (2022),
section 3. One flat `params` vector holds the levels one after the other, so a model trained with tiny-cuda-nn renders
here and the other way round. Names in this file: D input axes, L levels, F features of a level, N points; a cell has
2^D corners and corner j lies on the upper side of axis d when bit d of j is set.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.prefetch import map_in_threads
from neural_fields.core.threads import thread_count
from neural_fields.nn import tcnn
from neural_fields.nn.compiled_loops import can_compile_loops
from neural_fields.nn.hash_layout import (
    HashGridConfig,
    HashLevel,
    compute_growth,
    compute_level_table,
    find_fragile_levels,
)

__all__ = [
    "Backend",
    "HashGrid",
    "HashGridConfig",
    "HashLevel",
    "choose_backend",
    "compute_growth",
    "compute_level_table",
    "compute_release_weights",
    "find_fragile_levels",
]

ChosenBackend = Literal["torch", "loops", "compiled", "tcnn"]
Backend = Literal["auto"] | ChosenBackend

# tiny-cuda-nn: "coherent" primes, the first factor is 1 so that neighbors along axis 0 stay neighbors in memory.
_PRIMES = (1, 2654435761, 805459861, 3674653429)
_UINT32 = 2**32 - 1
# Points handled at once: bounds the working memory in 3-D to some 60 MB level by level, ten times that on a GPU.
_CHUNK = 1 << 17
# Fewer points times levels are handled by one thread: starting others would take longer.
_LEAST_IN_THREADS = 1 << 15

_log = logging.getLogger(__name__)


def compute_release_weights(n_levels: int, progress: float) -> Float[Tensor, " levels"]:
    """Computes the weight of each level while a grid is released from coarse to fine.

    CoDeF (Ouyang et al. 2023), section 3.3: level j has the weight (1 - cos(pi * clamp(progress * L - j, 0, 1))) / 2.

    Args:
        n_levels: the number of levels, L.
        progress: 0 releases no level, 1 releases all of them.

    Returns:
        The weight of each level, in [0, 1].

    Example:
        >>> compute_release_weights(4, 0.5).tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    opened = (progress * n_levels - torch.arange(n_levels, dtype=torch.float32)).clamp(0, 1)
    return (1 - torch.cos(math.pi * opened)) / 2


@dataclass(frozen=True)
class _Group:
    """Neighboring levels that are computed together: all dense, or all hashed. Tensors are [G, 1] or [D, G, 1]."""

    dense: bool
    scale: Tensor
    factors: Tensor
    """What the cell coordinate of each axis is multiplied with: powers of the resolution, or hash primes."""
    entries: Tensor
    starts: Tensor
    """First entry of each level, counted from the first entry of the group."""
    first: int
    last: int
    """Range of the group's entries among all entries."""

    def view_tables(self, params: Tensor, n_features: int) -> Tensor:
        """Returns the tables of the group [entries, F], a view of the flat `params`."""
        return params[self.first * n_features : self.last * n_features].view(-1, n_features)


@dataclass(frozen=True)
class _Layout:
    """What the kernels need to know besides the tensors."""

    groups: tuple[_Group, ...]
    n_features: int
    smooth: bool
    paired: bool
    """Read and add two float features as one complex number: three times faster on the CPU."""


@functools.lru_cache(maxsize=64)
def _make_layout(
    config: HashGridConfig, in_dim: int, device: torch.device, dtype: torch.dtype, backend: str, wide: bool
) -> _Layout:
    """Groups the levels: one by one, which suits a CPU's cache, or `wide`: in two groups, for a GPU and a compiler."""
    levels = compute_level_table(config, in_dim)
    count = sum(level.dense for level in levels)
    split = (levels[:count], levels[count:]) if wide else tuple((level,) for level in levels)
    groups = []
    with torch.inference_mode(False):  # kept for later calls, which may need gradients
        for part in split:
            if not part:
                continue
            dense, first = part[0].dense, part[0].offset
            factors = [[level.resolution**d if dense else _PRIMES[d] for level in part] for d in range(in_dim)]
            group = _Group(
                dense,
                torch.tensor([[level.scale] for level in part], dtype=dtype, device=device),
                torch.tensor(factors, device=device)[..., None],
                torch.tensor([[level.entries] for level in part], device=device),
                torch.tensor([[level.offset - first] for level in part], device=device),
                first,
                part[-1].offset + part[-1].entries,
            )
            groups.append(group)
    paired = config.n_features == 2 and backend == "torch" and device.type == "cpu"
    return _Layout(tuple(groups), config.n_features, config.interpolation == "smoothstep", paired)


def _locate_cells(x: Tensor, group: _Group, smooth: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For points x [D, N]: lower corner (int64), weight of the upper side and its derivative by x, all [D, G, N]."""
    place = x[:, None, :] * group.scale + 0.5
    floor = place.floor()
    inside = place - floor
    if smooth:
        return floor.to(torch.int64), inside * inside * (3 - 2 * inside), 6 * inside * (1 - inside) * group.scale
    return floor.to(torch.int64), inside, group.scale.expand_as(inside)


def _combine_corners(lower: list[Tensor], upper: list[Tensor], join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Returns [2^D, G, N]: for each corner the `join` over the axes of the values of its lower or upper side there."""
    total = [lower[0], upper[0]]
    for low, high in zip(lower[1:], upper[1:], strict=True):
        total = [join(t, low) for t in total] + [join(t, high) for t in total]
    return torch.stack(total)


def _corner_entries(cell: Tensor, group: _Group) -> Tensor:
    """Returns the entry [2^D, G, N] of the group's table for each corner of the cells [D, G, N].

    A dense index wraps modulo 2^32 and then modulo the padded table, as in tiny-cuda-nn: at x = 1 the upper corner
    carries into the next row. Hashed tables have 2^T entries, so their modulo is a mask.
    """
    lower = list((cell * group.factors).unbind())
    upper = [low + factor for low, factor in zip(lower, group.factors, strict=True)]
    if group.dense:
        inside = (_combine_corners(lower, upper, torch.add) & _UINT32) % group.entries
    else:
        inside = _combine_corners(lower, upper, torch.bitwise_xor) & (group.entries - 1)
    return inside + group.starts if len(group.starts) > 1 else inside


def _corner_weights(upper: Tensor) -> Tensor:
    """Returns the weight [2^D, G, N] of each corner from the weight of the upper side on each axis [D, G, N]."""
    return _combine_corners(list((1 - upper).unbind()), list(upper.unbind()), torch.mul)


def _gather_rows(table: Tensor, entry: Tensor, paired: bool) -> Tensor:
    """Returns rows of `table` [E, F] at `entry` [2^D, G, N] -> [2^D, G, N, F]."""
    if paired:
        rows = torch.view_as_complex(table).index_select(0, entry.view(-1))
        return torch.view_as_real(rows).view(*entry.shape, 2)
    return table.index_select(0, entry.view(-1)).view(*entry.shape, -1)


def _encode_points(x: Tensor, params: Tensor, layout: _Layout) -> Tensor:
    """Returns features [N, L*F] of points [N, D]; plain torch, differentiable any number of times."""
    axes = x.t().contiguous()
    features = []
    for group in layout.groups:
        cell, upper, _ = _locate_cells(axes, group, layout.smooth)
        tables = group.view_tables(params, layout.n_features)
        values = _gather_rows(tables, _corner_entries(cell, group), layout.paired)
        features.append((values * _corner_weights(upper)[..., None]).sum(dim=0))
    return torch.cat(features).permute(1, 0, 2).reshape(len(x), -1)


def _compute_gradients(
    x: Tensor, params: Tensor, grad: Tensor, layout: _Layout, wants_x: bool, wants_params: bool
) -> tuple[Tensor, Tensor]:
    """Returns gradients by x [N, D] and by params; one that is not wanted is left at zero or empty."""
    axes = x.t().contiguous()
    columns = grad.view(len(x), -1, layout.n_features).transpose(0, 1).contiguous()
    grad_x, grad_params = torch.zeros_like(axes), torch.zeros_like(params if wants_params else params[:0])
    done = 0
    for group in layout.groups:
        cell, upper, slope = _locate_cells(axes, group, layout.smooth)
        entry = _corner_entries(cell, group)
        column = columns[done : done + len(group.scale)]
        done += len(group.scale)
        if wants_params:  # add to the rows of the corners, in place
            rows = _corner_weights(upper)[..., None] * column
            tables = group.view_tables(grad_params, layout.n_features)
            if layout.paired:
                torch.view_as_complex(tables).index_add_(0, entry.view(-1), torch.view_as_complex(rows).view(-1))
            else:
                tables.index_add_(0, entry.view(-1), rows.view(-1, rows.shape[-1]))
        if wants_x:
            values = _gather_rows(group.view_tables(params, layout.n_features), entry, layout.paired)
            dots = (values * column).sum(dim=-1)  # gradient times value at each corner [2^D, G, N]
            parts = []
            for axis in range(len(upper)):
                rest = dots
                for other in reversed(range(len(upper))):  # the last axis is the highest bit of the corner's number
                    low, high = rest.view(2, -1, *rest.shape[1:]).unbind()
                    rest = high - low if other == axis else torch.lerp(low, high, upper[other])
                parts.append((rest[0] * slope[axis]).sum(dim=0))
            grad_x = grad_x + torch.stack(parts)
    return grad_x.t(), grad_params


def _encode_in_loops(x: Tensor, params: Tensor, layout: _Layout) -> Tensor:
    """Returns the features of `_encode_points`, by compiled loops, several levels at once."""
    from neural_fields.nn.hash_kernels import encode_level  # numba takes a second

    width, points = layout.n_features, x.detach().contiguous().numpy()
    features = np.empty((len(layout.groups), len(points), width), np.float32)

    def encode(number: int) -> None:
        group = layout.groups[number]
        table = group.view_tables(params.detach(), width).numpy()
        encode_level(points, table, *_describe_level(group, layout), features[number])

    _run_levels(encode, layout, len(points))
    return torch.from_numpy(features).transpose(0, 1).reshape(len(points), -1)


def _compute_gradients_in_loops(
    x: Tensor, params: Tensor, grad: Tensor, layout: _Layout, wants_x: bool, wants_params: bool
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of `_compute_gradients`, by compiled loops, several levels at once."""
    from neural_fields.nn.hash_kernels import add_level_gradients  # numba takes a second

    points, wants = x.detach().contiguous().numpy(), (wants_x, wants_params)
    columns = grad.view(len(x), -1, layout.n_features).transpose(0, 1).contiguous().numpy()
    grad_x = np.zeros(
        (len(layout.groups), *points.shape) if wants_x else (len(layout.groups), 0, x.shape[1]), np.float32
    )
    grad_params = torch.zeros_like(params)

    def add(number: int) -> None:
        group = layout.groups[number]
        tables = (group.view_tables(part, layout.n_features).numpy() for part in (params.detach(), grad_params))
        table, grad_table = tables
        level = _describe_level(group, layout)
        add_level_gradients(points, table, *level, columns[number], wants, grad_x[number], grad_table)

    _run_levels(add, layout, len(points))
    return torch.from_numpy(grad_x.sum(axis=0)), grad_params


def _describe_level(group: _Group, layout: _Layout) -> tuple[np.float32, np.ndarray, bool, bool]:
    """Returns what the loops need to know of a level: cells for a unit, factors, whether it is dense, and smooth."""
    return np.float32(group.scale.item()), group.factors.flatten().numpy(), group.dense, layout.smooth


def _run_levels(work: Callable[[int], None], layout: _Layout, points: int) -> None:
    """Works on every level; in threads where there is enough to do. Levels have tables of their own."""
    numbers = range(len(layout.groups))
    if thread_count() == 1 or points * len(numbers) < _LEAST_IN_THREADS:
        for number in numbers:
            work(number)
    else:
        list(map_in_threads(work, numbers))


@functools.cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function once in a process."""
    return torch.compile(function, dynamic=True)


class _HashEncode(torch.autograd.Function):
    """`_encode_points` that keeps only its inputs and recomputes the corners: faster and far smaller than autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, params: Tensor, layout: _Layout, backend: ChosenBackend) -> Tensor:
        """Encodes points.

        Args:
            ctx: autograd's memory for `backward`.
            x: points [n, dimensions] in [0, 1].
            params: the tables.
            layout: of the tables.
            backend: "torch", "loops" or "compiled".
        """
        ctx.save_for_backward(x, params)
        ctx.layout, ctx.backend = layout, backend
        if backend == "loops":
            return _encode_in_loops(x, params, layout)
        encode = _compile(_encode_points) if backend == "compiled" else _encode_points
        return torch.cat([encode(part, params, layout) for part in x.split(_CHUNK)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, params = ctx.saved_tensors
        wants_x, wants_params = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # create_graph=True: the gradient itself will be differentiated
            with torch.enable_grad():
                features = _encode_points(x, params, ctx.layout)
                wanted = [tensor for tensor, wants in ((x, wants_x), (params, wants_params)) if wants]
                found = iter(torch.autograd.grad(features, wanted, grads[0], create_graph=True))
            return (next(found) if wants_x else None), (next(found) if wants_params else None), None, None
        if ctx.backend == "loops":
            grad_x, grad_params = _compute_gradients_in_loops(
                x, params, grads[0].contiguous(), ctx.layout, wants_x, wants_params
            )
            return (grad_x if wants_x else None), (grad_params if wants_params else None), None, None
        compute = _compile(_compute_gradients) if ctx.backend == "compiled" else _compute_gradients
        grad_parts, total = [], None
        for points, grad in zip(x.split(_CHUNK), grads[0].contiguous().split(_CHUNK), strict=True):
            grad_part, added = compute(points, params, grad, ctx.layout, wants_x, wants_params)
            grad_parts.append(grad_part)
            total = added if total is None else total.add_(added)
        return (torch.cat(grad_parts) if wants_x else None), (total if wants_params else None), None, None


@functools.cache
def explain_missing_compiler(device: torch.device) -> str:
    """Says why `torch.compile` cannot be used here; empty when it can."""
    if not any(shutil.which(name) for name in ("g++", "clang++", "cl")):
        return "no C++ compiler was found"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return ""


def choose_backend(requested: Backend, device: torch.device) -> ChosenBackend:
    """Chooses the back end that evaluates a hash grid.

    "auto" takes tiny-cuda-nn on a GPU where it works, otherwise compiled torch on a GPU; on a CPU loops that numba
    compiles; and torch elsewhere. tiny-cuda-nn is only imported for a GPU.

    Args:
        requested: "auto", "torch", "loops" (numba, on a CPU), "compiled" (torch.compile) or "tcnn".
        device: where the grid is evaluated.

    Returns:
        The back end.

    Raises:
        UserError: the requested back end does not work here.

    Example:
        >>> choose_backend("torch", torch.device("cpu"))
        'torch'
    """
    if requested == "torch":
        return "torch"
    if requested in ("auto", "loops") and device.type == "cpu" and can_compile_loops():
        return "loops"
    if requested == "loops":
        raise _backend_error("loops", f"they run on a CPU with numba, not on {device.type}")
    on_gpu = device.type == "cuda"
    if requested == "tcnn" or (requested == "auto" and on_gpu):
        reason = tcnn.explain_unavailable(device)
        if not reason:
            return "tcnn"
        if requested == "tcnn":
            raise _backend_error("tcnn", reason)
    if requested == "compiled" and explain_missing_compiler(device):
        raise _backend_error("compiled", explain_missing_compiler(device))
    if requested == "compiled" or (on_gpu and not explain_missing_compiler(device)):
        return "compiled"
    return "torch"


def _backend_error(name: str, reason: str) -> UserError:
    """The error for a back end that was asked for by name."""
    what = f"the hash grid back end {name!r} does not work here"
    return UserError(ExitCode.USAGE, what, where="encoding.backend", why=reason, fix="set the back end to auto")


class HashGrid(nn.Module):
    """Encodes points in [0, 1]^D as L*F features, coarsest level first (Instant NGP, section 3).

    The only parameter is the flat float32 `params`, the same for every back end. Points a little outside [0, 1] are
    allowed; the tables then wrap around as in tiny-cuda-nn.

    Args:
        in_dim: number of coordinates D, 2 to 4.
        config: shape of the grid.
        backend: "auto", "torch", "loops", "compiled" or "tcnn" (see `choose_backend`).

    Raises:
        UserError: a number of coordinates out of range, or a back end that does not work here.

    Example:
        >>> grid = HashGrid(2, HashGridConfig(n_levels=4, log2_table=12))
        >>> grid(torch.rand(10, 2)).shape
        torch.Size([10, 8])
    """

    def __init__(self, in_dim: int, config: HashGridConfig | None = None, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config or HashGridConfig()
        self.backend: Backend = backend
        self.levels = compute_level_table(self.config, in_dim)
        self.in_dim = in_dim
        self.out_dim = self.config.n_levels * self.config.n_features
        size = sum(level.entries for level in self.levels) * self.config.n_features
        self.params = nn.Parameter(torch.empty(size).uniform_(-1e-4, 1e-4))  # as tiny-cuda-nn starts

    def forward(
        self, x: Float[Tensor, "points in_dim"], level_weights: Float[Tensor, " levels"] | None = None
    ) -> Float[Tensor, "points out_dim"]:
        """Computes the features of points.

        Args:
            x: points in [0, 1]^D.
            level_weights: a factor on all features of each level, as from `compute_release_weights`.

        Returns:
            The features of each point.
        """
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise ValueError(f"expected points of shape [N, {self.in_dim}], got {list(x.shape)}")
        x = x.to(self.params.dtype)
        if len(x) == 0:
            features = x.new_zeros(0, self.out_dim) + 0 * self.params[:1].sum()
        elif (backend := choose_backend(self.backend, x.device)) == "tcnn":
            _warn_of_fragile_levels(find_fragile_levels(self.levels))
            features = tcnn.encode_points(x, self.params, self.in_dim, self.config)
        else:
            if x.dtype != torch.float32 and backend == "loops":
                backend = "torch"
            wide = backend == "compiled" or x.device.type != "cpu"
            layout = _make_layout(self.config, self.in_dim, x.device, x.dtype, backend, wide)
            features = _HashEncode.apply(x, self.params, layout, backend)
        if level_weights is None:
            return features
        return features * level_weights.to(features).repeat_interleave(self.config.n_features)

    def extra_repr(self) -> str:
        """Returns the sizes and the back end for the printed module."""
        return f"in_dim={self.in_dim}, out_dim={self.out_dim}, params={self.params.numel():,}, backend={self.backend}"


@functools.cache
def _warn_of_fragile_levels(levels: tuple[int, ...]) -> None:
    """Warns once of levels that tiny-cuda-nn may lay out differently."""
    if levels:
        names = ", ".join(str(level) for level in levels)
        _log.warning("tiny-cuda-nn may lay out levels %s of a hash grid differently; change the growth a little", names)
