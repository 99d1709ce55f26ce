"""Networks with weights in Hugging Face's layout: found in a folder or on the hub, checked before they are read.

A folder holds config.json, safetensors and the files of its processor. Nothing in it is run: classes are those of the
installed transformers, chosen by `model_type`, and weights in formats that can run code are refused. Some hold an ONNX
file instead, which names operators of onnxruntime.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_fields.core.errors import ExitCode, UserError, bad_input

INSTALL = "pip install -e '.[diffusion]' in the folder of Unwrap"
INSTALLS = {  # modules that networks need, and how to get them
    "timm": "pip install timm",
    "transformers": INSTALL,
    "onnxruntime": "pip install -e '.[onnx]' in the folder of Unwrap",
}
CODE_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
FETCHED = ["*.json", "*.txt", "*.safetensors"]  # from the hub: what a network of transformers is made of
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class KnownNetwork:
    """Describes a network that can be fetched from the hub.

    Attributes:
        name: on the hub.
        purpose: what the program does with it.
        needs: modules that it needs.
    """

    name: str
    purpose: str
    needs: tuple[str, ...] = ("transformers",)


KNOWN_NETWORKS = (
    KnownNetwork("facebook/sam2.1-hiera-tiny", "follows objects from boxes, points and masks"),
    KnownNetwork("yonigozlan/EdgeTAM-hf", "the same, faster", needs=("transformers", "timm")),
    KnownNetwork("IDEA-Research/grounding-dino-tiny", "finds objects by words"),
    KnownNetwork("facebook/sam3", "finds objects by words and follows them; its owner asks for a license"),
    KnownNetwork("hustvl/vitmatte-small-composition-1k", "soft edges"),
    KnownNetwork("onnx-community/BiRefNet_lite-ONNX", "finds the main thing in a frame", needs=("onnxruntime",)),
)


@dataclass(frozen=True)
class NetworkSource:
    """Describes a network to load.

    Attributes:
        model: a folder in Hugging Face's layout, or a name on the hub.
        device: "auto", "cpu" or "cuda".
    """

    model: str
    device: str = "auto"


def find_network_folder(source: NetworkSource, kinds: Sequence[str], purpose: str, example: str) -> tuple[Path, str]:
    """Finds the folder of a network, fetched from the hub if it is not on this machine, and checks it.

    Args:
        source: the network.
        kinds: the `model_type`s that can be used.
        purpose: what the network is for, for the errors: "to follow objects".
        example: a name on the hub that would work, for the errors.

    Returns:
        The folder, and the kind of the network.

    Raises:
        UserError: there is no such network, or it is of another kind (exit 3); its weights could run code (exit 7).
    """
    folder = find_model_folder(source.model, FETCHED, "transformers", purpose, example)
    path, fetch = folder / "config.json", _say_what_would_work(example)
    if not path.is_file():
        raise bad_input(f"{folder} is not a network", why="there is no config.json in it", fix=fetch)
    config = read_model_json(path)
    kind = str(config.get("model_type", ""))
    if kind not in kinds:
        raise bad_input(
            f"{source.model} is {f'a {kind}' if kind else 'of no known kind'}, not a network {purpose}",
            where=str(path),
            why=f"expected one of {', '.join(kinds)}",
            fix=fetch,
        )
    if not any(folder.glob("*.safetensors")):
        coded = [path for form in CODE_FORMATS for path in sorted(folder.glob(form))]
        if coded:
            raise UserError(
                ExitCode.UNSAFE_FILE,
                f"{coded[0].name} could run code when it is read",
                where=str(coded[0]),
                why="only safetensors are read",
                fix=fetch,
            )
        raise bad_input(f"there are no weights in {folder}", why="expected *.safetensors in it", fix=fetch)
    require_module(source.model, "transformers")
    return folder, kind


def find_model_folder(model: str, fetched: Sequence[str], module: str, purpose: str, example: str) -> Path:
    """Finds the folder of a model, fetched from the hub if it is not on this machine.

    Args:
        model: a folder, or a name on the hub.
        fetched: patterns of the files that are taken from the hub.
        module: the module that runs the model; nothing is fetched without it.
        purpose: what the model is for, for the errors: "that follows objects".
        example: a name on the hub that would work, for the errors.

    Raises:
        UserError: there is no such model, or it cannot be fetched (exit 3); no room for it (exit 4).
    """
    folder, fetch = Path(model).expanduser(), _say_what_would_work(example)
    if folder.is_file():
        raise bad_input(f"{model} is a file", why=f"a network {purpose} is a folder with config.json in it", fix=fetch)
    if model and folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise bad_input(
            f"there is no network {model!r}",
            why="expected a folder in Hugging Face's layout, or a name on the hub such as owner/name",
            fix=fetch,
        )
    require_module(model, module)
    with explain_network_errors(model):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, allow_patterns=list(fetched)))


def read_model_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that came with a model.

    Args:
        path: a file, of at most 1 MiB.

    Raises:
        UserError: it is larger, or no JSON object (exit 3).
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 1 MiB")
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as problem:
        raise bad_input(f"{path} is damaged", why=_first_line(problem), fix="fetch the network again") from problem
    return values


def require_module(model: str, module: str) -> None:
    """Refuses a model whose library is missing; what is wrong with its folder is said before that.

    Args:
        model: the model, for the error.
        module: transformers or onnxruntime.

    Raises:
        UserError: the module is not installed (exit 3).
    """
    if importlib.util.find_spec(module) is None:
        raise bad_input(
            f"{model} needs {module}, which is not installed",
            why="it is no part of the basic installation",
            fix=INSTALLS[module],
        )


def _say_what_would_work(example: str) -> str:
    return f"name a folder of such a network, or {example}"


@contextmanager
def explain_network_errors(name: str) -> Iterator[None]:
    """Converts errors while a network is fetched and loaded into one sentence with a remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as problem:  # transformers, its parsers and its checks of configs raise errors of many kinds
        raise _explain_network_error(name, problem) from problem


