"""Sources of a network's weights: checks that they are safe to read, and plans how they fit into memory.

Nothing here imports diffusers: folders are checked before any of their content is used. Weights are safetensors, which
contain only numbers; other formats can run code when they are read.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.nn.pretrained import INSTALL, explain_network_errors

GIB = 2**30
LIBRARIES = ("diffusers", "transformers")  # from which a folder may name classes


@dataclass(frozen=True)
class MemorySettings:
    """Settings of fitting a model into memory."""

    working_bytes: float = 1.5 * GIB  # beside the parameters: activations of a 512 x 512 picture, and a reserve
    min_untiled_bytes: float = 2 * GIB  # with less than this left over, pictures are encoded and decoded in tiles


DEFAULTS = MemorySettings()


@dataclass(frozen=True)
class WeightsSource:
    """Describes a network to load.

    Attributes:
        model: a folder in diffusers' layout, or the name of a model on the hub.
        device: "auto", "cpu" or "cuda".
        unsafe: whether weights that are not safetensors, which can run code, are read too.
        loras: safetensors files of low-rank adapters, each with an optional strength: "style.safetensors@0.7".
        embeddings: safetensors files of textual inversion; the name of a file is the word that it teaches.
    """

    model: str
    device: str = "auto"
    unsafe: bool = False
    loras: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()

    @property
    def local_folder(self) -> Path | None:
        """The folder of the model, if it is on this machine."""
        path = Path(self.model).expanduser()
        return path if self.model and path.is_dir() else None

    def check_name(self) -> None:
        """Refuses a model that is neither a folder nor a name on the hub.

        Raises:
            UserError: the model is a file, or not a valid name (exit 3).
        """
        if self.local_folder is not None:
            return
        if Path(self.model).expanduser().is_file():
            raise bad_input(
                f"{self.model} is a file",
                why="a model is a folder in diffusers' layout, with model_index.json or config.json in it",
                fix="convert the file with diffusers (from_single_file, save_pretrained) and name the folder",
            )
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.model) or self.model.startswith("."):
            raise bad_input(
                f"there is no model {self.model!r}",
                why="expected a folder in diffusers' layout, or a name on the hub such as owner/name",
                fix="check the path of the folder",
            )

    def find_lora_files(self) -> list[tuple[Path, float]]:
        """Lists the low-rank adapters with their strengths.

        Raises:
            UserError: a strength that is not a number, a missing file, or a file that is not safetensors.
        """
        found = []
        for text in self.loras:
            name, at, number = text.rpartition("@")
            path, strength = (name, number) if at else (text, "1")
            try:
                found.append((_find_safetensors(Path(path).expanduser(), "--lora"), float(strength)))
            except ValueError as problem:
                raise bad_input(f"--lora {text}", why="expected FILE or FILE@STRENGTH", fix=f"{path}@0.7") from problem
        return found

    def find_embedding_files(self) -> list[Path]:
        """Lists the files of textual inversion.

        Raises:
            UserError: a missing file, or a file that is not safetensors.
        """
        return [_find_safetensors(Path(text).expanduser(), "--embedding") for text in self.embeddings]


def check_model_folder(folder: Path, unsafe: bool = False, plain: tuple[str, ...] = ()) -> dict[str, Any]:
    """Checks the folder of a model before anything in it is used.

    Args:
        folder: folder of the model.
        unsafe: whether formats that can run code are accepted.
        plain: parts of which only the numbers are read, so that any class name is accepted for them.

    Returns:
        The content of its model_index.json or config.json.

    Raises:
        UserError: it is not in diffusers' layout or names classes of other libraries (exit 3), or its weights can run
            code (exit 7).
    """
    index: dict[str, Any] | None = None
    for path in (folder / "model_index.json", folder / "config.json"):
        if index is None and path.is_file():
            try:
                found = json.loads(path.read_bytes())
            except ValueError as problem:
                why, fix = _first_line(problem), "fetch the model again"
                raise bad_input(f"{path} is damaged", why=why, fix=fix) from problem
            index = found if isinstance(found, dict) else None
    if index is None:
        raise bad_input(
            f"{folder} is not a model in diffusers' layout",
            why="there is no model_index.json or config.json in it",
            fix="name the folder that holds model_index.json",
        )
    named = index.items() if (folder / "model_index.json").is_file() else ()
    installed = importlib.util.find_spec("diffusers")
    homes = (installed.submodule_search_locations or []) if installed else []
    for name, value in named:
        if name in plain or not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
            continue
        # Classes of transformers and diffusers, also of the folders of its pipelines, are safe to create.
        library = value[0]
        is_pipeline = library.isidentifier() and any((Path(home) / "pipelines" / library).is_dir() for home in homes)
        if library not in LIBRARIES and not is_pipeline:
            raise UserError(
                ExitCode.UNSAFE_FILE,
                f"the model {folder} asks for code of its own",
                where=str(folder / "model_index.json"),
                why=f"its {name} is a class of {library!r}, which is none of {', '.join(LIBRARIES)}",
                fix="use a model that diffusers knows by itself",
            )
    parts = [folder, *(path for path in folder.iterdir() if path.is_dir())]
    numbers_missing = [part for part in parts if not any(part.glob("*.safetensors"))]
    code_formats = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
    coded = [path for part in numbers_missing for form in code_formats for path in part.glob(form)]
    if coded and not unsafe:
        raise UserError(
            ExitCode.UNSAFE_FILE,
            f"{coded[0].name} could run code when it is read",
            where=str(coded[0]),
            why="only safetensors are read unless you say otherwise",
            fix="use the model's safetensors, or add --unsafe-weights if you trust whoever made the file",
        )
    return index


def count_parameters(folder: Path, max_header_bytes: int = 100_000_000) -> dict[str, int]:
    """Counts the parameters of each part of a model, from the headers of its files.

    Args:
        folder: folder of the model.
        max_header_bytes: largest header of a file, in bytes; the limit of the safetensors format.

    Returns:
        Numbers of parameters, by part.

    Raises:
        UserError: a damaged safetensors file (exit 3).
    """
    counts: dict[str, int] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        if ".fp16." in path.name or ".non_ema." in path.name:
            continue
        part = path.parent.name if path.parent != folder else "."
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > max_header_bytes:
                    raise ValueError("its header is too long")
                header = json.loads(file.read(length))
            shapes = [list(entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as problem:
            raise bad_input(f"{path} is damaged", why=_first_line(problem), fix="fetch the model again") from problem
        counts[part] = counts.get(part, 0) + sum(math.prod(shape) for shape in shapes)
    return counts


@dataclass(frozen=True)
class LoadingPlan:
    """Describes how a model is held in memory.

    Attributes:
        dtype: "float32", "float16" or "bfloat16".
        offload: "none", "parts" (each part is moved to the GPU when it is needed) or "layers" (each layer is).
        tiled: whether pictures are encoded and decoded in tiles.
        note: a note for the user if memory is short; otherwise empty.
    """

    dtype: str
    offload: str = "none"
    tiled: bool = False
    note: str = ""


def plan_loading(counts: dict[str, int], device: str, free: float, settings: MemorySettings = DEFAULTS) -> LoadingPlan:
    """Chooses the fastest way to hold a model in memory.

    Args:
        counts: number of parameters of each part.
        device: "cpu" or "cuda".
        free: free memory of the device, in bytes.
        settings: memory needed in addition to the parameters.

    Raises:
        UserError: the model does not fit in any way (exit 4).

    Example:
        >>> plan_loading({"unet": 860_000_000, "vae": 84_000_000}, "cuda", free=24e9)
        LoadingPlan(dtype='float16', offload='none', tiled=False, note='')
    """
    half, largest = 2 * sum(counts.values()), 2 * max(counts.values(), default=0)  # bytes in half precision
    working = settings.working_bytes
    if device == "cpu":
        if 2 * half + working <= free:
            return LoadingPlan("float32")
        if half + working <= free:
            return LoadingPlan("bfloat16", tiled=True, note="memory is short: half precision, which is slow on a CPU")
        raise _no_room_error(half + working, free, "use a smaller model, or a machine with more memory")
    if half + working <= free:
        return LoadingPlan("float16", tiled=half + working + settings.min_untiled_bytes > free)
    if largest + working <= free:
        return LoadingPlan(
            "float16", "parts", True, "GPU memory is short: parts of the model wait in main memory (slower)"
        )
    if free >= working / 2:
        return LoadingPlan(
            "float16", "layers", True, "GPU memory is very short: layers wait in main memory (much slower)"
        )
    raise _no_room_error(largest + working, free, "--device cpu, or close what else uses the GPU")


@contextmanager
def explain_load_errors(weights: WeightsSource) -> Iterator[None]:
    """Converts errors while a model is fetched and loaded into one sentence with a remedy."""
    if importlib.util.find_spec("diffusers") is None or importlib.util.find_spec("transformers") is None:
        raise bad_input(
            "this editor needs diffusers, which is not installed",
            why="it comes with the extra 'diffusion'",
            fix=INSTALL,
        )
    with explain_network_errors(weights.model):
        yield


def _find_safetensors(path: Path, flag: str) -> Path:
    """Finds a weights file that the user named; it must be a safetensors file.

    Raises:
        UserError: the file is missing (exit 3) or has a format that can run code (exit 7).
    """
    if path.is_dir():
        inside = sorted(path.glob("*.safetensors"))
        if not inside:
            raise bad_input(
                f"{flag} {path}", why="there is no safetensors file in the folder", fix=f"{flag} FILE.safetensors"
            )
        return inside[0]
    if not path.is_file():
        raise bad_input(f"{flag} {path}", why="there is no such file", fix=f"{flag} FILE.safetensors")
    if path.suffix != ".safetensors":
        raise UserError(
            ExitCode.UNSAFE_FILE, f"{flag} {path}", why="only safetensors are read: other formats can run code",
            fix="save it as safetensors",
        )  # fmt: skip
    return path


def _no_room_error(needed: float, free: float, fix: str) -> UserError:
    why = f"it needs about {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"
    return UserError(ExitCode.NO_ROOM, "not enough memory for this model", why=why, fix=fix)


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)
