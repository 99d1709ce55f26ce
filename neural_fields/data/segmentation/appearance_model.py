"""What the object looks like, learned from hinted frames only: ridge regression on random cosine features.

Rahimi and Recht, "Random Features for Large-Scale Kernel Machines" (NIPS 2007). The model never learns from its own
results: what is lost once is found again when it looks as it did in a hinted frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from neural_fields.data.segmentation.color_features import FEATURE_COUNT, FINE_FEATURES


@dataclass(frozen=True)
class AppearanceSettings:
    """Holds the settings of `AppearanceModel`."""

    cosine_features: int = 256  # of each regression
    frequencies: tuple[float, ...] = (0.5, 1.0, 2.0)  # of the cosines, in cycles per standard deviation, about
    linear_weight: float = 0.3  # of the features themselves beside their cosines
    ridge: float = 1e-2  # regularization, relative to the mean of the diagonal
    feature_sets: tuple[tuple[int, ...], ...] = (tuple(range(FEATURE_COUNT)), FINE_FEATURES)  # one regression of each
    regressions: int = 2  # of each set of features, with other random frequencies; the mean of all counts
    max_samples: int = 12_000  # of all hinted frames together
    far_share: float = 0.1  # weight of the background that is far from the object; the near one has 0.4
    max_score: float = 1.2  # scores are clipped to this; 1 is the score of the object's own samples


DEFAULTS = AppearanceSettings()
BATCH = 512  # pixels whose cosines are computed at once; they stay in the cache of the processor


class AppearanceModel:
    """Scores pixels by their features: about 1 for the object's look, -1 for the background's.

    Args:
        features: of each hinted frame; twenty of `compute_color_features`, or those and others.
        labels: of the same frames at the size of the features: 1 the object, -1 the background, 0 not known.
        near: of the same frames, where the background is near the object.
        settings: sizes and weights.
        seed: of the random frequencies and samples.
    """

    def __init__(
        self,
        features: Mapping[int, Float[np.ndarray, "rows columns features"]],
        labels: Mapping[int, Int8[np.ndarray, "rows columns"]],
        near: Mapping[int, np.ndarray],
        settings: AppearanceSettings = DEFAULTS,
        seed: int = 0,
    ) -> None:
        self.settings = settings
        draw = np.random.default_rng(seed)
        size = next(iter(features.values())).shape[-1]
        everything = np.concatenate([features[frame].reshape(-1, size) for frame in labels])
        self._mean, self._spread = everything.mean(0), everything.std(0) + 1e-3
        rows, values, weights = [], [], []
        for frame, label in labels.items():
            # The object, the background near it, and a little of the rest, with equal halves.
            label, beside = label.ravel(), near[frame].ravel()
            groups = (
                (np.flatnonzero(label > 0), 1.0, 0.5, 2),
                (np.flatnonzero((label < 0) & beside), -1.0, 0.5 - settings.far_share, 2),
                (np.flatnonzero((label < 0) & ~beside), -1.0, settings.far_share, 6),
            )
            for pixels, value, share, divisor in groups:
                chosen = draw.permutation(pixels)[: settings.max_samples // divisor // len(labels)]
                rows.append(features[frame].reshape(-1, size)[chosen])
                values.append(np.full(len(chosen), value))
                weights.append(np.full(len(chosen), share / max(1, len(chosen))) / len(labels))
        samples, target, weight = (np.concatenate(parts).astype(np.float32) for parts in (rows, values, weights))
        # All regressions in one: their cosines side by side, their solutions averaged.
        count, inputs = settings.cosine_features, self._normalize(samples)
        frequencies, phases, solutions = [], [], []
        linear, constant = torch.zeros(size), 0.0
        regressions = settings.regressions * len(settings.feature_sets)
        for number in range(regressions):
            kind = np.array(settings.feature_sets[number % len(settings.feature_sets)])
            frequency = np.zeros((size, count), np.float32)
            scale = draw.choice(settings.frequencies, count) / np.sqrt(len(kind))
            frequency[kind] = draw.standard_normal((len(kind), count)) * scale
            phase = draw.uniform(0, 2 * np.pi, count).astype(np.float32)
            cosines = torch.cos(inputs @ torch.from_numpy(frequency) + torch.from_numpy(phase))
            design = torch.cat([cosines, settings.linear_weight * inputs[:, kind], torch.ones(len(inputs), 1)], 1)
            weighted = design * torch.from_numpy(weight)[:, None]
            normal = weighted.T @ design
            ridge = settings.ridge * torch.trace(normal) / len(normal)
            solution = (
                torch.linalg.solve(normal + ridge * torch.eye(len(normal)), weighted.T @ torch.from_numpy(target))
                / regressions
            )
            frequencies.append(frequency)
            phases.append(phase)
            solutions.append(solution[:count])
            linear[kind] += settings.linear_weight * solution[count:-1]
            constant += float(solution[-1])
        self._frequency = torch.from_numpy(np.concatenate(frequencies, 1))
        self._phase = torch.from_numpy(np.concatenate(phases))
        self._solution, self._linear, self._constant = torch.cat(solutions), linear, constant

    def score(self, features: Float[np.ndarray, "*pixels features"]) -> Float[np.ndarray, "*pixels"]:
        """Returns the score of every pixel, from `-max_score` to `max_score`."""
        total = []
        for normal in self._normalize(features.reshape(-1, features.shape[-1])).split(BATCH):
            cosines = torch.addmm(self._phase, normal, self._frequency).cos_()
            total.append(cosines @ self._solution + normal @ self._linear + self._constant)
        limit = self.settings.max_score
        return torch.cat(total).clamp_(-limit, limit).numpy().reshape(features.shape[:-1])

    def _normalize(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray((rows - self._mean) / self._spread, np.float32))
