"""What a training will take: time, memory, space on the disk. Said before it starts, and refused where it is not there.

The figures were measured on two cores (docs/benchmarks.md, `python benchmarks/estimate.py`); another processor is
compared by the time that it takes for optical flow of two small frames.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.files import nearest_existing_folder, require_disk_space
from neural_fields.data.video.metadata import VideoMetadata, parse_frames, parse_size
from neural_fields.planar.appearance.pixel_opacity import PixelOpacityConfig
from neural_fields.planar.config import PlanarConfig, count_steps
from neural_fields.training.options import TrainOptions


@dataclass(frozen=True)
class CostSettings:
    """Holds what a training costs. "mpf" is a million pixels of all frames together at the size of the training."""

    start_s: float = 5.0  # imports, and what does not depend on the clip
    setup_s_per_mpf: float = 3.2  # decoding, flow, geometry, baking, report
    pass_s_per_mpf: float = 0.27  # a visit of the steps to each frame
    mask_s_per_frame: float = 0.3  # finding moving objects, at 240 lines
    speed_s: float = 0.009  # optical flow of the two frames of `measure_slowness`, on the processor of these figures
    base_mib: float = 900.0  # memory whatever the clip
    frame_mib_per_mp: float = 600.0  # memory that grows with the pixels of a frame
    least_memory_share: float = 0.6  # of the estimate; with less free memory than that a training does not begin
    # Bytes for each pixel of all frames.
    frame_bytes: float = 3.0  # decoded frames
    flow_bytes: float = 9.5  # both directions, at full size
    map_bytes: float = 9.5  # uv, weight and gain, a layer
    layer_bytes: float = 4.2  # a checkpoint with its moments, without front layers, ...
    front_bytes: float = 15.4  # ... and for each layer in front
    checkpoints: int = 3  # at once, while one is being written


DEFAULTS = CostSettings()


@dataclass(frozen=True)
class TrainingEstimate:
    """Holds what a training is expected to take.

    Attributes:
        frames: number of frames.
        size: (width, height) of the training in pixels.
        steps: number of steps.
        seconds: time on this machine, within a factor of two; None where it is known only after the first steps.
        setup_seconds: the part of it that is not for steps: decoding, flow, masks, geometry, maps, report.
        peak_mib: memory.
        disk_mib: space on the disk while it runs.
        kept_mib: space of the finished run; `unwrap gc` frees a part of it.
    """

    frames: int
    size: tuple[int, int]
    steps: int
    seconds: float | None
    setup_seconds: float | None
    peak_mib: float
    disk_mib: float
    kept_mib: float

    def advise_on_budget(self, seconds: float, max_setup_share: float = 0.75) -> str:
        """Returns a sentence for a time budget that leaves hardly any time for steps; empty for others."""
        if self.setup_seconds is None or self.setup_seconds < max_setup_share * seconds:
            return ""
        return (
            f"--seconds {seconds:g} leaves few steps: what comes before and after them takes about "
            f"{self.setup_seconds:.0f} s here. A smaller --size, fewer --frames or masks of your own take less"
        )

    @property
    def sentence(self) -> str:
        """The estimate in a line."""
        took = ""
        if self.seconds is not None:
            minutes = self.seconds / 60
            took = f"about {max(1, round(minutes))} min" if minutes >= 1 else f"about {self.seconds:.0f} s"
            took += ", "
        room = f"{self.peak_mib / 1024:.1f} GiB of memory, {_format_mib(self.disk_mib)} on the disk"
        what = f"{self.frames} frames of {self.size[0]}x{self.size[1]}, {self.steps} steps"
        return f"{what}: {took}{room} ({_format_mib(self.kept_mib)} at the end)"


def _format_mib(size: float) -> str:
    return f"{size / 1024:.1f} GiB" if size >= 1024 else f"{size:.0f} MiB"


def estimate_training(
    metadata: VideoMetadata, options: TrainOptions, config: PlanarConfig, settings: CostSettings = DEFAULTS
) -> TrainingEstimate:
    """Estimates what a training will take, from the length and size of the clip.

    Args:
        metadata: of the source.
        options: of the training.
        config: of the model.
        settings: costs.
    """
    frames = parse_frames(options.frames, metadata.numbers) if options.frames else metadata.numbers
    width, height = parse_size(options.size, metadata.width, metadata.height)
    steps = count_steps(config.training, options.quality, len(frames), width * height)
    frame_mp, mpf = width * height / 1e6, len(frames) * width * height / 1e6
    front = 0 if options.masks == ("none",) else 1 if options.finds_masks else len(options.masks)

    # The time is known for models whose steps visit whole frames without networks.
    seconds = setup = None
    if config.training.batch == "frames" and isinstance(config.opacity, PixelOpacityConfig):
        visits = steps * max(frame_mp, min(mpf, config.training.frame_pixels / 1e6))
        setup = settings.start_s + settings.setup_s_per_mpf * mpf
        setup += settings.mask_s_per_frame * len(frames) * options.finds_masks
        slowness = measure_slowness(settings)
        setup, steps_s = slowness * setup, slowness * settings.pass_s_per_mpf * visits
        seconds = setup + steps_s if options.seconds is None else min(setup + steps_s, max(setup, options.seconds))

    pixels = 1e6 * mpf
    flow_share = min(1.0, (config.mapping.flow_side or max(width, height)) / max(width, height)) ** 2
    cache = pixels * (settings.frame_bytes + settings.flow_bytes * flow_share + front)
    checkpoint = pixels * (settings.layer_bytes + settings.front_bytes * front)
    maps = pixels * settings.map_bytes * (1 + front)
    return TrainingEstimate(
        frames=len(frames),
        size=(width, height),
        steps=steps,
        seconds=None if seconds is None else round(seconds, 1),
        setup_seconds=None if setup is None else round(setup, 1),
        peak_mib=round(settings.base_mib + settings.frame_mib_per_mp * frame_mp, 1),
        disk_mib=round((cache + maps + settings.checkpoints * checkpoint) / 2**20, 1),
        kept_mib=round((cache + maps + checkpoint) / 2**20, 1),
    )


def require_room(estimate: TrainingEstimate, run: Path, settings: CostSettings = DEFAULTS) -> None:
    """Refuses a training for which the disk or the memory is too small.

    Args:
        estimate: what it takes.
        run: the folder of the run, which need not exist.
        settings: how much memory is needed.

    Raises:
        UserError: not enough space (exit 4).
    """
    require_disk_space(nearest_existing_folder(run), int(estimate.disk_mib * 2**20))
    free = measure_free_memory()
    if free is not None and free < settings.least_memory_share * estimate.peak_mib:
        raise UserError(
            ExitCode.NO_ROOM,
            "not enough memory for this training",
            where=str(run),
            why=f"about {estimate.peak_mib:.0f} MiB are needed, {free:.0f} MiB are free",
            fix="close other programs, or use a smaller --size",
        )


def measure_free_memory() -> float | None:
    """Returns the memory that is free for this process in MiB, as Linux says it; None elsewhere."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) / 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:  # a container may have less
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        found += [] if limit == "max" else [(int(limit) - int(used)) / 2**20]
    except (OSError, ValueError):
        pass
    return min(found, default=None)


@cache
def measure_slowness(settings: CostSettings = DEFAULTS) -> float:
    """Measures how much slower than the one of the figures this processor is, by the flow of two small frames.

    Returns:
        1 for the same speed, 2 for half of it; between 1/4 and 4, so that a busy moment does not spoil an estimate.
    """
    noise = np.random.default_rng(0).integers(0, 255, (45, 80), np.uint8)
    first = cv2.resize(noise, (320, 180), interpolation=cv2.INTER_CUBIC)
    second = np.roll(first, 2, axis=1)
    took = []
    for _ in range(5):
        begun = time.process_time()
        cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(
            first, second, np.zeros((180, 320, 2), np.float32)
        )
        took.append(time.process_time() - begun)
    # Two of the cores do most of the work; more of them help little.
    cores = 1.0 if (os.cpu_count() or 1) > 1 else 1.6
    return float(np.clip(min(took) / settings.speed_s, 0.25, 4)) * cores
