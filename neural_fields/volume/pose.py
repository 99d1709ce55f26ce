"""Poses in torch: rotations of joints against their parents, back to bones, and a network that corrects them.

The functions are the twins of those in `data.skeleton` for many moments at once, with gradients. M moments, B bones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.data.capture.skeleton import NO_PARENT, Skeleton
from neural_fields.nn.mlp import MLP


@dataclass(frozen=True)
class PoseSettings:
    """Settings of the network that corrects poses."""

    translation_unit: float = 0.1  # of the body's span: a rotation by 1 moves the end of a limb about as far
    output_bound: float = 1e-5  # weights of the last layers at the start: the paper's


DEFAULTS = PoseSettings()


def axis_angle_to_matrix(axis_angle: Float[Tensor, "*rotations 3"]) -> Float[Tensor, "*rotations 3 3"]:
    """Computes rotations around axes by the axes' lengths in radians (Rodrigues); smooth at zero."""
    x, y, z = axis_angle.unbind(dim=-1)
    none = torch.zeros_like(x)
    across = torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1).unflatten(-1, (3, 3))
    angle = (axis_angle.square().sum(dim=-1) + 1e-12).sqrt()[..., None, None]
    half = torch.sin(angle / 2) / angle  # 1 - cos by the half angle: exact for small ones
    return torch.eye(3).to(across) + torch.sin(angle) / angle * across + 2 * half * half * (across @ across)


class Kinematics(nn.Module):
    """Computes the forward kinematics of a skeleton, generation by generation of its joints."""

    rest: Tensor

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__()
        self.parents = skeleton.parents
        self.register_buffer("rest", torch.tensor(skeleton.rest_positions, dtype=torch.float32))
        depth: list[int] = []
        for parent in skeleton.parents:
            depth.append(0 if parent == NO_PARENT else depth[parent] + 1)
        self.generations = [[b for b, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]

    def to_local(
        self, transforms: Float[Tensor, "moments bones 4 4"]
    ) -> tuple[Float[Tensor, "moments bones 3 3"], Float[Tensor, "moments bones 3"]]:
        """Computes rotation and translation of each joint against its parent: `data.skeleton.compute_local_pose`."""
        rotation, translation = transforms[..., :3, :3], transforms[..., :3, 3]
        place = _rotate_points(rotation, self.rest) + translation
        above = [max(parent, 0) for parent in self.parents]
        back = rotation[:, above].transpose(-1, -2)
        by_parent = _rotate_points(rotation[:, above], self.rest) + translation[:, above]
        root = torch.tensor([parent == NO_PARENT for parent in self.parents], device=rotation.device)
        local_rotation = torch.where(root[:, None, None], rotation, back @ rotation)
        return local_rotation, torch.where(root[:, None], place, _rotate_points(back, place - by_parent))

    def from_local(
        self, rotations: Float[Tensor, "moments bones 3 3"], translations: Float[Tensor, "moments bones 3"]
    ) -> Float[Tensor, "moments bones 4 4"]:
        """Computes the bones of poses from local rotations and translations: `data.skeleton.from_local`."""
        all_rotations: list[Tensor] = [rotations[:, 0]] * len(self.parents)
        all_translations: list[Tensor] = [translations[:, 0]] * len(self.parents)
        for level, bones in enumerate(self.generations):
            rotation, place = rotations[:, bones], translations[:, bones]
            if level:
                above = torch.stack([all_rotations[self.parents[bone]] for bone in bones], dim=1)
                translation = torch.stack([all_translations[self.parents[bone]] for bone in bones], dim=1)
                place = _rotate_points(above, self.rest[bones] + place) + translation
                rotation = above @ rotation
            translation = place - _rotate_points(rotation, self.rest[bones])
            for index, bone in enumerate(bones):
                all_rotations[bone], all_translations[bone] = rotation[:, index], translation[:, index]
        top = torch.cat([torch.stack(all_rotations, dim=1), torch.stack(all_translations, dim=1)[..., None]], dim=-1)
        last = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:2], 1, 4)
        return torch.cat([top, last], dim=-2)

    def encode_pose(self, transforms: Float[Tensor, "moments bones 4 4"]) -> Float[Tensor, "moments code"]:
        """Encodes poses for a network: two columns of every joint's rotation but the roots', 0 at rest.

        The paper feeds axis-angles, which jump at half a turn; two columns never do (Zhou et al. 2019, "On the
        Continuity of Rotation Representations in Neural Networks").
        """
        rotations, _ = self.to_local(transforms)
        joints = [bone for bone, parent in enumerate(self.parents) if parent != NO_PARENT]
        return (rotations[:, joints] - torch.eye(3).to(rotations))[..., :2].flatten(1)

    @property
    def code_size(self) -> int:
        """The numbers of a pose's code."""
        return 6 * sum(parent != NO_PARENT for parent in self.parents)


