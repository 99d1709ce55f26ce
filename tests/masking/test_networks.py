"""`unwrap mask` with networks: tiny random ones, from folders in the layout of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neural_fields.core.errors import UserError
from neural_fields.masking.hints import BoxHint, MaskHint, TextHint
from neural_fields.masking.options import MaskOptions
from neural_fields.masking.segment_video import segment_video
from tests.support import tiny_networks
from tests.support.box_segmenter import BoxSegmenter

pytestmark = pytest.mark.slow  # transformers alone takes ten seconds to import

WIDTH, HEIGHT, FRAMES = 64, 48, 4


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path / "clip"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH + FRAMES, 3), dtype=np.uint8)
    for number in range(FRAMES):
        Image.fromarray(noise[:, number : number + WIDTH]).save(folder / f"{number:05d}.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[12:32, 8:24] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_network_follows_and_another_makes_the_edges_soft(clip: Path, tmp_path: Path) -> None:
    models: dict[str, Any] = {"model": str(tiny_networks.sam2_video(tmp_path / "sam2"))}
    hints = (MaskHint("dog", 1, Path("mask.png")),)
    hard = segment_video(clip, MaskOptions(hints=hints, edges="hard", size="source", out=Path("hard"), **models))
    models["matte_model"] = str(tiny_networks.vitmatte(tmp_path / "vitmatte"))
    soft = segment_video(clip, MaskOptions(hints=hints, size="source", out=Path("soft"), **models))
    given = np.asarray(Image.open("mask.png"))
    assert (np.asarray(Image.open(hard.folder / "dog/00001.png")) == given).all()
    matte = np.asarray(Image.open(soft.folder / "dog/00001.png"))
    assert (matte[17:27, 13:19] == 255).all() and (matte[:, 40:] == 0).all()
    assert ((matte > 0) & (matte < 255)).any()


def test_words_become_a_box_that_is_kept(clip: Path, tmp_path: Path) -> None:
    options = MaskOptions(
        hints=(TextHint("surfer", 2, "surfer"),),
        text_model=str(tiny_networks.grounding_dino(tmp_path / "dino")),
        size="24p",
        edges="hard",
    )
    found = segment_video(clip, options, segmenter=BoxSegmenter())
    assert [item.name for item in found.objects] == ["surfer"]
    assert '"box": [' in (found.folder / "hints.jsonl").read_text()


def test_a_network_of_another_kind_is_refused_and_earlier_masks_are_kept(clip: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"size": "24p", "edges": "hard"}
    first = MaskOptions(hints=(BoxHint("dog", 1, 8, 12, 16, 20),), **options)
    kept = segment_video(clip, first, segmenter=BoxSegmenter()).folder / "dog/00000.png"
    before = kept.read_bytes()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="a bert, not a network that follows objects"):
        segment_video(clip, MaskOptions(hints=(BoxHint("cat", 0, 40, 20, 12, 8),), model="bert", **options))
    assert kept.read_bytes() == before
