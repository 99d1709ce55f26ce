"""`p2p`: changes a picture only where two prompts differ.

Hertz, Mokady, Tenenbaum, Aberman, Pritch and Cohen-Or, Prompt-to-Prompt Image Editing with Cross Attention Control,
ICLR 2023. The column of a word in the cross-attention maps shows where the word appears in the picture. In a share of
the steps the edit uses the columns of the original: those of the same word, or of the word that it replaces (section
3.2, "word swap"); new words keep their own columns ("adding a new phrase"). A factor on the column of a word emphasizes
or weakens it ("attention re-weighting"). The two prompts are aligned word by word, so that one rule covers swapped and
added words.

The picture is inverted to noise as in `pnp.py`, and the inverted latents replace the paper's source branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import DiffusionModel, EncodedPrompt, load_model
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents
from editors.diffusion.common.attention import (
    AttentionProcessor,
    FeatureRecorder,
    RecordedTensors,
    attend_with_recorded,
    list_cross_attention,
    list_self_attention,
    plain_attention,
)
from editors.diffusion.common.region import open_regions
from editors.diffusion.methods.pnp import FeatureInjectionEditor, repaint_from_inversion
from editors.options.feature_injection import PromptToPromptOptions, split_words
from editors.options.wrong_setting import wrong_setting_error
from neural_fields.core.progress import ProgressReporter

Maps = Float[Tensor, "pictures heads places words"]


@dataclass(frozen=True)
class PromptToPromptSettings:
    """Settings of prompt-to-prompt; those of the local blend are as in the paper's own program."""

    min_replaced_ratio: int = 4  # latents per token from which self-attention of a layer is the original's
    min_blend_ratio: int = 16  # latents per token from which the maps of a layer say where words are
    settled_share: float = 0.2  # share of the steps after which the maps locate a word
    min_map_value: float = 0.3  # share of a map's largest value above which a latent belongs to the word


DEFAULTS = PromptToPromptSettings()


@dataclass(frozen=True, kw_only=True)
class PromptToPrompt(PromptToPromptOptions, FeatureInjectionEditor):
    """Swap, add, emphasize or weaken words of a prompt: Prompt-to-Prompt (Hertz et al., 2023)."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Changes the region of each layer where the two prompts differ.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model or words that cannot be used, or nothing to edit (exit 2 or 3).
        """
        model = load_model(self.weights_source(), report)
        kept = FeatureRecorder([*list_self_attention(model.unet), *list_cross_attention(model.unet)])
        canvases, notes = open_regions(model, source, self, report)
        now, wanted = model.encode_prompt(self.source_prompt), model.encode_prompt(self.prompt, self.negative)
        tokenizer = model.pipeline.tokenizer
        exchange = WordExchange.align_prompts(
            tokenizer, self.source_prompt, self.prompt, self.parse_factors(), now.states.shape[1]
        )
        places = LocalBlendMask(
            before=find_word_tokens(tokenizer, self.source_prompt, self.local_blend),
            after=find_word_tokens(tokenizer, self.prompt, self.local_blend),
        )
        redo = partial(self._predict_step, model, now, wanted, kept, exchange, places)
        return repaint_from_inversion(
            model, canvases, self, now, redo, report, places.compute_mask if self.local_blend else None, notes
        )

    def _predict_step(
        self,
        model: DiffusionModel,
        now: EncodedPrompt,
        wanted: EncodedPrompt,
        kept: FeatureRecorder,
        exchange: WordExchange,
        places: LocalBlendMask,
        latents: Latents,
        original: Latents,
        done: int,
    ) -> DenoisedLatents:
        """Predicts one step with the original's attention."""
        times = model.schedule.select_times(self.steps, self.strength)
        share, time, size = done / len(times), times[done], latents.shape[-2] * latents.shape[-1]
        with kept.record_features(model):
            model.predict_denoised(original, time, now, 1.0)
        places.choose_layers(latents, kept, settled=share >= places.settings.settled_share)
        replaced: dict[str, AttentionProcessor] = {}
        if share < self.attention:
            coarse = []
            for name in list_self_attention(model.unet):
                tokens = kept.recorded[name][0][0].shape[2]
                if places.settings.min_replaced_ratio * tokens <= size:
                    coarse.append(name)
            replaced |= kept.make_replaying_processors(coarse, _attend_like_original)
        for name in list_cross_attention(model.unet):
            mix = partial(exchange.attend, share < self.cross, places if name in places.layers else None)
            replaced |= kept.make_replaying_processors([name], mix)
        with kept.inject_features(model, replaced):
            return model.predict_denoised(latents, time, wanted, self.guidance)


