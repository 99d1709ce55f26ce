"""Words to boxes and masks, with tiny random networks: what they find is noise, how it is handled is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neural_fields.core.errors import UserError
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.segmentation.networks.sam_video import SamVideoSegmenter
from neural_fields.data.segmentation.networks.words import WordFinder, WordSettings
from neural_fields.data.segmentation.segmenter import FrameHints
from neural_fields.nn.pretrained import NetworkSource
from tests.support import tiny_diffusion, tiny_networks

pytestmark = pytest.mark.slow  # transformers alone takes ten seconds to import

HEIGHT, WIDTH = 36, 60
FRAMES = np.random.default_rng(0).integers(0, 255, (10, HEIGHT, WIDTH, 3), np.uint8)
FRAMES.flags.writeable = False  # as those mapped from a file


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return tiny_networks.grounding_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def sam3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return tiny_networks.sam3_video(tiny_diffusion, tmp_path_factory.mktemp("sam3"))


def finder(folder: Path | str, min_score: float = 0.001) -> WordFinder:
    return WordFinder(NetworkSource(str(folder), "cpu"), WordSettings(min_score=min_score))


def test_boxes_lie_in_the_frame_the_best_first(grounding_dino: Path) -> None:
    matches = finder(grounding_dino).find_in_frame(FRAMES[0], "surfer")
    assert matches and [m.score for m in matches] == sorted((m.score for m in matches), reverse=True)
    for match in matches:
        left, top, right, bottom = match.box
        assert 0 <= left < right <= WIDTH and 0 <= top < bottom <= HEIGHT
        assert match.mask is None


def test_a_network_is_asked_in_the_form_that_it_was_trained_on(grounding_dino: Path) -> None:
    words = finder(grounding_dino)
    asked: list[list[int]] = []
    network: Any = words.loaded[1]
    network.register_forward_pre_hook(
        lambda module, args, given: asked.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    words.find_in_frame(FRAMES[0], " Surfer ")
    words.find_in_frame(FRAMES[0], "surfer.")
    assert asked == [[101, 200, 1012, 102]] * 2, "[CLS] surfer . [SEP]"


def test_what_fits_too_little_is_not_found(grounding_dino: Path) -> None:
    best = finder(grounding_dino).find_in_frame(FRAMES[0], "surfer")[0].score
    assert all(m.score > best / 2 for m in finder(grounding_dino, best / 2).find_in_frame(FRAMES[0], "surfer"))
    assert finder(grounding_dino, min_score=1.1).find_in_frame(FRAMES[0], "surfer") == []


def test_sam_3_finds_masks_by_words_and_follows_them_from_one_folder(sam3: Path) -> None:
    words = finder(sam3)
    matches = words.find_in_frame(FRAMES[0], "surfer")
    assert matches and all(m.mask is not None and m.mask.shape == (HEIGHT, WIDTH) for m in matches)
    hints = {1: FrameHints(np.zeros((HEIGHT, WIDTH), np.int8), mask=matches[0].mask)}
    none, sure = np.zeros((2, HEIGHT, WIDTH, 2), np.float32), np.ones((2, HEIGHT, WIDTH), bool)
    segmenter = SamVideoSegmenter(NetworkSource(str(sam3), "cpu"))
    found = segmenter.segment(FRAMES[:3], FlowField(none, none, sure, sure), {"surfer": hints})
    assert ((found.shares[0, 1] >= 128) == matches[0].mask).all()
    assert segmenter.network.model.config.max_cond_frame_num == 4, "what the network was trained with is kept"


def test_a_network_that_follows_objects_finds_no_words(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="not a network that finds objects by words"):
        finder(tiny_networks.vitmatte(tmp_path)).find_in_frame(FRAMES[0], "surfer")
    assert not torch.cuda.is_initialized()
