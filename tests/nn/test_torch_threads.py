"""Threads for single frames: each runs torch alone, without gradients, and results do not depend on their number."""

from __future__ import annotations

import pytest
import torch

from neural_fields.nn.torch_threads import map_in_torch_threads


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_and_without_gradients_whatever_the_number_of_threads(threads: int) -> None:
    weight = torch.arange(1.0, 5, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = list(map_in_torch_threads(lambda n: (n * weight.sum(), torch.get_num_threads()), range(9)))
    finally:
        torch.set_num_threads(before)
    assert [float(value) for value, _ in found] == [10.0 * n for n in range(9)]
    assert not any(value.requires_grad for value, _ in found)
    assert all(count == 1 for _, count in found)
