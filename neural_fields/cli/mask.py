"""`unwrap mask`: the command line of `masking/segment_video.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from neural_fields.cli.commands import print_json, refuse_overrides
from neural_fields.cli.hint_flags import HintFlags
from neural_fields.cli.progress_display import print_message, show_progress
from neural_fields.config.loader import to_mapping
from neural_fields.core.errors import ExitCode
from neural_fields.masking.options import STAGE_WEIGHTS, MaskOptions


@dataclass(frozen=True)
class MaskCommand:
    """Make masks of objects that you point at: hints on some frames, masks in all frames.

    Hints stay in the folder of the masks; more can be added later, and only what they change is done again.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "unwrap mask clip.mp4 --object person --frame 12 --box 100,60,80,120",
        "unwrap mask clip.mp4 --object person --frame 34 --not 150,200",
        "unwrap mask clip.mp4 --undo",
    )
    video: Positional[Path]
    """A video file, a folder of numbered images, or a run's folder."""
    hints: Annotated[HintFlags, arg(name="")]
    options: Annotated[MaskOptions, arg(name="")]
    list: bool = False
    """Show the hints and do nothing else."""
    json: bool = False
    """Print one JSON object, and the progress as JSON lines on stderr."""


def run_mask(command: MaskCommand, extra: list[str]) -> int:
    """Runs `unwrap mask` and returns the exit status."""
    refuse_overrides(extra, command)
    from neural_fields.masking.hint_journal import read_hints
    from neural_fields.masking.segment_video import find_mask_place, segment_video

    if command.list:  # oldest first
        folder = find_mask_place(command.video, command.options.out).folder
        history = read_hints(folder)
        steps = [(step, True) for step in history.done] + [(step, False) for step in reversed(history.undone)]
        rows = [(hint, in_force) for step, in_force in steps for hint in step.hints]
        if command.json:
            hints = [{**to_mapping(hint), "in_force": in_force} for hint, in_force in rows]
            print_json({"folder": folder, "hints": hints})
            return ExitCode.OK
        for hint, in_force in rows:
            print(f"{hint.object}  --frame {hint.frame} {hint.words}{'' if in_force else '  (undone)'}")
        if not rows:
            print_message(f"no hints in {folder}")
        return ExitCode.OK
    with show_progress(STAGE_WEIGHTS, as_json=command.json) as report:
        masks = segment_video(command.video, command.options, report)
    for note in masks.notes:
        print_message(f"note: {note}")
    for sentence in masks.advice:
        print_message(sentence)
    if command.json:
        print_json(
            {
                "folder": masks.folder,
                "frames": [masks.frames.start, masks.frames.stop],
                "contact_sheet": masks.contact_sheet,
                "objects": [
                    {
                        "name": item.name,
                        "folder": item.folder,
                        "confidence": item.confidence,
                        "check": [[span.start, span.stop - 1] for span in item.check],
                        "lost": [[span.start, span.stop - 1] for span in item.lost],
                        "is_new": item.is_new,
                    }
                    for item in masks.objects
                ],
                "notes": masks.notes,
                "advice": masks.advice,
            }
        )
        return ExitCode.OK
    print(masks.folder)
    if masks.contact_sheet is not None:
        done = ", ".join(item.name for item in masks.objects if item.is_new) or "nothing: no hint has changed"
        print_message(f"done: {done}. Look at {masks.contact_sheet}, then")
        print_message(f"  unwrap train {command.video} --masks {masks.folder}")
    return ExitCode.OK
