"""Operators: their names, what they write and give, and those that only some versions of torch have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from .entry import Needed

Operator = Callable[..., Any]
_OPERATOR = type(torch.ops.aten.add.Tensor)


@Needed
def name_of(target: Any) -> str:
    """An operator's name with its overload, aten::add_.Tensor or aten::relu; "" of what is no operator.

    Without it: no attention is recognised.
    """
    return str(target.name()) if _is_operator(target) else ""


@Needed
def existing(*names: str) -> tuple[Operator, ...]:
    """The operators of these names, as `name_of` gives them, that there are: no graph calls the others.

    Without it: operators that torch has no public name for would not be understood in a graph.
    """
    found = []
    for name in names:
        full, _, overload = name.partition(".")
        namespace, _, name = full.partition("::")
        packet = getattr(getattr(torch.ops, namespace), name, None)
        found.append(getattr(packet, overload or "default", None))
    return tuple(operator for operator in found if operator is not None)


@Needed
def argument_names(operator: Any) -> list[str]:
    """By place.

    Without it: the operands of flash_attn's operator can't be told apart.
    """
    return [argument.name for argument in operator._schema.arguments]


@Needed
def number_arguments(target: Any) -> set[int | str]:
    """Places and names of the arguments that an operator computes with, not of sizes or indices.

    Without it: a value that is computed from a text's length would not be noticed.
    """
    if not _is_operator(target):
        return set()
    found = set[int | str]()
    for i, argument in enumerate(target._schema.arguments):
        if any(kind in str(argument.type) for kind in ("Tensor", "number", "float")):
            found |= {i, argument.name}
    return found


@Needed
def written_arguments(target: Any) -> list[tuple[int, str]]:
    """Place and name of each argument that an operator changes in place; none of what is no operator.

    Without it: a value would be read before or after a change that must come first.
    """
    if not _is_operator(target):
        return []
    arguments = target._schema.arguments
    return [(i, a.name) for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]


@Needed
def may_give_views(target: Any) -> bool:
    """Whether what a node calls may give a view of its input, or isn't known not to.

    An operator says so of itself, but not one that consists of others: reshape gives a view at times.

    Without it: a change in place of a view would be lost for what it is a view of.
    """
    if not _is_operator(target):
        return True
    aliases = any(given.alias_info is not None for given in target._schema.returns)
    return aliases or target.has_kernel_for_dispatch_key("CompositeImplicitAutograd")


class FlexCall(NamedTuple):
    """A call of flex_attention: the two functions are nodes that hold graphs, with further inputs of each."""

    query: Any
    key: Any
    value: Any
    score_mod: fx.Node
    mask_mod: fx.Node
    scale: float
    score_inputs: tuple[Any, ...]
    mask_inputs: tuple[Any, ...]


@Needed
def flex_attention_call(node: fx.Node) -> FlexCall | None:
    """The operands of a node that calls flex_attention; None of another node.

    Without it: models that use flex_attention are refused.
    """
    if node.target is not getattr(torch.ops.higher_order, "flex_attention", None):
        return None
    query, key, value, score_mod, block_mask, scale, _, score_inputs, mask_inputs = node.args
    return FlexCall(query, key, value, score_mod, block_mask[-1], scale, score_inputs, mask_inputs)  # type: ignore[index,arg-type]


def _is_operator(target: object) -> bool:
    """Whether what a node calls is an operator that has a schema, one overload of it."""
    return isinstance(target, _OPERATOR)
