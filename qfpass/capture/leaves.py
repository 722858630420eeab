"""Split a module's arguments or outputs into leaves and their structure, and join them again."""

from collections.abc import Sequence
from typing import Any


def flatten(value: Any) -> tuple[list[Any], Any]:
    """The leaves of nested tuples, lists and dictionaries, and their structure: indices instead of leaves.

    Anything else is a leaf, also a subclass of those three. Values nested in one way have equal structures.
    """
    leaves = list[Any]()
    return leaves, _structure(value, leaves)


def _structure(value: Any, leaves: list[Any]) -> Any:
    if type(value) in (tuple, list):
        return type(value)(_structure(each, leaves) for each in value)
    if type(value) is dict:
        return {key: _structure(each, leaves) for key, each in value.items()}
    leaves.append(value)
    return len(leaves) - 1


def unflatten(leaves: Sequence[Any], structure: Any) -> Any:
    """The nested value with these leaves and a structure from `flatten`."""
    if isinstance(structure, (tuple, list)):
        return type(structure)(unflatten(leaves, each) for each in structure)
    if isinstance(structure, dict):
        return {key: unflatten(leaves, each) for key, each in structure.items()}
    return leaves[structure]
