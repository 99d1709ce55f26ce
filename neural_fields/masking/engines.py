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
        UserError: no network for words, or nothing in the frame that the words fit (exit 3).
    """
    found: list[AnyHint] = []
    for hint in hints:
        if isinstance(hint, TextHint) and hint.box is None:
            check_frame(hint, identify_video(metadata), frames)
            if options.text_model is None:
                raise bad_input(
                    f"{hint.words}: there is no model that finds objects by words",
                    where=hint.where,
                    why="without a network, objects are known by colors and motion, not by words",
                    fix="--text-model IDEA-Research/grounding-dino-tiny, or --box x,y,width,height",
                )
            (frame,) = source_frames(metadata, range(hint.frame, hint.frame + 1))
            matches = WordFinder(NetworkSource(options.text_model, options.device)).find_in_frame(frame, hint.text)
            if not matches:
                raise bad_input(
                    f"nothing in frame {hint.frame} looks like {hint.text!r}",
                    where=hint.where,
                    why=f"{options.text_model} looked at it",
                    fix="another --frame, other words, or --box x,y,width,height",
                )
            left, top, right, bottom = matches[0].box
            mask = matches[0].mask
            file = None if mask is None else store_mask(folder, mask)
            hint = replace(hint, box=(float(left), float(top), float(right - left), float(bottom - top)), file=file)
        found.append(hint)
    return tuple(found)
