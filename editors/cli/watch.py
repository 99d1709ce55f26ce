"""`unwrap watch`: the command line of `editors/live/watch.py`."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from editors.live.options import WatchOptions
from neural_fields.cli import commands as base
from neural_fields.core.errors import ExitCode
from neural_fields.core.interrupt import stop_on_signals


@dataclass(frozen=True, kw_only=True)
class WatchCommand:
    """Preview your paint on a frame of the video whenever you save. Ctrl-C ends it.

    It watches pictures in the run's folder canonical/ that are named after their layers. The preview is
    previews/watch.jpg; the page previews/watch.html shows it and updates itself. Nothing is added to the edits.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap watch runs/clip",
        "unwrap watch runs/clip --frame 10 --frame 40",
        "unwrap watch runs/clip --picture foreground=painted.png",
    )
    run: Positional[Path]
    """The run's folder."""
    options: Annotated[WatchOptions, arg(name="")]
    json: bool = False
    """Print each update as one JSON object a line."""


def run_watch(command: WatchCommand, extra: list[str]) -> int:
    """Runs `unwrap watch`."""
    base.refuse_overrides(extra, command)
    from editors.live.watch import watch_pictures

    with stop_on_signals() as asked:
        for update in watch_pictures(command.run, command.options, lambda: asked.signal_number is not None):
            for line in update.to_lines():
                base.print_message(line)
            if command.json:
                base.print_json(update.to_json())
            elif update.kind == "start":
                page = command.run / "previews" / "watch.html"
                print(page, flush=True)
                base.print_message(
                    f"open {page} in a browser, paint on a picture in {command.run / 'canonical'}, and save"
                )
    return ExitCode.OK if asked.signal_number == signal.SIGINT else asked.exit_code
