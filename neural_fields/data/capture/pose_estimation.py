"""Finds the joints and the outline of a person in pictures with small networks of the user's own.

The networks are pose landmarks (BlazePose, Bazarevsky et al. 2020) and selfie segmentation, as .tflite files, run by
LiteRT where it is installed.

A detector finds the person once; then each frame is cropped where the frame before showed them, upright and square, and
the landmark network gives the positions and visibility of 33 points and the mask of the person.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from neural_fields.core.errors import bad_input
from neural_fields.data.capture.pose_landmarks import LANDMARKS, PersonDetection


@dataclass(frozen=True)
class PoseNetworkSettings:
    """Settings of the search for a person."""

    min_presence: float = 0.5  # a crop with a lower probability of a person in it is dropped
    min_outline: float = 0.5  # a pixel with a higher probability in the selfie segmentation is part of the person
    max_logit_gap: float = 2.0  # of the detections at most this far below the best one, the largest is taken
    # Side of the crop / twice the distance from the hips to the edge point that the network finds; as in MediaPipe.
    crop_scale: float = 1.25
    min_reach_px: float = 8.0  # least distance from the hips to the edge point, in pixels


DEFAULTS = PoseNetworkSettings()


@dataclass(frozen=True)
class _Crop:
    """A square of a picture, rotated so that the person in it stands upright."""

    center: tuple[float, float]
    side: float
    angle: float  # radians, of the square's x axis in the picture

    def compute_matrix(self, size: int) -> Float[np.ndarray, "2 3"]:
        """Computes the map from positions of the crop, `size` pixels wide, to those of the picture.

        (0, 0) is the corner of the first pixel.
        """
        linear = self.side / size * self.compute_rotation()
        return np.concatenate([linear, np.array(self.center)[:, None] - linear @ np.full((2, 1), size / 2)], axis=1)

    def compute_rotation(self) -> Float[np.ndarray, "2 2"]:
        """Computes the rotation of the crop in the picture."""
        return np.array([[np.cos(self.angle), -np.sin(self.angle)], [np.sin(self.angle), np.cos(self.angle)]])

    def cut_out(self, frame: UInt8[np.ndarray, "height width 3"], size: int) -> Float[np.ndarray, "1 side side 3"]:
        """Cuts the crop out with colors in [0, 1]; black beyond the picture."""
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        values = cv2.warpAffine(frame, _convert_to_opencv(self.compute_matrix(size)), (size, size), flags=flags)
        return values[None].astype(np.float32) / 255

    def put_back(
        self, values: Float[np.ndarray, "side side"], size: tuple[int, int]
    ) -> Float[np.ndarray, "height width"]:
        """Warps a map of the crop to a picture of (width, height) `size`; -100 beyond the crop."""
        to_picture = _convert_to_opencv(self.compute_matrix(len(values)))
        return cv2.warpAffine(
            values, to_picture, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=-100.0
        )


def _convert_to_opencv(matrix: np.ndarray) -> np.ndarray:
    """Converts a map to coordinates whose whole numbers are the centers of pixels, as in OpenCV."""
    return np.concatenate([matrix[:, :2], (matrix @ (0.5, 0.5, 1.0) - 0.5)[:, None]], axis=1)


@dataclass
class PoseNetwork:
    """The networks of a folder. `look` remembers the person's place: give it the frames of a video in order.

    Attributes:
        detector, landmarker, selfie: LiteRT interpreters; the first two come together.
        settings: thresholds, and the size of crops.
    """

    detector: Any = None
    landmarker: Any = None
    selfie: Any = None
    settings: PoseNetworkSettings = DEFAULTS
    _crop: _Crop | None = field(default=None, init=False)

    @staticmethod
    def load(folder: Path | str) -> PoseNetwork:
        """Loads pose_detection.tflite with pose_landmark*.tflite, or selfie_segmentation.tflite, or all of them.

        Raises:
            UserError: no such networks, files that are none, or LiteRT is not installed.
        """
        folder = Path(folder)
        marks = sorted(folder.glob("pose_landmark*.tflite"))
        detector, selfie = folder / "pose_detection.tflite", folder / "selfie_segmentation.tflite"
        poses = detector.is_file() and bool(marks)
        if not poses and not selfie.is_file():
            raise bad_input(
                f"there are no pose networks in {folder}",
                where="--pose-model",
                why="expected pose_detection.tflite with pose_landmark_lite.tflite (or _full, _heavy), "
                "or selfie_segmentation.tflite",
                fix="put these files of MediaPipe into one folder",
            )
        return PoseNetwork(
            _load_network(detector, ((1, 2254, 12), (1, 2254, 1))) if poses else None,
            _load_network(marks[0], ((1, 195), (1, 1), (1, 256, 256, 1), (1, 117))) if poses else None,
            _load_network(selfie, ((1, 256, 256, 1),)) if selfie.is_file() and not poses else None,
        )

    def forget_person(self) -> None:
        """Forgets the person's place, before the first frame of another video."""
        self._crop = None

    def find_person(self, frame: UInt8[np.ndarray, "height width 3"]) -> PersonDetection | None:
        """Finds the person in a frame; None where there is none.

        Of several it is the largest one, and the same one in the frames after that.
        """
        if self.landmarker is None:
            # The person's mask alone, in the whole picture.
            whole = _crop_whole(frame)
            (values,) = _run_network(self.selfie, whole.cut_out(frame, 256), ((1, 256, 256, 1),))
            mask = whole.put_back(values[0, :, :, 0], (frame.shape[1], frame.shape[0])) > self.settings.min_outline
            nothing = np.zeros((0, 2)), np.zeros(0), np.zeros((0, 3))
            return PersonDetection(*nothing, mask) if mask.any() else None
        for crop in (self._crop, None):
            crop = crop or self._detect_person(frame)
            found = None if crop is None else self._find_landmarks(frame, crop)
            if found is not None:
                return found
        self._crop = None
        return None

    def _detect_person(self, frame: np.ndarray) -> _Crop | None:
        """Finds the crop of the largest person."""
        side = 224  # of the detector's input in pixels
        crop = _crop_whole(frame)
        picture = 2 * crop.cut_out(frame, side) - 1
        boxes, logits = _run_network(self.detector, picture, ((1, 2254, 12), (1, 2254, 1)))
        logit = logits[0, :, 0]
        if logit.max() < 0:  # a probability of a half
            return None

        # Each detection is relative to the center of its cell; a cell makes several.
        anchors = []  # in shares of the picture
        for stride, guesses in ((8, 2), (16, 2), (32, 6)):
            cells = side // stride
            y, x = np.mgrid[:cells, :cells]
            anchors.append(np.repeat((np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) / cells, guesses, axis=0))
        points = boxes[0, :, 4:8].reshape(-1, 2, 2) + side * np.concatenate(anchors)[:, None]

        likely = np.flatnonzero(logit > max(0.0, float(logit.max()) - self.settings.max_logit_gap))
        size = np.linalg.norm(points[likely, 1] - points[likely, 0], axis=1)
        hips, edge = _transform_points(crop.compute_matrix(side), points[likely[int(size.argmax())]])
        return self._crop_around(hips, edge)

    def _find_landmarks(self, frame: np.ndarray, crop: _Crop) -> PersonDetection | None:
        """Runs the landmark network on a crop; None if nobody is in it. Remembers the crop for the next frame."""
        side = 256  # of the network's input in pixels
        shapes = (1, 195), (1, 1), (1, 256, 256, 1), (1, 117)
        flat, score, outline, flat_world = _run_network(self.landmarker, crop.cut_out(frame, side), shapes)
        if float(score[0, 0]) < self.settings.min_presence:
            return None
        marks, count = flat.reshape(39, 5).astype(np.float64), len(LANDMARKS)
        pixels = _transform_points(crop.compute_matrix(side), marks[:, :2])
        self._crop = self._crop_around(pixels[count], pixels[count + 1])  # two more points give the place of the body
        visible = _compute_sigmoid(marks[:count, 3]) * _compute_sigmoid(marks[:count, 4])
        world = flat_world.reshape(39, 3)[:count].astype(np.float64)
        world[:, :2] = world[:, :2] @ crop.compute_rotation().T
        mask = crop.put_back(outline[0, :, :, 0], (frame.shape[1], frame.shape[0])) > 0
        return PersonDetection(pixels[:count], visible, world, mask)

    def _crop_around(self, hips: np.ndarray, edge: np.ndarray) -> _Crop:
        """Crops a body, given the middle of its hips and the topmost point of the circle around it."""
        way = edge - hips
        return _Crop(
            (float(hips[0]), float(hips[1])),
            2 * self.settings.crop_scale * max(float(np.linalg.norm(way)), self.settings.min_reach_px),
            float(np.pi / 2 - np.arctan2(-way[1], way[0])),
        )


