"""What finds objects: colors and motion, or networks that the options name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neural_fields.core.errors import bad_input
from neural_fields.data.segmentation.networks.matting_network import MattingNetwork
from neural_fields.data.segmentation.networks.sam_video import SamVideoSegmenter
from neural_fields.data.segmentation.networks.words import WordFinder
from neural_fields.data.segmentation.segmenter import ObjectSegmenter
from neural_fields.data.segmentation.track_objects import TrackingSegmenter
from neural_fields.data.video.io import source_frames
from neural_fields.data.video.metadata import VideoMetadata
from neural_fields.masking.frame_hints import check_frame
from neural_fields.masking.hint_journal import identify_video, store_mask
from neural_fields.masking.hints import AnyHint, TextHint
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


def find_words(
    hints: Sequence[AnyHint], folder: Path, metadata: VideoMetadata, frames: range, options: MaskOptions
) -> tuple[AnyHint, ...]:
    """Finds what hints in words mean: the box, and where the network finds one the mask.

    Args:
        hints: of one command.
        folder: the folder of masks, which gets the mask.
        metadata: of the video.
        frames: numbers of the frames in use.
        options: the network for words.

    Returns:
        The hints, those in words with their places.

    Raises:
        UserError: no network for words, or nothing in the frame, or without one in several, that the words fit
            (exit 3).
    """
    found: list[AnyHint] = []
    for hint in hints:
        if isinstance(hint, TextHint) and hint.box is None:
            if not hint.any_frame:
                check_frame(hint, identify_video(metadata), frames)
            if options.text_model is None:
                raise bad_input(
                    f"{hint.words}: there is no model that finds objects by words",
                    where=hint.where,
                    why="without a network, objects are known by colors and motion, not by words",
                    fix="--text-model IDEA-Research/grounding-dino-tiny, or --box x,y,width,height",
                )
            finder = WordFinder(NetworkSource(options.text_model, options.device))
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
                    why=f"{options.text_model} looked at {'them' if len(numbers) > 1 else 'it'}",
                    fix="another --frame, other words, or --box x,y,width,height",
                )
            left, top, right, bottom = (float(side) for side in matches[0].box)
            mask = matches[0].mask
            file = None if mask is None else store_mask(folder, mask)
            hint = replace(hint, frame=number, box=(left, top, right - left, bottom - top), file=file)
        found.append(hint)
    return tuple(found)
