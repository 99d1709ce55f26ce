"""The settings of editors that invert the picture to noise and inject features of the original."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from editors.options.regions import RegionOptions
from editors.options.wrong_setting import wrong_setting_error
from neural_fields.config.flags import Repeated


@dataclass(frozen=True, kw_only=True)
class FeatureInjectionOptions(RegionOptions):
    """Holds the settings that editors which inject features of the original share."""

    strength: float = 1.0
    """Share of the inversion to noise, in (0, 1]; less stays closer to the original."""
    steps: int = 50
    """Number of denoising steps from pure noise to a picture; the inversion takes as many."""
    refine: int = 1
    """Further passes per step of the inversion, which make the reconstruction of the original more exact."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refine < 0:
            raise wrong_setting_error("refine", self.refine, "it counts passes", "--refine 1")

    def check_share(self, flag: str, value: float, default: float) -> None:
        """Refuses a value that is not a share of the steps.

        Args:
            flag: name of the setting's flag, without dashes.
            value: the value.
            default: the default, which the message suggests.

        Raises:
            UserError: the value is outside of [0, 1] (exit 2).
        """
        if not 0 <= value <= 1:
            raise wrong_setting_error(flag, value, "it is a share of the steps, from 0 to 1", f"--{flag} {default}")


@dataclass(frozen=True, kw_only=True)
class PlugAndPlayOptions(FeatureInjectionOptions):
    """Holds the settings of `PlugAndPlay`."""

    name: ClassVar[str] = "pnp"

    source_prompt: str = ""
    """What the layer shows now (default: an empty prompt, as in the paper)."""
    features: float = 0.8
    """Share of the steps, from the first, in which the output of one convolution is the original's, in [0, 1]."""
    attention: float = 0.5
    """Share of the steps, from the first, in which self-attention is that of the original, in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("features", self.features, 0.8)
        self.check_share("attention", self.attention, 0.5)


@dataclass(frozen=True, kw_only=True)
class PromptToPromptOptions(FeatureInjectionOptions):
    """Holds the settings of `PromptToPrompt`."""

    name: ClassVar[str] = "p2p"

    source_prompt: str
    """What the layer shows now; the prompt repeats it and differs only in the words to change."""
    cross: float = 0.8
    """Share of the steps, from the first, in which words keep the cross-attention of the original, in [0, 1]."""
    attention: float = 0.4
    """Share of the steps, from the first, in which coarse self-attention is that of the original, in [0, 1]."""
    weight: Repeated = ()
    """WORD=FACTOR: emphasize (above 1) or weaken (below 1) a word of the prompt. Repeatable."""
    local_blend: Repeated = ()
    """A word of either prompt: the picture changes only where such words appear. Repeatable."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("cross", self.cross, 0.8)
        self.check_share("attention", self.attention, 0.4)
        if not self.source_prompt.strip():
            raise wrong_setting_error(
                "source-prompt", self.source_prompt, "it says what is there", '--source-prompt "a car"'
            )
        self.parse_factors()
        both = {*split_words(self.prompt), *split_words(self.source_prompt)}
        for word in self.local_blend:
            if word.lower() not in both:
                raise wrong_setting_error(
                    "local_blend", word, "it is in neither prompt", f"--local-blend {split_words(self.prompt)[-1]}"
                )

    def parse_factors(self) -> dict[str, float]:
        """Parses the words of `--weight` and their factors.

        Raises:
            UserError: a value that is not of the form WORD=FACTOR, or a word that the prompt does not have (exit 2).
        """
        factors = {}
        for given in self.weight:
            word, _, factor = given.rpartition("=")
            try:
                factors[word.lower()] = float(factor)
            except ValueError:
                raise wrong_setting_error("weight", given, "it is WORD=FACTOR", "--weight dots=2.0") from None
            if word.lower() not in split_words(self.prompt):
                raise wrong_setting_error(
                    "weight",
                    given,
                    f"{word!r} is no word of the prompt",
                    f"--weight {split_words(self.prompt)[-1]}=2.0",
                )
        return factors


def split_words(prompt: str) -> list[str]:
    """Splits a prompt into words and punctuation marks, in lower case."""
    return re.findall(r"[\w'-]+|[^\w\s]+", prompt.lower())