def _load_network(path: Path, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Loads a network, ready to run, whose outputs have these shapes."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise bad_input(
            "the pose networks need LiteRT, which is not installed",
            where="--pose-model",
            fix="pip install -e '.[pose]' in the folder of Unwrap",
        ) from None
    try:
        network = Interpreter(model_path=str(path), num_threads=1)
        network.allocate_tensors()
        given = {tuple(int(side) for side in entry["shape"]) for entry in network.get_output_details()}
    except (ValueError, RuntimeError, OSError) as error:
        raise bad_input(f"{path.name} cannot be read", where=str(path), why=str(error).splitlines()[0]) from None
    if not set(shapes) <= given:
        raise bad_input(f"{path.name} is a different network", where=str(path), why=f"its outputs are {sorted(given)}")
    return network


def _run_network(network: Any, picture: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Runs a network and returns the outputs of these shapes. Networks of one kind order them differently."""
    network.set_tensor(network.get_input_details()[0]["index"], picture.astype(np.float32))
    network.invoke()
    found = {tuple(int(side) for side in entry["shape"]): entry["index"] for entry in network.get_output_details()}
    return [network.get_tensor(found[shape]) for shape in shapes]


def _crop_whole(frame: np.ndarray) -> _Crop:
    """Returns the square around a picture."""
    height, width = frame.shape[:2]
    return _Crop((width / 2, height / 2), float(max(width, height)), 0.0)


def _transform_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Applies an affine map."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def _compute_sigmoid(values: np.ndarray) -> np.ndarray:
    """Computes the logistic function without overflow."""
    return 1 / (1 + np.exp(-values.clip(-50, 50)))
