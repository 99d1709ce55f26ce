"""Kills a training with SIGKILL at random moments, continues it, and compares the results bit for bit, on the CPU.

    python benchmarks/resume.py [--kills 20] [--video CLIP --size 240p --masks MASKS] [--steps 40]
    python benchmarks/resume.py --scene [--kills 20] [--steps 40]

OMP_NUM_THREADS sets the threads (1 without it).

Each kill has its own new run. It is killed at a random time within the duration of the uninterrupted training, and then
continued to its end. The weights and the optimizer's state in the last checkpoint, the baked maps and the canonical
pictures (of a 3D scene, with `--scene`: cameras, bones and the preview) are compared byte for byte. The exit status is
0 if all are equal.
"""

from __future__ import annotations

import os

# Chosen before torch is imported: sums of floating point numbers depend on how many threads share them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import platform
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# This process only imports and forks: children inherit what it has loaded, and it has no thread pools to break.
import numpy as np
import torch

from neural_fields.data.capture.capture_folder import write_capture
from neural_fields.data.synthetic.planar_clips import make_demo_clip
from neural_fields.data.synthetic.scene import make_walking_scene
from neural_fields.imaging.image_io import encode_png
from neural_fields.training.options import TrainOptions
from neural_fields.training.train import train

CHECKPOINT_EVERY = 5  # steps


@dataclass(frozen=True)
class Job:
    """Describes the training that is killed."""

    video: Path
    masks: tuple[str, ...]
    size: str
    steps: int
    is_scene: bool = False

    def run(self, out: Path) -> None:
        """Runs or continues the training in a folder."""
        if self.is_scene:
            config, overrides = "hosnerf", self.make_stages()
        else:
            config, overrides = "atlas", {"training.steps": self.steps}
            overrides["training.preview_every"] = 3 * CHECKPOINT_EVERY
        overrides["training.checkpoint_every"] = CHECKPOINT_EVERY
        options = TrainOptions(
            out=out, config=config, overrides=overrides, size=self.size, masks=self.masks, device="cpu"
        )
        train(self.video, options)

    def make_stages(self) -> dict[str, object]:
        """Returns settings for a few small steps of each stage of a 3D scene."""
        joint = self.steps // 5
        person = 2 * joint
        counts = {"background": self.steps - person - joint, "person": person, "joint": joint}
        overrides: dict[str, object] = {f"training.{name}_steps": [count] * 3 for name, count in counts.items()}
        return {**overrides, "training.rays": 128, "training.person_rays": 128}


def forked(work, *arguments) -> int:
    """Starts `work` in a child of this process and returns the child's id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work(*arguments)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def finished(child: int) -> int:
    """Waits for a child; returns its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def results(run: Path) -> dict[str, bytes]:
    """Reads the files that a training ends with, by name."""
    newest = max((run / "checkpoints").iterdir())
    files = [*newest.glob("*.safetensors"), *run.glob("maps/*"), *run.glob("canonical/*.png"), *run.glob("scene/*")]
    files += run.glob("previews/scene.png")
    return {path.relative_to(newest if newest in path.parents else run).as_posix(): path.read_bytes() for path in files}


def newest_checkpoint(run: Path) -> str:
    """Returns the name of the newest checkpoint of a run that was killed, or "none"."""
    names = [path.name for path in (run / "checkpoints").glob("0*")]
    return max(names) if names else "none"


def write_clip(folder: Path) -> None:
    """Writes the synthetic clip as numbered pictures, and its mask."""
    clip = make_demo_clip(8, 96, 54)
    (folder / "frames").mkdir()
    for number, frame in enumerate(clip.frames):
        (folder / "frames" / f"{number:05d}.png").write_bytes(encode_png(frame.astype(np.float32) / 255))
    np.save(folder / "mask.npy", clip.masks[0])


def write_scene(folder: Path) -> None:
    """Writes the synthetic capture of a person."""
    write_capture(folder / "scene", make_walking_scene(count=6, size=(48, 36), switches=(3,)).capture)


def kill_and_continue(job: Job, run: Path, delay: float) -> tuple[str, int]:
    """Starts a new training, kills it, and continues it.

    Args:
        job: the training.
        run: its folder.
        delay: seconds from the start to the kill.

    Returns:
        The newest checkpoint at the kill ("ended" if the training was faster), and the exit status.
    """
    child = forked(job.run, run)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    was_killed = finished(child) == -signal.SIGKILL
    state = newest_checkpoint(run) if was_killed else "ended"
    return state, finished(forked(job.run, run))


def measure(job: Job, folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Compares killed and continued trainings with an uninterrupted one, printing a line for each kill.

    Args:
        job: the training.
        folder: folder for the runs.
        kills: number of kills.
        seed: seed of the times of the kills.

    Returns:
        The number of kills, of equal results, and the seconds of the uninterrupted training.
    """
    began = time.monotonic()
    if finished(forked(job.run, folder / "whole")) != 0:
        raise SystemExit("the uninterrupted fit failed")
    seconds = time.monotonic() - began
    whole = results(folder / "whole")
    moments = random.Random(seed)
    equal = killed = attempts = 0
    while killed < kills:
        attempts += 1
        run, delay = folder / f"killed-{attempts}", moments.uniform(0, seconds)
        state, status = kill_and_continue(job, run, delay)
        if state == "ended" and attempts < 5 * kills:
            continue  # this fit was faster than the one that set the time
        now = results(run) if status == 0 else {}
        different = sorted(name for name in whole.keys() | now.keys() if whole.get(name) != now.get(name))
        litter = [path.name for path in run.rglob(".unwrap-part*")]
        killed += 1
        equal += not different and not litter
        verdict = "equal" if not different and not litter else f"different: {', '.join(different + litter)[:200]}"
        print(f"kill {killed:2d} after {delay:6.2f} s, newest checkpoint {state:>6}: {verdict}", flush=True)
    return {"kills": kills, "equal": equal, "seconds_uninterrupted": round(seconds, 2)}


def main() -> int:
    """Measures what the options name; returns 0 if all results are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scene", action="store_true", help="a small synthetic 3D scene instead of a clip")
    parser.add_argument("--video", type=Path, help="your own clip (default: a small synthetic one)")
    parser.add_argument("--masks", action="append", default=[])
    parser.add_argument("--size", default="240p")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = Job(options.video, tuple(options.masks) or ("auto",), options.size, options.steps)
        if options.scene:
            finished(forked(write_scene, folder))
            job = Job(folder / "scene", ("auto",), "source", options.steps, is_scene=True)
        elif options.video is None:
            finished(forked(write_clip, folder))
            job = Job(folder / "frames", (str(folder / "mask.npy"),), "source", options.steps)
        facts = measure(job, folder, options.kills, options.seed)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    machine = f"{platform.machine()}, threads: {torch.get_num_threads()}, {versions}"
    print(f"{facts['equal']} of {facts['kills']} equal bit for bit ({machine})")
    print(json.dumps({**facts, "machine": machine}))
    return 0 if facts["equal"] == facts["kills"] else 1


if __name__ == "__main__":
    sys.exit(main())
