"""`unwrap watch`: the command line of `editors/live/watch.py`."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional, UseAppendAction

from editors.live.file_watching import DEFAULTS
from neural_fields.cli import commands as base
from neural_fields.core.errors import ExitCode, UserError
from neural_fields.core.interrupt import stop_on_signals
from neural_fields.core.threads import prepare_threads


@dataclass(frozen=True, kw_only=True)
class WatchCommand:
    """Preview your paint on a frame of the video whenever you save. Ctrl-C ends it.

    It watches pictures in the run's folder canonical/ that are named after their layers. The preview is
    previews/watch.jpg; the page previews/watch.html shows it and updates itself. Nothing is added to the edits.
    """

    run: Positional[Path]
    """The run's folder."""
    frame: UseAppendAction[tuple[int, ...]] = ()
    """The frame to show; several stand side by side (default: the middle one). May be repeated."""
    picture: UseAppendAction[tuple[str, ...]] = ()
    """A picture elsewhere, FILE or LAYER=FILE. May be repeated."""
    size: int = DEFAULTS.size_px
    """Longer side of the preview in pixels."""
    json: bool = False
    """Print each update as one JSON object a line."""


def run_watch(command: WatchCommand, extra: list[str]) -> int:
    """Runs `unwrap watch`."""
    base.refuse_overrides(extra, command)
    if not DEFAULTS.min_size_px <= command.size <= DEFAULTS.max_size_px:
        why = f"the longer side of the preview has {DEFAULTS.min_size_px} to {DEFAULTS.max_size_px} pixels"
        raise UserError(ExitCode.USAGE, f"--size {command.size}", why=why, fix=f"--size {DEFAULTS.size_px}")
    prepare_threads()
    from editors.live.watch import watch_pictures

    with stop_on_signals() as asked:
        updates = watch_pictures(
            command.run,
            frames=command.frame,
            pictures=command.picture,
            size=command.size,
            stop=lambda: asked.signal_number is not None,
        )
        for update in updates:
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
