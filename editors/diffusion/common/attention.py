"""Replaced attention of a UNet: over several pictures at once, along canonical paths, or recorded in another run.

A diffusion UNet calls a processor for each of its attention layers. `AttentionProcessor` is the usual one, with a
replaceable function of queries, keys and values. `DiffusionModel.replace_attention` takes dictionaries of them:

* `make_cross_frame_processors` lets the pictures of a batch attend to each other, so that they become consistent: to
  the first (Text2Video-Zero, Khachatryan et al., 2023, 3.3), to the first and the previous (Tune-A-Video, Wu et al.,
  2023, 3.2), or to all of them (Vid2Vid-Zero, Wang et al., 2023). Then tokens attend along paths through time, which
  connect the tokens that show the same point (FLATTEN, Cong et al., 2024, 4.2). Here the paths come from the canonical
  picture, not from optical flow.
* `FeatureRecorder` records queries, keys and outputs of layers in one run and injects them into another (see
  `methods/pnp.py` and `methods/p2p.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from editors.diffusion.backend.diffusers_model import DiffusionModel
from editors.options.keyframes import CrossFrameMode
from neural_fields.core.errors import bad_input

HeadTensor = Float[Tensor, "batch heads tokens width"]
RecordedTensors = tuple[Tensor, ...]  # recorded queries and keys, or the recorded output of a convolution
AttentionFunction = Callable[
    [Tensor, Tensor, Tensor, Tensor | None], Tensor
]  # of queries, keys, values, and perhaps a mask
RecordedAttentionFunction = Callable[
    [RecordedTensors, Tensor, Tensor, Tensor], Tensor
]  # of recorded tensors, and the present queries, keys, values


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Computes scaled dot-product attention.

    Args:
        query: queries.
        key: keys.
        value: values.
        mask: attention mask; None for none.
    """
    return scaled_dot_product_attention(query, key, value, attn_mask=mask)


@dataclass(frozen=True)
class AttentionProcessor:
    """Runs an attention layer for diffusers; with `plain_attention` it equals the default processor.

    Attributes:
        attend: computes the attention from queries, keys, values and a mask.
    """

    attend: AttentionFunction = plain_attention

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "batch tokens width"],
        encoder_hidden_states: Float[Tensor, "batch words text"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Computes the layer's output."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attention_mask
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, context.shape[1], len(context))
            mask = mask.view(len(context), attn.heads, -1, mask.shape[-1])
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        key = _split_heads(attn.to_k(context), attn.heads)
        value = _split_heads(attn.to_v(context), attn.heads)
        out = self.attend(query, key, value, mask).transpose(1, 2).flatten(2).to(query.dtype)
        out = attn.to_out[1](attn.to_out[0](out))
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def list_seen_frames(mode: CrossFrameMode, frames: int) -> list[tuple[int, ...]]:
    """Lists for each picture of a batch the pictures that it attends to, for `make_cross_frame_processors`.

    Args:
        mode: "own", "first", "first-previous" or "all".
        frames: number of pictures.

    Example:
        >>> list_seen_frames("first-previous", 4)
        [(0, 0), (0, 0), (0, 1), (0, 2)]
    """
    if mode == "all":
        return [tuple(range(frames))] * frames
    if mode == "first":
        return [(0,)] * frames
    if mode == "first-previous":
        return [(0, max(0, i - 1)) for i in range(frames)]
    return [(i,) for i in range(frames)]


def make_cross_frame_processors(
    unet: Any,
    seen_frames: Sequence[tuple[int, ...]],
    paths: Mapping[int, Int[Tensor, "frames tokens frames"]] | None = None,
) -> dict[str, AttentionProcessor]:
    """Makes processors with which the pictures of a batch attend to each other in every self-attention layer.

    Args:
        unet: UNet of a `DiffusionModel`.
        seen_frames: for each picture, the pictures that it attends to (`list_seen_frames`). The batch has the pictures
            in order, and may repeat the sequence, as guidance does.
        paths: by the number of tokens of a layer: the token of each picture that shows the same point as each token
            (`find_canonical_paths`); layers of other sizes use no paths.

    Raises:
        UserError: the model is not a UNet with such layers (exit 3).
    """
    attend = CrossFrameAttention(tuple(seen_frames), dict(paths or {}))
    return dict.fromkeys(list_self_attention(unet), AttentionProcessor(attend))


def list_self_attention(unet: Any) -> list[str]:
    """Lists the names of a UNet's self-attention processors, in the order in which they run."""
    return _list_processors(unet, "attn1")


