"""Checks and measures everything that a CUDA machine changes, in under eight minutes, and writes one JSON.

    python benchmarks/gpu.py [--json FILE] [--clip VIDEO --masks MASKS] [--size 480p] [--frames 24] [--seconds 25]
                             [--presets atlas lna ...] [--budget 470] [--device cuda]

parity   the hash grid's back ends (tiny-cuda-nn where it imports, compiled torch, eager torch): features and gradients
         compared with eager torch on the CPU, and milliseconds of a forward and a backward pass
steps    milliseconds of a training step with the frames on the GPU and with frames that are transferred at every step
fits     a fit of --seconds with every preset, to a synthetic clip or to --clip
render   frames a second of an edit from baked maps, of plain decoding and encoding, and of the model itself

Every part runs in a separate process with a time limit: a failure is recorded, and the other parts run.
Without a CUDA device it says so and ends with status 2; status 1 says that some part failed. `--device cpu` runs every
part on the CPU, which takes far longer: with small numbers it shows that all of it works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, finish, parser, shown, unwrap, write_pan

PRESETS = ("atlas", "codef", "lna", "hashing_nvd", "deformable_sprites", "narcan")  # roi needs a region drawn by hand
FORWARD, BACKWARD = 1e-4, 1e-3  # differences allowed, relative to the largest value of the reference
OVERHEAD = 35  # seconds that a part may take in addition to its work: start, flow, masks, maps


# --- parts, each in a process of its own ----------------------------------------------------------------------------


def parity(job: dict[str, Any]) -> dict[str, Any]:
    """Compares the back ends of the hash grid with eager torch on the CPU."""
    import torch

    from neural_fields.nn.hash_grid import HashGrid, HashGridConfig, explain_missing_compiler
    from neural_fields.nn.tcnn import explain_unavailable

    device, rows = torch.device(job["device"]), []
    for in_dim in (2, 3):
        torch.manual_seed(0)
        grid = HashGrid(in_dim, HashGridConfig(16, 2, job["log2_table"], growth=1.3819128), "torch")
        torch.nn.init.uniform_(grid.params, -1, 1)
        x, pull = torch.rand(job["points"], in_dim), torch.randn(job["points"], grid.out_dim)
        truth = passes(grid, x, pull)
        for backend in ("torch", "tcnn", "compiled"):
            reasons: dict[str, Callable[[Any], str]] = {
                "tcnn": explain_unavailable,
                "compiled": explain_missing_compiler,
            }
            row: dict[str, Any] = {"axes": in_dim, "backend": backend}
            if backend in reasons and (reason := reasons[backend](device)):
                rows.append({**row, "left_out": reason})
                continue
            rows.append({**row, **compared(grid, backend, x, pull, truth, device)})
            print(json.dumps({"rows": rows, "ok": False}), flush=True)  # a compiler may use up the time
    return {"rows": rows, "ok": all(row.get("ok", True) for row in rows)}


def passes(grid: Any, x: Any, pull: Any) -> dict[str, Any]:
    """Computes features, and the gradients of a fixed linear loss to the tables and to the points.

    Args:
        grid: the hash grid.
        x: points [points, axes] in [0, 1].
        pull: weights of the loss, of the shape of the features.

    Returns:
        The tensors "features", "tables" and "points".
    """
    x = x.detach().clone().requires_grad_()
    grid.params.grad = None
    features = grid(x)
    (features * pull).sum().backward()
    return {"features": features.detach(), "tables": grid.params.grad, "points": x.grad}


def compared(grid: Any, backend: str, x: Any, pull: Any, truth: dict[str, Any], device: Any) -> dict[str, Any]:
    """Measures the difference of a back end from the reference, and the time of its passes.

    Args:
        grid: the reference, on the CPU.
        backend: name of the back end.
        x: points [points, axes] in [0, 1].
        pull: weights of the loss, of the shape of the features.
        truth: what `passes` returns for the reference.
        device: device of the back end.

    Returns:
        Whether the differences are within the limits, with differences and milliseconds; or the error.
    """
    import torch

    from neural_fields.nn.hash_grid import HashGrid

    try:
        other = HashGrid(grid.in_dim, grid.config, backend).to(device)  # type: ignore[arg-type]
        with torch.no_grad():
            other.params.copy_(grid.params)
        x, pull = x.to(device), pull.to(device)
        found = passes(other, x, pull)
        times = [timed(lambda: passes(other, x, pull), device) for _ in range(5)]
    # The border around compilers and drivers, which raise whatever they like: the other back ends are still compared.
    except Exception as error:
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:300]}
    far = {name: float((found[name].cpu() - value).abs().max() / value.abs().max()) for name, value in truth.items()}
    ok = far["features"] <= FORWARD and max(far["tables"], far["points"]) <= BACKWARD
    return {"ok": ok, "difference": far, "milliseconds": round(1000 * min(times), 3)}


def timed(work: Callable[[], Any], device: Any) -> float:
    """Runs a piece of work, including what the GPU does for it, and returns the seconds."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wait()
    begin = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begin


