"""Unwrap: layered atlases for video editing; a video becomes a few still images that can be edited.

The verbs of the command, from Python:

    from neural_fields import TrainOptions, evaluate, open_run, render, train
    from editors import edit

    run = train("clip.mp4", TrainOptions(seconds=60)).run
    edit(run, "painted.png", layer="foreground")
    (video,) = render(run)
    print(evaluate(run)["psnr"])
    picture = open_run(run).canonical("foreground")

Each name is loaded when it is first used, so that importing the package stays quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neural_fields.api import evaluate, render
    from neural_fields.core.errors import UserError
    from neural_fields.evaluation.options import EvalOptions
    from neural_fields.masking.hints import BoxHint, MainHint, MaskHint, PointHint, StrokeHint, TextHint
    from neural_fields.masking.options import MaskOptions
    from neural_fields.masking.segment_video import segment_video
    from neural_fields.open_runs.opening import open_run
    from neural_fields.rendering.options import RenderOptions
    from neural_fields.runs.run import Run
    from neural_fields.training.options import TrainOptions
    from neural_fields.training.train import train

__all__ = [
    "BoxHint",
    "EvalOptions",
    "MainHint",
    "MaskHint",
    "MaskOptions",
    "PointHint",
    "RenderOptions",
    "Run",
    "StrokeHint",
    "TextHint",
    "TrainOptions",
    "UserError",
    "evaluate",
    "open_run",
    "render",
    "segment_video",
    "train",
]

_LIGHT = {
    "BoxHint": "masking.hints",
    "EvalOptions": "evaluation.options",
    "MainHint": "masking.hints",
    "MaskHint": "masking.hints",
    "MaskOptions": "masking.options",
    "PointHint": "masking.hints",
    "RenderOptions": "rendering.options",
    "Run": "runs.run",
    "StrokeHint": "masking.hints",
    "TextHint": "masking.hints",
    "TrainOptions": "training.options",
    "UserError": "core.errors",
}
_HEAVY = {
    "evaluate": "api",
    "open_run": "open_runs.opening",
    "render": "api",
    "segment_video": "masking.segment_video",
    "train": "training.train",
}


def __getattr__(name: str) -> object:
    """Imports a public name of the package when it is first used."""
    home = (_LIGHT | _HEAVY).get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _HEAVY and "torch" not in sys.modules:  # a program that has torch already chose its threads itself
        from neural_fields.core.threads import prepare_threads

        prepare_threads()
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