def _rotate_points(rotations: Tensor, points: Tensor) -> Tensor:
    """Applies rotations [..., 3, 3] to points [..., 3]."""
    return (rotations @ points[..., None])[..., 0]


class PoseRefiner(nn.Module):
    """Computes a small rotation and translation for every joint but the roots, from the measured pose.

    HOSNeRF, section 3.2: the rotation is multiplied from the right, the translation added; both start at 0. The paper's
    network of the pose corrects what all poses have in common, in poses too that no frame shows. What one moment alone
    has wrong it cannot know: a walk passes through the same pose again and again, each time measured with another
    error. So moments of the training have corrections of their own besides.

    Args:
        kinematics: of the skeleton.
        span: of the body in world units: translations are parts of it.
        width: neurons of a hidden layer.
        poses: bones of the training's moments, rest to world; a pose that is none of these has the network alone.
        settings: of the network.
    """

    known: Tensor

    def __init__(
        self,
        kinematics: Kinematics,
        span: float,
        width: int = 64,
        poses: Float[Tensor, "moments bones 4 4"] | None = None,
        settings: PoseSettings = DEFAULTS,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.kinematics = kinematics
        self.span = span
        self.moved = [bone for bone, parent in enumerate(kinematics.parents) if parent != NO_PARENT]
        numbers = 3 * max(len(self.moved), 1)
        self.trunk = MLP(kinematics.code_size or 1, width, width, layers=3)
        self.turn = MLP(width, numbers, width, layers=2, output_bound=settings.output_bound)
        self.shift = MLP(width, numbers, width, layers=2, output_bound=settings.output_bound)
        known = torch.zeros(0, len(kinematics.parents), 4, 4) if poses is None else poses.float()
        self.register_buffer("known", known, persistent=False)
        self.moments = nn.Parameter(torch.zeros(len(known), len(self.moved), 6))

    def compute_corrections(
        self, transforms: Float[Tensor, "moments bones 4 4"]
    ) -> tuple[Float[Tensor, "moments moved 3"], Float[Tensor, "moments moved 3"]]:
        """Computes the corrections of all joints that are no roots.

        Returns:
            Axis-angles in radians, and translations in units of `translation_unit` of the body's span.
        """
        hidden = torch.relu(self.trunk(self.kinematics.encode_pose(transforms)))
        shape = (len(transforms), len(self.moved), 3)
        if torch.equal(transforms, self.known):
            own: Tensor = self.moments
        else:  # zeros for poses that the training does not know
            own = self.moments.new_zeros(len(transforms), *self.moments.shape[1:])
            for index, pose in enumerate(transforms):
                same = (pose == self.known).flatten(1).all(dim=1).nonzero()[:, 0]
                if len(same):
                    own[index] = self.moments[same[0]]
        return self.turn(hidden).view(shape) + own[..., :3], self.shift(hidden).view(shape) + own[..., 3:]

    def forward(
        self, transforms: Float[Tensor, "moments bones 4 4"]
    ) -> tuple[Float[Tensor, "moments bones 4 4"], Float[Tensor, ""]]:
        """Computes the corrected bones, and the mean square of all corrections."""
        if not self.moved:
            return transforms, transforms.new_zeros(())
        rotations, shifts = self.kinematics.to_local(transforms)
        turn, shift = self.compute_corrections(transforms)
        turned, moved = rotations.clone(), shifts.clone()
        turned[:, self.moved] = rotations[:, self.moved] @ axis_angle_to_matrix(turn)
        moved[:, self.moved] = shifts[:, self.moved] + self.settings.translation_unit * self.span * shift
        size = turn.square().mean() + shift.square().mean()
        return self.kinematics.from_local(turned, moved), size
