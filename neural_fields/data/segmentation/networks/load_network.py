"""Loads networks of transformers with their processors; the other modules of this folder say which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from neural_fields.core.errors import bad_input
from neural_fields.nn.device import choose_device
from neural_fields.nn.pretrained import NetworkSource, explain_network_errors, find_network_folder

MAX_MISSING_SHARE = 0.01  # of the parameters: some may be left out because they follow from others


def load_network(
    source: NetworkSource, kinds: Mapping[str, tuple[str, str]], purpose: str, example: str
) -> tuple[Any, Any]:
    """Loads a network, ready to run, and its processor.

    Args:
        source: the network.
        kinds: for each `model_type` that can be used the classes of network and processor in transformers.
        purpose: what the network is for, for the errors: "that follows objects".
        example: a name on the hub that would work, for the errors.

    Returns:
        The processor and the network.

    Raises:
        UserError: there is no such network or device, or it is of another kind or damaged (exit 3); its weights could
            run code (exit 7); not enough memory or disk space (exit 4).
    """
    device = choose_device(source.device)
    folder, kind = find_network_folder(source, tuple(kinds), purpose, example)
    with explain_network_errors(source.model):
        import transformers

        network_class, processor_class = (getattr(transformers, name) for name in kinds[kind])
        logging = transformers.utils.logging
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # what is wrong is said below, in one sentence
        logging.disable_progress_bar()  # it would break ours
        plain = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = processor_class.from_pretrained(folder, **plain)
            network, info = network_class.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **plain
            )
        finally:
            logging.set_verbosity(verbosity)
        sizes = {name: value.numel() for name, value in network.state_dict().items()}
        missing = [name for name in info["missing_keys"] if name in sizes]
        if sum(sizes[name] for name in missing) > MAX_MISSING_SHARE * sum(sizes.values()):
            raise bad_input(
                f"the weights in {folder} do not fit its config.json",
                where=str(folder),
                why=f"{len(missing)} of {len(sizes)} tensors are missing, such as {min(missing)}",
                fix=f"fetch it again, or use {example}",
            )
        return processor, network.eval().to(device)
