"""Prompt-to-prompt: two prompts that differ in some words, and a picture that changes with those words only.

Hertz, Mokady, Tenenbaum, Aberman, Pritch and Cohen-Or, Prompt-to-Prompt Image Editing with Cross Attention Control,
ICLR 2023. Where a word shows in a picture is what its column of the cross-attention maps says. In a share of the steps
the edit takes the columns of the original: those of the same word, those of the word it stands in for (section 3.2,
"word swap"), its own for words that are new ("adding a new phrase"). The columns of a word times a factor make more or
less of it ("attention re-weighting"). The two prompts are laid side by side word by word, so that one rule does for
swapped and for added words.

The picture is taken to noise as in `pnp.py`, and its latents there play the part of the paper's source branch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from editors.base import EditorResult, Report, Source
from editors.diffusion.attention import (
    Features,
    Held,
    Processor,
    cross_attention,
    old_for_new,
    plain,
    self_attention,
)
from editors.diffusion.pnp import Inverted, remade
from editors.diffusion.region import open_regions
from editors.diffusion.schedule import Denoised, Latents
from editors.diffusion.settings import wrong_setting
from editors.diffusion.wrapper import DiffusionModel, Text, load_model
from neural_fields.config_flags import Repeated

COARSE = 4  # self-attention is the original's in layers with so many times fewer tokens than latents, and with less
PLACE = 16  # where a word is, is read in layers with so many times fewer tokens than latents, and with less
SETTLED = 0.2  # share of the steps after which the maps say where a word is
SURE = 0.3  # of the largest value of a map: what is above belongs to the word (both as in the paper's own program)

Maps = Float[Tensor, "pictures heads places words"]


@dataclass(frozen=True, kw_only=True)
class PromptToPrompt(Inverted):
    """Prompt-to-Prompt (Hertz et al., 2023): words of a prompt are exchanged, added, made more or less of."""

    name: ClassVar[str] = "p2p"

    source_prompt: str
    """What the layer shows now; the prompt says the same in other words where it shall change."""
    cross: float = 0.8
    """Share of the steps, from the first on, in which words show where they showed in the original."""
    attention: float = 0.4
    """Share of the steps, from the first on, in which coarse self-attention looks where it looked in the original."""
    weight: Repeated = ()
    """WORD=FACTOR: more (above 1) or less of a word of the prompt. May be repeated."""
    local_blend: Repeated = ()
    """A word of either prompt: the picture changes only where such words show. May be repeated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("cross", self.cross, 0.8)
        self.check_share("attention", self.attention, 0.4)
        if not self.source_prompt.strip():
            raise wrong_setting("source-prompt", self.source_prompt, "it says what is there", '--source-prompt "a car"')
        self._factors()
        both = {*_words(self.prompt), *_words(self.source_prompt)}
        for word in self.local_blend:
            if word.lower() not in both:
                raise wrong_setting(
                    "local_blend", word, "it is in neither prompt", f"--local-blend {_words(self.prompt)[-1]}"
                )

    def __call__(self, source: Source, report: Report) -> EditorResult:
        """The region of each layer, changed as the words of its prompt are."""
        model = load_model(self.weights())
        kept = Features([*self_attention(model.unet), *cross_attention(model.unet)])
        canvases, notes = open_regions(model, source, self, report)
        now, wanted = model.text(self.source_prompt), model.text(self.prompt, self.negative)
        tokenizer = model.pipeline.tokenizer
        exchange = Exchange.of(tokenizer, self.source_prompt, self.prompt, self._factors(), now.states.shape[1])
        before, after = (
            token_numbers(tokenizer, words, self.local_blend) for words in (self.source_prompt, self.prompt)
        )
        places = Places(before, after)
        redo = partial(self._step, model, now, wanted, kept, exchange, places)
        return remade(model, canvases, self, now, redo, report, places.mask if self.local_blend else None, notes)

    def _step(
        self,
        model: DiffusionModel,
        now: Text,
        wanted: Text,
        kept: Features,
        exchange: Exchange,
        places: Places,
        latents: Latents,
        original: Latents,
        done: int,
    ) -> Denoised:
        """One prediction with the original's attention."""
        times = model.schedule.times(self.steps, self.strength)
        share, time, size = done / len(times), times[done], latents.shape[-2] * latents.shape[-1]
        with kept.recording(model):
            model.predict(original, time, now, 1.0)
        places.open(latents, kept, settled=share >= SETTLED)
        own, words = self_attention(model.unet), cross_attention(model.unet)
        replaced: dict[str, Processor] = {}
        if share < self.attention:
            coarse = [name for name in own if COARSE * kept.held[name][0][0].shape[2] <= size]
            replaced |= kept.replayed(coarse, _only_with_prompt)
        for name in words:
            mix = partial(exchange.mix, share < self.cross, places if name in places.layers else None)
            replaced |= kept.replayed([name], mix)
        with kept.injecting(model, replaced):
            return model.predict(latents, time, wanted, self.guidance)

    def _factors(self) -> dict[str, float]:
        """The words of `--weight` with their factors.

        Raises:
            UserError: one that is not of the form WORD=FACTOR, or whose word the prompt does not have (exit 2).
        """
        factors = {}
        for given in self.weight:
            word, _, factor = given.rpartition("=")
            try:
                factors[word.lower()] = float(factor)
            except ValueError:
                raise wrong_setting("weight", given, "it is WORD=FACTOR", "--weight dots=2.0") from None
            if word.lower() not in _words(self.prompt):
                raise wrong_setting(
                    "weight", given, f"{word!r} is no word of the prompt", f"--weight {_words(self.prompt)[-1]}=2.0"
                )
        return factors


