"""Operators: their names, arguments and aliases, and those that only some versions of torch have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from .entry import Needed

Operator = Callable[..., Any]
_OPERATOR = type(torch.ops.aten.add.Tensor)


@Needed
def name_of(target: Any) -> str:
    """An operator's name with its overload, aten::add_.Tensor or aten::relu; "" for any other target.

    Without it: no attention is recognised.
    """
    return str(target.name()) if _is_operator(target) else ""


@Needed
def available_operators(*names: str) -> tuple[Operator, ...]:
    """The operators with these names (as from `name_of`), without those that this torch doesn't have.

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
    """The names of an operator's arguments, in order.

    Without it: the operands of flash_attn's operator can't be told apart.
    """
    return [argument.name for argument in operator._schema.arguments]


@Needed
def value_arguments(target: Any) -> set[int | str]:
    """Positions and names of an operator's tensor and number arguments, which it computes with; no sizes.

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
    """Position and name of each argument that an operator writes to; [] for any other target.

    Without it: a value could be read on the wrong side of a change in place.
    """
    if not _is_operator(target):
        return []
    arguments = target._schema.arguments
    return [(i, a.name) for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]


@Needed
def may_give_views(target: Any) -> bool:
    """Whether a node's target may return a view of its input; True if that isn't known.

    A schema says so, except for an operator composed of others: reshape sometimes returns a view.

    Without it: a change in place of a view would not reach the tensor that it views.
    """
    if not _is_operator(target):
        return True
    aliases = any(given.alias_info is not None for given in target._schema.returns)
    return aliases or target.has_kernel_for_dispatch_key("CompositeImplicitAutograd")


class FlexCall(NamedTuple):
    """A call of flex_attention; `score_mod` and `mask_mod` are nodes that hold graphs with further inputs."""

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
    """The operands of a node that calls flex_attention; None for any other node.

    Without it: models that use flex_attention are refused.
    """
    if node.target is not getattr(torch.ops.higher_order, "flex_attention", None):
        return None
    query, key, value, score_mod, block_mask, scale, _, score_inputs, mask_inputs = node.args
    return FlexCall(query, key, value, score_mod, block_mask[-1], scale, score_inputs, mask_inputs)  # type: ignore[index,arg-type]


def _is_operator(target: object) -> bool:
    """Whether a node's target is one overload of an operator, which has a schema."""
    return isinstance(target, _OPERATOR)
