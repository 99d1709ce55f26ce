"""`tokenflow`: frames take the self-attention tokens of keyframes at corresponding points.

Geyer, Bar-Tal, Bagon and Dekel, ICLR 2024, section 4. The frames are inverted to noise (4, "preprocessing"). At each
step one keyframe is drawn from each block of frames; the keyframes are denoised together, with attention over all of
their tokens (4.1); and in the pass over the other frames each token becomes a mixture of the corresponding tokens of
the two nearest keyframes, with a larger weight for the nearer one in time (4.2, eq. 4). The correspondences of the
paper are nearest neighbors among the features of the source, inverted to the same time. The uv maps give them without
features, and also tell if a keyframe does not show a point: then the other one is used alone. Both are available.

The result of the paper is the frames. Here they are merged in the canonical pictures like all keyframes, and become an
overlay, which removes the flicker of the decoder and extends to all frames of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from editors.core.editor import EditorResult
from editors.core.source import EditSource
from editors.diffusion.backend.diffusers_model import load_model
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents
from editors.diffusion.backend.sampling import Denoiser, denoise_region, invert_latents, shrink_mask_to_latents
from editors.diffusion.backend.tiled_denoising import DEFAULTS as WINDOWS
from editors.diffusion.common.attention import (
    AttentionProcessor,
    CrossFrameAttention,
    HeadTensor,
    list_seen_frames,
    list_self_attention,
    plain_attention,
)
from editors.diffusion.common.keyframe_fusion import fuse_keyframes, make_overlays
from editors.diffusion.common.keyframes import (
    KeyframeEditor,
    Keyframes,
    choose_keyframes_evenly,
    open_keyframes,
    parse_frame_numbers,
)
from editors.diffusion.common.region import make_inpainting_inputs
from editors.options.keyframes import TokenFlowOptions
from editors.options.wrong_setting import wrong_setting_error
from neural_fields.core.progress import ProgressReporter, rename_stage


@dataclass(frozen=True)
class TokenMatchingSettings:
    """Settings of matching the tokens of frames by the maps."""

    max_distance: float = 0.8  # of the spacing of tokens: the nearest one of a frame that shows a point is no further


DEFAULTS = TokenMatchingSettings()


@dataclass(frozen=True, kw_only=True)
class TokenFlow(TokenFlowOptions, KeyframeEditor):
    """Edit frames together; they share the tokens of points that they both show: TokenFlow (Geyer et al., 2024)."""

    def choose_frames(self, source: EditSource) -> list[int]:
        """Chooses the frames to edit, in ascending order, or takes those that the user named.

        Args:
            source: the run, and the layers to edit.

        Returns:
            Indices of frames in the run.

        Raises:
            UserError: frames that the run does not have (exit 3).
        """
        named = (
            parse_frame_numbers(source, self.keyframes)
            if self.keyframes
            else choose_keyframes_evenly(source, self.count)
        )
        return sorted(named)

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Edits the frames together and merges them.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: a model or frames that cannot be used, or nothing to edit (exit 3).
        """
        numbers = self.choose_frames(source)  # a wrong one is told before a large model is read
        model = load_model(self.weights_source(), report)
        layers = list_self_attention(model.unet)
        keyframes = open_keyframes(source, numbers, self.side or model.trained_side, model.side_multiple, self.feather)
        if max(keyframes.images.shape[2:]) > WINDOWS.max_stretch * model.trained_side:
            raise wrong_setting_error(
                "side", self.side, "the model sees whole pictures here", f"--side {model.trained_side}"
            )
        with torch.no_grad():
            schedule, images = model.schedule, keyframes.images.to(model.device)
            original = torch.cat([model.encode_images(part) for part in images.split(self.block)])
            inside = shrink_mask_to_latents(keyframes.change_mask.to(model.device), original)
            extra = make_inpainting_inputs(model, images, inside)
            text, empty = model.encode_prompt(self.prompt, self.negative), model.encode_prompt("")

            def predict_chosen(latents: Latents, time: int, chosen: Sequence[int], is_source: bool) -> DenoisedLatents:
                """Predicts some frames without noise.

                Args:
                    latents: of these frames, with noise.
                    time: their noise time.
                    chosen: their places among the keyframes.
                    is_source: whether for the empty prompt, without guidance.
                """
                inputs = None if extra is None else extra[list(chosen)]
                if is_source:
                    return model.predict_denoised(latents, time, empty, 1.0, extra=inputs)
                return model.predict_denoised(latents, time, text, self.guidance, extra=inputs)

            # To noise
            times = schedule.select_times(self.steps, self.strength)
            path = invert_latents(
                original,
                times,
                schedule,
                predict_in_blocks(
                    lambda latents, time, chosen: predict_chosen(latents, time, chosen, True), self.block
                ),
                report=rename_stage(report, "inverting frames"),
            )
            # And back, with the prompt
            if self.correspondences == "features":
                flow, sourced = TokenFlowState(None), dict(zip(times, path, strict=True))
            else:
                flow, sourced = TokenFlowState(TokenMatches.from_maps(keyframes, model.pixels_per_latent)), {}
            with model.replace_attention({layer: AttentionProcessor(TokenFlowAttention(flow)) for layer in layers}):
                latents = denoise_region(
                    path[0],
                    times,
                    schedule,
                    predict_by_token_flow(flow, predict_chosen, self.block, self.seed, sourced),
                    original=original,
                    noise=schedule.assume_clean(path[0], original, times[0]).noise,
                    region=inside,
                    report=rename_stage(report, "denoising frames"),
                )
            edited = torch.cat([model.decode_latents(part).cpu() for part in latents.split(self.block)])
            return make_overlays(model, text, self, keyframes, fuse_keyframes(keyframes, edited), report)


