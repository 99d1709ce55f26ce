"""Bones as a body: where each reaches at rest, how much of a point it carries, and skinning there and back.

HOSNeRF (Liu et al. 2023), section 3.2, after HumanNeRF (Weng et al. 2022): a bump around every bone of the rest pose is
the prior of a volume of weights, one channel for each bone and one for the space around, which is then learnt. Two
things differ. The paper decodes the learnt part from a constant code with transposed convolutions of 1024 channels:
that is a smooth volume of numbers made by millions of weights. Here the numbers themselves are learnt, on half the
voxels, and enlarged linearly: as smooth, and free. And a bone has an end (`REACH`): it counts nowhere beyond, so only
the few bones near a point are asked, and the empty space on a ray is known in closed form.

Names: N points, M moments, B bones; P pairs of a point and a bone that reaches it. Rotations and places as in
`data.skeleton`: bones take points from rest to the world.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from neural_fields.data.skeleton import ROOT, Skeleton
from neural_fields.errors import bad_input
from neural_fields.volume.rays import Rays

# Sizes of the paper's bumps in metres, for a person whose joints span 1.6 m; exp(-|d / 2 size|^2) is a bump's height.
ADULT_SPAN = 1.6
ACROSS, ALONG = 0.03, 0.06
LEAF, HEAD, OBJECT = 0.02, 0.06, 0.06
TRUNK = 1.5  # bones that carry several limbs are this much wider across
# The paper's sizes are those of a bone 0.2 m long; longer bones have larger ones. At 0.3 lengths along, a bone's bump
# is 1/2 at its ends, so that two bones in a row add up to 1 at their joint.
ACROSS_SHARE, ALONG_SHARE, LEAF_SHARE = 0.15, 0.3, 0.15

REACH = 4.5  # a bone ends where its bump is exp(-4.5), one hundredth
LEAST_BACKGROUND = 1e-2  # the space around keeps this much, in the middle of a bone too
LEAST_SUM = 1e-4  # weights that add up to less do not move a point further: the paper's number
LEARNT_PART = 2  # voxels of the volume to one of its learnt part, along an axis


@dataclass(frozen=True)
class Bumps:
    """Ellipsoids around the bones at rest: |shape (x - centre)|^2 = 1 is where a bump has fallen to 1/e.

    Attributes:
        bone: which bone it belongs to, rising; a bone has one for each of its children, or one of its own.
    """

    bone: tuple[int, ...]
    centre: Float[NDArray, "bumps 3"]
    shape: Float[NDArray, "bumps 3 3"]

    def box(self) -> tuple[Float[NDArray, "3"], Float[NDArray, "3"]]:
        """The smallest box around all of them, up to their `REACH`."""
        spread = np.linalg.inv(self.shape)
        half = np.sqrt(REACH) * np.linalg.norm(spread, axis=2)
        return (self.centre - half).min(axis=0), (self.centre + half).max(axis=0)


def bone_bumps(skeleton: Skeleton, radii: Mapping[str, float] | None = None) -> Bumps:
    """The bumps of a skeleton, in proportion to itself: to its span and to the length of its bones.

    Args:
        radii: sizes across of joints by name, in world units, instead of those derived from the paper's. The bump has
            fallen to 1/e at twice the size: about half the thickness of the limb.

    Raises:
        UserError: a radius is not positive or names no joint, or all joints are in one place and nothing tells a size.
    """
    radii = dict(radii or {})
    body = [joint for joint in range(skeleton.count) if joint not in skeleton.objects]
    span = float(np.ptp(skeleton.rest[body], axis=0).max()) if body else 0.0
    _check_radii(skeleton, radii, span)
    made = []
    for joint, name in enumerate(skeleton.names):
        ends = [child for child in skeleton.children(joint) if child not in skeleton.objects]
        ends = [child for child in ends if _length(skeleton, child) > 1e-3 * span]
        if joint in skeleton.objects or not ends:
            size = radii.get(name) or _end_size(skeleton, joint) * span / ADULT_SPAN
            made.append((joint, skeleton.rest[joint], np.eye(3) / (2 * size)))
            continue
        made += [_between(skeleton, joint, child, span / ADULT_SPAN, radii.get(name)) for child in ends]
    return Bumps(tuple(b for b, _, _ in made), np.stack([c for _, c, _ in made]), np.stack([s for _, _, s in made]))


def _check_radii(skeleton: Skeleton, radii: Mapping[str, float], span: float) -> None:
    for name, size in radii.items():
        if name not in skeleton.names or not size > 0:
            why = "a radius is above 0 and belongs to a joint: " + ", ".join(skeleton.names)
            raise bad_input(f"radius {size} of {name!r}", where="radii", why=why, fix="correct the radius")
    if span <= 0 and len(radii) < skeleton.count:
        why = "with all joints in one place nothing tells how large the body is"
        raise bad_input("a skeleton without a length", where="bones", why=why, fix="give every joint a radius")


def _length(skeleton: Skeleton, joint: int) -> float:
    parent = skeleton.parents[joint]
    return 0.0 if parent == ROOT else float(np.linalg.norm(skeleton.rest[joint] - skeleton.rest[parent]))


def _end_size(skeleton: Skeleton, joint: int) -> float:
    """Size of a round bump on an adult: an object's, the head's, or that of a hand, a foot or a toe."""
    if joint in skeleton.objects:
        return OBJECT
    if "head" in skeleton.names[joint].lower():
        return HEAD
    rest = np.delete(skeleton.rest, skeleton.objects, axis=0)
    adult = ADULT_SPAN / float(np.ptp(rest, axis=0).max() or 1.0)
    return float(np.clip(LEAF_SHARE * _length(skeleton, joint) * adult, LEAF, HEAD))


def _limbs(skeleton: Skeleton, joint: int) -> int:
    """How many chains end at or below a joint."""
    below = [child for child in skeleton.children(joint) if child not in skeleton.objects]
    return sum(_limbs(skeleton, child) for child in below) or 1


def _between(
    skeleton: Skeleton, joint: int, child: int, scale: float, radius: float | None
) -> tuple[int, NDArray, NDArray]:
    """The bump in the middle of a bone."""
    start, end = skeleton.rest[joint], skeleton.rest[child]
    length = float(np.linalg.norm(end - start))
    axis = (end - start) / length
    along = max(ALONG * scale, ALONG_SHARE * length)
    across = max(ACROSS * scale, ACROSS_SHARE * length) * (TRUNK if _limbs(skeleton, child) > 1 else 1.0)
    if radius:
        along, across = max(along, radius), radius
    lengthwise = np.outer(axis, axis)
    return joint, (start + end) / 2, lengthwise / (2 * along) + (np.eye(3) - lengthwise) / (2 * across)


def inverse_rigid(transforms: Float[Tensor, "*places 4 4"]) -> Float[Tensor, "*places 4 4"]:
    """The inverse of rotations and shifts, without solving anything."""
    turned = transforms[..., :3, :3].transpose(-1, -2)
    shift = -(turned @ transforms[..., :3, 3:])
    return torch.cat([torch.cat([turned, shift], dim=-1), transforms[..., 3:, :]], dim=-2)


@dataclass(frozen=True)
class Reached:
    """The parts of rays that lie within reach of bones, as one length without its gaps.

    Attributes:
        start: distances at which pieces begin, rising.
        length: of each piece; 0 for one that an earlier one covers.
        enter, leave: where rays enter and leave every single bump; leave < enter where they miss it.
    """

    start: Float[Tensor, "rays bumps"]
    length: Float[Tensor, "rays bumps"]
    enter: Float[Tensor, "rays bumps"]
    leave: Float[Tensor, "rays bumps"]

    @property
    def total(self) -> Float[Tensor, " rays"]:
        return self.length.sum(dim=1)

    def __getitem__(self, pick: Tensor) -> Reached:
        """Those of some rays."""
        return Reached(self.start[pick], self.length[pick], self.enter[pick], self.leave[pick])

    def places(self, part: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples"]:
        """Distances of parts in [0, 1] of each ray's length within reach."""
        done = self.length.cumsum(dim=1)
        wanted = part * done[:, -1:]
        piece = torch.searchsorted(done, wanted).clamp_max(done.shape[1] - 1)
        before = (done - self.length).gather(1, piece)
        return self.start.gather(1, piece) + wanted - before