@dataclass(frozen=True)
class WordExchange:
    """Mixes the cross-attention maps of an edit from its own maps and those of the original.

    Attributes:
        column_weights: weights of the original's columns in the column of each token of the edit.
        original_share: 1 for tokens whose columns are the original's, 0 for new ones.
        word_factors: factor of each token's column.
    """

    column_weights: Float[Tensor, "before after"]
    original_share: Float[Tensor, " after"]
    word_factors: Float[Tensor, " after"]

    @staticmethod
    def align_prompts(
        tokenizer: Any, before: str, after: str, factors: Mapping[str, float], length: int
    ) -> WordExchange:
        """Aligns two prompts word by word.

        Args:
            tokenizer: tokenizer of the model.
            before: the prompt of the original.
            after: the prompt of the edit.
            factors: factors of words of `after`; other words have 1.
            length: number of tokens of an encoded prompt.
        """
        taken, factor = torch.zeros(length, length), torch.ones(length)
        old, new = _list_token_spans(tokenizer, before), _list_token_spans(tokenizer, after)
        # Words that stand for each other: the same word, or one of as many that are exchanged together
        matcher = SequenceMatcher(None, [word for word, _ in old], [word for word, _ in new], autojunk=False)
        for _, old_start, old_stop, new_start, new_stop in matcher.get_opcodes():
            if old_stop - old_start != new_stop - new_start:
                continue
            pairs = zip(old[old_start:old_stop], new[new_start:new_stop], strict=True)
            for (_, source), (_, target) in pairs:
                if len(source) == len(target):
                    taken[list(source), list(target)] = 1
                elif source and target:  # each token takes an equal part of them all
                    taken[source.start : source.stop, target.start : target.stop] = 1 / len(target)
        # The beginning, the end of the prompt, and what fills it up
        old_end = max((span.stop for _, span in old), default=1)
        new_end = max((span.stop for _, span in new), default=1)
        taken[0, 0] = 1
        for k in range(new_end, length):
            taken[min(old_end + k - new_end, length - 1), k] = 1
        for word, span in new:
            factor[span.start : span.stop] = factors.get(word, 1.0)
        return WordExchange(taken, (taken.sum(0) > 0).float(), factor)

    def attend(
        self,
        exchanged: bool,
        blend_mask: LocalBlendMask | None,
        held: RecordedTensors,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        """Attends to the prompt with the mixed maps, in the conditional part of a batch; as usual in the rest.

        Args:
            exchanged: whether words use the original's maps; their factors always apply.
            blend_mask: accumulates the maps; None for a layer that does not contribute.
            held: query and key of the original's pass.
            query: query of this pass; its last rows, as many as `held` has, attend to the prompt.
            key: key of this pass, a row for each row of `query`.
            value: value of this pass, a row for each row of `query`.
        """
        count = len(held[0])
        new, old = compute_attention_maps(query[-count:], key[-count:]), compute_attention_maps(*held)
        if blend_mask is not None:
            blend_mask.accumulate_maps(old, new)
        if exchanged:
            share = self.original_share.to(new)
            new = (old @ self.column_weights.to(old)) * share + new * (1 - share)
        seen = (new * self.word_factors.to(new)) @ value[-count:]
        if len(query) == count:
            return seen
        return torch.cat([plain_attention(query[:-count], key[:-count], value[:-count], None), seen])


@dataclass
class LocalBlendMask:
    """Locates words by cross-attention maps summed over the steps: the paper's "local blend" (section 3.2).

    Attributes:
        before: tokens of the words in the prompt of the original.
        after: tokens of the words in the prompt of the edit.
        layers: names of the attention layers that contribute.
        settings: which layers contribute, and thresholds of the maps.
    """

    before: Sequence[int]
    after: Sequence[int]
    layers: frozenset[str] = frozenset()
    settings: PromptToPromptSettings = DEFAULTS
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _size: tuple[int, int] = (1, 1)
    _settled: bool = False

    def choose_layers(self, latents: Latents, kept: FeatureRecorder, settled: bool) -> None:
        """Chooses the layers that contribute at a step.

        Args:
            latents: latents of the step, for their size.
            kept: recorded attention of the original's pass.
            settled: whether the maps already locate the words.

        Raises:
            UserError: the picture is larger than the model processes at once (exit 2).
        """
        self._size, self._settled = (latents.shape[-2], latents.shape[-1]), settled
        if not (self.before or self.after):
            return
        names = [name for name in kept.layers if name.endswith("attn2.processor")]
        if any(len(kept.recorded[name]) > 1 for name in names):
            raise wrong_setting_error(
                "local_blend", "set", "it needs a picture that the model sees at once", "leave --side out"
            )
        tokens = {name: kept.recorded[name][0][0].shape[2] for name in names}
        max_tokens = max(self._size[0] * self._size[1] // self.settings.min_blend_ratio, min(tokens.values()))
        self.layers = frozenset(name for name in names if tokens[name] <= max_tokens)

    def accumulate_maps(self, old: Maps, new: Maps) -> None:
        """Adds the maps of a layer to the sums.

        Args:
            old: maps of the original.
            new: maps of the edit.
        """
        rows, columns = self._size
        for which, maps, tokens in (("before", old, self.before), ("after", new, self.after)):
            if not tokens:
                continue
            flat = maps[..., list(tokens)].sum(-1).mean(1)
            # As a picture of the size of the latents; each place spreads to its neighbors
            factor = round((rows * columns / flat.shape[1]) ** 0.5)
            grid = flat.unflatten(1, (1, rows // factor, columns // factor)).float()
            picture = interpolate(max_pool2d(grid, 3, 1, 1), self._size, mode="bilinear")
            self._sums[which] = self._sums[which] + picture if which in self._sums else picture

    def compute_mask(self) -> Float[Tensor, "n 1 rows columns"]:
        """Computes 1 where any of the words appears, else 0; 1 everywhere in the first steps, before maps settle."""
        shares = [total / total.amax(dim=(2, 3), keepdim=True) for total in self._sums.values()]
        shown = torch.stack(shares).amax(0) > self.settings.min_map_value
        return (shown if self._settled else torch.ones_like(shown)).float()


def compute_attention_maps(query: Float[Tensor, "n h places d"], key: Float[Tensor, "n h words d"]) -> Maps:
    """Computes attention maps.

    Args:
        query: queries of the positions, per head.
        key: keys of the words, per head.

    Returns:
        The attention of each position to each word; it sums to 1 over the words.

    Example:
        >>> query, key = torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.0], [0.0]]]])
        >>> compute_attention_maps(query, key).flatten().tolist()
        [0.5, 0.5]
    """
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


def find_word_tokens(tokenizer: Any, prompt: str, words: Sequence[str]) -> list[int]:
    """Lists the tokens of an encoded prompt that belong to some words.

    Args:
        tokenizer: tokenizer of the model.
        prompt: the prompt.
        words: the words to look for.

    Returns:
        Indices of tokens; the start token of the encoded prompt has index 0.
    """
    wanted = {word.lower() for word in words}
    return [number for word, span in _list_token_spans(tokenizer, prompt) if word in wanted for number in span]


def _list_token_spans(tokenizer: Any, prompt: str) -> list[tuple[str, range]]:
    """Lists the words of a prompt with their tokens; words beyond the tokenizer's length have none."""
    spans, start, last = [], 1, int(tokenizer.model_max_length) - 1
    for word in split_words(prompt):
        stop = start + len(tokenizer(word, add_special_tokens=False).input_ids)
        spans.append((word, range(min(start, last), min(stop, last))))
        start = stop
    return spans


def _attend_like_original(held: RecordedTensors, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attends with the original's maps, in the conditional part of a batch."""
    count = len(held[0])
    changed = attend_with_recorded(held, query[-count:], key[-count:], value[-count:])
    if len(query) == count:
        return changed
    return torch.cat([plain_attention(query[:-count], key[:-count], value[:-count], None), changed])
