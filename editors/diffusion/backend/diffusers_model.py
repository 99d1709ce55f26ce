"""Text-to-image models of diffusers, as the editors use them. No other module imports diffusers.

It loads any folder in diffusers' layout, or a model by its name on the hub, whose denoiser is a UNet (Stable Diffusion
1, 2 and XL) or the transformer of Stable Diffusion 3. The sampling loops are those of `sampling.py`, not of diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editors.core.model_pictures import check_finite
from editors.diffusion.backend.device_placement import add_user_weights, fetch_model, move_pipeline, plan_placement
from editors.diffusion.backend.noise_schedule import DenoisedLatents, Latents, NoiseSchedule
from editors.diffusion.backend.tiled_denoising import Window, run_in_windows
from editors.diffusion.backend.weights import WeightsSource, check_model_folder, explain_load_errors
from neural_fields.core.errors import bad_input
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing

Images = Float[Tensor, "n 3 height width"]
ExtraChannels = Float[Tensor, "_ _ rows columns"]  # beside those of the latents, for one picture or for each


@dataclass(frozen=True)
class EncodedPrompt:
    """Holds an encoded prompt: row 0 is the negative prompt, row 1 the prompt.

    Attributes:
        states: input of the cross-attention.
        pooled: one vector per prompt, for models that need it.
    """

    states: Float[Tensor, "2 tokens width"]
    pooled: Float[Tensor, "2 features"] | None = None


@dataclass(frozen=True)
class ControlInput:
    """Holds a ControlNet (Zhang et al., 2023) and its control picture.

    Attributes:
        network: the ControlNet that `load_controlnet` returns.
        picture: edges, depth or pose, in [0, 1], at the size of the generated pictures.
        scale: strength of its influence; 1 as trained.
    """

    network: Any
    picture: Images
    scale: float = 1.0


class DiffusionModel:
    """Encodes and decodes pictures, encodes prompts, and runs the denoiser of a text-to-image model.

    Args:
        pipeline: a loaded pipeline of diffusers with a `unet` or a `transformer`, a `vae` and a `scheduler`.
        device: the device that runs it.
        notes: choices made at loading (offloading, precision), one sentence each.

    Attributes:
        schedule: the noise schedule that it was trained with.
        size: side in pixels of the square pictures that it was trained on.
        multiple: sides of pictures in pixels must be multiples of this.
        scale: pixels per latent, along a side.
        channels: number of channels of the latents.
    """

    def __init__(self, pipeline: Any, device: torch.device, notes: tuple[str, ...] = ()) -> None:
        self.pipeline, self.device, self.notes = pipeline, device, notes
        self.vae = pipeline.vae
        self.unet = getattr(pipeline, "unet", None)
        self.denoiser = self.unet if self.unet is not None else pipeline.transformer
        scheduler = pipeline.scheduler
        self.schedule = NoiseSchedule.from_config(scheduler.config, getattr(scheduler, "alphas_cumprod", None))
        self.pixels_per_latent = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.latent_channels = int(self.vae.config.latent_channels)
        side = self.denoiser.config.sample_size or 64
        self.trained_side = self.pixels_per_latent * int(side if isinstance(side, int) else min(side))
        # The denoiser cuts the latents into patches (transformer) or halves them once per block (UNet).
        if self.unet is None:
            latent_multiple = int(self.denoiser.config.patch_size)
        else:
            latent_multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)
        self.side_multiple = self.pixels_per_latent * latent_multiple

    def encode_prompt(self, prompt: str, negative: str = "") -> EncodedPrompt:
        """Encodes a prompt and a negative prompt.

        Args:
            prompt: what the picture should show.
            negative: what it should not show; guidance leads away from it.
        """
        with torch.no_grad():
            if self.unet is None or self.unet.config.addition_embed_type == "text_time":  # these have pooled vectors
                negative_or_none = negative or None
                more = {} if self.unet is not None else {"prompt_2": None, "prompt_3": None}
                states, other, pooled, other_pooled = self.pipeline.encode_prompt(
                    prompt, device=self.device, negative_prompt=negative_or_none, **({"prompt_2": None} | more)
                )
                return EncodedPrompt(torch.cat([other, states]).float(), torch.cat([other_pooled, pooled]).float())
            states, other = self.pipeline.encode_prompt(prompt, self.device, 1, True, negative)
            return EncodedPrompt(torch.cat([other, states]).float())

    def encode_images(self, images: Images) -> Latents:
        """Encodes pictures in [0, 1] whose sides are multiples of `multiple` to latents. Differentiable."""
        device, dtype = self._vae_device_and_dtype()
        encoded = self.vae.encode((2 * images - 1).to(device, dtype)).latent_dist.mean.float()
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (encoded - shift) * self.vae.config.scaling_factor

    def decode_latents(self, latents: Latents) -> Images:
        """Decodes latents to pictures, clipped to [0, 1]. Differentiable.

        Raises:
            UserError: the denoiser or the VAE computed values that are no numbers (exit 3).
        """
        check_finite(latents, "the denoiser of the model")
        device, dtype = self._vae_device_and_dtype()
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        decoded = self.vae.decode((latents / self.vae.config.scaling_factor + shift).to(device, dtype)).sample
        check_finite(decoded, "the VAE of the model")
        return (decoded.float() / 2 + 0.5).clamp(0, 1)

    def draw_noise(self, like: Latents, seed: int) -> Latents:
        """Draws Gaussian noise; a seed gives the same noise on every device.

        Args:
            like: latents with the shape, type and device of the noise.
            seed: seed of the noise.
        """
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(like.shape, generator=generator).to(like.device)

    def predict_denoised(
        self,
        latents: Latents,
        time: int,
        text: EncodedPrompt,
        guidance: float = 7.5,
        *,
        controls: Sequence[ControlInput] = (),
        extra: ExtraChannels | None = None,
    ) -> DenoisedLatents:
        """Predicts the clean picture and the noise in latents with classifier-free guidance (Ho and Salimans, 2022).

        Args:
            latents: noised latents of any number of pictures.
            time: noise level, an index into the schedule.
            text: one prompt for all pictures.
            guidance: scale of the guidance; 1 uses the prompt alone, larger values lead away from the negative prompt.
            controls: control pictures; each has one picture, or one for each of the latents.
            extra: further input channels of the denoiser (those of inpainting models).
        """
        if guidance == 1:
            pooled = None if text.pooled is None else text.pooled[1:2]
            output = self._run_denoiser(latents, time, text.states[1:], pooled, controls, extra)
            return self.schedule.decompose_output(latents, output, time)
        without, with_text = self.run_denoiser(latents, time, text, controls=controls, extra=extra)
        return self.schedule.decompose_output(latents, without + guidance * (with_text - without), time)

    def run_denoiser(
        self,
        latents: Latents,
        time: int,
        text: EncodedPrompt,
        *,
        controls: Sequence[ControlInput] = (),
        extra: ExtraChannels | None = None,
        blank: ExtraChannels | None = None,
    ) -> tuple[Latents, Latents]:
        """Runs the denoiser for the negative prompt and for the prompt.

        Args:
            latents: noised latents of any number of pictures.
            time: noise level, an index into the schedule.
            text: one prompt, with its negative prompt, for all pictures.
            controls: control pictures; each has one picture, or one for each of the latents.
            extra: further input channels of the denoiser (those of inpainting models).
            blank: replaces `extra` for the negative prompt; by default the same.

        Returns:
            The output for the negative prompt, and the output for the prompt.
        """
        n = len(latents)
        twice = torch.cat([latents, latents])
        states = text.states.repeat_interleave(n, dim=0)
        pooled = None if text.pooled is None else text.pooled.repeat_interleave(n, dim=0)
        both_extra = None
        if extra is not None:
            both_extra = torch.cat([_expand_to(extra if blank is None else blank, n), _expand_to(extra, n)])
        doubled = [ControlInput(c.network, _expand_to(c.picture, n).repeat(2, 1, 1, 1), c.scale) for c in controls]
        output = self._run_denoiser(twice, time, states, pooled, doubled, both_extra)
        return output[:n], output[n:]

    @contextmanager
    def replace_attention(self, processors: Mapping[str, Any]) -> Iterator[None]:
        """Replaces attention processors, by their names in `unet.attn_processors`, within the context."""
        before = dict(self.denoiser.attn_processors)
        self.denoiser.set_attn_processor({**before, **processors})
        try:
            yield
        finally:
            self.denoiser.set_attn_processor(before)

    def _vae_device_and_dtype(self) -> tuple[torch.device, torch.dtype]:
        return self.device, next(self.vae.parameters()).dtype

    def _run_denoiser(
        self,
        latents: Latents,
        time: int,
        states: Float[Tensor, "m tokens depth"],
        pooled: Float[Tensor, "m features"] | None,
        controls: Sequence[ControlInput],
        extra: ExtraChannels | None,
    ) -> Latents:
        """Runs the denoiser on latents of any size, in windows if they are large."""
        n = len(latents)
        inputs = latents if extra is None else torch.cat([latents, extra.expand(n, -1, -1, -1)], dim=1)
        states = states.expand(n, -1, -1).to(self.device, self.denoiser.dtype)
        pooled = None if pooled is None else pooled.expand(n, -1).to(self.device, self.denoiser.dtype)
        when = self.schedule.network_time[time].to(self.device)

        def run_window(inputs: ExtraChannels, window: Window) -> Latents:
            rows, columns = (
                slice(self.pixels_per_latent * span.start, self.pixels_per_latent * span.stop) for span in window
            )
            parts = [replace(control, picture=control.picture[..., rows, columns]) for control in controls]
            inputs = inputs.to(self.device, self.denoiser.dtype)
            return self._run_window(inputs, when, states, pooled, parts).to(latents)

        return run_in_windows(
            inputs,
            self.trained_side // self.pixels_per_latent,
            self.side_multiple // self.pixels_per_latent,
            run_window,
        )

    def _run_window(
        self, inputs: Tensor, when: Tensor, states: Tensor, pooled: Tensor | None, controls: Sequence[ControlInput]
    ) -> Tensor:
        """Runs the denoiser once."""
        if self.unet is None:
            return self.denoiser(
                hidden_states=inputs,
                encoder_hidden_states=states,
                pooled_projections=pooled,
                timestep=when.expand(len(inputs)),
                return_dict=False,
            )[0]
        # SDXL is also told the size of the picture and its crop (Podell et al., 2023, 2.2).
        added: dict[str, Tensor] = {}
        if pooled is not None:
            height, width = (self.pixels_per_latent * side for side in inputs.shape[-2:])
            sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=inputs.dtype)
            added = {"text_embeds": pooled, "time_ids": sizes.expand(len(inputs), -1)}
        # The residuals that the ControlNets add to the UNet, summed over all of them.
        latents = inputs[:, : self.latent_channels]
        down: list[Tensor] | None = None
        middle: Tensor | None = None
        for control in controls:
            network = control.network
            more, more_middle = network(
                latents.to(network.dtype),
                when,
                encoder_hidden_states=states.to(network.dtype),
                controlnet_cond=_expand_to(control.picture, len(latents)).to(self.device, network.dtype),
                conditioning_scale=control.scale,
                added_cond_kwargs={name: value.to(network.dtype) for name, value in added.items()},
                return_dict=False,
            )
            down = list(more) if down is None else [a + b for a, b in zip(down, more, strict=True)]
            middle = more_middle if middle is None else middle + more_middle
        residuals: dict[str, Any] = {}
        if down is not None and middle is not None:
            residuals["down_block_additional_residuals"] = [value.to(latents.dtype) for value in down]
            residuals["mid_block_additional_residual"] = middle.to(latents.dtype)
        return self.unet(
            inputs, when, encoder_hidden_states=states, added_cond_kwargs=added, **residuals, return_dict=False
        )[0]


def load_model(weights: WeightsSource, report: ProgressReporter = report_nothing) -> DiffusionModel:
    """Loads a text-to-image model.

    Args:
        weights: the model to load, with its adapters and device.
        report: called once, as the stage "loading the model".

    Raises:
        UserError: diffusers is not installed, the model does not exist or is of an unsupported kind (exit 3); not
            enough memory or disk space (exit 4); weights in a format that can run code (exit 7).
    """

    def check_kind(kind: str) -> None:
        if not kind.startswith(("StableDiffusion", "LatentConsistency")):
            raise bad_input(
                f"{weights.model} is a {kind or 'part of a model'}",
                why="this editor needs a text-to-image model of Stable Diffusion 1, 2, 3 or XL",
                fix="--model FOLDER with such a model",
            )

    report(Progress("loading the model", 0, 1))
    return DiffusionModel(*load_pipeline(weights, check_kind))


def load_pipeline(
    weights: WeightsSource, check_kind: Callable[[str], None]
) -> tuple[Any, torch.device, tuple[str, ...]]:
    """Loads a pipeline of diffusers.

    Args:
        weights: the model to load.
        check_kind: called with the name of its class before weights are read; raises if the class is not supported.

    Returns:
        The pipeline, its device, and the choices made at loading, one sentence each.

    Raises:
        UserError: the errors of `load_model`.
    """
    weights.check_name()
    with explain_load_errors(weights):
        import diffusers

        _disable_progress_bars()
        folder = weights.local_folder or fetch_model(weights)
        index = check_model_folder(folder, weights.unsafe)
        kind = str(index.get("_class_name", ""))
        check_kind(kind)
        device, chosen = plan_placement(weights, folder)
        options: dict[str, Any] = {"dtype": getattr(torch, chosen.dtype), "use_safetensors": not weights.unsafe or None}
        # The filter of unsafe pictures is not loaded: it judges whole pictures, not canonical pictures.
        unused = ("safety_checker", "feature_extractor", "image_encoder")
        options |= {name: None for name in unused if name in index}
        if kind.startswith("StableDiffusion3"):  # it works without its third text encoder, in a tenth of the memory
            optional = ("text_encoder_3", "tokenizer_3")
            options |= {name: None for name in optional if index.get(name) in (None, [None, None])}
        # InstructPix2Pix is read as another class with the same parts: its own encodes prompts for its own loop only.
        is_pix2pix = kind == "StableDiffusionInstructPix2PixPipeline"
        pipeline_class = diffusers.StableDiffusionPipeline if is_pix2pix else diffusers.DiffusionPipeline
        pipeline = pipeline_class.from_pretrained(folder, **options)
        add_user_weights(pipeline, weights)
        move_pipeline(pipeline, device, chosen)
    return pipeline, device, (chosen.note,) if chosen.note else ()


def read_component(folder: Path, kind: str, **options: Any) -> Any:
    """Loads one network or scheduler of a model without a pipeline.

    Args:
        folder: folder of the component.
        kind: name of its class in diffusers.
        **options: arguments of `from_pretrained`.
    """
    import diffusers

    _disable_progress_bars()
    return getattr(diffusers, kind).from_pretrained(folder, **options)


def list_call_arguments(kind: str) -> Mapping[str, Any]:
    """Lists the arguments of a diffusers pipeline's call, with their defaults; returns none for an unknown class."""
    import diffusers

    pipeline = getattr(diffusers, kind, None)
    if not (isinstance(pipeline, type) and issubclass(pipeline, diffusers.DiffusionPipeline)):
        return {}
    return {name: given.default for name, given in inspect.signature(pipeline.__call__).parameters.items()}


def load_controlnet(weights: WeightsSource, model: DiffusionModel) -> Any:
    """Loads a ControlNet for a model.

    Args:
        weights: the ControlNet to load.
        model: the model that it controls.

    Raises:
        UserError: the errors of `load_model`, or a ControlNet for another model.
    """
    weights.check_name()
    with explain_load_errors(weights):
        from diffusers import ControlNetModel

        folder = weights.local_folder or fetch_model(weights)
        if check_model_folder(folder, weights.unsafe).get("_class_name") != "ControlNetModel":
            raise bad_input(f"{weights.model} is no ControlNet", fix="name the folder of a ControlNetModel")
        network = ControlNetModel.from_pretrained(
            folder, dtype=model.denoiser.dtype, use_safetensors=not weights.unsafe or None
        )
        return network.eval().to(model.device)


def _expand_to(picture: Tensor, n: int) -> Tensor:
    return picture if len(picture) == n else picture.expand(n, -1, -1, -1)


def _disable_progress_bars() -> None:
    """Switches off progress bars of other packages, which would break ours."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
