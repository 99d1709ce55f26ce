"""The body of bones: the reach of each bone at rest, its skinning weights, and forward and backward skinning.

HOSNeRF (Liu et al. 2023), section 3.2, after HumanNeRF (Weng et al. 2022): a bump around every bone of the rest pose is
the prior of a volume of weights, one channel for each bone and one for the space around, which is then learnt. Two
things differ. The paper decodes the learnt part from a constant code with transposed convolutions of 1024 channels:
that is a smooth volume of numbers made by millions of weights. Here the numbers themselves are learnt, on half the
voxels, and enlarged linearly: as smooth, and free. And a bone has an end (`reach`): it counts nowhere beyond, so only
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

from neural_fields.core.errors import bad_input
from neural_fields.data.capture.skeleton import NO_PARENT, Skeleton
from neural_fields.volume.rays import Rays


@dataclass(frozen=True)
class SkinningSettings:
    """Holds the settings of the body of bones.

    Sizes are those of the paper's bumps in meters, for a person whose joints span `adult_span_m`; the height of a bump
    is exp(-|d / 2 size|^2). They belong to a bone 0.2 m long; longer bones have larger ones, by the shares of their
    length. At 0.3 lengths along, a bone's bump is 1/2 at its ends, so that two bones in a row add up to 1 at their
    joint.
    """

    adult_span_m: float = 1.6
    across_m: float = 0.03
    along_m: float = 0.06
    leaf_m: float = 0.02  # hands, feet and toes
    head_m: float = 0.06
    object_m: float = 0.06
    trunk_factor: float = 1.5  # bones that carry several limbs are this much wider across
    across_share: float = 0.15  # of the bone's length
    along_share: float = 0.3  # of the bone's length
    leaf_share: float = 0.15  # of the length of the bone that ends there
    min_bone_share: float = 1e-3  # of the body's span; shorter bones have no bump along them
    reach: float = 4.5  # a bone ends where its bump is exp(-4.5), one hundredth
    min_background: float = 1e-2  # the space around keeps this much, in the middle of a bone too
    min_weight_sum: float = 1e-4  # weights that add up to less do not move a point further: the paper's number
    learnt_stride: int = 2  # voxels of the volume to one of its learnt part, along an axis


DEFAULTS = SkinningSettings()


@dataclass(frozen=True)
class BoneBumps:
    """Ellipsoids around the bones at rest: |shape (x - center)|^2 = 1 is where a bump has fallen to 1/e.

    Attributes:
        bone: which bone it belongs to, rising; a bone has one for each of its children, or one of its own.
    """

    bone: tuple[int, ...]
    center: Float[NDArray, "bumps 3"]
    shape: Float[NDArray, "bumps 3 3"]

    def bounding_box(self, reach: float) -> tuple[Float[NDArray, "3"], Float[NDArray, "3"]]:
        """Computes the smallest box around all of them, up to a squared distance of `reach` in their own sizes."""
        spread = np.linalg.inv(self.shape)
        half = np.sqrt(reach) * np.linalg.norm(spread, axis=2)
        return (self.center - half).min(axis=0), (self.center + half).max(axis=0)


def compute_bone_bumps(
    skeleton: Skeleton, radii: Mapping[str, float] | None = None, settings: SkinningSettings = DEFAULTS
) -> BoneBumps:
    """Computes the bumps of a skeleton, in proportion to itself: to its span and to the length of its bones.

    Args:
        skeleton: at rest.
        radii: sizes across of joints by name, in world units, instead of those derived from the paper's. The bump has
            fallen to 1/e at twice the size: about half the thickness of the limb.
        settings: sizes on an adult.

    Raises:
        UserError: a radius is not positive or names no joint, or all joints are in one place and nothing tells a size.
    """
    radii = dict(radii or {})
    body = [joint for joint in range(skeleton.bone_count) if joint not in skeleton.object_joints]
    span = float(np.ptp(skeleton.rest_positions[body], axis=0).max()) if body else 0.0
    for name, size in radii.items():
        if name not in skeleton.names or not size > 0:
            why = "a radius is above 0 and belongs to a joint: " + ", ".join(skeleton.names)
            raise bad_input(f"radius {size} of {name!r}", where="radii", why=why, fix="correct the radius")
    if span <= 0 and len(radii) < skeleton.bone_count:
        why = "with all joints in one place nothing tells how large the body is"
        raise bad_input("a skeleton without a length", where="bones", why=why, fix="give every joint a radius")
    scale = span / settings.adult_span_m
    bones, centers, shapes = [], [], []
    for joint, name in enumerate(skeleton.names):
        ends = [child for child in skeleton.find_children(joint) if child not in skeleton.object_joints]
        ends = [child for child in ends if _bone_length(skeleton, child) > settings.min_bone_share * span]
        if joint in skeleton.object_joints or not ends:
            # The size of a round bump: an object's, the head's, or a hand's, foot's or toe's, in meters on an adult.
            if name in radii:
                size = radii[name]
            else:
                if joint in skeleton.object_joints:
                    adult_size = settings.object_m
                elif "head" in name.lower():
                    adult_size = settings.head_m
                else:
                    rest = np.delete(skeleton.rest_positions, skeleton.object_joints, axis=0)
                    adult = settings.adult_span_m / float(np.ptp(rest, axis=0).max() or 1.0)
                    leaf_size = settings.leaf_share * _bone_length(skeleton, joint) * adult
                    adult_size = float(np.clip(leaf_size, settings.leaf_m, settings.head_m))
                size = adult_size * span / settings.adult_span_m
            bones.append(joint)
            centers.append(skeleton.rest_positions[joint])
            shapes.append(np.eye(3) / (2 * size))
            continue
        for child in ends:  # a bump in the middle of each bone that begins here
            start, end = skeleton.rest_positions[joint], skeleton.rest_positions[child]
            length = float(np.linalg.norm(end - start))
            axis = (end - start) / length
            along = max(settings.along_m * scale, settings.along_share * length)
            across = max(settings.across_m * scale, settings.across_share * length)
            across *= settings.trunk_factor if _count_limbs(skeleton, child) > 1 else 1.0
            if radius := radii.get(name):
                along, across = max(along, radius), radius
            lengthwise = np.outer(axis, axis)
            bones.append(joint)
            centers.append((start + end) / 2)
            shapes.append(lengthwise / (2 * along) + (np.eye(3) - lengthwise) / (2 * across))
    return BoneBumps(tuple(bones), np.stack(centers), np.stack(shapes))


def _bone_length(skeleton: Skeleton, joint: int) -> float:
    parent = skeleton.parents[joint]
    return (
        0.0
        if parent == NO_PARENT
        else float(np.linalg.norm(skeleton.rest_positions[joint] - skeleton.rest_positions[parent]))
    )


def _count_limbs(skeleton: Skeleton, joint: int) -> int:
    """Counts the chains that end at or below a joint."""
    below = [child for child in skeleton.find_children(joint) if child not in skeleton.object_joints]
    return sum(_count_limbs(skeleton, child) for child in below) or 1


def invert_rigid(transforms: Float[Tensor, "*places 4 4"]) -> Float[Tensor, "*places 4 4"]:
    """Inverts rotations with translations, without solving anything."""
    rotation = transforms[..., :3, :3].transpose(-1, -2)
    translation = -(rotation @ transforms[..., :3, 3:])
    return torch.cat([torch.cat([rotation, translation], dim=-1), transforms[..., 3:, :]], dim=-2)


@dataclass(frozen=True)
class ReachIntervals:
    """Holds the intervals of rays within reach of bones, concatenated without the gaps.

    Attributes:
        start: distances at which intervals begin, rising.
        length: of each interval; 0 for one that an earlier one covers.
        enter, leave: where rays enter and leave every single bump; leave < enter where they miss it.
    """

    start: Float[Tensor, "rays bumps"]
    length: Float[Tensor, "rays bumps"]
    enter: Float[Tensor, "rays bumps"]
    leave: Float[Tensor, "rays bumps"]

    @property
    def total_length(self) -> Float[Tensor, " rays"]:
        """The length of each ray within reach."""
        return self.length.sum(dim=1)

    def __getitem__(self, pick: Tensor) -> ReachIntervals:
        """Returns those of some rays."""
        return ReachIntervals(self.start[pick], self.length[pick], self.enter[pick], self.leave[pick])

    def distances_at(self, share: Float[Tensor, "rays samples"]) -> Float[Tensor, "rays samples"]:
        """Turns parts in [0, 1] of each ray's length within reach into distances along the ray."""
        done = self.length.cumsum(dim=1)
        wanted = share * done[:, -1:]
        interval = torch.searchsorted(done, wanted).clamp_max(done.shape[1] - 1)
        before = (done - self.length).gather(1, interval)
        return self.start.gather(1, interval) + wanted - before


