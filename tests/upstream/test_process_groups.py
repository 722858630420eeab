"""What torch promises of collectives in an exported graph."""

import torch
import torch.distributed as dist
from torch import nn

from qfpass.upstream.process_groups import (
    gathered_by_name,
    groups_joined_by,
    hand_offs,
    handed_on,
    is_collective,
    joined_over,
    summed_over,
)


class Summed(nn.Module):
    def __init__(self, groups: list[dist.ProcessGroup]) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torch.distributed._functional_collectives import all_gather_tensor, all_reduce

        first, second = self.groups
        x = all_reduce(x, "sum", first)
        return all_gather_tensor(all_reduce(x, "max", group=first), 0, group=second)


def test_groups_joined_by_a_graph_in_their_order(world: dist.ProcessGroup) -> None:
    groups = [dist.new_group([0]), dist.new_group([0])]
    for order in (groups, groups[::-1]):
        program = torch.export.export(Summed(order), (torch.ones(2),), strict=False)
        assert [id(group) for group in groups_joined_by(program.graph)] == [id(g) for g in order]
    assert not groups_joined_by(torch.export.export(nn.Linear(2, 2), (torch.ones(2),)).graph)


def test_is_collective_of_what_processes_exchange(world: dist.ProcessGroup) -> None:
    groups = [dist.new_group([0]), dist.new_group([0])]
    program = torch.export.export(Summed(groups), (torch.ones(2),), strict=False)
    found = [node.name for node in program.graph.nodes if is_collective(node)]
    assert found and all(name.startswith(("all_", "wait_")) for name in found)


def test_summed_over_gives_a_new_tensor(world: dist.ProcessGroup) -> None:
    part = torch.arange(6.0).view(2, 3)
    whole = summed_over(part, world)
    assert whole is not part and torch.equal(whole, part)


def test_joined_over_and_by_name(world: dist.ProcessGroup) -> None:
    part = torch.arange(6.0).view(2, 3)
    whole = joined_over(part, world)
    assert whole is not part and torch.equal(whole, part)
    assert torch.equal(gathered_by_name(part, 1, world.group_name), part[None])


class HandedOn(nn.Module):
    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return summed_over(handed_on(x.expand(3, 2), self.group, 0) + 1, self.group)


def test_handed_on_gives_a_new_tensor(world: dist.ProcessGroup) -> None:
    x = torch.arange(2.0)
    whole = handed_on(x.expand(3, 2), world, 0)
    assert torch.equal(whole, x.expand(3, 2)) and whole.data_ptr() != x.data_ptr()


def test_hand_offs_of_a_graph(world: dist.ProcessGroup) -> None:
    program = torch.export.export(HandedOn(world), (torch.ones(2),), strict=False)
    (node,) = hand_offs(program.graph)
    assert node.meta["val"].shape == (3, 2) and is_collective(node)
    assert groups_joined_by(program.graph) == [world]