@dataclass(frozen=True)
class Exchange:
    """What becomes of the cross-attention maps of an edit.

    Attributes:
        taken: what each word of the edit takes from the original's words (their columns, weighted).
        share: 1 for words whose columns are the original's, 0 for new ones.
        factor: of each word.
    """

    taken: Float[Tensor, "before after"]
    share: Float[Tensor, " after"]
    factor: Float[Tensor, " after"]

    @staticmethod
    def of(tokenizer: Any, before: str, after: str, factors: Mapping[str, float], length: int) -> Exchange:
        """The exchange between two prompts.

        Args:
            factors: of words of `after`, which are 1 otherwise.
            length: tokens of an encoded prompt.
        """
        taken, factor = torch.zeros(length, length), torch.ones(length)
        old, new = (_spans(tokenizer, prompt) for prompt in (before, after))
        for source, target in _partners([word for word, _ in old], [word for word, _ in new]):
            _takes(taken, old[source][1], new[target][1])
        ends = [max((span.stop for _, span in spans), default=1) for spans in (old, new)]
        taken[0, 0] = 1
        for k in range(ends[1], length):  # the end of the prompt, and what fills it up
            taken[min(ends[0] + k - ends[1], length - 1), k] = 1
        for word, span in new:
            factor[span.start : span.stop] = factors.get(word, 1.0)
        return Exchange(taken, (taken.sum(0) > 0).float(), factor)

    def mix(
        self, exchanged: bool, places: Places | None, held: Held, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Attention to the prompt with the changed maps, in the part of a batch that sees it; as usual in the rest."""
        count = len(held[0])
        new, old = maps_of(query[-count:], key[-count:]), maps_of(*held)
        if places is not None:
            places.add(old, new)
        if exchanged:
            share = self.share.to(new)
            new = (old @ self.taken.to(old)) * share + new * (1 - share)
        seen = (new * self.factor.to(new)) @ value[-count:]
        if len(query) == count:
            return seen
        return torch.cat([plain(query[:-count], key[:-count], value[:-count], None), seen])


@dataclass
class Places:
    """Where words show, from cross-attention maps summed over the steps: the paper's "local blend" (section 3.2).

    Attributes:
        before, after: the tokens of the words in the prompt of the original and in that of the edit.
        layers: the attention layers that are asked.
    """

    before: Sequence[int]
    after: Sequence[int]
    layers: frozenset[str] = frozenset()
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _size: tuple[int, int] = (1, 1)
    _settled: bool = False

    def open(self, latents: Latents, kept: Features, settled: bool) -> None:
        """Chooses the layers that are asked at a step, for latents of a size, from what was kept of a pass.

        Raises:
            UserError: the picture is larger than the model sees at once (exit 2).
        """
        self._size, self._settled = (latents.shape[-2], latents.shape[-1]), settled
        words = [name for name in kept.layers if name.endswith("attn2.processor")]
        if not (self.before or self.after):
            return
        if any(len(kept.held[name]) > 1 for name in words):
            raise wrong_setting(
                "local_blend", "set", "it needs a picture that the model sees at once", "leave --side out"
            )
        tokens = {name: kept.held[name][0][0].shape[2] for name in words}
        most = max(self._size[0] * self._size[1] // PLACE, min(tokens.values()))
        self.layers = frozenset(name for name in words if tokens[name] <= most)

    def add(self, old: Maps, new: Maps) -> None:
        """Counts the maps of a layer in, of the original and of the edit."""
        for which, maps, tokens in (("before", old, self.before), ("after", new, self.after)):
            if tokens:
                shown = _as_picture(maps[..., list(tokens)].sum(-1).mean(1), self._size)
                self._sums[which] = self._sums[which] + shown if which in self._sums else shown

    def mask(self) -> Float[Tensor, "n 1 rows columns"]:
        """1 where any of the words shows; everywhere in the first steps, when the maps do not say yet."""
        shares = [shown / shown.amax(dim=(2, 3), keepdim=True) for shown in self._sums.values()]
        found = torch.stack(shares).amax(0) > SURE
        return (found if self._settled else torch.ones_like(found)).float()


def maps_of(query: Float[Tensor, "n h places d"], key: Float[Tensor, "n h words d"]) -> Maps:
    """Attention maps: how much each place looks at each word; sums to 1 over the words."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)


def token_numbers(tokenizer: Any, prompt: str, words: Sequence[str]) -> list[int]:
    """Which tokens of an encoded prompt belong to some words, beginning and end of the prompt counted as tokens."""
    wanted = {word.lower() for word in words}
    return [number for word, span in _spans(tokenizer, prompt) if word in wanted for number in span]


def _words(prompt: str) -> list[str]:
    """Words and marks, in small letters."""
    return re.findall(r"[\w'-]+|[^\w\s]+", prompt.lower())


def _spans(tokenizer: Any, prompt: str) -> list[tuple[str, range]]:
    """Each word of a prompt with its tokens; what does not fit into the tokenizer's length has none."""
    spans, start, last = [], 1, int(tokenizer.model_max_length) - 1
    for word in _words(prompt):
        stop = start + len(tokenizer(word, add_special_tokens=False).input_ids)
        spans.append((word, range(min(start, last), min(stop, last))))
        start = stop
    return spans


def _partners(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Numbers of words that stand for each other: the same word, or one of as many that are exchanged together."""
    for _, start, stop, new_start, new_stop in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if stop - start == new_stop - new_start:
            yield from zip(range(start, stop), range(new_start, new_stop), strict=True)


def _takes(taken: Tensor, old: range, new: range) -> None:
    """Lets the tokens of a word take the columns of another's: one by one, or each an equal part of them all."""
    if len(old) == len(new):
        taken[list(old), list(new)] = 1
    elif old and new:
        taken[old.start : old.stop, new.start : new.stop] = 1 / len(new)


def _only_with_prompt(held: Held, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with the original's maps, in the part of a batch that sees the prompt."""
    count = len(held[0])
    changed = old_for_new(held, query[-count:], key[-count:], value[-count:])
    if len(query) == count:
        return changed
    return torch.cat([plain(query[:-count], key[:-count], value[:-count], None), changed])


def _as_picture(shown: Float[Tensor, "n places"], size: tuple[int, int]) -> Float[Tensor, "n 1 rows columns"]:
    """What each place of a layer shows, as a picture of another size; each place spreads to its neighbours."""
    factor = round((size[0] * size[1] / shown.shape[1]) ** 0.5)
    grid = shown.unflatten(1, (1, size[0] // factor, size[1] // factor)).float()
    return torch.nn.functional.interpolate(torch.nn.functional.max_pool2d(grid, 3, 1, 1), size, mode="bilinear")
