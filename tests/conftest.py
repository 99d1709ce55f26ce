"""What every test shares: one thread, no network, real clips where they are, a GPU where there is one."""

from __future__ import annotations

import os

# Both must be in place before torch is imported: small operators on two busy cores run up to 150 times slower without.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import functools
import gc
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import hypothesis
import jaxtyping
import pytest
import torch

import tests.support.annotation_check  # noqa: F401 - `--jaxtyping-packages` names it, and does not import modules

if TYPE_CHECKING:
    from neural_fields.runs.run import Run
    from tests.support.true_run import TrueRun

# Compiled once for both workers, the next run, and the many processes that tests start.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

gc.set_threshold(100_000, 50, 100)  # torch keeps so many objects that looking for cycles takes a tenth of the time
torch.set_num_threads(1)
hypothesis.settings.register_profile("unwrap", deadline=None, derandomize=True, max_examples=50, database=None)
hypothesis.settings.load_profile("unwrap")

_compile = torch.compile


def _compile_unchecked(function: Callable | None = None, **options: Any) -> Callable:
    """`torch.compile`, with the checks of annotations off inside: the compiler cannot trace through them."""
    if function is None:
        return functools.partial(_compile_unchecked, **options)
    compiled = _compile(function, **options)
    if isinstance(function, torch.nn.Module):
        return compiled

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            return compiled(*args, **kwargs)
        finally:
            jaxtyping.config.update("jaxtyping_disable", before)

    return call


torch.compile = _compile_unchecked  # type: ignore[assignment]

# What is written need not outlive the machine. Of a closed file it is still an error.
os.fsync = os.fstat  # type: ignore[assignment]

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _beside_the_checkout(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"../shared/{name} is not beside the checkout")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips beside the checkout; the test is skipped where it is missing."""
    return _beside_the_checkout("data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """The folder of real network weights beside the checkout; the test is skipped where it is missing."""
    return _beside_the_checkout("weights")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked `gpu` where there is no CUDA device."""
    if item.get_closest_marker("gpu") is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a missing or old driver, which is the answer sought
        available = torch.cuda.is_available()
    if not available:
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Fails a test that would leave the machine; sockets between local processes still work."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            self.close()
            raise AssertionError(f"a test opened a network connection to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def tiny_models() -> ModuleType:
    """The module that makes tiny random diffusion models."""
    pytest.importorskip("diffusers", reason="diffusers is not installed: the extra `diffusion`")
    from tests.support import tiny_diffusion

    return tiny_diffusion


@pytest.fixture(scope="session")
def moving_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A quick run of a foreground that moves over a background: six frames of 64 x 36. Tests do not change it."""
    import numpy as np

    from editors.demo import make_clip_metadata
    from neural_fields.data.synthetic.planar_clips import make_demo_clip
    from neural_fields.data.video.io import write_video
    from neural_fields.training.options import TrainOptions
    from neural_fields.training.train_planar import train

    home = tmp_path_factory.mktemp("moving")
    clip = make_demo_clip(6, 64, 36)
    write_video(home / "clip.mkv", clip.render_frames(), make_clip_metadata(clip), codec="ffv1")
    np.save(home / "mask.npy", clip.masks[0])
    masks = (f"foreground={home / 'mask.npy'}",)
    return train(home / "clip.mkv", TrainOptions(home / "run", masks=masks, overrides={"training.steps": 8})).run


@pytest.fixture(scope="session")
def true_run(tmp_path_factory: pytest.TempPathFactory) -> TrueRun:
    """A run (`.run`) with the exact maps of a clip (`.clip`): 12 frames of 192 x 108. Tests do not change it."""
    from tests.support import true_run

    return true_run.make(tmp_path_factory.mktemp("true"))
