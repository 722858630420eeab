"""Leaves and structures of what modules are given, and things held by path."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from qfpass.capture.leaves import flatten, unflatten
from qfpass.graph.module_paths import get_by_path, set_by_path


@pytest.mark.parametrize(
    ("value", "leaves"),
    [
        (3, [3]),
        ((1, [2, None], {"a": (3,), "b": []}), [1, 2, None, 3]),
        (([], {}), []),
        ((OrderedDict(a=1), torch.Size([2])), [OrderedDict(a=1), torch.Size([2])]),
    ],
)
def test_a_value_is_put_together_from_its_leaves(value: Any, leaves: list[Any]) -> None:
    found, structure = flatten(value)
    assert found == leaves
    again = unflatten(found, structure)
    assert again == value and type(again) is type(value)


def test_structures_tell_containers_and_their_order_apart() -> None:
    values: list[Any] = [(1, 2), [1, 2], (1, (2,)), {"a": 1, "b": 2}, {"b": 1, "a": 2}, {"a": 1, "c": 2}]
    structures = [flatten(value)[1] for value in values]
    assert all(a != b for i, a in enumerate(structures) for b in structures[:i])
    assert flatten((3, 4))[1] == structures[0]


def test_what_is_held_by_a_path_is_found_there() -> None:
    root = nn.Sequential(nn.Linear(2, 2))
    assert get_by_path(root, "0.weight") is root[0].weight
    assert get_by_path(root, "1.weight") is None and get_by_path(root, "0.no_such") is None
    table, weight = torch.ones(3), nn.Parameter(torch.ones(2))
    set_by_path(root, "0.new.table", table)
    set_by_path(root, "weight", weight)
    assert get_by_path(root, "0.new.table") is table and dict(root.named_buffers())["0.new.table"] is table
    assert dict(root.named_parameters())["weight"] is weight
