"""Finds the objects that a user points at with SAM 2.1 (Ravi et al., 2024), EdgeTAM or SAM 3, through transformers.

The frames in which the user pointed at an object are segmented first and stay in the memory of the network for good.
From there the object is followed frame by frame, forwards and then backwards; what the network remembers of other
frames is dropped as soon as it will not look at it again, so memory does not grow with the length of the clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8, UInt8
from torch import Tensor

from neural_fields.core.errors import bad_input
from neural_fields.core.memmap import RELEASE_INTERVAL, allocate_zeros, release_memory
from neural_fields.core.progress import Progress, ProgressReporter, report_nothing
from neural_fields.data.flow.compute import FlowField
from neural_fields.data.segmentation.networks.load_network import load_network
from neural_fields.data.segmentation.segmenter import (
    ClipSegmentation,
    FrameHints,
    ObjectSegmenter,
    missing_place_error,
)
from neural_fields.nn.pretrained import NetworkSource

EXAMPLE = "facebook/sam2.1-hiera-tiny"
NETWORKS = {  # model_type: the classes of the network and of its processor in transformers
    "sam2_video": ("Sam2VideoModel", "Sam2VideoProcessor"),
    "edgetam_video": ("EdgeTamVideoModel", "Sam2VideoProcessor"),
    "sam3_tracker_video": ("Sam3TrackerVideoModel", "Sam3TrackerVideoProcessor"),
    "sam3_video": ("Sam3TrackerVideoModel", "Sam3TrackerVideoProcessor"),
}
KEPT = ("maskmem_features", "maskmem_pos_enc", "object_pointer")  # of a state: what later frames look at
OBJECT = 1  # the identifier of the one object of a session

Logits = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class SamVideoSettings:
    """Holds the settings of `SamVideoSegmenter`."""

    max_hinted_frames: int = 8  # that the network looks at for one frame, the nearest; each costs as much as the frame
    point_spacing: float = 0.06  # least distance of points that stand for a stroke, in shorter sides of the frame
    max_points: int = 12  # that stand for the strokes of one frame and sign


DEFAULTS = SamVideoSettings()


class SamVideoSegmenter(ObjectSegmenter):
    """Finds objects with a network that follows them from boxes, points and masks.

    Args:
        source: the network, of the kind sam2_video, edgetam_video, sam3_tracker_video or sam3_video.
        settings: limits.
    """

    def __init__(self, source: NetworkSource, settings: SamVideoSettings = DEFAULTS) -> None:
        self.source, self.settings = source, settings

    @cached_property
    def network(self) -> SamVideoNetwork:
        """The network, loaded when it is first asked for.

        Raises:
            UserError: it does not exist, is of another kind or cannot be read.
        """
        return SamVideoNetwork(self.source, self.settings)

    def segment(
        self,
        frames: UInt8[np.ndarray, "time height width 3"],
        flow: FlowField,
        objects: Mapping[str, Mapping[int, FrameHints]],
        report: ProgressReporter = report_nothing,
    ) -> ClipSegmentation:
        """Finds the objects; see `ObjectSegmenter.segment`. The flow is not used.

        Args:
            frames: RGB; may be memory-mapped.
            flow: is not read.
            objects: for each object its hints, by the number of the frame in the clip.
            report: called with the progress.
        """
        whole = {name: find_whole_frames(name, hints) for name, hints in objects.items()}
        network = self.network
        memories = {name: network.start_memory() for name in objects}
        shares = allocate_zeros((len(objects), *frames.shape[:3]), np.uint8)
        confidence = np.zeros((len(objects), len(frames)), np.float32)

        def keep(place: int, number: int, logits: Logits, score: float) -> None:
            """Keeps what was found of an object in a frame.

            Args:
                place: of the object among all.
                number: of the frame.
                logits: log odds of each pixel.
                score: how sure the network is that the object is there, 0 to 1.
            """
            share = 1 / (1 + np.exp(-logits.clip(-30, 30)))
            shares[place, number] = np.rint(255 * share)
            inside = shares[place, number] >= 128
            confidence[place, number] = score * share[inside].mean() if inside.any() else 0

        # Frames that say where an object is, then corrections in other frames, the nearest to them first.
        done = 0
        for place, (name, hints) in enumerate(objects.items()):
            later = sorted(set(hints) - set(whole[name]), key=lambda number: min(abs(number - k) for k in whole[name]))
            for number in [*whole[name], *later]:
                reverse = number < whole[name][0]
                pixels = network.prepare_frame(frames[number])
                logits, score = memories[name].point_at(number, pixels, hints[number], number in whole[name], reverse)
                if hints[number].mask is not None:  # it is the object, as it stands
                    logits, score = np.where(hints[number].marked_mask, 30.0, -30.0), 1.0
                keep(place, number, logits, score)
                done += 1
        total = done + sum(len(frames) - len(hints) for hints in objects.values())
        first = min((min(hints) for hints in objects.values()), default=0)
        for reverse in (False, True):
            last = max((min(hints) for hints in objects.values()), default=0)
            for memory in memories.values():
                memory.turn()
            for number in range(last, -1, -1) if reverse else range(first, len(frames)):
                waiting = [
                    (place, name)
                    for place, (name, hints) in enumerate(objects.items())
                    if number not in hints and (number < min(hints)) == reverse
                ]
                if waiting:
                    pixels = network.prepare_frame(frames[number])
                    for place, name in waiting:
                        keep(place, number, *memories[name].follow(number, pixels, reverse))
                    done += len(waiting)
                    report(Progress("objects", done, total))
                if number % RELEASE_INTERVAL == RELEASE_INTERVAL - 1:
                    release_memory(frames)
                    release_memory(shares)
        return ClipSegmentation(tuple(objects), shares, confidence)


class SamVideoNetwork:
    """Loads a network, and prepares frames for it.

    Args:
        source: the network.
        settings: limits.
    """

    def __init__(self, source: NetworkSource, settings: SamVideoSettings = DEFAULTS) -> None:
        self.settings = settings
        self.processor, self.model = load_network(source, NETWORKS, "that follows objects", EXAMPLE)
        self.device = self.model.device
        if self.model.config.max_cond_frame_num == -1:
            self.model.config.max_cond_frame_num = settings.max_hinted_frames

    def prepare_frame(self, frame: UInt8[np.ndarray, "height width 3"]) -> FramePixels:
        """Brings a frame to the size and range that the network wants."""
        pixels = self.processor(images=np.array(frame), return_tensors="pt").pixel_values
        return FramePixels(pixels.to(self.device), (frame.shape[0], frame.shape[1]))

    def start_memory(self) -> ObjectMemory:
        """Starts the memory of one object."""
        return ObjectMemory(self)


@dataclass(frozen=True, eq=False)
class FramePixels:
    """Holds a frame as the network wants it, and what the network sees in it, which all objects share.

    Attributes:
        values: normalized pixels.
        size: height and width of the frame.
    """

    values: Float[Tensor, "1 3 rows columns"]
    size: tuple[int, int]

    @cached_property
    def seen(self) -> dict[str, Any]:
        """Features of the frame, once an object has needed them."""
        return {}


class ObjectMemory:
    """Holds what a network knows of one object: states of hinted frames for good, of others while they are looked at.

    Args:
        network: the network.

    Attributes:
        session: the session of transformers. It has one object, so that each is hinted in frames of its own.
    """

    def __init__(self, network: SamVideoNetwork) -> None:
        self.network = network
        self.session = network.processor.init_video_session(inference_device=network.device, dtype=torch.float32)
        self.index = self.session.obj_id_to_idx(OBJECT)
        self.states = self.session.output_dict_per_obj[self.index]

    def point_at(
        self, number: int, pixels: FramePixels, hints: FrameHints, whole: bool, reverse: bool
    ) -> tuple[Logits, float]:
        """Segments a frame from hints and keeps its state for good.

        Args:
            number: of the frame.
            pixels: the frame.
            hints: what the user said about the object in it.
            whole: whether the hints say where the object is; otherwise they correct what its memory says.
            reverse: whether the memory is of later frames.

        Returns:
            Log odds of each pixel, and how sure the network is that the object is in the frame, 0 to 1.
        """
        height, width = pixels.size
        if hints.mask is not None:
            given: dict[str, Any] = {"input_masks": torch.from_numpy(hints.marked_mask)}
        else:
            given = {}
            points, signs = choose_points(hints.labels, self.network.settings)
            if len(points):
                given = {"input_points": [[(points + 0.5).tolist()]], "input_labels": [[signs.tolist()]]}
            if hints.box is not None:
                given["input_boxes"] = [[[float(side) for side in hints.box]]]
        self.network.processor.add_inputs_to_inference_session(
            self.session, frame_idx=number, obj_ids=OBJECT, original_size=(height, width), **given
        )
        if not whole:  # the network looks at its memory only in frames that it has tracked
            self.session.frames_tracked_per_obj[self.index][number] = {"reverse": reverse}
        found = self._run(number, pixels, reverse)
        kept, passing = self.states["cond_frame_outputs"], self.states["non_cond_frame_outputs"]
        state = kept.pop(number, None) or passing.pop(number)
        kept[number] = {key: state[key] for key in KEPT}
        self.session.remove_point_inputs(self.index, number)
        self.session.remove_mask_inputs(self.index, number)
        return found

    def follow(self, number: int, pixels: FramePixels, reverse: bool) -> tuple[Logits, float]:
        """Segments the next frame, or with `reverse` the one before.

        Args:
            number: of the frame.
            pixels: the frame as the network takes it.
            reverse: whether the frames are taken from the last to the first.

        Returns:
            Log odds of each pixel, and how sure the network is that the object is in the frame, 0 to 1.
        """
        found = self._run(number, pixels, reverse)
        config = self.network.model.config
        passing = self.states["non_cond_frame_outputs"]
        for old in list(passing):
            age = abs(number - old)  # the next frame looks at one fewer
            if age >= max(config.max_object_pointers_in_encoder, config.num_maskmem) - 1:
                del passing[old]
            else:
                kept = KEPT if age < config.num_maskmem - 1 else ("object_pointer",)
                passing[old] = {key: passing[old][key] for key in kept}
        return found

    def turn(self) -> None:
        """Forgets all frames but the hinted ones, before the object is followed in the other direction."""
        self.states["non_cond_frame_outputs"].clear()

    def _run(self, number: int, pixels: FramePixels, reverse: bool) -> tuple[Logits, float]:
        session = self.session
        session.cache.clear_all()
        if pixels.seen:
            session.cache.cache_vision_features(number, pixels.seen)
        output = self.network.model(session, frame_idx=number, frame=pixels.values, reverse=reverse)
        pixels.seen.update(session.cache.get_vision_features(number))
        session.cache.clear_all()
        session.processed_frames.clear()
        session.frames_tracked_per_obj[self.index].clear()
        height, width = pixels.size
        logits = torch.nn.functional.interpolate(
            output.pred_masks.float().reshape(1, 1, *output.pred_masks.shape[-2:]), (height, width), mode="bilinear"
        )
        score = torch.sigmoid(output.object_score_logits.float()).reshape(-1)[0]
        return logits[0, 0].cpu().numpy(), float(score)


def find_whole_frames(name: str, hints: Mapping[int, FrameHints]) -> list[int]:
    """Finds the frames whose hints say by themselves where an object is: by a mask or a box, or by the first points.

    Args:
        name: of the object.
        hints: by the number of the frame.

    Returns:
        Their numbers, in order.

    Raises:
        UserError: there is no such frame (exit 3).
    """
    whole = [number for number, hint in sorted(hints.items()) if hint.mask is not None or hint.box is not None]
    if not whole:
        whole = [number for number, hint in sorted(hints.items()) if (hint.labels > 0).any()][:1]
    if not whole:
        raise missing_place_error(name, hints)
    for number in whole:
        if hints[number].mask is not None and not hints[number].marked_mask.any():
            raise bad_input(f"{name}: the mask of frame {number} is empty", fix="another mask, or a box")
    return whole


def choose_points(
    labels: Int8[np.ndarray, "height width"], settings: SamVideoSettings = DEFAULTS
) -> tuple[Int[np.ndarray, "points 2"], Int[np.ndarray, " points"]]:
    """Chooses points that stand for what the user marked: the middle of each stroke, and more along long ones.

    Args:
        labels: 1 surely the object, -1 surely not, 0 not said.
        settings: how many points, how far apart.

    Returns:
        Columns and rows of the points, and 1 or 0 for each: the object or not.
    """
    spacing = settings.point_spacing * min(labels.shape)
    points: list[Sequence[int]] = []
    signs: list[int] = []
    for sign in (1, -1):
        count, strokes = cv2.connectedComponents((labels == sign).astype(np.uint8))
        depth = cv2.distanceTransform(np.pad(labels == sign, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        chosen: list[np.ndarray] = []
        rests: list[tuple[np.ndarray, np.ndarray]] = []
        for stroke in range(1, count):
            rows, columns = np.nonzero(strokes == stroke)
            pixels = np.stack([columns, rows], axis=1)
            middle = pixels[depth[rows, columns].argmax()]
            chosen.append(middle)
            rests.append((pixels, np.linalg.norm(pixels - middle, axis=1)))
        while rests and len(chosen) < settings.max_points:
            pixels, distance = max(rests, key=lambda rest: rest[1].max())
            if distance.max() < spacing:
                break
            chosen.append(pixels[distance.argmax()])
            np.minimum(distance, np.linalg.norm(pixels - chosen[-1], axis=1), out=distance)
        points += [point.tolist() for point in chosen[: settings.max_points]]
        signs += [int(sign > 0)] * min(len(chosen), settings.max_points)
    return np.array(points, int).reshape(-1, 2), np.array(signs, int)