def steps(job: dict[str, Any]) -> dict[str, Any]:
    """Times training steps of some presets with frames on the device and with transferred frames."""
    import torch

    from neural_fields.data.video.io import read_video
    from neural_fields.planar.config import load_planar_config
    from neural_fields.planar.init.warm_up import WarmUpOptions
    from neural_fields.runs.run import Run
    from neural_fields.training.initialize import make_planar_model
    from neural_fields.training.inputs import prepare_clip, read_given_masks
    from neural_fields.training.loop import train_steps
    from neural_fields.training.options import TrainOptions
    from neural_fields.training.planar_task import make_planar_task

    device, rows = torch.device(job["device"]), []
    source = read_video(job["video"], Path(job["work"]) / "steps-cache", job["size"])
    for preset in job["presets"]:
        config = load_planar_config(preset, {})
        options = TrainOptions(config=preset, size=job["size"], masks=tuple(job["masks"]), device=job["device"])
        run = Run.create(Path(job["work"]) / f"steps-{preset}")
        clip, _ = prepare_clip(run, source, options, config, given=read_given_masks(source.metadata, options, config))
        row: dict[str, Any] = {"preset": preset}
        for name, pixels in (("traveling", clip), ("resident", clip.copy_to_device(device))):
            model = make_planar_model(config, clip, None, WarmUpOptions(0, device, 5.0)).to(device)
            into = Run.create(Path(job["work"]) / f"steps-{preset}-{name}")
            records = train_steps(make_planar_task(model, pixels, config.training, job["steps"]), into)
            times = sorted(record.seconds for record in records)
            row[f"{name}_ms"] = round(1000 * times[len(times) // 2], 3)
        rows.append(row)
        print(json.dumps({"rows": rows, "ok": True}), flush=True)  # what is done counts if the rest takes too long
    return {"rows": rows, "ok": True}


def fit_preset(job: dict[str, Any]) -> dict[str, Any]:
    """Trains one preset, in this process so that the GPU's peak memory can be read."""
    import torch

    from neural_fields.core.progress import Progress
    from neural_fields.evaluation.evaluate_planar import evaluate
    from neural_fields.runs.run import Run
    from neural_fields.training.options import TrainOptions
    from neural_fields.training.train_planar import train

    seen: list[Progress] = []

    def report(progress: Progress) -> None:
        if progress.stage == "training" and progress.seconds_per_step is not None:
            seen.append(progress)

    begin = time.monotonic()
    options = TrainOptions(
        out=Path(job["out"]),
        config=job["preset"],
        size=job["size"],
        seconds=job["seconds"],
        masks=tuple(job["masks"]),
        device=job["device"],
    )
    result = train(job["video"], options, report)
    row = {"preset": job["preset"], "seconds": round(time.monotonic() - begin, 1), "steps": result.step, "ok": True}
    if seen:
        row |= {"step_ms": round(1000 * (seen[-1].seconds_per_step or 0), 2), "psnr_training": seen[-1].psnr}
    if job["device"] == "cuda":
        row["gpu_peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    print(json.dumps(row), flush=True)  # what is measured counts if the evaluation takes too long
    return {**row, "psnr": evaluate(Run.open(Path(job["out"])))["psnr"]}


def render_edit(job: dict[str, Any]) -> dict[str, Any]:
    """Times an edit from baked maps, plain decoding and encoding, and the model at the source's size."""
    from neural_fields.core.threads import prepare_threads

    prepare_threads()
    import cv2
    import torch

    from neural_fields.core.prefetch import prefetch
    from neural_fields.data.video.io import source_frames, write_video
    from neural_fields.open_runs.opening import require_planar
    from neural_fields.planar.composition.samples import composite_layers
    from neural_fields.rendering.options import RenderOptions
    from neural_fields.rendering.render_planar import render
    from neural_fields.runs.run import Run

    run, work, device = Run.open(Path(job["run"])), Path(job["work"]), torch.device(job["device"])
    painted = work / "painted.png"
    picture = cv2.imread(str(run.canonical / "background.png"), cv2.IMREAD_UNCHANGED)
    cv2.circle(picture, (picture.shape[1] // 2, picture.shape[0] // 2), picture.shape[0] // 4, (40, 60, 230, 255), -1)
    cv2.imwrite(str(painted), picture)
    unwrap("edit", run.path, painted, "--layer", "background")
    opened = require_planar(run, "the benchmark")
    facts, chosen = opened.metadata, opened.frames
    edits, plains = [], []
    for _ in range(3):
        edits.append(timed(lambda: render(run, RenderOptions(out=work / "edited.mp4", overwrite=True)), device))
        frames = prefetch(source_frames(facts, chosen))
        plains.append(timed(partial(write_video, work / "plain.mp4", frames, facts, overwrite=True), device))
    model = opened.model.to(device)

    def show(t: int) -> Any:
        return composite_layers(model.sample_frame(t, (facts.width, facts.height)))

    with torch.no_grad():
        shows = [timed(partial(show, t), device) for t in range(min(8, len(chosen)))]
    return {
        "size": [facts.width, facts.height],
        "edit_fps": round(len(chosen) / min(edits), 2),
        "plain_fps": round(len(chosen) / min(plains), 2),
        "share": round(min(plains) / min(edits), 3),
        "model_fps": round(1 / sorted(shows)[len(shows) // 2], 2),
        "ok": True,
    }


WORK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "parity": parity,
    "steps": steps,
    "fit": fit_preset,
    "render": render_edit,
}


# --- the whole ------------------------------------------------------------------------------------------------------


def run_part(name: str, job: dict[str, Any], limit: float) -> dict[str, Any]:
    """Runs a part in a separate process. The last object that it prints counts, even if it had to be stopped.

    Args:
        name: one of `WORK`.
        job: arguments of the part, as JSON.
        limit: seconds after which it is stopped.

    Returns:
        The results, with "ok", "seconds_in_all" and, after a failure, "error".
    """
    begin = time.monotonic()
    if limit < 5:
        return {"ok": False, "error": "left out: no time was left", "seconds_in_all": 0.0}
    command = [sys.executable, __file__, "--part", json.dumps({"name": name, **job})]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    error = ""
    try:
        done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=limit)
        out, said = done.stdout, done.stderr
        if done.returncode:
            error = " ".join(said.decode(errors="replace").split())[-400:] or f"status {done.returncode}"
    except subprocess.TimeoutExpired as stopped:
        out, error = stopped.stdout or b"", f"stopped after its {limit:.0f} s"
    found = last_object(out.decode(errors="replace"))
    if error:
        found |= {"ok": False, "error": error}
    elif not found:
        found = {"ok": False, "error": "it printed nothing"}
    return {**found, "seconds_in_all": round(time.monotonic() - begin, 1)}


def last_object(text: str) -> dict[str, Any]:
    """Returns the last line that is a whole JSON object; empty without one."""
    for line in reversed(text.splitlines()):
        if line.startswith("{") and line.endswith("}"):
            return json.loads(line)
    return {}


def measure(chosen: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Runs all parts in turn, each within the time that is left."""
    end = time.monotonic() + chosen.budget
    video, masks = chosen.clip, chosen.masks
    if video is None:
        video, masks = work / "clip.mp4", masks or ["auto"]
        height = int(chosen.size.removesuffix("p"))
        write_pan(video, chosen.frames, 2 * round(height * 16 / 18), height)
    common = {"device": chosen.device, "size": chosen.size, "video": str(video), "masks": masks or ["auto"]}
    common["work"] = str(work)
    found: dict[str, Any] = {"fits": {}}

    def part(name: str, job: dict[str, Any], limit: float, said: str = "") -> dict[str, Any]:
        result = run_part(name, {**common, **job}, min(limit, end - time.monotonic()))
        print(f"{said or name:<24}{'ok' if result['ok'] else 'FAILED'}  {summary(result)}", flush=True)
        return result

    found["parity"] = part("parity", {"points": chosen.points, "log2_table": 19}, chosen.seconds + 3 * OVERHEAD)
    for preset in chosen.presets:
        job = {"preset": preset, "seconds": chosen.seconds, "out": str(work / f"fit-{preset}")}
        found["fits"][preset] = part("fit", job, chosen.seconds + OVERHEAD, f"fit {preset}")
    whole = [name for name, fit in found["fits"].items() if (work / f"fit-{name}" / "maps" / "maps.json").is_file()]
    if whole:
        found["render"] = part("render", {"run": str(work / f"fit-{whole[0]}")}, 2 * OVERHEAD)
    else:
        found["render"] = {"ok": False, "error": "no fit left maps to render from"}
    picked = [name for name in ("codef", "lna", "atlas") if name in chosen.presets]
    found["steps"] = part("steps", {"presets": picked, "steps": chosen.steps}, 2 * OVERHEAD)
    return found


def summary(result: dict[str, Any]) -> str:
    """Formats the results of a part: a line, and a line for each row."""
    plain = {name: value for name, value in result.items() if name not in ("ok", "rows")}
    lines = [", ".join(f"{name} {shown(value)}" for name, value in plain.items())]
    lines += [
        "    " + ", ".join(f"{name} {shown(value)}" for name, value in row.items()) for row in result.get("rows", [])
    ]
    return "\n".join(lines)


def main() -> int:
    """Measures all parts, prints them and writes JSON; returns the exit status."""
    options = parser(__doc__)
    options.add_argument("--clip", type=Path, help="your own clip (default: a synthetic one)")
    options.add_argument("--masks", action="append", default=[])
    options.add_argument("--size", default="480p")
    options.add_argument("--frames", type=int, default=24, help="number of frames of the synthetic clip")
    options.add_argument("--seconds", type=float, default=25, help="seconds of each fit")
    options.add_argument("--steps", type=int, default=40, help="number of steps in the part `steps`")
    options.add_argument("--points", type=int, default=1 << 18, help="number of points in the part `parity`")
    options.add_argument("--presets", nargs="+", default=list(PRESETS))
    options.add_argument("--budget", type=float, default=470, help="seconds for all parts together")
    options.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    options.add_argument("--part", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.part:
        job = json.loads(chosen.part)
        print(json.dumps(WORK[job["name"]](job)))
        return 0
    import torch

    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here, so there is nothing to check: run it on a machine with one, or try the")
        print(
            "parts on the CPU: python benchmarks/gpu.py --device cpu --size 120p --frames 6 --seconds 8 --points 4096"
        )
        return 2
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(chosen, Path(folder))
    parts = [found["parity"], found["steps"], found["render"], *found["fits"].values()]
    ok = all(part["ok"] for part in parts)
    finish([], chosen.json, device=chosen.device, ok=ok, seconds=round(time.monotonic() - begin, 1), parts=found)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
