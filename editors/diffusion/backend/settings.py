"""The base of diffusion editors: the settings that they share are flags of `unwrap edit RUN --editor NAME`."""

from __future__ import annotations

from dataclasses import dataclass

from editors.core.editor import PlanarEditor
from editors.diffusion.backend.weights import WeightsSource
from editors.options.diffusion import DiffusionOptions


@dataclass(frozen=True, kw_only=True)
class DiffusionEditor(DiffusionOptions, PlanarEditor):
    """Defines the base of editors of videos that give a prompt to a model, with the settings that they share."""

    def weights_source(self) -> WeightsSource:
        """Returns the model to load, with its adapters and embeddings."""
        return WeightsSource(self.model, self.device, self.unsafe_weights, self.lora, self.embedding)