def list_cross_attention(unet: Any) -> list[str]:
    """Lists the names of a UNet's processors of attention to the prompt, in the order in which they run."""
    return _list_processors(unet, "attn2")


@dataclass(frozen=True)
class CrossFrameAttention:
    """Computes attention over several pictures of a batch; see `make_cross_frame_processors`."""

    seen_frames: tuple[tuple[int, ...], ...]
    paths: Mapping[int, Int[Tensor, "frames tokens frames"]]

    def __call__(self, query: HeadTensor, key: HeadTensor, value: HeadTensor, mask: Tensor | None) -> HeadTensor:
        """Attends to the tokens of the seen pictures, and then to the tokens on the path of each token."""
        frames = len(self.seen_frames)
        if len(query) % frames:
            raise ValueError(f"a batch of {len(query)} does not hold {frames} pictures a whole number of times")
        if frames == 1:
            return plain_attention(query, key, value, mask)
        query, key, value = (x.unflatten(0, (-1, frames)) for x in (query, key, value))
        out = torch.empty_like(query)
        for row in set(self.seen_frames):
            chosen = [i for i, other in enumerate(self.seen_frames) if other == row]
            keys, values = _join_frames(key[:, list(row)]), _join_frames(value[:, list(row)])
            attended = plain_attention(_join_frames(query[:, chosen]), keys, values, None)
            out[:, chosen] = attended.unflatten(2, (len(chosen), -1)).transpose(1, 2)
        paths = self.paths.get(query.shape[3])
        if paths is None:
            return out.flatten(0, 1)

        # Along the paths, one picture at a time: the gathered keys are as large as those of all pictures together.
        paths = paths.to(query.device)
        indices = torch.arange(len(paths), device=paths.device)
        along = []
        for i, path in enumerate(paths):
            # Two index lists with a slice between them put the indexed axes in front: (tokens, frames, groups, ...).
            keys, values = (x[:, indices, :, path.clamp(min=0)].permute(2, 3, 0, 1, 4) for x in (key, out))
            attended = plain_attention(query[:, i].unsqueeze(-2), keys, values, (path >= 0).unsqueeze(-2))
            along.append(attended.squeeze(-2))
        return torch.stack(along, dim=1).flatten(0, 1)


def find_canonical_paths(
    positions: Float[np.ndarray, "frames height width 2"],
    visible: Bool[np.ndarray, "frames height width"],
    max_distance: float = 0.75,
) -> Int[Tensor, "frames tokens frames"]:
    """Finds for each token the token of every other picture that shows the same canonical point.

    Args:
        positions: canonical positions of the tokens of each picture in one layer, in uv units.
        visible: tokens that show that layer.
        max_distance: largest distance between two tokens of the same point, as a share of the spacing of tokens; in a
            regular grid the nearest token is at most 0.71 away.

    Returns:
        Indices of tokens, row by row; -1 where a picture does not show the point. Each token matches itself. For
        several layers, take the elementwise maximum of their paths.
    """
    # The usual distance between the canonical positions of neighboring tokens.
    steps = []
    for axis in (1, 2):
        both = np.take(visible, range(1, visible.shape[axis]), axis) & np.take(
            visible, range(visible.shape[axis] - 1), axis
        )
        steps.append(np.linalg.norm(np.diff(positions, axis=axis), axis=-1)[both])
    all_steps = np.concatenate(steps)
    spacing = float(np.median(all_steps)) if len(all_steps) else 0.0

    frames, tokens = len(positions), visible[0].size
    flat, shown = positions.reshape(frames, tokens, 2), visible.reshape(frames, tokens)
    paths = torch.full((frames, tokens, frames), -1)
    reach = max_distance * spacing
    for other in range(frames):
        known = np.flatnonzero(shown[other])
        if len(known):
            distance, nearest = cKDTree(flat[other, known]).query(flat.reshape(-1, 2))
            same = (distance <= reach).reshape(frames, tokens) & shown
            paths[:, :, other] = torch.from_numpy(np.where(same, known[nearest].reshape(frames, tokens), -1))
        paths[other, :, other] = torch.arange(tokens)
    return paths


