"""Soft edges by a network: a tiny random one, and pictures in its place whose windows are put together."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neural_fields.data.segmentation.networks.matting_network import (
    MattingNetwork,
    MattingNetworkSettings,
    split_span,
)
from neural_fields.nn.pretrained import NetworkSource
from tests.support import tiny_networks

pytestmark = pytest.mark.slow  # transformers alone takes ten seconds to import

HEIGHT, WIDTH = 50, 90
FRAME = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
FRAME.flags.writeable = False  # as those mapped from a file


def make_trimap() -> np.ndarray:
    trimap = np.zeros((HEIGHT, WIDTH), np.uint8)
    trimap[8:42, 15:70] = 128
    trimap[20:30, 30:60] = 255
    return trimap


def test_known_pixels_stay_and_unknown_ones_are_the_networks(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    network = MattingNetwork(NetworkSource(str(tiny_networks.vitmatte(tmp_path)), "cpu"))
    trimap = make_trimap()
    alpha = network.compute_alpha(FRAME, trimap)
    assert alpha.shape == (HEIGHT, WIDTH) and alpha.dtype == np.float32
    assert (alpha[trimap == 255] == 1).all() and (alpha[trimap == 0] == 0).all()
    processor, model = network.loaded
    inputs = processor(images=FRAME.copy(), trimaps=trimap, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).alphas[0, 0, :HEIGHT, :WIDTH].numpy()
    unknown = trimap == 128
    assert np.allclose(alpha[unknown], expected[unknown], atol=1e-6)
    assert expected[unknown].std() > 0.01, "this network sees differences"


class WindowInputs(dict[str, torch.Tensor]):
    """What a processor makes of a window."""

    def to(self, device: str) -> WindowInputs:
        assert device == "cpu"
        return self


class RedChannel:
    """What this network finds is the red channel."""

    device = "cpu"

    def __call__(self, red: torch.Tensor) -> SimpleNamespace:
        padded = torch.nn.functional.pad(red, (0, 3, 0, 2))  # networks want sides of certain lengths
        return SimpleNamespace(alphas=padded[None, None])


class PictureInPlaceOfANetwork(MattingNetwork):
    """Finds the red channel, and keeps the shapes of the windows that it was shown."""

    @cached_property
    def windows(self) -> list[tuple[int, ...]]:
        return []

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        def process(images: np.ndarray, trimaps: np.ndarray, return_tensors: str) -> WindowInputs:
            assert images.shape[:2] == trimaps.shape and max(trimaps.shape) <= self.settings.window_px
            assert set(np.unique(trimaps)) <= {0, 128, 255} and return_tensors == "pt"
            self.windows.append(trimaps.shape)
            return WindowInputs(red=torch.from_numpy(images[..., 0].astype(np.float32) / 255))

        return process, RedChannel()


def test_windows_are_put_together_where_they_were_cut() -> None:
    network = PictureInPlaceOfANetwork(NetworkSource("none"), MattingNetworkSettings(32, 8, 4))
    trimap = make_trimap()
    alpha = network.compute_alpha(FRAME, trimap)
    unknown = trimap == 128
    assert np.allclose(alpha[unknown], FRAME[..., 0][unknown] / 255, atol=1e-6)
    assert len(network.windows) > 4


def test_a_matte_is_soft_around_the_outline_only() -> None:
    share = np.zeros((HEIGHT // 2, WIDTH // 2), np.uint8)
    share[5:20, 10:35] = 255
    network = PictureInPlaceOfANetwork(
        NetworkSource("none"), MattingNetworkSettings(inner_band_ref=2.0, outer_band_ref=3.0)
    )
    matte = network.make_matte(FRAME, share)
    soft = matte == FRAME[..., 0]
    assert matte.shape == (HEIGHT, WIDTH)
    assert (matte[16:34, 26:64] == 255).all() and (matte[:5] == 0).all() and (matte[:, :14] == 0).all()
    assert soft[14:36, 20].all() and soft[10, 24:66].all()
    assert (network.make_matte(FRAME, np.ones_like(share, bool)) == 255).all()


def test_windows_without_unknown_pixels_are_not_looked_at() -> None:
    network = PictureInPlaceOfANetwork(NetworkSource("none"), MattingNetworkSettings(16, 4, 2))
    trimap = np.zeros((HEIGHT, WIDTH), np.uint8)
    trimap[2, 2] = trimap[45, 85] = 7
    alpha = network.compute_alpha(FRAME, trimap)
    assert len(network.windows) <= 8 and alpha[2, 2] == np.float32(FRAME[2, 2, 0] / 255)
    assert (PictureInPlaceOfANetwork(NetworkSource("none")).compute_alpha(FRAME, trimap // 255) == 0).all()


@pytest.mark.parametrize("length", [1, 31, 32, 33, 60, 500])
def test_windows_cover_a_span_and_overlap(length: int) -> None:
    windows = split_span(3, 3 + length, 32, 8)
    covered = sorted({place for window in windows for place in range(window.start, window.stop)})
    assert covered == [*range(3, 3 + length)]
    assert all(a.stop - b.start >= 8 for a, b in pairwise(windows))
