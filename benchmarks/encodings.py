"""Measures the time of the hash grid's back ends, side by side in one run.

    python benchmarks/encodings.py --points 65536 --backends autograd torch compiled

Prints a table and then one line of JSON. "autograd" is the same arithmetic in plain torch operators with autograd's own
backward pass; every ratio is its time divided by the back end's. Rounds of the back ends alternate, and the best round
counts, so that a busy machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

from neural_fields.nn import hash_grid, tcnn
from neural_fields.nn.grid import DenseGrid, DenseGridConfig
from neural_fields.nn.hash_grid import HashGrid, HashGridConfig

Run = Callable[[Tensor], Tensor]
CHOICES = ("autograd", "torch", "loops", "compiled", "tcnn", "dense")


def autograd(grid: HashGrid) -> Run:
    """Makes a function that runs the grid's plain operators, differentiated by autograd."""

    def run(x: Tensor) -> Tensor:
        layout = hash_grid._make_layout(grid.config, grid.in_dim, x.device, x.dtype, "autograd", True)
        return hash_grid._encode_points(x, grid.params, layout)

    return run


def encoder(backend: str, in_dim: int, config: HashGridConfig, device: torch.device) -> tuple[Run, list[nn.Parameter]]:
    """Makes the function to time for a back end.

    Args:
        backend: one of `CHOICES`.
        in_dim: number of axes, 2 to 4.
        config: settings of the hash grid.
        device: device of the parameters.

    Returns:
        The function, and the parameters whose gradients are cleared between rounds.
    """
    if backend == "dense":
        dense = DenseGrid(in_dim, DenseGridConfig(4, config.n_features, base_resolution=(16,))).to(device)
        return dense, list(dense.parameters())
    grid = HashGrid(in_dim, config, "torch" if backend == "autograd" else backend).to(device)  # type: ignore[arg-type]
    return (autograd(grid) if backend == "autograd" else grid), [grid.params]


def reason_against(backend: str, device: torch.device) -> str:
    """Explains why a back end does not work on this machine; empty if it works."""
    if backend == "tcnn":
        return tcnn.explain_unavailable(device)
    return hash_grid.explain_missing_compiler(device) if backend == "compiled" else ""


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Runs a piece of work, including what the GPU does for it, and returns the time and its result."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def round_times(run: Run, params: list[nn.Parameter], x: Tensor) -> dict[str, float]:
    """Measures a forward pass, and a backward pass to the parameters and the points.

    Args:
        run: the function.
        params: its parameters.
        x: points [points, axes] in [0, 1].

    Returns:
        Seconds of "forward" and "backward".
    """
    x = x.detach().requires_grad_()
    for parameter in params:
        parameter.grad = None
    forward, features = seconds(lambda: run(x), x.device)
    backward, _ = seconds(lambda: features.sum().backward(), x.device)
    return {"forward": forward, "backward": backward}


def measure(in_dim: int, config: HashGridConfig, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every back end that works on this machine, in turns.

    Args:
        in_dim: number of axes, 2 to 4.
        config: settings of the hash grid.
        arguments: options of the command line.

    Returns:
        A row for each back end: best times, and their ratios to "autograd".
    """
    device = torch.device(arguments.device)
    names = [name for name in arguments.backends if not reason_against(name, device)]
    names = [name for name in names if name != "dense" or in_dim < 4]
    encoders = {name: encoder(name, in_dim, config, device) for name in names}
    x = torch.rand(arguments.points, in_dim, generator=torch.Generator().manual_seed(0)).to(device)
    first = {name: sum(round_times(*encoders[name], x).values()) for name in names}
    rounds = [{name: round_times(*encoders[name], x) for name in names} for _ in range(arguments.rounds)]
    rows = []
    for name in names:
        best = {phase: min(times[name][phase] for times in rounds) for phase in ("forward", "backward")}
        rows.append({"in_dim": in_dim, "backend": name, "first_call": first[name], **best})
    base = next((row for row in rows if row["backend"] == "autograd"), None)
    for row in rows:
        for phase in ("forward", "backward"):
            row[f"{phase}_ratio"] = base[phase] / row[phase] if base else None
    return rows


def machine(device: str) -> dict[str, Any]:
    """Returns the machine and the versions with which the times were measured."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {
        "machine": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the times and ratios of the back ends."""
    print(f"{'axes':>4} {'back end':<10}{'first s':>9}{'forward s':>11}{'ratio':>7}{'backward s':>12}{'ratio':>7}")
    for row in rows:
        ratios = [f"{row[f'{phase}_ratio'] or float('nan'):>7.2f}" for phase in ("forward", "backward")]
        print(
            f"{row['in_dim']:>4} {row['backend']:<10}{row['first_call']:>9.2f}"
            f"{row['forward']:>11.4f}{ratios[0]}{row['backward']:>12.4f}{ratios[1]}"
        )


def main() -> None:
    """Measures what the options name, and prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=65536)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3], choices=[2, 3, 4])
    parser.add_argument("--backends", nargs="+", default=["autograd", "torch", "tcnn"], choices=CHOICES)
    parser.add_argument("--levels", type=int, default=16)
    parser.add_argument("--log2-table", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.backends:
        if reason := reason_against(name, torch.device(arguments.device)):
            print(f"left out: {name} ({reason})")
    config = HashGridConfig(arguments.levels, 2, arguments.log2_table, growth=1.3819128)
    rows = [row for in_dim in arguments.dims for row in measure(in_dim, config, arguments)]
    print_table(rows)
    print(json.dumps({**machine(arguments.device), "points": arguments.points, "rows": rows}))


if __name__ == "__main__":
    main()
