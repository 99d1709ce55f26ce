"""What finds objects: colors and motion, or networks that the options name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neural_fields.core.errors import bad_input
from neural_fields.data.segmentation.networks.main_object import EXAMPLE, MainObjectFinder
from neural_fields.data.segmentation.networks.matting_network import MattingNetwork
from neural_fields.data.segmentation.networks.sam_video import SamVideoSegmenter
from neural_fields.data.segmentation.networks.words import WordFinder
from neural_fields.data.segmentation.segmenter import ObjectSegmenter
from neural_fields.data.segmentation.track_objects import TrackingSegmenter
from neural_fields.data.video.io import source_frames
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.masking.frame_hints import check_frame
from neural_fields.masking.hint_journal import identify_video, store_mask
from neural_fields.masking.hints import AnyHint, MainHint, TextHint
from neural_fields.masking.options import MaskOptions
from neural_fields.nn.pretrained import NetworkSource

# Where words without a frame are looked for until something fits them, in shares of the frames in use.
SEARCHED_PLACES = (0.0, 0.5, 1.0, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875)


def choose_segmenter(options: MaskOptions) -> ObjectSegmenter:
    """Returns what finds the objects.

    Args:
        options: the network and its device.
    """
    if options.model is None:
        return TrackingSegmenter()
    return SamVideoSegmenter(NetworkSource(options.model, options.device))


def choose_matting_network(options: MaskOptions) -> MattingNetwork | None:
    """Returns the network that makes the edges soft, or None.

    Args:
        options: the network and its device.
    """
    if options.matte_model is None:
        return None
    return MattingNetwork(NetworkSource(options.matte_model, options.device))


def find_by_networks(
    hints: Sequence[AnyHint], folder: Path, metadata: VideoMetadata, frames: range, options: MaskOptions
) -> tuple[AnyHint, ...]:
    """Finds what hints mean that a network must look for: words, and the main thing in a frame.

    Args:
        hints: of one command.
        folder: the folder of masks, which gets the masks that were found.
        metadata: of the video.
        frames: numbers of the frames in use.
        options: the networks.

    Returns:
        The hints, with what the networks found.

    Raises:
        UserError: there is no network for such a hint, or it finds nothing (exit 3).
    """
    word_finder = WordFinder(NetworkSource(options.text_model or "", options.device))
    main_finder = MainObjectFinder(NetworkSource(options.main_model or "", options.device))
    found: list[AnyHint] = []
    for hint in hints:
        if isinstance(hint, TextHint) and hint.box is None:
            hint = _find_words(hint, word_finder, folder, metadata, frames)
        elif isinstance(hint, MainHint) and hint.file is None:
            hint = _find_main_object(hint, main_finder, folder, metadata, frames)
        found.append(hint)
    return tuple(found)


def _find_words(hint: TextHint, finder: WordFinder, folder: Path, metadata: VideoMetadata, frames: range) -> TextHint:
    """Finds what words mean: the box, and where the network finds one the mask."""
    if not hint.any_frame:
        check_frame(hint, identify_video(metadata), frames)
    if not finder.source.model:
        raise bad_input(
            f"{hint.words}: there is no model that finds objects by words",
            where=hint.where,
            why="without a network, objects are known by colors and motion, not by words",
            fix="--text-model IDEA-Research/grounding-dino-tiny, or --box x,y,width,height",
        )
    places = [frames[round(place * (len(frames) - 1))] for place in SEARCHED_PLACES]
    numbers = list(dict.fromkeys(places)) if hint.any_frame else [hint.frame]
    for number in numbers:
        (frame,) = source_frames(metadata, range(number, number + 1))
        matches = finder.find_in_frame(frame, hint.text)
        if matches:
            break
    else:
        looked = ", ".join(str(number) for number in sorted(numbers))
        raise bad_input(
            f"nothing in frame{'s' * (len(numbers) > 1)} {looked} looks like {hint.text!r}",
            where=hint.where,
            why=f"{finder.source.model} searched {'them' if len(numbers) > 1 else 'it'}",
            fix="another --frame, other words, or --box x,y,width,height",
        )
    left, top, right, bottom = (float(side) for side in matches[0].box)
    mask = matches[0].mask
    file = None if mask is None else store_mask(folder, mask)
    return replace(hint, frame=number, box=(left, top, right - left, bottom - top), file=file)


def _find_main_object(
    hint: MainHint, finder: MainObjectFinder, folder: Path, metadata: VideoMetadata, frames: range
) -> MainHint:
    """Finds the mask of the main thing in the frame of a hint."""
    check_frame(hint, identify_video(metadata), frames)
    if not finder.source.model:
        raise bad_input(
            f"{hint.words}: there is no model that finds the main thing in a frame",
            where=hint.where,
            why="without a network, objects are known by colors and motion from where you point",
            fix=f"--main-model {EXAMPLE}, or --box x,y,width,height",
        )
    (frame,) = source_frames(metadata, range(hint.frame, hint.frame + 1))
    mask = finder.find_in_frame(frame)
    if not mask.any() or mask.all():
        raise bad_input(
            f"nothing stands out in frame {hint.frame}",
            where=f"{hint.where}: {hint.words}",
            why=f"for {finder.source.model}, {'all' if mask.all() else 'none'} of it is the main thing",
            fix="another --frame, or --box x,y,width,height",
        )
    return replace(hint, file=store_mask(folder, mask))
