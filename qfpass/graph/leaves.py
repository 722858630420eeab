"""What a module is given or gives as leaves in order, and the structure that they stand in."""

from collections.abc import Sequence
from typing import Any


def flatten(value: Any) -> tuple[list[Any], Any]:
    """The leaves of nested tuples, lists and dictionaries, and these with numbers in the leaves' places.

    Whatever else there is, is a leaf, subclasses of those too. Structures that are equal are alike.
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
    """What has these leaves in a structure that `flatten` gave."""
    if isinstance(structure, (tuple, list)):
        return type(structure)(unflatten(leaves, each) for each in structure)
    if isinstance(structure, dict):
        return {key: unflatten(leaves, each) for key, each in structure.items()}
    return leaves[structure]