@dataclass
class FeatureRecorder:
    """Records tensors of a UNet's layers in one run of the denoiser, and injects them into another.

    Attributes:
        layers: names of the processors whose queries and keys are recorded.
        convolutions: modules whose outputs are recorded, by name.
        recorded: queries and keys of a layer, or the output of a convolution, by name, in the last recorded run: one
            entry for each window of the latents.
    """

    layers: Sequence[str] = ()
    convolutions: Mapping[str, torch.nn.Module] = field(default_factory=dict)
    recorded: dict[str, list[RecordedTensors]] = field(default_factory=dict)

    @contextmanager
    def record_features(self, model: DiffusionModel) -> Iterator[None]:
        """Records the passes of `model` within the context; replaces earlier records."""
        self.recorded = {name: [] for name in (*self.layers, *self.convolutions)}
        with ExitStack() as stack:
            recorders = {name: AttentionProcessor(_RecordingAttention(self.recorded[name])) for name in self.layers}
            stack.enter_context(model.replace_attention(recorders))
            for name, module in self.convolutions.items():
                stack.callback(
                    module.register_forward_hook(
                        lambda _, _inputs, output, held=self.recorded[name]: held.append((output,))
                    ).remove
                )
            yield

    @contextmanager
    def inject_features(
        self, model: DiffusionModel, processors: Mapping[str, AttentionProcessor], outputs: bool = True
    ) -> Iterator[None]:
        """Injects the recorded tensors into every picture of the passes of `model`.

        Args:
            model: the model whose passes get the tensors.
            processors: results of `make_replaying_processors`, for some or all of the layers.
            outputs: whether the outputs of the convolutions are injected too.
        """
        with ExitStack() as stack:
            stack.enter_context(model.replace_attention(processors))
            for name, module in self.convolutions.items() if outputs else ():
                recorded = cycle(self.recorded[name])
                stack.callback(
                    module.register_forward_hook(
                        lambda _, _inputs, output, held=recorded: repeat_batch(next(held)[0], len(output)).to(output)
                    ).remove
                )
            yield

    def make_replaying_processors(
        self, layers: Sequence[str], mix: RecordedAttentionFunction | None = None
    ) -> dict[str, AttentionProcessor]:
        """Makes processors that attend with the recorded queries and keys.

        Args:
            layers: names of the processors to replace.
            mix: computes the attention from the recorded tensors and those of the pass; by default
                `attend_with_recorded`.
        """
        return {
            name: AttentionProcessor(_ReplayingAttention(cycle(self.recorded[name]), mix or attend_with_recorded))
            for name in layers
        }


def attend_with_recorded(recorded: RecordedTensors, query: HeadTensor, key: Tensor, value: Tensor) -> Tensor:
    """Attends with the queries and keys of the recorded run, and the values of this one.

    Args:
        recorded: queries and keys of the recorded run.
        query: queries of this run, for the size of the batch.
        key: keys of this run; not used.
        value: values of this run.
    """
    return plain_attention(repeat_batch(recorded[0], len(query)), repeat_batch(recorded[1], len(query)), value, None)


def repeat_batch(values: Float[Tensor, "m ..."], count: int) -> Float[Tensor, "count ..."]:
    """Repeats a batch until it has `count` entries.

    Args:
        values: a batch of m entries.
        count: a multiple of m.

    Example:
        >>> repeat_batch(torch.tensor([[1.0], [2.0]]), 4).flatten().tolist()
        [1.0, 2.0, 1.0, 2.0]
    """
    return values.repeat(count // len(values), *[1] * (values.ndim - 1))


@dataclass(frozen=True)
class _RecordingAttention:
    held: list[RecordedTensors]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        self.held.append((query, key))
        return plain_attention(query, key, value, mask)


@dataclass(frozen=True)
class _ReplayingAttention:
    held: Iterator[RecordedTensors]
    mix: RecordedAttentionFunction

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return self.mix(next(self.held), query, key, value)


def _list_processors(unet: Any, kind: str) -> list[str]:
    names = [] if unet is None else [name for name in unet.attn_processors if name.endswith(f"{kind}.processor")]
    if not names:
        raise bad_input(
            "this model's attention cannot be changed",
            why="its denoiser is a transformer; attention is shared or put in only in a UNet",
            fix="--model with Stable Diffusion 1.5, 2.1 or XL",
        )
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return sorted(names, key=lambda name: order.get(name.split(".")[0], 3))  # stable: within a block as listed


def _split_heads(states: Tensor, heads: int) -> Tensor:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join_frames(states: Tensor) -> Tensor:
    """Concatenates the tokens of several pictures: merges the frames of (groups, frames, heads, tokens, width)."""
    return states.transpose(1, 2).flatten(2, 3)
