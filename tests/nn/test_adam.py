"""Our Adam against torch's, and against Adam written out row by row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from neural_fields.nn.adam import Adam


def test_whole_parameters_move_as_with_the_library() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 3), None
    theirs = ours.clone().requires_grad_()
    ours.requires_grad_()
    target = torch.randn(5, 3)
    adam = Adam([{"params": [ours], "lr": 0.05}], betas=(0.9, 0.99), eps=1e-8)
    library = torch.optim.Adam([theirs], lr=0.05, betas=(0.9, 0.99), eps=1e-8)
    for _ in range(20):
        for parameter, optimizer in ((ours, adam), (theirs, library)):
            optimizer.zero_grad()
            (parameter - target).pow(4).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_each_row_of_a_table_moves_as_if_it_stood_alone() -> None:
    torch.manual_seed(1)
    table = torch.randn(4, 6, requires_grad=True)
    rows = [table[i].detach().clone().requires_grad_() for i in range(4)]
    target = torch.randn(4, 6)
    adam = Adam([{"params": [table], "lr": 0.1, "sparse": True}])
    alone = [torch.optim.Adam([row], lr=0.1, betas=(0.9, 0.99), eps=1e-10) for row in rows]
    for chosen in ([0, 2], [2, 3], [1], [0, 1], [3, 0], [2]):
        adam.zero_grad()
        index = torch.tensor(chosen)
        (F.embedding(index, table, sparse=True) - target[index]).square().sum().backward()
        adam.step()
        for i in chosen:
            alone[i].zero_grad()
            (rows[i] - target[i]).square().sum().backward()
            alone[i].step()
    torch.testing.assert_close(table.detach(), torch.stack(rows).detach(), rtol=1e-5, atol=1e-6)


def test_rows_without_a_gradient_stay_bit_for_bit() -> None:
    table = torch.randn(3, 2, requires_grad=True)
    before = table.detach().clone()
    adam = Adam([{"params": [table], "lr": 0.1, "sparse": True}])
    for _ in range(3):
        adam.zero_grad()
        F.embedding(torch.tensor([1]), table, sparse=True).square().sum().backward()
        adam.step()
    assert torch.equal(table.detach()[[0, 2]], before[[0, 2]])
    assert not torch.equal(table.detach()[1], before[1])


def test_memory_that_is_put_back_continues_as_if_never_stopped() -> None:
    def steps(parameter: torch.Tensor, adam: Adam, count: int) -> None:
        for _ in range(count):
            adam.zero_grad()
            parameter.pow(4).sum().backward()
            adam.step()

    straight = torch.linspace(-1, 1, 7).requires_grad_()
    steps(straight, Adam([{"params": [straight], "lr": 0.01}]), 9)
    first = torch.linspace(-1, 1, 7).requires_grad_()
    adam = Adam([{"params": [first], "lr": 0.01}])
    steps(first, adam, 4)
    second, again = first.detach().clone().requires_grad_(), None
    again = Adam([{"params": [second], "lr": 0.01}])
    again.load_state_tensors({name: value.clone() for name, value in adam.state_tensors().items()})
    steps(second, again, 5)
    assert torch.equal(straight, second)


def test_the_factor_scales_the_first_step() -> None:
    parameter = torch.tensor([1.0, -2.0], requires_grad=True)
    adam = Adam([{"params": [parameter], "lr": 0.1}])
    adam.rate_factor = 0.5
    parameter.sum().backward()
    adam.step()
    assert parameter.tolist() == pytest.approx([0.95, -2.05])