# Predicts some of the frames: their latents, the time, their numbers, and whether it is for the source, without prompt
PredictChosen = Callable[[Latents, int, Sequence[int], bool], DenoisedLatents]


def predict_in_blocks(predict: Callable[[Latents, int, Sequence[int]], DenoisedLatents], block: int) -> Denoiser:
    """Makes a prediction for all pictures from one that handles a block of them at a time.

    Args:
        predict: called with latents, the time and the indices of the pictures.
        block: number of pictures in a block.
    """

    def predict_all(latents: Latents, time: int) -> DenoisedLatents:
        parts = [predict(latents[part], time, part) for part in _split_blocks(len(latents), block)]
        return DenoisedLatents(torch.cat([part.clean for part in parts]), torch.cat([part.noise for part in parts]))

    return predict_all


def predict_by_token_flow(
    state: TokenFlowState, predict_chosen: PredictChosen, block: int, seed: int, source_latents: Mapping[int, Latents]
) -> Denoiser:
    """Makes a prediction for all frames: keyframes of each block together, then the others from their tokens.

    Args:
        state: state that the layers of the denoiser share.
        predict_chosen: predicts some of the frames.
        block: number of frames in a block, of which one is drawn as a keyframe.
        seed: seed of the draws.
        source_latents: latents of the source by time, if correspondences come from its features.
    """
    generator = np.random.default_rng(seed)

    def predict_all(latents: Latents, time: int) -> DenoisedLatents:
        blocks = _split_blocks(len(latents), block)
        if source_latents:
            for part in blocks:
                with state.run_pass("source", (), part):
                    predict_chosen(source_latents[time][part], time, part, True)
        keys = [int(generator.choice(part)) for part in blocks]
        with state.run_pass("keyframes", keys, keys):
            prediction = predict_chosen(latents[keys], time, keys, False)
        clean, noise = latents.clone(), latents.clone()
        clean[keys], noise[keys] = prediction.clean, prediction.noise
        for part in blocks:
            others = [i for i in part if i not in keys]
            if others:
                with state.run_pass("others", keys, others):
                    prediction = predict_chosen(latents[others], time, others, False)
                clean[others], noise[others] = prediction.clean, prediction.noise
        return DenoisedLatents(clean, noise)

    return predict_all


