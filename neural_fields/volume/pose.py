"""Poses in torch: turns of joints against their parents, back to bones, and a network that corrects them.

The functions are the twins of those in `data.skeleton` for many moments at once, with gradients. M moments, B bones.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neural_fields.data.skeleton import ROOT, Skeleton
from neural_fields.encodings.mlp import MLP

SHIFT = 0.1  # of the body's span is a shift of 1: what turns a joint by as much moves its limb's end about as far
FIRST_BOUND = 1e-5  # weights of the last layers at the start: the paper's
_TINY = 1e-12


def turned_by(axis_angle: Float[Tensor, "*turns 3"]) -> Float[Tensor, "*turns 3 3"]:
    """Rotations around axes by the axes' lengths in radians (Rodrigues); smooth at zero."""
    x, y, z = axis_angle.unbind(dim=-1)
    none = torch.zeros_like(x)
    across = torch.stack([none, -z, y, z, none, -x, -y, x, none], dim=-1).unflatten(-1, (3, 3))
    angle = (axis_angle.square().sum(dim=-1) + _TINY).sqrt()[..., None, None]
    half = torch.sin(angle / 2) / angle  # 1 - cos by the half angle: exact for small ones
    return torch.eye(3).to(across) + torch.sin(angle) / angle * across + 2 * half * half * (across @ across)


class Kinematics(nn.Module):
    """Forward kinematics of a skeleton, joint by joint or rather generation by generation."""

    rest: Tensor

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__()
        self.parents = skeleton.parents
        self.register_buffer("rest", torch.tensor(skeleton.rest, dtype=torch.float32))
        depth: list[int] = []
        for parent in skeleton.parents:
            depth.append(0 if parent == ROOT else depth[parent] + 1)
        self.generations = [[b for b, d in enumerate(depth) if d == level] for level in range(max(depth) + 1)]

    def local(
        self, transforms: Float[Tensor, "moments bones 4 4"]
    ) -> tuple[Float[Tensor, "moments bones 3 3"], Float[Tensor, "moments bones 3"]]:
        """What turns and shifts each joint against its parent: `data.skeleton.local_rotations`."""
        turns, moves = transforms[..., :3, :3], transforms[..., :3, 3]
        place = _applied(turns, self.rest) + moves
        above = [max(parent, 0) for parent in self.parents]
        back = turns[:, above].transpose(-1, -2)
        carried = _applied(turns[:, above], self.rest) + moves[:, above]
        root = torch.tensor([parent == ROOT for parent in self.parents], device=turns.device)
        rotations = torch.where(root[:, None, None], turns, back @ turns)
        return rotations, torch.where(root[:, None], place, _applied(back, place - carried))

    def placed(
        self, rotations: Float[Tensor, "moments bones 3 3"], shifts: Float[Tensor, "moments bones 3"]
    ) -> Float[Tensor, "moments bones 4 4"]:
        """Bones of poses: `data.skeleton.from_local`."""
        turns: list[Tensor] = [rotations[:, 0]] * len(self.parents)
        places: list[Tensor] = [shifts[:, 0]] * len(self.parents)
        for level, bones in enumerate(self.generations):
            turn, place = rotations[:, bones], shifts[:, bones]
            if level:
                above = torch.stack([turns[self.parents[bone]] for bone in bones], dim=1)
                moves = torch.stack([places[self.parents[bone]] for bone in bones], dim=1)
                place = _applied(above, self.rest[bones] + place) + moves
                turn = above @ turn
            moved = place - _applied(turn, self.rest[bones])
            for index, bone in enumerate(bones):
                turns[bone], places[bone] = turn[:, index], moved[:, index]
        top = torch.cat([torch.stack(turns, dim=1), torch.stack(places, dim=1)[..., None]], dim=-1)
        last = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:2], 1, 4)
        return torch.cat([top, last], dim=-2)

    def code(self, transforms: Float[Tensor, "moments bones 4 4"]) -> Float[Tensor, "moments code"]:
        """A pose as numbers for a network: two columns of every joint's turn but the roots', 0 at rest.

        The paper feeds axis-angles, which jump at half a turn; two columns never do (Zhou et al. 2019, "On the
        Continuity of Rotation Representations in Neural Networks").
        """
        rotations, _ = self.local(transforms)
        joints = [bone for bone, parent in enumerate(self.parents) if parent != ROOT]
        return (rotations[:, joints] - torch.eye(3).to(rotations))[..., :2].flatten(1)

    @property
    def code_size(self) -> int:
        return 6 * sum(parent != ROOT for parent in self.parents)


