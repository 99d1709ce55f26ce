"""Nearest neighbors, by either way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from neural_fields.volume import nearest_neighbors


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A pytorch3d with the one function that is used, as its documentation describes it; the calls are counted."""
    calls = []

    def knn_points(first: torch.Tensor, second: torch.Tensor, K: int = 1) -> SimpleNamespace:
        calls.append(K)
        distances, indices = (first[:, :, None] - second[:, None]).square().sum(-1).topk(K, largest=False)
        return SimpleNamespace(dists=distances, idx=indices, knn=None)

    package, ops = ModuleType("pytorch3d"), ModuleType("pytorch3d.ops")
    ops.knn_points = knn_points  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch3d", package)
    monkeypatch.setitem(sys.modules, "pytorch3d.ops", ops)
    nearest_neighbors.import_knn_points.cache_clear()
    yield calls
    nearest_neighbors.import_knn_points.cache_clear()


def slow(points: torch.Tensor, others: torch.Tensor) -> list[int]:
    return [min(range(len(others)), key=lambda j: float((point - others[j]).norm())) for point in points]


def test_each_point_gets_its_nearest_also_over_several_parts() -> None:
    points, others = torch.rand(50, 5), torch.rand(30, 5)
    assert nearest_neighbors.find_nearest(points, others, rows=7).tolist() == slow(points, others)


@pytest.mark.parametrize("with_pytorch3d", [False, True])
def test_either_way_gives_the_nearest_of_the_whole_table_of_distances(
    with_pytorch3d: bool, request: pytest.FixtureRequest
) -> None:
    if with_pytorch3d:
        request.getfixturevalue("stand_in")
    points, others = torch.randn(300, 16), torch.randn(200, 16)
    wanted = torch.cdist(points, others).argmin(dim=1)
    assert torch.equal(nearest_neighbors.find_nearest(points, others, rows=64), wanted)


def test_pytorch3d_is_asked_where_it_is_there_and_says_the_same(stand_in: list[int]) -> None:
    points, others = torch.rand(20, 3), torch.rand(9, 3)
    assert nearest_neighbors.find_nearest(points, others).tolist() == slow(points, others)
    assert stand_in == [1]