# Failures of the hub, by the names of the errors that huggingface_hub raises: what it is, why, and what to do.
HUB_FAILURES: Mapping[str, tuple[str, str, str]] = {
    "GatedRepoError": (
        "the model {name} is gated",
        "its owner lets only people read it who have accepted a license",
        "accept the license on the model's page, then: hf auth login",
    ),
    "RepositoryNotFoundError": (
        "there is no model {name} on the hub",
        "or it is private",
        "check the name; for a private model: hf auth login",
    ),
    "LocalEntryNotFoundError": (
        "the model {name} is not on this machine",
        "it is not in the cache, and the hub cannot be reached",
        "hf download {name}, once, where there is a network; or name a folder",
    ),
}
HUB_FAILURE_ALIASES = {
    name: "LocalEntryNotFoundError" for name in ("OfflineModeIsEnabled", "ConnectError", "ConnectionError")
}


def _explain_network_error(name: str, problem: Exception) -> UserError:
    """Makes the error for the user from the types of the errors that caused it."""
    chain: list[BaseException] = []
    link: BaseException | None = problem
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    why = _first_line(problem)
    kinds = [type(link).__name__ for link in chain]
    if any(isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT) for link in chain):
        fix = "free some space, or point HF_HOME to another disk"
        return UserError(ExitCode.NO_ROOM, f"the disk is full: {name} cannot be stored", why=why, fix=fix)
    if {"OutOfMemoryError", "MemoryError"} & set(kinds) or re.search("bad_alloc|Failed to allocate memory", why):
        fix = "--device cpu, or a smaller model"
        return UserError(ExitCode.NO_ROOM, f"not enough memory for {name}", why=why, fix=fix)
    for kind in kinds:
        if HUB_FAILURE_ALIASES.get(kind, kind) in HUB_FAILURES:
            what, why, fix = (text.format(name=name) for text in HUB_FAILURES[HUB_FAILURE_ALIASES.get(kind, kind)])
            return bad_input(what, why=why, fix=fix)
    if isinstance(problem, ImportError):
        fix = next((fix for module, fix in INSTALLS.items() if module in str(problem)), INSTALL)
        return bad_input(f"{name} needs a package that is missing", why=why, fix=fix)
    return bad_input(
        f"the model {name} cannot be read", where=name, why=why, fix="fetch it again, or use another model"
    )


def describe_known_networks() -> dict[str, str]:
    """Says for each network that the program knows whether it is on this machine, and how to fetch it otherwise."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return {"networks": f"none can be fetched: huggingface_hub is not installed ({INSTALL})"}
    from huggingface_hub import try_to_load_from_cache

    found = {}
    for network in KNOWN_NETWORKS:
        here = isinstance(try_to_load_from_cache(network.name, "config.json"), str)
        missing = [name for name in network.needs if importlib.util.find_spec(name) is None]
        state = "in the hub cache" if here else f"not here (hf download {network.name})"
        state += "".join(f", needs {name} ({INSTALLS[name]})" for name in missing)
        found[network.name] = f"{state}: {network.purpose}"
    return found


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