@dataclass
class TokenMatches:
    """Matches tokens of frames that show the same point, with the uv maps.

    Attributes:
        tokens: canonical coordinates of each token, by the number of tokens per picture; the third coordinate separates
            the layers.
        max_distances: largest distance of matching tokens in uv units, by the number of tokens per picture.
        cache: earlier results of `match_tokens`.
    """

    tokens: Mapping[int, Float[np.ndarray, "frames tokens 3"]]
    max_distances: Mapping[int, float]
    cache: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @staticmethod
    def from_maps(keyframes: Keyframes, shrink: int, settings: TokenMatchingSettings = DEFAULTS) -> TokenMatches:
        """Reads canonical coordinates for every size that latents have in the layers of a UNet.

        Args:
            keyframes: the frames.
            shrink: pixels per latent, along a side.
            settings: largest distances.
        """
        tokens, reach = {}, {}
        height, width = keyframes.canonical_positions.shape[1:3]
        for factor in (shrink, 2 * shrink, 4 * shrink, 8 * shrink):
            if height % factor or width % factor:
                continue
            # The pixel in the middle: a mean over two layers lies in neither.
            middle = keyframes.canonical_positions[:, factor // 2 :: factor, factor // 2 :: factor].numpy().copy()
            steps = np.linalg.norm(np.diff(middle[..., :2], axis=2), axis=-1)
            middle[..., 2] *= 1e3  # no token of another layer is the nearest while there are others
            count = middle.shape[1] * middle.shape[2]
            tokens[count] = middle.reshape(len(middle), count, 3)
            reach[count] = settings.max_distance * float(np.median(steps)) if steps.size else 0.0
        return TokenMatches(tokens, reach)

    def match_tokens(self, count: int, frame: int, key: int) -> tuple[Int[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """Finds the nearest token of a keyframe for each of a frame.

        Args:
            count: number of tokens per picture.
            frame: row of the frame in `tokens`.
            key: row of the keyframe in `tokens`.

        Returns:
            The index of the nearest token, and 1 if it shows the same point, else 0.
        """
        if (count, frame, key) not in self.cache:
            points = self.tokens[count]
            distance, nearest = cKDTree(points[key]).query(points[frame])
            shown = torch.from_numpy((distance <= self.max_distances[count]).astype(np.float32))
            self.cache[count, frame, key] = torch.from_numpy(nearest.astype(np.int64)), shown
        return self.cache[count, frame, key]


@dataclass
class TokenFlowState:
    """Holds the state that all layers of the denoiser share: the current pass and its frames.

    Attributes:
        matches: correspondences from the maps; None to find them among the features of the source.
        stage: purpose of the pass.
        keys: the keyframes of this step, in ascending order.
        frames: the frames of this pass.
    """

    matches: TokenMatches | None
    stage: Literal["plain", "source", "keyframes", "others"] = "plain"
    keys: Sequence[int] = ()
    frames: Sequence[int] = ()

    @contextmanager
    def run_pass(
        self, stage: Literal["source", "keyframes", "others"], keys: Sequence[int], frames: Sequence[int]
    ) -> Iterator[None]:
        """Sets the state of a pass within the context.

        Args:
            stage: purpose of the pass.
            keys: the keyframes of this step, in ascending order.
            frames: the frames of the pass.
        """
        self.stage, self.keys, self.frames = stage, keys, frames
        try:
            yield
        finally:
            self.stage = "plain"

    def find_neighbor_keyframes(self, frame: int) -> list[tuple[int, float]]:
        """Finds the keyframes before and after a frame: their indices in `keys`, and their weights (eq. 4)."""
        before = [place for place, key in enumerate(self.keys) if key <= frame]
        after = [place for place, key in enumerate(self.keys) if key > frame]
        if not before or not after:
            return [(before[-1] if before else after[0], 1.0)]
        first, last = self.keys[before[-1]], self.keys[after[0]]
        share = (last - frame) / (last - first)
        return [(before[-1], share), (after[0], 1 - share)]


@dataclass
class TokenFlowAttention:
    """Computes the attention of one self-attention layer: stores tokens of keyframes, and gives them to other frames.

    A token is a result of the attention. The layer's output is linear in it, so it can be mixed before or after.
    """

    state: TokenFlowState
    keyframe_tokens: HeadTensor | None = None
    features: dict[int, Float[Tensor, "tokens width"]] = field(default_factory=dict)

    def __call__(self, query: HeadTensor, key: HeadTensor, value: HeadTensor, mask: Tensor | None) -> HeadTensor:
        """Computes the attention for the current pass."""
        flow = self.state
        if flow.stage == "others":
            # The tokens of the keyframes, mixed into those of the frames of this pass, in each of the batch's groups.
            assert self.keyframe_tokens is not None, "keyframes come first"
            kept = self.keyframe_tokens.unflatten(0, (len(query) // len(flow.frames), len(flow.keys)))
            rows = []
            for frame in flow.frames:
                around = flow.find_neighbor_keyframes(frame)
                matches = [self._match_tokens(frame, flow.keys[place]) for place, _ in around]
                # A keyframe that does not show the point does not count, unless none shows it.
                trust = torch.stack([share * shown for (_, share), (_, shown) in zip(around, matches, strict=True)])
                even = torch.tensor([share for _, share in around])[:, None].expand_as(trust)
                weight = torch.where(trust.sum(dim=0) > 0, trust, even)
                weight = (weight / weight.sum(dim=0)).to(kept)[..., None]
                parts = []
                for (place, _), (nearest, _), key_weight in zip(around, matches, weight, strict=True):
                    parts.append(key_weight * kept[:, place][:, :, nearest.to(kept.device)])
                rows.append(sum(parts))
            return torch.stack(rows, dim=1).flatten(0, 1).to(query)
        if flow.stage == "source":
            # Keys are a linear map of the normalized states that the paper compares.
            for row, frame in enumerate(flow.frames):
                self.features[frame] = normalize(key[row].transpose(0, 1).flatten(1), dim=1)
        if flow.stage != "keyframes":
            return plain_attention(query, key, value, mask)
        self.keyframe_tokens = CrossFrameAttention(tuple(list_seen_frames("all", len(flow.keys))), {})(
            query, key, value, mask
        )
        return self.keyframe_tokens

    def _match_tokens(self, frame: int, key: int) -> tuple[Int[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """Finds the nearest token of a keyframe for each token of a frame, and whether it shows the same point."""
        assert self.keyframe_tokens is not None, "keyframes come first"
        if self.state.matches is not None:
            return self.state.matches.match_tokens(self.keyframe_tokens.shape[2], frame, key)
        nearest = (self.features[frame] @ self.features[key].T).argmax(dim=1).cpu()
        return nearest, torch.ones(len(nearest))


def _split_blocks(count: int, block: int) -> list[range]:
    return [range(start, min(count, start + block)) for start in range(0, count, block)]
