"""Unwrap: layered atlases for video editing; a video becomes a few still images that can be edited.

The verbs of the command, from Python:

    from neural_fields import FitOptions, evaluate, fit, render
    from editors import edit

    run = fit("clip.mp4", FitOptions(seconds=60)).run
    edit(run, "painted.png", layer="foreground")
    (video,) = render(run)
    print(evaluate(run)["psnr"])

Each name is loaded when it is first used, so that importing the package stays quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neural_fields.errors import UserError
    from neural_fields.evaluation import evaluate
    from neural_fields.families import train
    from neural_fields.fit_options import TrainOptions
    from neural_fields.output import RenderOptions, render
    from neural_fields.run import Run

__version__ = "0.1.0"
__all__ = ["TrainOptions", "RenderOptions", "Run", "UserError", "evaluate", "train", "render"]

_LIGHT = {"FitOptions": "fit_options", "Run": "run", "UserError": "errors"}
_HEAVY = {"RenderOptions": "output", "evaluate": "evaluation", "fit": "families", "render": "output"}


def __getattr__(name: str) -> object:
    """Imports a public name of the package when it is first used."""
    home = (_LIGHT | _HEAVY).get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HEAVY and "torch" not in sys.modules:  # a program that has torch already chose its threads itself
        from neural_fields.threads import prepare_threads

        prepare_threads()
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
