"""Make nodes of a decoder's graph its inputs and outputs, in the place of ids and beside the logits."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx

from ..errors import InputError
from ..graph.nodes import site_name

aten = torch.ops.aten


class Cuts(NamedTuple):
    """The nodes, by name, that become inputs and outputs.

    Attributes:
        embeddings: the node that holds the ids' embeddings [B, S, E]; None if the graph still takes ids.
        axes: the node that holds positions [A, B, S] of several axes; None if they stay as they are.
        outputs: the nodes that are given side by side, [B, S, n * E], before the graph's own output.
        own_output: whether that output is given too.
    """

    embeddings: str | None
    axes: str | None
    outputs: tuple[str, ...]
    own_output: bool


def with_ends(module: fx.GraphModule, cuts: Cuts) -> fx.GraphModule:
    """The same graph with other inputs and outputs; `module` isn't changed.

    Its inputs are (ids or embeddings, position_ids, axes if there are any, *the others).

    Raises:
        InputError: ids are read by something else than the embedding, or a node isn't there.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(module.graph, copies))
    changed = fx.GraphModule(module, graph)
    named = {old.name: new for old, new in copies.items()}
    missing = [name for name in (*cuts.outputs, cuts.embeddings, cuts.axes) if name and name not in named]
    if missing:
        raise InputError(f"the rewritten graph no longer holds {', '.join(missing)}.")
    _set_outputs(graph, [named[name] for name in cuts.outputs], cuts.own_output)
    ids, position = (node for node in graph.nodes if node.name in ("input_ids", "position_ids"))
    if cuts.axes:
        _make_input(named[cuts.axes], "axes", position)
    if cuts.embeddings:
        _make_input(named[cuts.embeddings], "inputs_embeds", ids)
        _read_sizes_of(ids, ids.next)
    graph.eliminate_dead_code()
    if cuts.embeddings:
        if ids.users:
            place = site_name(next(iter(ids.users)))
            raise InputError(
                f"this model also reads token ids outside its embedding, at {place}, so embeddings can't "
                "replace them: give input_ids."
            )
        graph.erase_node(ids)
    graph.lint()
    changed.recompile()
    return changed


def _set_outputs(graph: fx.Graph, nodes: Sequence[fx.Node], own_output: bool) -> None:
    end = graph.output_node()
    (own,) = end.all_input_nodes
    given = [*nodes, *([own] if own_output else [])]
    if len(given) == 1:
        end.args = (given[0],)
        return
    with graph.inserting_before(end):
        joined = graph.call_function(aten.cat.default, (given, -1))
    joined.meta["val"] = torch.ops.aten.cat.default([node.meta["val"] for node in given], -1)
    end.args = (joined,)


def _make_input(node: fx.Node, name: str, after: fx.Node) -> None:
    """Put an input in the place of a node's value.

    What reads it reads a copy: a part of the graph that only hands an input on would be compiled to nothing.
    """
    graph = node.graph
    with graph.inserting_after(after):
        given = graph.placeholder(name)
    with graph.inserting_before(node):
        copied = graph.call_function(aten.clone.default, (given,))
    for each in (given, copied):
        each.meta = {"val": node.meta["val"]}
    node.replace_all_uses_with(copied, propagate_meta=False)


def _read_sizes_of(ids: fx.Node, embeddings: fx.Node) -> None:
    """Read the sizes [B, S] off the embeddings [B, S, E], which have them too."""
    for user in list(ids.users):
        if user.target is aten.sym_size.int:
            user.replace_input_with(ids, embeddings)