@dataclass(frozen=True)
class Pairs:
    """Points and the bones that reach them.

    Attributes:
        row: which point.
        bone: which bone.
        place: the point in the rest pose, carried there by that bone alone.
        count: number of points.
    """

    row: Int[Tensor, " pairs"]
    bone: Int[Tensor, " pairs"]
    place: Float[Tensor, "pairs 3"]
    count: int


@dataclass(frozen=True)
class Skinned:
    """Points after skinning.

    Attributes:
        points: where they went; one without any bone is at the origin.
        likelihood: how much they belong to the body, in [0, 1]: the weights of all bones together.
    """

    points: Float[Tensor, "points 3"]
    likelihood: Float[Tensor, " points"]


class Skinning(nn.Module):
    """The volume of weights over the box of the rest pose, and the two ways through it.

    Args:
        side: voxels along the longest axis of the box; voxels are cubes.
        radii: see `bone_bumps`.
    """

    prior: Tensor
    low: Tensor
    high: Tensor
    _bone: Tensor
    _centre: Tensor
    _shape: Tensor

    def __init__(self, skeleton: Skeleton, side: int = 32, radii: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.bones = skeleton.count
        bumps = bone_bumps(skeleton, radii)
        self.owners = bumps.bone
        low, high = bumps.box()
        voxel = float((high - low).max()) / (side - 1)
        self.shape = tuple(int(n) for n in np.ceil((high - low) / voxel - 1e-6) + 1)  # x, y, z
        middle, half = (low + high) / 2, voxel * (np.array(self.shape) - 1) / 2
        for name, values in (("low", middle - half), ("high", middle + half)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.register_buffer("_bone", torch.tensor(bumps.bone))
        self.register_buffer("_centre", torch.tensor(bumps.centre, dtype=torch.float32))
        self.register_buffer("_shape", torch.tensor(bumps.shape, dtype=torch.float32))
        self.register_buffer("prior", self._prior())
        coarse = [max(2, -(-count // LEARNT_PART)) for count in reversed(self.shape)]
        self.learnt = nn.Parameter(torch.zeros(1, self.bones + 1, *coarse))

    def voxels(self) -> Float[Tensor, "voxels 3"]:
        """Their middles, x fastest."""
        axes = [torch.linspace(float(a), float(b), n) for a, b, n in zip(self.low, self.high, self.shape, strict=True)]
        z, y, x = torch.meshgrid(*reversed(axes), indexing="ij")
        return torch.stack([x, y, z], dim=-1).view(-1, 3)

    def _prior(self) -> Float[Tensor, "channels z y x"]:
        """The bumps added up bone by bone, the space around as what they leave of 1, all divided by their sum."""
        heights = torch.exp(-self.distances(points := self.voxels()))
        heights = torch.where(heights >= np.exp(-REACH), heights, 0)
        bones = heights.new_zeros(len(points), self.bones).index_add(1, self._bone, heights)
        return _with_background(bones.t().reshape(self.bones, *reversed(self.shape)))

    def lessen(self, share: Float[Tensor, "bones z y x"]) -> None:
        """Makes the prior of each bone smaller by factors in [0, 1]; the space around takes what is left (`hull`)."""
        self.prior.copy_(_with_background(self.prior[:-1] * share.to(self.prior)))

    def distances(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points bumps"]:
        """Squared distances of points of the rest pose from the bumps, each in its own size."""
        return torch.einsum("gij,ngj->ngi", self._shape, points[:, None] - self._centre).square().sum(dim=-1)

    def weights(self) -> Float[Tensor, "channels z y x"]:
        """Weights of all bones, and behind them that of the space around; they add up to 1 everywhere."""
        size = tuple(reversed(self.shape))
        learnt = F.interpolate(self.learnt, size=size, mode="trilinear", align_corners=True)[0]
        return torch.softmax(self.prior.log() + learnt, dim=0)

    def reached(self, rays: Rays, to_rest: Float[Tensor, "moments bones 4 4"]) -> Reached:
        """Where rays pass within reach of the bones at their moments."""
        with torch.no_grad():
            origin, direction = _carried(rays, to_rest)
            away = torch.einsum("gij,ngj->ngi", self._shape, origin[:, self._bone] - self._centre)
            onward = torch.einsum("gij,ngj->ngi", self._shape, direction[:, self._bone])
            square, half = onward.square().sum(dim=-1), (away * onward).sum(dim=-1)
            inner = half.square() - square * (away.square().sum(dim=-1) - REACH)
            root = inner.clamp_min(0).sqrt()
            enter, leave = ((-half - root) / square).clamp_min(0), (-half + root) / square
            leave = torch.where((inner > 0) & (leave > enter), leave, enter - 1)
            start, order = torch.where(leave > enter, enter, torch.inf).sort(dim=1)
            end = torch.where(leave > enter, leave, 0).gather(1, order)
            covered = F.pad(end.cummax(dim=1).values[:, :-1], (1, 0))
            start = torch.where(start.isinf(), covered, start).maximum(covered)
            return Reached(start, (end - start).clamp_min(0), enter, leave)

    def pairs_on_rays(
        self,
        rays: Rays,
        depth: Float[Tensor, "rays samples"],
        reached: Reached,
        to_rest: Float[Tensor, "moments bones 4 4"],
    ) -> Pairs:
        """The samples at distances along rays, each with the bones that reach it."""
        near = (depth[..., None] >= reached.enter[:, None]) & (depth[..., None] <= reached.leave[:, None])
        ray, sample, bone = self._bones(near).nonzero(as_tuple=True)
        origin, direction = _carried(rays, to_rest)
        which = ray * self.bones + bone
        place = torch.addcmul(
            origin.view(-1, 3)[which], direction.view(-1, 3)[which], depth.reshape(-1, 1)[ray * depth.shape[1] + sample]
        )
        return Pairs(ray * depth.shape[1] + sample, bone, place, depth.numel())

    def pairs(
        self,
        points: Float[Tensor, "points 3"],
        moment: Int[Tensor, " points"],
        to_rest: Float[Tensor, "moments bones 4 4"],
    ) -> Pairs:
        """Points of the world at their moments, each with the bones that reach it."""
        turned = to_rest[moment]
        places = torch.einsum("nbij,nj->nbi", turned[..., :3, :3], points) + turned[..., :3, 3]
        away = torch.einsum("gij,ngj->ngi", self._shape, places[:, self._bone] - self._centre)
        row, bone = self._bones((away.square().sum(dim=-1) <= REACH)[:, None])[:, 0].nonzero(as_tuple=True)
        return Pairs(row, bone, places[row, bone], len(points))

    def _bones(self, near: Bool[Tensor, "rays samples bumps"]) -> Bool[Tensor, "rays samples bones"]:
        """Which bones reach, from which of their bumps do."""
        found = near.new_zeros(*near.shape[:2], self.bones)
        for bump, bone in enumerate(self.owners):
            found[..., bone] |= near[..., bump]
        return found

    def backward_skinning(self, weights: Float[Tensor, "channels z y x"], pairs: Pairs) -> Skinned:
        """From the world to the rest pose: each bone carries a point back, and has its say where it puts it.

        x = sum_b w_b(x_b) x_b / sum_b w_b(x_b), with x_b the point carried by bone b (HOSNeRF, equations 2 to 4).
        """
        say = self._read(weights, pairs)
        likelihood = say.new_zeros(pairs.count).index_add(0, pairs.row, say)
        total = say.new_zeros(pairs.count, 3).index_add(0, pairs.row, say[:, None] * pairs.place)
        return Skinned(total / likelihood.clamp_min(LEAST_SUM)[:, None], likelihood)

    def forward_skinning(
        self,
        weights: Float[Tensor, "channels z y x"],
        points: Float[Tensor, "points 3"],
        moment: Int[Tensor, " points"],
        transforms: Float[Tensor, "moments bones 4 4"],
    ) -> Skinned:
        """From the rest pose to the world at moments, with the weights at the place in the rest pose."""
        near = self._bones((self.distances(points) <= REACH)[:, None])[:, 0]
        row, bone = near.nonzero(as_tuple=True)
        say = self._read(weights, Pairs(row, bone, points[row], len(points)))
        placed = transforms[moment[row], bone]
        moved = (placed[:, :3, :3] @ points[row, :, None])[..., 0] + placed[:, :3, 3]
        likelihood = say.new_zeros(len(points)).index_add(0, row, say)
        total = say.new_zeros(len(points), 3).index_add(0, row, say[:, None] * moved)
        return Skinned(total / likelihood.clamp_min(LEAST_SUM)[:, None], likelihood)

    def _read(self, weights: Tensor, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """Weight of each pair's bone at its place: linear between voxels, 0 outside the box.

        The bones' volumes lie behind each other along z, so that one lookup finds them all.
        """
        x, y, z = self.shape
        part = (pairs.place - self.low) / (self.high - self.low)
        inside = ((part >= 0) & (part <= 1)).all(dim=1)
        last = part.new_tensor([x - 1, y - 1, self.bones * z - 1])
        voxel = part * part.new_tensor([x - 1, y - 1, z - 1])
        deep = torch.stack([voxel[:, 0], voxel[:, 1], voxel[:, 2] + pairs.bone * z], dim=1)
        place = (deep / last * 2 - 1).view(1, 1, 1, -1, 3)
        found = F.grid_sample(
            weights[:-1].reshape(1, 1, self.bones * z, y, x), place, padding_mode="border", align_corners=True
        )
        return torch.where(inside, found.view(-1), 0)


def _with_background(bones: Float[Tensor, "bones z y x"]) -> Float[Tensor, "channels z y x"]:
    """Volumes of bones and what they leave of 1 to the space around, divided by their sum."""
    around = (1 - bones.sum(dim=0, keepdim=True)).clamp_min(LEAST_BACKGROUND)
    both = torch.cat([bones, around])
    return both / both.sum(dim=0, keepdim=True)


def _carried(rays: Rays, to_rest: Tensor) -> tuple[Float[Tensor, "rays bones 3"], Float[Tensor, "rays bones 3"]]:
    """Origins and directions of rays as each bone carries them to the rest pose; the latter keep their length."""
    turned = to_rest[rays.time]
    origin = torch.einsum("nbij,nj->nbi", turned[..., :3, :3], rays.origin) + turned[..., :3, 3]
    return origin, torch.einsum("nbij,nj->nbi", turned[..., :3, :3], rays.direction)
