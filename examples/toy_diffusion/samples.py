"""Samples the toy diffusion model: writes a contact sheet, and counts the samples that match their prompts.

python examples/toy_diffusion/samples.py FOLDER     (default: the folder of this file; writes FOLDER/samples.png)
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import torch
from PIL import Image, ImageDraw
from torch import nn

SIZE = 32  # pixels of a picture's side


def load(folder: Path) -> dict[str, Any]:
    """The parts of a saved pipeline in single precision."""
    from diffusers import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    return {name: pipeline.components[name] for name in ("vae", "unet", "text_encoder", "tokenizer", "scheduler")}


def sampler(parts: dict[str, Any]) -> Callable[..., np.ndarray]:
    """A function from prompts (and edge pictures) to pictures as bytes [count, height, width, 3]."""
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline

    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    kind: Any = StableDiffusionControlNetPipeline if "controlnet" in parts else StableDiffusionPipeline
    pipeline = kind(**parts, **none)
    pipeline.set_progress_bar_config(disable=True)

    def sample(prompts: list[str], seed: int = 0, **options: Any) -> np.ndarray:
        options = {"num_inference_steps": 20, "guidance_scale": 5.0, **options}
        made = pipeline(prompts, generator=torch.Generator().manual_seed(seed), output_type="np", **options)
        return np.round(made.images * 255).astype(np.uint8)

    return sample


def measure(parts: dict[str, Any], count: int = 20) -> None:
    """Prints what share of samples and of their pixels have the color asked for, and the share with the pattern."""
    sample = sampler({name: part for name, part in parts.items() if name != "controlnet"})
    right: Counter[str] = Counter()
    for seed, color in enumerate(pictures.COLORS):
        asked = [pattern for pattern in ("dots", "stripes", "checks", "plain") for _ in range(count // 4)]
        drawn = sample([f"{color} {pattern}" for pattern in asked], seed)
        shares = [pictures.color_share(picture, color) for picture in drawn]
        right.update(
            pattern for pattern, picture in zip(asked, drawn, strict=True) if pictures.seen_pattern(picture) == pattern
        )
        most = sum(share >= 0.9 for share in shares)
        print(f"{color}: {100 * np.mean(shares):.1f} % of the pixels; 90 % of them in {most} of {len(shares)} samples")
    total = len(pictures.COLORS) * (count // 4)
    print("pattern as asked: " + ", ".join(f"{name} {number} of {total}" for name, number in right.items()))


def measure_control(parts: dict[str, Any], count: int = 24) -> None:
    """Prints how well samples' edges meet the edges asked for, with the ControlNet and without (F score, 1 pixel)."""
    random = np.random.default_rng(7)
    colors = [str(color) for color in random.choice(list(pictures.HUES), count)]
    kinds = [("dots", "stripes", "checks", "patches")[index % 4] for index in range(count)]
    asked = [
        pictures.edges(pictures.pattern_picture(random, SIZE, SIZE, *both)) for both in zip(colors, kinds, strict=True)
    ]
    prompts = [f"{color} {kind}" for color, kind in zip(colors, kinds, strict=True)]
    drawn = sampler(parts)(prompts, image=torch.from_numpy(np.stack(asked)).movedim(3, 1))
    free = sampler({name: part for name, part in parts.items() if name != "controlnet"})(prompts)
    for name, samples in (("with", drawn), ("without", free)):
        score = np.mean([edge_score(picture, lines) for picture, lines in zip(samples, asked, strict=True)])
        print(f"edges {name} the ControlNet: F score {score:.2f}")


def edge_score(picture: np.ndarray, asked: np.ndarray) -> float:
    """The F score of a picture's edges against those asked for, met within a pixel."""
    made, asked = pictures.edges(picture)[..., 0], asked[..., 0]
    near = [nn.functional.max_pool2d(torch.from_numpy(lines)[None], 3, 1, 1)[0].numpy() for lines in (made, asked)]
    precision = (made * near[1]).sum() / max(made.sum(), 1)
    recall = (asked * near[0]).sum() / max(asked.sum(), 1)
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def draw_sheet(parts: dict[str, Any], path: Path) -> None:
    """Writes samples with their prompts below: patterns, shapes, one color, and edges with what follows them."""
    prompts = [f"{color} {pattern}" for pattern in pictures.PATTERNS for color in pictures.COLORS]
    prompts += [f"a {color} {pictures.SHAPES[index % 3]}" for index, color in enumerate(pictures.COLORS)]
    made = sampler({name: part for name, part in parts.items() if name != "controlnet"})(prompts)
    cells = list(zip(made, prompts, strict=True))
    if "controlnet" in parts:
        random = np.random.default_rng(3)
        kinds = ["patches", "dots", "checks", "stripes", "patches"]
        lines = [pictures.edges(pictures.pattern_picture(random, SIZE, SIZE, "blue", kind)) for kind in kinds]
        prompts = [
            f"{color} {kind}" for color, kind in zip(("red", "green", "blue", "yellow", "pink"), kinds, strict=True)
        ]
        drawn = sampler(parts)(prompts, image=torch.from_numpy(np.stack(lines)).movedim(3, 1))
        for edge, picture, prompt in zip(lines, drawn, prompts, strict=True):
            cells += [((255 * edge).astype(np.uint8), "edges"), (picture, prompt)]
    across, side = len(pictures.COLORS), 2 * SIZE
    sheet = Image.new("RGB", (across * (side + 8), -(-len(cells) // across) * (side + 18)), "white")
    for index, (picture, text) in enumerate(cells):
        left, top = index % across * (side + 8) + 4, index // across * (side + 18) + 2
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (left, top))
        ImageDraw.Draw(sheet).text((left, top + side + 1), text, fill="black", font_size=9)
    sheet.save(path, optimize=True)


def report(folder: Path) -> None:
    """Measures a trained folder and draws its sheet."""
    from diffusers import ControlNetModel

    parts = load(folder / "model")
    measure(parts)
    parts["controlnet"] = ControlNetModel.from_pretrained(folder / "controlnet")
    measure_control(parts)
    draw_sheet(parts, folder / "samples.png")


if __name__ == "__main__":
    report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
