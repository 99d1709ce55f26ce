"""Attention of a UNet, changed from outside: over several pictures at once, along canonical paths, or from another run.

A diffusion UNet calls a processor for each of its attention layers. `Processor` is the usual one with its inner part,
what is done with queries, keys and values, open to change. `DiffusionModel.attention` takes dictionaries of them:

* `cross_frame` lets the pictures of a batch see each other, so that they come out alike: all see the first (Text2Video-
  Zero, Khachatryan et al., 2023, 3.3), the first and the previous (Tune-A-Video, Wu et al., 2023, 3.2), or all of them
  (Vid2Vid-Zero, Wang et al., 2023); and then along paths through time, which join the tokens that show the same point
  (FLATTEN, Cong et al., 2024, 4.2). Here the paths come from the canonical picture, not from optical flow.
* `Features` keeps what layers held in one run and puts it into another (see `pnp.py` and `p2p.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from neural_fields.errors import bad_input

Heads = Float[Tensor, "batch heads tokens width"]
Held = tuple[Tensor, ...]  # queries and keys, or the output of a convolution
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # of queries, keys, values, and perhaps a mask
Mix = Callable[[Held, Tensor, Tensor, Tensor], Tensor]  # of what a layer held, and its queries, keys and values now
Seen = Literal["own", "first", "first-previous", "all"]

REACH = 0.75  # of the spacing of tokens: in an even grid the nearest one is never further away than 0.71


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention as usual."""
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


