"""`lift`: applies any Python function on images to the video: it is called once, on the layer's canonical picture.

The function is code that the user names and runs as their own: no data in a run or in a file can name one.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from editors.core.editor import EditorResult, Report
from editors.core.source import EditSource
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.imaging.push_pull import pull_push

ImageFunction = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Lift:
    """Run a Python function of yours on the picture of a layer: RGB in, RGB out."""

    name: ClassVar[str] = "lift"

    function: str
    """FILE.py:NAME or MODULE:NAME of a function from float32 [height, width, 3] in [0, 1] to the same. It is run."""

    def __call__(self, source: EditSource, report: Report) -> EditorResult:
        """Calls the function and makes overlays of what it changes.

        Raises:
            UserError: there is no such function, it fails, or what it returns is no such picture.
        """
        return apply_picture_function(source, load_function(self.function), self.function, report)


def apply_picture_function(
    source: EditSource, function: ImageFunction, function_name: str, report: Report, min_change: float = 0.5 / 255
) -> EditorResult:
    """Makes the edit that a function of a picture makes of the pictures of the chosen layers.

    Args:
        source: the run, and the layers to edit.
        function: float32 [height, width, 3] in [0, 1] to the same. Where nothing was ever visible, colors are
            extrapolated.
        function_name: its name, for messages.
        report: told about progress.
        min_change: a texel that changes less is not edited.

    Raises:
        UserError: it fails, returns something else, or changes nothing (exit 3).
    """
    overlays = {}
    for number, layer in enumerate(source.layers):
        report("running", number, len(source.layers))
        picture, region = source.pictures[layer], source.read_region(layer)
        rgba = picture.to_array()
        seen = rgba[..., 3] > 0
        rgb = pull_push(np.ascontiguousarray(rgba[..., :3]), seen) if not seen.all() else rgba[..., :3].copy()
        # The border around foreign code: whatever it raises is reported to the user.
        try:
            found = np.asarray(function(rgb.copy()))
        except Exception as problem:
            raise bad_input(f"{function_name} failed: {type(problem).__name__}: {problem}", where=layer) from problem
        if found.shape != rgb.shape or found.dtype.kind not in "fui":
            raise bad_input(
                f"{function_name} returned {found.dtype} {list(found.shape)}",
                where=layer,
                why=f"it is given float32 {list(rgb.shape)} and has to return as much",
            )
        result = found.astype(np.float32) / (255 if found.dtype == np.uint8 else 1)
        if not np.isfinite(result).all():
            raise bad_input(f"{function_name} returned values that are not finite", where=layer)
        result = np.clip(result, 0, 1)
        alpha = region * (np.abs(result - rgb).max(axis=-1) > min_change)
        if (alpha > 0).any():
            painted = np.concatenate([result, alpha[..., None]], axis=-1) * (alpha[..., None] > 0)
            overlays[layer] = Overlay(painted, picture.box)
    report("running", len(source.layers), len(source.layers))
    if not overlays:
        raise bad_input(f"{function_name} changes nothing", where=", ".join(source.layers), fix="check what it returns")
    return EditorResult(overlays)


def load_function(function_name: str) -> ImageFunction:
    """Loads the function of a name such as "looks.py:warm" or "package.looks:warm". Its module is run.

    Raises:
        UserError: no such file, module or function (exit 2).
    """
    home, _, name = function_name.rpartition(":")
    fix = "--function looks.py:warm"
    if not home or not name.isidentifier():
        raise UserError(
            ExitCode.USAGE, f"{function_name!r} names no function", why="it is FILE.py:NAME or MODULE:NAME", fix=fix
        )
    # The border around foreign code, as above.
    try:
        if home.endswith(".py"):
            path = Path(home)
            if not path.is_file():
                raise FileNotFoundError(f"there is no file {path}")
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None, "a .py file has a loader"
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(home)
    except Exception as problem:
        why = f"{type(problem).__name__}: {problem}"
        raise UserError(ExitCode.USAGE, f"{home} cannot be loaded", why=why, fix=fix) from problem
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        why = f"it has {', '.join(known[:10])}" if known else "it has no function"
        raise UserError(ExitCode.USAGE, f"{home} has no function {name}", why=why, fix=fix)
    return function
