"""Networks with weights in Hugging Face's layout: found in a folder or on the hub, checked before they are read.

A folder holds config.json, safetensors and the files of its processor. Nothing in it is run: classes are those of the
installed transformers, chosen by `model_type`, and weights in formats that can run code are refused.
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

from neural_fields.core.errors import ExitCode, UserError, bad_input

INSTALL = "pip install 'unwrap-video[diffusion]'"
CODE_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
FETCHED = ["*.json", "*.txt", "*.safetensors"]  # from the hub: what a network of transformers is made of
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class KnownNetwork:
    """Describes a network that can be fetched from the hub.

    Attributes:
        name: on the hub.
        purpose: what the program does with it.
        needs: a module that it needs beside transformers; empty if none.
    """

    name: str
    purpose: str
    needs: str = ""


KNOWN_NETWORKS = (
    KnownNetwork("facebook/sam2.1-hiera-tiny", "follows objects from boxes, points and masks"),
    KnownNetwork("yonigozlan/EdgeTAM-hf", "the same, faster", needs="timm"),
    KnownNetwork("IDEA-Research/grounding-dino-tiny", "finds objects by words"),
    KnownNetwork("facebook/sam3", "finds objects by words and follows them; its owner asks for a license"),
    KnownNetwork("hustvl/vitmatte-small-composition-1k", "soft edges"),
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
    fetch = f"name a folder of such a network, or {example}"
    folder = Path(source.model).expanduser()
    if folder.is_file():
        raise bad_input(
            f"{source.model} is a file", why=f"a network {purpose} is a folder with config.json in it", fix=fetch
        )
    if not (source.model and folder.is_dir()):
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source.model):
            raise bad_input(
                f"there is no network {source.model!r}",
                why="expected a folder in Hugging Face's layout, or a name on the hub such as owner/name",
                fix=fetch,
            )
        _require_transformers(source.model)
        with explain_network_errors(source.model):
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(source.model, allow_patterns=FETCHED))
    path = folder / "config.json"
    if not path.is_file():
        raise bad_input(f"{folder} is not a network", why="there is no config.json in it", fix=fetch)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is larger than 1 MiB")
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as problem:
        raise bad_input(f"{path} is damaged", why=_first_line(problem), fix="fetch the network again") from problem
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
    _require_transformers(source.model)
    return folder, kind


def _require_transformers(model: str) -> None:
    """Refuses a network whose library is missing; what is wrong with its folder is said before that."""
    if importlib.util.find_spec("transformers") is None:
        raise bad_input(
            f"{model} needs transformers, which is not installed",
            why="networks come with the extra 'diffusion'",
            fix=INSTALL,
        )


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
    if {"OutOfMemoryError", "MemoryError"} & set(kinds):
        fix = "--device cpu, or a smaller model"
        return UserError(ExitCode.NO_ROOM, f"not enough memory for {name}", why=why, fix=fix)
    for kind in kinds:
        if HUB_FAILURE_ALIASES.get(kind, kind) in HUB_FAILURES:
            what, why, fix = (text.format(name=name) for text in HUB_FAILURES[HUB_FAILURE_ALIASES.get(kind, kind)])
            return bad_input(what, why=why, fix=fix)
    if isinstance(problem, ImportError):
        missing = [network.needs for network in KNOWN_NETWORKS if network.needs and network.needs in str(problem)]
        fix = f"pip install {missing[0]}" if missing else INSTALL
        return bad_input(f"{name} needs a package that is missing", why=why, fix=fix)
    return bad_input(
        f"the model {name} cannot be read", where=name, why=why, fix="fetch it again, or use another model"
    )


def describe_known_networks() -> dict[str, str]:
    """Says for each network that the program knows whether it is on this machine, and how to fetch it otherwise."""
    missing = [name for name in ("transformers", "huggingface_hub") if importlib.util.find_spec(name) is None]
    if missing:
        return {"networks": f"none can be used: {missing[0]} is not installed ({INSTALL})"}
    from huggingface_hub import try_to_load_from_cache

    found = {}
    for network in KNOWN_NETWORKS:
        here = isinstance(try_to_load_from_cache(network.name, "config.json"), str)
        needs = network.needs and importlib.util.find_spec(network.needs) is None
        state = "in the hub cache" if here else f"not here (hf download {network.name})"
        if needs:
            state += f", needs {network.needs} (pip install {network.needs})"
        found[network.name] = f"{state}: {network.purpose}"
    return found


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