@dataclass(frozen=True)
class Processor:
    """What diffusers calls for an attention layer; with `plain` it equals the one that is there already."""

    attend: Attend = plain

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "batch tokens width"],
        encoder_hidden_states: Float[Tensor, "batch words text"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """The layer's output."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attention_mask
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, context.shape[1], len(context))
            mask = mask.view(len(context), attn.heads, -1, mask.shape[-1])
        query, key, value = (
            _split(layer(states), attn.heads)
            for layer, states in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        out = self.attend(query, key, value, mask).transpose(1, 2).flatten(2).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def seen_by(seen: Seen, frames: int) -> list[tuple[int, ...]]:
    """Which of `frames` pictures each of them sees, for `cross_frame`."""
    if seen == "all":
        return [tuple(range(frames))] * frames
    if seen == "first":
        return [(0,)] * frames
    if seen == "first-previous":
        return [(0, max(0, i - 1)) for i in range(frames)]
    return [(i,) for i in range(frames)]


def cross_frame(
    unet: Any, seen: Sequence[tuple[int, ...]], paths: Mapping[int, Int[Tensor, "frames tokens frames"]] | None = None
) -> dict[str, Processor]:
    """Processors with which the pictures of a batch see each other in every self-attention layer.

    Args:
        unet: of a `DiffusionModel`.
        seen: for each picture, those whose tokens its own look at (`seen_by`). The batch holds them in order, and may
            hold the whole sequence several times, as guidance does.
        paths: by number of tokens of a layer, which token of each picture shows the same point as each token of each
            picture (`canonical_paths`); a layer of another size goes without.

    Raises:
        UserError: the model is not a UNet with such layers (exit 3).
    """
    attend = CrossFrame(tuple(seen), dict(paths or {}))
    return dict.fromkeys(self_attention(unet), Processor(attend))


def self_attention(unet: Any) -> list[str]:
    """Names of the processors of a UNet's self-attention layers, in the order in which they run."""
    return _layers(unet, "attn1")


def cross_attention(unet: Any) -> list[str]:
    """Names of the processors of a UNet's attention to the prompt, in the order in which they run."""
    return _layers(unet, "attn2")


@dataclass(frozen=True)
class CrossFrame:
    """Attention over several pictures of a batch; see `cross_frame`."""

    seen: tuple[tuple[int, ...], ...]
    paths: Mapping[int, Int[Tensor, "frames tokens frames"]]

    def __call__(self, query: Heads, key: Heads, value: Heads, mask: Tensor | None) -> Heads:
        """What each token gets from the tokens of the pictures it sees, and then from those on its path."""
        frames = len(self.seen)
        if len(query) % frames:
            raise ValueError(f"a batch of {len(query)} does not hold {frames} pictures a whole number of times")
        if frames == 1:
            return plain(query, key, value, mask)
        query, key, value = (x.unflatten(0, (-1, frames)) for x in (query, key, value))
        out = torch.empty_like(query)
        for row in set(self.seen):
            chosen = [i for i, other in enumerate(self.seen) if other == row]
            got = plain(_joined(query[:, chosen]), _joined(key[:, list(row)]), _joined(value[:, list(row)]), None)
            out[:, chosen] = got.unflatten(2, (len(chosen), -1)).transpose(1, 2)
        where = self.paths.get(query.shape[3])
        if where is not None:
            out = _along(query, key, out, where.to(query.device))
        return out.flatten(0, 1)


def canonical_paths(
    places: Float[np.ndarray, "frames height width 2"], seen: Bool[np.ndarray, "frames height width"]
) -> Int[Tensor, "frames tokens frames"]:
    """Which token of each picture shows the same canonical point as each token of each picture.

    Args:
        places: where the tokens of each picture lie in the canonical picture of a layer.
        seen: which tokens show that layer.

    Returns:
        Numbers of tokens, row by row; -1 where a picture does not show the point. A token is its own partner. For
        several layers take the larger of their paths, element by element.
    """
    frames, tokens = len(places), seen[0].size
    flat, shown = places.reshape(frames, tokens, 2), seen.reshape(frames, tokens)
    paths = torch.full((frames, tokens, frames), -1)
    reach = REACH * _spacing(places, seen)
    for other in range(frames):
        known = np.flatnonzero(shown[other])
        if len(known):
            distance, nearest = cKDTree(flat[other, known]).query(flat.reshape(-1, 2))
            same = (distance <= reach).reshape(frames, tokens) & shown
            paths[:, :, other] = torch.from_numpy(np.where(same, known[nearest].reshape(frames, tokens), -1))
        paths[other, :, other] = torch.arange(tokens)
    return paths


@dataclass
class Features:
    """What layers of a UNet held in one run of the denoiser, to be put into another.

    Attributes:
        layers: names of the processors whose queries and keys are kept.
        convolutions: modules whose outputs are kept, by name.
        held: queries and keys of a layer, or the output of a convolution, by name, of the last recorded run: one after
            another where the denoiser saw the latents in several windows.
    """

    layers: Sequence[str] = ()
    convolutions: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    held: dict[str, list[Held]] = field(default_factory=dict)

    @contextmanager
    def recording(self, model: Any) -> Iterator[None]:
        """Keeps what the passes of `model` hold, in place of what was kept before."""
        self.held = {name: [] for name in (*self.layers, *self.convolutions)}
        with ExitStack() as stack:
            kept = {name: Processor(_Keep(self.held[name])) for name in self.layers}
            stack.enter_context(model.attention(kept))
            for name, module in self.convolutions.items():
                stack.callback(module.register_forward_hook(_keep_output(self.held[name])).remove)
            yield

    @contextmanager
    def injecting(self, model: Any, processors: Mapping[str, Processor], outputs: bool = True) -> Iterator[None]:
        """Puts what is held into every picture of the passes of `model`.

        Args:
            processors: what `replayed` returns, for some or all of the layers.
            outputs: also those of the convolutions.
        """
        with ExitStack() as stack:
            stack.enter_context(model.attention(processors))
            for name, module in self.convolutions.items() if outputs else ():
                stack.callback(module.register_forward_hook(_put_output(self.held[name])).remove)
            yield

    def replayed(self, layers: Sequence[str], mix: Mix | None = None) -> dict[str, Processor]:
        """Processors that attend with what is held: as it was, or mixed with the new by `mix`."""
        return {name: Processor(_Replay(cycle(self.held[name]), mix or old_for_new)) for name in layers}


def old_for_new(held: Held, query: Heads, key: Tensor, value: Tensor) -> Tensor:
    """Attention with the queries and keys of the other run: its maps, on values of this one."""
    return plain(repeated(held[0], len(query)), repeated(held[1], len(query)), value, None)


def repeated(values: Float[Tensor, "m ..."], count: int) -> Float[Tensor, "count ..."]:
    """A batch over and over, up to a batch of `count`."""
    return values.repeat(count // len(values), *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class _Keep:
    held: list[Held]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.held.append((query, key))
        return plain(query, key, value, mask)


@dataclass(frozen=True)
class _Replay:
    held: Iterator[Held]
    mix: Mix

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return self.mix(next(self.held), query, key, value)


Hook = Callable[[torch.nn.Module, Any, Tensor], Tensor | None]


def _keep_output(held: list[Held]) -> Hook:
    return lambda module, inputs, output: held.append((output,))


def _put_output(held: list[Held]) -> Hook:
    turns = cycle(held)
    return lambda module, inputs, output: repeated(next(turns)[0], len(output)).to(output)


def _layers(unet: Any, kind: str) -> list[str]:
    names = [] if unet is None else [name for name in unet.attn_processors if name.endswith(f"{kind}.processor")]
    if not names:
        raise bad_input(
            "this model's attention cannot be changed",
            why="its denoiser is a transformer; attention is shared or put in only in a UNet",
            fix="--model with Stable Diffusion 1.5, 2.1 or XL",
        )
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(names, key=lambda name: order.get(name.split(".")[0], 3))  # stable: within a block as listed


def _split(states: Tensor, heads: int) -> Tensor:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(states: Tensor) -> Tensor:
    """The tokens of several pictures as one long row: (groups, frames, heads, tokens, width) without the frames."""
    return states.transpose(1, 2).flatten(2, 3)


def _along(query: Tensor, key: Tensor, value: Tensor, paths: Tensor) -> Tensor:
    """What each token gets from the tokens on its path; all (groups, frames, heads, tokens, width)."""
    frames = torch.arange(len(paths), device=paths.device)
    out = []
    for i, where in enumerate(paths):  # one picture at a time: the gathered keys are as large as those of all pictures
        # Two lists of numbers with a slice between them put what they choose in front: (tokens, frames, groups, ...).
        keys, values = (x[:, frames, :, where.clamp(min=0)].permute(2, 3, 0, 1, 4) for x in (key, value))
        got = plain(query[:, i].unsqueeze(-2), keys, values, (where >= 0).unsqueeze(-2))
        out.append(got.squeeze(-2))
    return torch.stack(out, dim=1)


def _spacing(places: np.ndarray, seen: np.ndarray) -> float:
    """The usual distance in the canonical picture between tokens that lie side by side."""
    steps = []
    for axis in (1, 2):
        both = np.take(seen, range(1, seen.shape[axis]), axis) & np.take(seen, range(seen.shape[axis] - 1), axis)
        steps.append(np.linalg.norm(np.diff(places, axis=axis), axis=-1)[both])
    every = np.concatenate(steps)
    return float(np.median(every)) if len(every) else 0.0
