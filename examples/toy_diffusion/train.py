"""Trains a small text-to-image diffusion model and its ControlNet on procedural pictures, on one processor core.

python examples/toy_diffusion/train.py --out FOLDER [--minutes M] [--seed S] [--parts vae unet controlnet] [--go-on]

Writes FOLDER/model (a StableDiffusionPipeline), FOLDER/controlnet and FOLDER/samples.png, and prints an evaluation of
the samples. Parts that are not named are read from FOLDER, so that a single part can be trained again.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import autoencoder
import numpy as np
import pictures
import samples
import torch
from torch import Tensor, nn

TOKENS = 32  # of a prompt, with the two marks
SHARES = {"vae": 0.12, "unet": 0.68, "controlnet": 0.20}  # of the minutes
LEFT_OUT = 0.12  # share of captions left empty, which makes guidance possible
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Examples:
    """Pictures of one size, encoded once: latents of unit variance, and where the captions hold."""

    rgb: np.ndarray  # [count, height, width, 3] bytes
    latents: Tensor  # [count, 4, height / 2, width / 2]
    shown: Tensor  # [count, 1, height / 2, width / 2], 0 or 1
    captions: list[str]


def new_tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer with one token for each word of the captions, and bytes for all other text."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    symbols = sorted(ByteLevel.alphabet())
    merges = word_merges(pictures.words())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    make: Any = CLIPTokenizer
    tokenizer = make(vocab=vocabulary, merges=merges, model_max_length=TOKENS)
    # The two files of older releases of transformers, beside the one that newer releases write.
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokenizer


def word_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pair encoding, always joining the commonest pair, until every word is one token (Sennrich et al. 2016)."""
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for parts in split for pair in pairwise(parts)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        split = [_joined(parts, best) for parts in split]
    return merges


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def new_text_encoder(tokenizer: Any) -> Any:
    """A CLIP text encoder of two layers of 64 channels."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = CLIPTextModel(config)
    # The published initial spread of 0.02 is meant for hundreds of channels; here words would start out all alike.
    nn.init.normal_(model.get_input_embeddings().weight, std=0.2)
    return model


def new_unet() -> Any:
    """A U-Net of a million weights; it looks at the words at a quarter of the picture's size."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=samples.SIZE // 2,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def new_scheduler() -> Any:
    """DDIM with the settings of Stable Diffusion 1.5 but for a noisier end, where even a flat color is drowned.

    With the usual `beta_end` of 0.012 the mean of a flat picture shows through the noise of the last step, so the
    model reads its colors there and not in the words; samples then keep the mean of the noise that they start from.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def to_tensor(rgb: np.ndarray) -> Tensor:
    """Converts bytes [count, height, width, 3] to [count, 3, height, width] in [-1, 1]."""
    return torch.from_numpy(rgb).float().div(127.5).sub(1).movedim(3, 1)


def steps(
    minutes: float, optimizer: torch.optim.Optimizer, name: str
) -> Iterator[tuple[int, Callable[[Tensor], None]]]:
    """Yields steps until the time is over.

    The learning rate rises over 50 steps and falls with a cosine of the elapsed time.

    Args:
        minutes: duration.
        optimizer: updates the weights; its learning rate is the peak.
        name: name of the training, for the progress.

    Yields:
        The number of each step, and a function that takes the loss and updates the weights.
    """
    peak, started, shown, step = optimizer.param_groups[0]["lr"], time.monotonic(), 0.0, 0
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def descend(loss: Tensor) -> None:
        nonlocal shown
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        shown = loss.item() if step == 0 else 0.98 * shown + 0.02 * loss.item()

    while (gone := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * gone)))
        yield step, descend
        step += 1
        if step % 100 == 0:
            print(f"{name}: step {step}, {100 * gone:.0f} % of the time, loss {shown:.4f}", flush=True)


def train_vae(minutes: float, random: np.random.Generator) -> Any:
    """Trains the autoencoder by squared error and a small KL term, and measures the scale of its latents."""
    drawn = np.stack([_vae_picture(random) for _ in range(6000)])
    vae, some = autoencoder.new_vae(), to_tensor(drawn[:1500])
    autoencoder.start_linear(vae, autoencoder.linear_code(some, random), some)
    for step, descend in steps(minutes, torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99)), "vae"):
        batch = to_tensor(drawn[random.integers(0, len(drawn), 16)])
        latents = vae.encode(batch).latent_dist
        error = (vae.decode(latents.sample()).sample - batch).square().mean()
        descend(error + 1e-5 * latents.kl().mean() / latents.mean[0].numel())
        if step % 500 == 0:
            print(f"vae: {10 * math.log10(4 / error.item()):.1f} dB", flush=True)
    with torch.inference_mode():
        spread = vae.encode(to_tensor(drawn[:1000])).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=round(1 / spread, 5))
    return vae


def _vae_picture(random: np.random.Generator) -> np.ndarray:
    """Half captioned pictures, half photo-like ones: an edited picture is encoded too."""
    if random.random() < 0.5:
        return pictures.photo_like(random, samples.SIZE, samples.SIZE)
    return pictures.draw(random, samples.SIZE, samples.SIZE).rgb


@torch.inference_mode()
def encoded(vae: Any, random: np.random.Generator, count: int, size: int) -> Examples:
    """Draws random pictures of a size and encodes them.

    Args:
        vae: the autoencoder.
        random: the random generator.
        count: number of pictures.
        size: side in pixels.

    Returns:
        Pictures, latents and captions; the caption holds for a latent if it holds for all pixels around it.
    """
    drawn = [pictures.draw(random, size, size) for _ in range(count)]
    rgb = np.stack([picture.rgb for picture in drawn])
    parts = [vae.encode(to_tensor(part)).latent_dist.mean for part in np.array_split(rgb, -(-count // 100))]
    hidden = torch.from_numpy(np.stack([~picture.shown for picture in drawn])).float()[:, None]
    shown = 1 - nn.functional.max_pool2d(hidden, 4, 2, 1)
    return Examples(rgb, torch.cat(parts) * vae.config.scaling_factor, shown, [picture.caption for picture in drawn])


def noise_loss(guess: Tensor, noise: Tensor, shown: Tensor, alphas: Tensor) -> Tensor:
    """Computes the squared error of the noise, weighted by the signal-to-noise ratio of each time step.

    Above a ratio of 5 the weight falls as in Hang et al. 2023, eq. 10; below 1 it rises (Salimans and Ho 2022, sec. 4),
    to 20 at most: at such steps only words determine the color, and unweighted errors are too small to teach them.
    Photo-like content beside a pattern is seen but not learned, so that a pattern painted into a photo remains a
    pattern.

    Args:
        guess: the predicted noise.
        noise: the true noise.
        shown: 1 where the caption holds, else 0.
        alphas: cumulative alpha of each time step.
    """
    ratio = alphas / (1 - alphas)
    weight = (1 / ratio).clamp(1, 20) * (5 / ratio).clamp(max=1)
    error = ((guess - noise).square() * shown).mean((1, 2, 3)) / shown.mean((1, 2, 3)).clamp(min=0.1)
    return (error * weight).mean()


def spread_times(count: int) -> Tensor:
    """Draws a time step from each of `count` equal parts of the schedule, which makes the loss vary less."""
    return ((torch.arange(count) + torch.rand(count)) * (1000 / count)).long().clamp(max=999)


def context_of(captions: list[str], tokenizer: Any, text_encoder: Any) -> Tensor:
    """Computes what the U-Net reads of each caption; equal captions are encoded once.

    Args:
        captions: the captions.
        tokenizer: turns them into tokens.
        text_encoder: turns tokens into features.

    Returns:
        Features [count, tokens, 64].
    """
    unique = sorted(set(captions))
    ids = tokenizer(unique, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
    return text_encoder(ids).last_hidden_state[[unique.index(caption) for caption in captions]]


def teach_words(tokenizer: Any, text_encoder: Any, captions: list[str], random: np.random.Generator) -> None:
    """Teaches the text encoder its words: what the U-Net reads after a caption must show which words it had.

    A linear reader has to find the words of colors, patterns and shapes in each of those positions, so that they are
    there for the U-Net from its first step on.

    Args:
        tokenizer: turns captions into tokens.
        text_encoder: the encoder; its weights are changed.
        captions: captions to learn from.
        random: the random generator.
    """
    names = [*pictures.COLORS, *pictures.PATTERNS, *pictures.SHAPES]
    said = torch.tensor([[float(name in caption.split()) for name in names] for caption in captions])
    ids = tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
    reader = nn.Linear(text_encoder.config.hidden_size, len(names))
    optimizer = torch.optim.Adam([*text_encoder.parameters(), *reader.parameters()], lr=2e-3)
    for step in range(300):
        rows = random.integers(0, len(captions), 32)
        found = reader(text_encoder(ids[rows]).last_hidden_state)
        after = (ids[rows] == tokenizer.eos_token_id)[..., None].expand_as(found)
        loss = nn.functional.binary_cross_entropy_with_logits(
            found, said[rows][:, None].expand_as(found), after.float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"words: step {step + 1}, loss {loss.item():.4f}", flush=True)


def train_unet(
    parts: dict[str, Any], pools: list[Examples], minutes: float, rate: float, random: np.random.Generator, folder: Path
) -> None:
    """Trains text encoder and U-Net together.

    The averages of their weights are saved every 500 steps and at the end. One batch in sixteen has pictures of twice
    the side, a quarter as many.

    Args:
        parts: the parts of the pipeline by name; text encoder and U-Net are trained.
        pools: examples of the usual and of twice the side.
        minutes: duration.
        rate: learning rate at its peak.
        random: the random generator.
        folder: where the model is saved.
    """
    both = nn.ModuleList([parts["text_encoder"], parts["unet"]]).train()
    average = copy.deepcopy(both).eval()
    alphas = parts["scheduler"].alphas_cumprod
    for step, descend in steps(minutes, torch.optim.AdamW(both.parameters(), lr=rate, betas=(0.9, 0.99)), "unet"):
        pool, count = (pools[1], 4) if step % 16 == 15 else (pools[0], 16)
        rows = random.integers(0, len(pool.captions), count)
        captions = ["" if random.random() < LEFT_OUT else pool.captions[row] for row in rows]
        times, noise = spread_times(count), torch.randn(pool.latents[rows].shape)
        noisy = parts["scheduler"].add_noise(pool.latents[rows], noise, times)
        with torch.autocast("cpu", torch.bfloat16):
            guess = both[1](noisy, times, context_of(captions, parts["tokenizer"], both[0])).sample
        descend(noise_loss(guess.float(), noise, pool.shown[rows], alphas[times]))
        _follow(average, both, min(0.995, (1 + step) / (10 + step)))
        if step % 500 == 499:
            save(parts | {"text_encoder": average[0], "unet": average[1]}, folder)
    save(parts | {"text_encoder": average[0], "unet": average[1]}, folder)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Moves the running average of the weights towards the weights."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)


def train_controlnet(parts: dict[str, Any], examples: Examples, minutes: float, random: np.random.Generator) -> Any:
    """Trains a ControlNet for Canny edges on the finished U-Net (Zhang et al. 2023).

    3 captions in 10 are left empty.

    Args:
        parts: the parts of the pipeline by name; they are not changed.
        examples: pictures with latents and captions.
        minutes: duration.
        random: the random generator.

    Returns:
        The average of its weights.
    """
    from diffusers import ControlNetModel

    unet, scheduler = parts["unet"].requires_grad_(False), parts["scheduler"]
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32)).requires_grad_(True).train()
    average = copy.deepcopy(control).eval()
    for step, descend in steps(
        minutes, torch.optim.AdamW(control.parameters(), lr=1e-3, betas=(0.9, 0.99)), "controlnet"
    ):
        rows = random.integers(0, len(examples.captions), 16)
        captions = ["" if random.random() < 0.3 else examples.captions[row] for row in rows]
        high = random.uniform(60, 140)
        lines = torch.from_numpy(np.stack([pictures.edges(examples.rgb[row], 0.45 * high, high) for row in rows]))
        times, noise = spread_times(len(rows)), torch.randn(examples.latents[rows].shape)
        noisy = scheduler.add_noise(examples.latents[rows], noise, times)
        with torch.no_grad():
            context = context_of(captions, parts["tokenizer"], parts["text_encoder"])
        with torch.autocast("cpu", torch.bfloat16):
            down, middle = control(noisy, times, context, lines.movedim(3, 1), return_dict=False)
            guess = unet(
                noisy, times, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
        descend(noise_loss(guess.float(), noise, examples.shown[rows], scheduler.alphas_cumprod[times]))
        _follow(average, control, min(0.99, (1 + step) / (10 + step)))
    return average


def save(parts: dict[str, Any], folder: Path) -> None:
    """Writes the pipeline in half precision, with no names of folders inside."""
    from diffusers import StableDiffusionPipeline

    halves = {name: copy.deepcopy(parts[name]).half() for name in ("vae", "unet", "text_encoder")}
    kept = {name: parts[name] for name in ("tokenizer", "scheduler")}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline: Any = StableDiffusionPipeline(**halves, **kept, **none)
    pipeline.save_pretrained(folder)
    new_tokenizer(folder / "tokenizer")
    _without_names(folder)


def _without_names(folder: Path) -> None:
    """Takes the folder's own place and the stored precision out of its JSON files."""
    for path in folder.rglob("config.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        for name in ("_name_or_path", "dtype", "torch_dtype"):
            facts.pop(name, None)
        if facts.get("model_type") == "clip_text_model":
            facts["dtype"] = "float32"  # transformers would keep the stored precision, diffusers does not
        path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Trains the parts asked for and measures the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=35.0, help="wall time of training, all parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--go-on", action="store_true", help="start from the U-Net in the folder, with its words")
    parser.add_argument("--parts", nargs="+", choices=[*SHARES], default=[*SHARES])
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    random = np.random.default_rng(chosen.seed)
    model, minutes = chosen.out / "model", {name: share * chosen.minutes for name, share in SHARES.items()}
    # Each part is trained against the stored, rounded weights of those before it.
    if "vae" in chosen.parts:
        tokenizer = new_tokenizer(model / "tokenizer")
        fresh = {"tokenizer": tokenizer, "text_encoder": new_text_encoder(tokenizer), "scheduler": new_scheduler()}
        save(fresh | {"unet": new_unet(), "vae": train_vae(minutes["vae"], random)}, model)
    if "unet" in chosen.parts:
        parts = samples.load(model) | {"scheduler": new_scheduler()}
        examples = [
            encoded(parts["vae"], random, 8000, samples.SIZE),
            encoded(parts["vae"], random, 500, 2 * samples.SIZE),
        ]
        if not chosen.go_on:
            parts |= {"text_encoder": new_text_encoder(parts["tokenizer"]), "unet": new_unet()}
            teach_words(parts["tokenizer"], parts["text_encoder"], examples[0].captions, random)
        train_unet(parts, examples, minutes["unet"], 8e-4 if chosen.go_on else 1.5e-3, random, model)
    if "controlnet" in chosen.parts:
        parts = samples.load(model)
        control = train_controlnet(
            parts, encoded(parts["vae"], random, 3000, samples.SIZE), minutes["controlnet"], random
        )
        control.half().save_pretrained(chosen.out / "controlnet")
        _without_names(chosen.out / "controlnet")
        samples.report(chosen.out)


if __name__ == "__main__":
    main()
