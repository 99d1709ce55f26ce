"""The toy diffusion model of the examples is small and safe to load, and it paints what its prompts say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "toy_diffusion"
FILES = sorted(path for part in ("model", "controlnet") for path in (FOLDER / part).rglob("*") if path.is_file())
SIZE = 32


@pytest.fixture(scope="module")
def toy() -> Iterator[Any]:
    """The example's modules, and its model and ControlNet as a user loads them."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: the extra `diffusion`")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        pictures, samples = import_module("pictures"), import_module("samples")
        parts = samples.load(FOLDER / "model")
        control = diffusers.ControlNetModel.from_pretrained(FOLDER / "controlnet")
        yield SimpleNamespace(
            pictures=pictures,
            parts=parts,
            paint=samples.sampler(parts),
            paint_along=samples.sampler(parts | {"controlnet": control}),
            edge_score=samples.edge_score,
        )


def test_the_folder_is_a_few_megabytes_of_half_precision_and_no_pickle() -> None:
    assert {path.suffix for path in FILES} == {".safetensors", ".json", ".txt"}
    assert sum(path.stat().st_size for path in FILES) < 6e6
    for path in FILES:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


def test_no_file_of_the_folder_names_a_place() -> None:
    for path in FILES:
        if path.suffix == ".json":
            config = json.loads(path.read_text(encoding="utf-8"))
            assert not {"_name_or_path", "name_or_path"} & set(config), path
            if path.name != "tokenizer.json" and path.name != "vocab.json":
                assert "/" not in path.read_text(encoding="utf-8").replace("</w>", ""), path


def test_all_parts_load_in_one_precision(toy: Any) -> None:
    assert {toy.parts[name].dtype for name in ("vae", "unet", "text_encoder")} == {torch.float32}


def test_each_word_of_the_captions_is_one_token_and_other_text_fits(toy: Any) -> None:
    tokenizer = toy.parts["tokenizer"]
    for word in toy.pictures.words():
        assert len(tokenizer(word).input_ids) == 3, word
    ids = tokenizer("Größe, 日本 " * 20, truncation=True, max_length=tokenizer.model_max_length).input_ids
    assert len(ids) == toy.parts["text_encoder"].config.max_position_embeddings
    assert tokenizer.unk_token_id not in ids[1:-1]


def test_latents_keep_new_pictures_and_have_unit_spread(toy: Any) -> None:
    random, vae = np.random.default_rng(99), toy.parts["vae"]
    for draw in (lambda: toy.pictures.draw(random, SIZE, SIZE).rgb, lambda: toy.pictures.photo_like(random, 48, 64)):
        batch = torch.from_numpy(np.stack([draw() for _ in range(24)])).float().div(127.5).sub(1).movedim(3, 1)
        with torch.inference_mode():
            latents = vae.encode(batch).latent_dist.mean
            error = (vae.decode(latents).sample - batch).square().mean().item()
        assert latents.shape == (24, 4, batch.shape[2] // 2, batch.shape[3] // 2)
        assert 10 * np.log10(4 / error) >= 28
    assert latents.mul(vae.config.scaling_factor).std() == pytest.approx(1, abs=0.35)


def test_samples_have_the_color_asked_for(toy: Any) -> None:
    colors = ["blue", "red", "green", "yellow", "white", "black"]
    painted = toy.paint([f"{color} dots" for color in colors], num_inference_steps=12)
    for color, picture in zip(colors, painted, strict=True):
        assert toy.pictures.color_share(picture, color) >= 0.9, color


def test_samples_have_the_pattern_asked_for(toy: Any) -> None:
    asked = [pattern for pattern in ("plain", "stripes", "checks", "dots") for _ in range(4)]
    painted = toy.paint([f"purple {pattern}" for pattern in asked], num_inference_steps=12)
    seen = [toy.pictures.seen_pattern(picture) for picture in painted]
    assert sum(one == other for one, other in zip(seen, asked, strict=True)) >= 13, seen


def test_words_that_name_no_color_or_pattern_change_little(toy: Any) -> None:
    painted = toy.paint(["a swan with blue dots", "blue dots on the car"], num_inference_steps=12)
    assert min(toy.pictures.color_share(picture, "blue") for picture in painted) >= 0.9


def test_outlines_follow_the_edges_given_to_the_controlnet(toy: Any) -> None:
    random = np.random.default_rng(5)
    asked = [toy.pictures.edges(toy.pictures.pattern_picture(random, SIZE, SIZE, "red", "patches")) for _ in range(6)]
    image = torch.from_numpy(np.stack(asked)).movedim(3, 1)
    led = toy.paint_along(["red patches"] * 6, image=image, num_inference_steps=12)
    free = toy.paint(["red patches"] * 6, num_inference_steps=12)
    scores = [np.mean([toy.edge_score(*pair) for pair in zip(drawn, asked, strict=True)]) for drawn in (led, free)]
    assert scores[0] > scores[1] + 0.2
