"""`lift`: applies any Python function on images to the video by calling it once, on the layer's canonical picture.

The function is code that the user chooses to run: no data in a run or in a file can name one.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from editors.core.editor import EditorResult, PlanarEditor
from editors.core.source import EditSource
from editors.options.effects import LiftOptions
from neural_fields.atlas.canonical import Overlay
from neural_fields.core.errors import ExitCode, UserError, bad_input
from neural_fields.core.progress import Progress, ProgressReporter
from neural_fields.imaging.push_pull import pull_push

ImageFunction = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Lift(LiftOptions, PlanarEditor):
    """Run your Python function on the canonical picture of a layer: RGB in, RGB out."""

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Calls the function, and makes overlays of the texels that it changes.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: there is no such function, it fails, or it returns no picture of the right shape.
        """
        return apply_picture_function(source, load_function(self.function), self.function, report)


@dataclass(frozen=True, kw_only=True)
class LiftFunction(PlanarEditor):
    """Runs a Python function on the canonical picture of a layer; `Lift` for a function of the calling program.

    Attributes:
        function: maps a picture, float32 [height, width, 3] in [0, 1], to a picture of the same shape.
    """

    name: ClassVar[str] = "lift"

    function: ImageFunction

    @property
    def function_name(self) -> str:
        """The name of the function, as edit.json stores it."""
        return getattr(self.function, "__qualname__", type(self.function).__qualname__)

    def edit(self, source: EditSource, report: ProgressReporter) -> EditorResult:
        """Calls the function, and makes overlays of the texels that it changes.

        Args:
            source: the run, and the layers to edit.
            report: called with the progress.

        Raises:
            UserError: the function fails, or it returns no picture of the right shape.
        """
        return apply_picture_function(source, self.function, self.function_name, report)

    def describe_settings(self) -> dict[str, Any]:
        """Returns the name of the function."""
        return {"function": self.function_name}


def apply_picture_function(
    source: EditSource,
    function: ImageFunction,
    function_name: str,
    report: ProgressReporter,
    min_change: float = 0.5 / 255,
) -> EditorResult:
    """Applies a function to the canonical pictures of the chosen layers.

    Args:
        source: the run, and the layers to edit.
        function: maps a picture, float32 [height, width, 3] in [0, 1], to a picture of the same shape. Texels that no
            frame shows have extrapolated colors.
        function_name: name of the function, for messages.
        report: called with the progress.
        min_change: smallest change of a color, in [0, 1], that counts as an edit.

    Returns:
        One overlay per layer, of the texels that change.

    Raises:
        UserError: the function fails, returns no picture of the right shape, or changes nothing (exit 3).
    """
    overlays = {}
    for number, layer in enumerate(source.layers):
        report(Progress("running", number, len(source.layers)))
        picture, region = source.pictures[layer], source.read_region(layer)
        rgba = picture.rgba
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
    report(Progress("running", len(source.layers), len(source.layers)))
    if not overlays:
        raise bad_input(f"{function_name} changes nothing", where=", ".join(source.layers), fix="check what it returns")
    return EditorResult(overlays)


def load_function(function_name: str) -> ImageFunction:
    """Loads a function by a name such as "looks.py:warm" or "package.looks:warm", and so runs its module.

    Args:
        function_name: FILE.py:NAME or MODULE:NAME.

    Raises:
        UserError: there is no such file, module or function (exit 2).
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