@dataclass(frozen=True)
class BonePairs:
    """Points and the bones that reach them.

    Attributes:
        point: which point.
        bone: which bone.
        place: the point in the rest pose, as that bone alone brings it there.
        count: number of points.
    """

    point: Int[Tensor, " pairs"]
    bone: Int[Tensor, " pairs"]
    place: Float[Tensor, "pairs 3"]
    count: int


@dataclass(frozen=True)
class SkinnedPoints:
    """Points after skinning.

    Attributes:
        points: their new positions; one without any bone is at the origin.
        likelihood: that they belong to the body, in [0, 1]: the sum of the weights of all bones.
    """

    points: Float[Tensor, "points 3"]
    likelihood: Float[Tensor, " points"]


class SkinningVolume(nn.Module):
    """Stores skinning weights in a volume over the box of the rest pose, for backward and forward skinning.

    Args:
        skeleton: at rest.
        side: voxels along the longest axis of the box; voxels are cubes.
        radii: see `compute_bone_bumps`.
        settings: of the bumps and of the volume.
    """

    prior: Tensor
    low: Tensor
    high: Tensor
    _bone: Tensor
    _center: Tensor
    _shape: Tensor

    def __init__(
        self,
        skeleton: Skeleton,
        side: int = 32,
        radii: Mapping[str, float] | None = None,
        settings: SkinningSettings = DEFAULTS,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.bones = skeleton.bone_count
        bumps = compute_bone_bumps(skeleton, radii, settings)
        self.owners = bumps.bone
        low, high = bumps.bounding_box(settings.reach)
        voxel = float((high - low).max()) / (side - 1)
        self.shape = tuple(int(n) for n in np.ceil((high - low) / voxel - 1e-6) + 1)  # x, y, z
        middle, half = (low + high) / 2, voxel * (np.array(self.shape) - 1) / 2
        for name, values in (("low", middle - half), ("high", middle + half)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self.register_buffer("_bone", torch.tensor(bumps.bone))
        self.register_buffer("_center", torch.tensor(bumps.center, dtype=torch.float32))
        self.register_buffer("_shape", torch.tensor(bumps.shape, dtype=torch.float32))
        # The bumps added up bone by bone, the space around as what they leave of 1, all divided by their sum.
        heights = torch.exp(-self.bump_distances(points := self.voxel_centers()))
        heights = torch.where(heights >= np.exp(-settings.reach), heights, 0)
        bones = heights.new_zeros(len(points), self.bones).index_add(1, self._bone, heights)
        prior = _add_background(bones.t().reshape(self.bones, *reversed(self.shape)), settings.min_background)
        self.register_buffer("prior", prior)
        coarse = [max(2, -(-count // settings.learnt_stride)) for count in reversed(self.shape)]
        self.learnt = nn.Parameter(torch.zeros(1, self.bones + 1, *coarse))

    def voxel_centers(self) -> Float[Tensor, "voxels 3"]:
        """Computes the centers of the voxels in the rest pose, x fastest."""
        axes = [torch.linspace(float(a), float(b), n) for a, b, n in zip(self.low, self.high, self.shape, strict=True)]
        z, y, x = torch.meshgrid(*reversed(axes), indexing="ij")
        return torch.stack([x, y, z], dim=-1).view(-1, 3)

    def scale_prior(self, share: Float[Tensor, "bones z y x"]) -> None:
        """Scales the prior of each bone by factors in [0, 1]; the space around takes what is left (`hull`)."""
        self.prior.copy_(_add_background(self.prior[:-1] * share.to(self.prior), self.settings.min_background))

    def bump_distances(self, points: Float[Tensor, "points 3"]) -> Float[Tensor, "points bumps"]:
        """Computes squared distances of points of the rest pose from the bumps, each in its own size."""
        return torch.einsum("gij,ngj->ngi", self._shape, points[:, None] - self._center).square().sum(dim=-1)

    def compute_weights(self) -> Float[Tensor, "channels z y x"]:
        """Computes the weights of all bones, then that of the space around; they add up to 1 everywhere."""
        size = tuple(reversed(self.shape))
        learnt = F.interpolate(self.learnt, size=size, mode="trilinear", align_corners=True)[0]
        return torch.softmax(self.prior.log() + learnt, dim=0)

    def intersect_reach(self, rays: Rays, to_rest: Float[Tensor, "moments bones 4 4"]) -> ReachIntervals:
        """Intersects rays with the reach of the bones at their moments."""
        with torch.no_grad():
            origin, direction = _rays_to_rest(rays, to_rest)
            away = torch.einsum("gij,ngj->ngi", self._shape, origin[:, self._bone] - self._center)
            onward = torch.einsum("gij,ngj->ngi", self._shape, direction[:, self._bone])
            square, half = onward.square().sum(dim=-1), (away * onward).sum(dim=-1)
            inner = half.square() - square * (away.square().sum(dim=-1) - self.settings.reach)
            root = inner.clamp_min(0).sqrt()
            enter, leave = ((-half - root) / square).clamp_min(0), (-half + root) / square
            leave = torch.where((inner > 0) & (leave > enter), leave, enter - 1)
            start, order = torch.where(leave > enter, enter, torch.inf).sort(dim=1)
            end = torch.where(leave > enter, leave, 0).gather(1, order)
            covered = F.pad(end.cummax(dim=1).values[:, :-1], (1, 0))
            start = torch.where(start.isinf(), covered, start).maximum(covered)
            return ReachIntervals(start, (end - start).clamp_min(0), enter, leave)

    def pair_ray_samples(
        self,
        rays: Rays,
        depth: Float[Tensor, "rays samples"],
        reached: ReachIntervals,
        to_rest: Float[Tensor, "moments bones 4 4"],
    ) -> BonePairs:
        """Pairs samples along rays with the bones that reach them.

        Args:
            rays: that the samples are on.
            depth: distance of each sample along its ray.
            reached: of the same rays, see `reached`.
            to_rest: bones, world to rest; `rays.time` are indices into them.
        """
        near = (depth[..., None] >= reached.enter[:, None]) & (depth[..., None] <= reached.leave[:, None])
        ray, sample, bone = self._find_bones(near).nonzero(as_tuple=True)
        origin, direction = _rays_to_rest(rays, to_rest)
        which = ray * self.bones + bone
        place = torch.addcmul(
            origin.view(-1, 3)[which], direction.view(-1, 3)[which], depth.reshape(-1, 1)[ray * depth.shape[1] + sample]
        )
        return BonePairs(ray * depth.shape[1] + sample, bone, place, depth.numel())

    def pair_points(
        self,
        points: Float[Tensor, "points 3"],
        moment: Int[Tensor, " points"],
        to_rest: Float[Tensor, "moments bones 4 4"],
    ) -> BonePairs:
        """Pairs points of the world at their moments with the bones that reach them.

        Args:
            points: in the world.
            moment: of each point, an index into `to_rest`.
            to_rest: bones, world to rest.
        """
        transform = to_rest[moment]
        places = torch.einsum("nbij,nj->nbi", transform[..., :3, :3], points) + transform[..., :3, 3]
        away = torch.einsum("gij,ngj->ngi", self._shape, places[:, self._bone] - self._center)
        near = away.square().sum(dim=-1) <= self.settings.reach
        row, bone = self._find_bones(near[:, None])[:, 0].nonzero(as_tuple=True)
        return BonePairs(row, bone, places[row, bone], len(points))

    def _find_bones(self, near: Bool[Tensor, "rays samples bumps"]) -> Bool[Tensor, "rays samples bones"]:
        """Finds the bones that reach samples, from the bumps that do."""
        reaching = near.new_zeros(*near.shape[:2], self.bones)
        for bump, bone in enumerate(self.owners):
            reaching[..., bone] |= near[..., bump]
        return reaching

    def skin_backward(self, weights: Float[Tensor, "channels z y x"], pairs: BonePairs) -> SkinnedPoints:
        """Takes points from the world to the rest pose: each bone by itself, weighted where it puts the point.

        x = sum_b w_b(x_b) x_b / sum_b w_b(x_b), with x_b the point as bone b takes it (HOSNeRF, equations 2 to 4).
        """
        weight = self._sample_weights(weights, pairs)
        likelihood = weight.new_zeros(pairs.count).index_add(0, pairs.point, weight)
        total = weight.new_zeros(pairs.count, 3).index_add(0, pairs.point, weight[:, None] * pairs.place)
        return SkinnedPoints(total / likelihood.clamp_min(self.settings.min_weight_sum)[:, None], likelihood)

    def skin_forward(
        self,
        weights: Float[Tensor, "channels z y x"],
        points: Float[Tensor, "points 3"],
        moment: Int[Tensor, " points"],
        transforms: Float[Tensor, "moments bones 4 4"],
    ) -> SkinnedPoints:
        """Takes points from the rest pose to the world at moments, with the weights at their place in the rest pose.

        Args:
            weights: the skinning volume, see `weights`.
            points: in the rest pose.
            moment: of each point, an index into `transforms`.
            transforms: bones, rest to world.
        """
        near = self._find_bones((self.bump_distances(points) <= self.settings.reach)[:, None])[:, 0]
        row, bone = near.nonzero(as_tuple=True)
        weight = self._sample_weights(weights, BonePairs(row, bone, points[row], len(points)))
        transform = transforms[moment[row], bone]
        world = (transform[:, :3, :3] @ points[row, :, None])[..., 0] + transform[:, :3, 3]
        likelihood = weight.new_zeros(len(points)).index_add(0, row, weight)
        total = weight.new_zeros(len(points), 3).index_add(0, row, weight[:, None] * world)
        return SkinnedPoints(total / likelihood.clamp_min(self.settings.min_weight_sum)[:, None], likelihood)

    def _sample_weights(self, weights: Tensor, pairs: BonePairs) -> Float[Tensor, " pairs"]:
        """Reads the weight of each pair's bone at its place: linear between voxels, 0 outside the box.

        The bones' volumes lie behind each other along z, so that one lookup finds them all.
        """
        x, y, z = self.shape
        share = (pairs.place - self.low) / (self.high - self.low)
        inside = ((share >= 0) & (share <= 1)).all(dim=1)
        last = share.new_tensor([x - 1, y - 1, self.bones * z - 1])
        voxel = share * share.new_tensor([x - 1, y - 1, z - 1])
        deep = torch.stack([voxel[:, 0], voxel[:, 1], voxel[:, 2] + pairs.bone * z], dim=1)
        place = (deep / last * 2 - 1).view(1, 1, 1, -1, 3)
        values = F.grid_sample(
            weights[:-1].reshape(1, 1, self.bones * z, y, x), place, padding_mode="border", align_corners=True
        )
        return torch.where(inside, values.view(-1), 0)


def _add_background(bones: Float[Tensor, "bones z y x"], least: float) -> Float[Tensor, "channels z y x"]:
    """Adds what volumes of bones leave of 1 to the space around, at least `least`, and divides all by their sum."""
    around = (1 - bones.sum(dim=0, keepdim=True)).clamp_min(least)
    both = torch.cat([bones, around])
    return both / both.sum(dim=0, keepdim=True)


def _rays_to_rest(rays: Rays, to_rest: Tensor) -> tuple[Float[Tensor, "rays bones 3"], Float[Tensor, "rays bones 3"]]:
    """Brings origins and directions of rays to the rest pose by each bone; the latter keep their length."""
    transform = to_rest[rays.time]
    origin = torch.einsum("nbij,nj->nbi", transform[..., :3, :3], rays.origin) + transform[..., :3, 3]
    return origin, torch.einsum("nbij,nj->nbi", transform[..., :3, :3], rays.direction)