def _applied(turns: Tensor, points: Tensor) -> Tensor:
    """Rotations [..., 3, 3] of points [..., 3]."""
    return (turns @ points[..., None])[..., 0]


class PoseRefiner(nn.Module):
    """A small turn and shift for every joint but the roots, from the pose as it was measured.

    HOSNeRF, section 3.2: the turn is multiplied from the right, the shift added; both start at nothing. The paper's
    network of the pose corrects what all poses have in common, in poses too that no frame shows. What one moment alone
    has wrong it cannot know: a walk passes through the same pose again and again, each time measured with another
    error. So moments that a fit knows have numbers of their own besides.

    Args:
        span: of the body in world units: shifts are parts of it.
        poses: bones of the moments of the fit, rest to world; a pose that is none of these has the network alone.
    """

    known: Tensor

    def __init__(
        self,
        kinematics: Kinematics,
        span: float,
        width: int = 64,
        poses: Float[Tensor, "moments bones 4 4"] | None = None,
    ) -> None:
        super().__init__()
        self.kinematics = kinematics
        self.span = span
        self.moved = [bone for bone, parent in enumerate(kinematics.parents) if parent != ROOT]
        numbers = 3 * max(len(self.moved), 1)
        self.trunk = MLP(kinematics.code_size or 1, width, width, layers=3)
        self.turn = MLP(width, numbers, width, layers=2, output_bound=FIRST_BOUND)
        self.shift = MLP(width, numbers, width, layers=2, output_bound=FIRST_BOUND)
        known = torch.zeros(0, len(kinematics.parents), 4, 4) if poses is None else poses.float()
        self.register_buffer("known", known, persistent=False)
        self.moments = nn.Parameter(torch.zeros(len(known), len(self.moved), 6))

    def corrections(
        self, transforms: Float[Tensor, "moments bones 4 4"]
    ) -> tuple[Float[Tensor, "moments moved 3"], Float[Tensor, "moments moved 3"]]:
        """Axis-angles in radians, and shifts in parts `SHIFT` of the body's span, of all joints that are no roots."""
        hidden = torch.relu(self.trunk(self.kinematics.code(transforms)))
        shape = (len(transforms), len(self.moved), 3)
        own = self._own(transforms)
        return self.turn(hidden).view(shape) + own[..., :3], self.shift(hidden).view(shape) + own[..., 3:]

    def _own(self, transforms: Tensor) -> Float[Tensor, "moments moved 6"]:
        """The numbers of the moments whose poses these are; zeros for poses that the fit does not know."""
        if torch.equal(transforms, self.known):
            return self.moments
        own = self.moments.new_zeros(len(transforms), *self.moments.shape[1:])
        for index, pose in enumerate(transforms):
            same = (pose == self.known).flatten(1).all(dim=1).nonzero()[:, 0]
            if len(same):
                own[index] = self.moments[same[0]]
        return own

    def forward(
        self, transforms: Float[Tensor, "moments bones 4 4"]
    ) -> tuple[Float[Tensor, "moments bones 4 4"], Float[Tensor, ""]]:
        """The corrected bones, and the mean square of all corrections."""
        if not self.moved:
            return transforms, transforms.new_zeros(())
        rotations, shifts = self.kinematics.local(transforms)
        turn, shift = self.corrections(transforms)
        turned, moved = rotations.clone(), shifts.clone()
        turned[:, self.moved] = rotations[:, self.moved] @ turned_by(turn)
        moved[:, self.moved] = shifts[:, self.moved] + SHIFT * self.span * shift
        size = turn.square().mean() + shift.square().mean()
        return self.kinematics.placed(turned, moved), size
