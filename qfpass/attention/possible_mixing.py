"""Find operators outside attention that can pass something between tokens, whatever ids would show it.

A proof reads a short text. What a forward does when a rare id has been read (a count of it, a flag that it
was seen) may be missing there. So each operator is asked by itself: do its outputs for other tokens change
when its inputs for one token do?
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..graph.captured import LENGTH
from ..graph.dependence import SHAPE_ONLY, text_dependent
from ..graph.nodes import args_of, is_pointwise, site_name
from ..graph.patterns import RESHAPES
from ..upstream.process_groups import hand_offs, is_collective
from .token_mixing import (
    CHANGED,
    Recorder,
    attention_outputs,
    differ_elsewhere,
    reach_logits_outside,
    trace_inputs,
)

aten = torch.ops.aten
# Operators whose outputs for a token are made from that token's inputs alone, if weights are weights.
_BY_TOKEN = {
    *RESHAPES, aten.linear.default, aten.embedding.default, aten.one_hot.default, aten.layer_norm.default,
    aten.rms_norm.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.expand.default,
}  # fmt: skip
# Operators that only move values, so that a later one may move them back to their tokens.
_MOVES = {
    aten.cat.default, aten.pad.default, aten.constant_pad_nd.default, aten.slice.Tensor, aten.select.int,
    aten.narrow.default, aten.index.Tensor, aten.index_select.default, aten.gather.default, aten.roll.default,
    aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.stack.default,
}  # fmt: skip


@torch.no_grad()
def possible_mixing(module: fx.GraphModule) -> list[fx.Node]:
    """The operators outside attention of a decoder's graph that can pass something between tokens.

    Only inputs [B, ..., LENGTH, ...] are changed, those of one token: what experts do to tokens of all rows
    in one dimension is theirs.
    """
    text = text_dependent(module.graph, SHAPE_ONLY)
    outside = reach_logits_outside(module.graph, attention_outputs(module.graph))
    asked = {node for node in outside & text if node.op == "call_function" and not _is_by_token(node)}
    if not asked and not hand_offs(module.graph):  # other stages may have some, and wait for this one
        return []
    runner = _Asking(module, asked, text)
    runner.run(*trace_inputs(module))
    return runner.found


def _is_by_token(node: fx.Node) -> bool:
    """Whether a node's operator is known to make a token's outputs from its own inputs alone."""
    return node.target in _BY_TOKEN | SHAPE_ONLY or is_pointwise(node) or is_collective(node)


def surely_mixes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether one of `possible_mixing` can change other tokens' values for some ids, as its operator tells.

    What computes can. So can what moves whole numbers, such as ids.
    """
    return node.target not in _MOVES or any(map(_holds_whole_numbers, _sources(module, node)))


@torch.no_grad()
def mixes(module: fx.GraphModule, node: fx.Node | None) -> bool:
    """Whether one of `possible_mixing`, which only moves values, can change the logits of other tokens.

    They may be moved back, so the graph is run twice: all that reads the same values sees a change of one
    token, and attentions give what they gave before. None: another process has the operator.
    """
    attentions, sources = attention_outputs(module.graph), _sources(module, node) if node else set()
    (logits,) = module.graph.output_node().all_input_nodes
    before = Recorder(module, kept={*attentions, *sources, logits})
    inputs = trace_inputs(module)
    before.run(*inputs)
    given = {n: before.outputs[n] for n in attentions - sources}
    is_alone = node is not None and len(node.all_input_nodes) == 1
    given |= {n: _changed(before.outputs[n], is_alone) for n in sources}
    after = Recorder(module, given, {logits})
    after.run(*inputs)
    return differ_elsewhere(before.outputs[logits], after.outputs[logits])


def _sources(module: fx.GraphModule, node: fx.Node) -> set[fx.Node]:
    """The values that depend on the text and that a node reads."""
    return text_dependent(module.graph, SHAPE_ONLY).intersection(node.all_input_nodes)


def _holds_whole_numbers(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return False
    return not value.is_floating_point() and value.dtype != torch.bool


def possible_mixing_reason(node: fx.Node) -> str:
    """A clause that says why a decoder with such an operator can't be compiled."""
    return (
        f"{site_name(node)} passes information between tokens outside attention ({node.target}, "
        f"{node.name}), at least for some ids, and a session doesn't store that"
    )


class _Asking(fx.Interpreter):
    """Runs a graph and asks each of some nodes, as it runs, whether it passes something between tokens."""

    def __init__(self, module: fx.GraphModule, asked: set[fx.Node], text: set[fx.Node]) -> None:
        super().__init__(module)
        self._asked, self._text = asked, text
        self.found: list[fx.Node] = []

    def run_node(self, node: fx.Node) -> Any:
        """The node's value."""
        if node in self._asked and self._passes_on(node):
            self.found.append(node)
        return super().run_node(node)

    def _passes_on(self, node: fx.Node) -> bool:
        """Whether outputs for other tokens differ, or outputs without a dimension of tokens."""
        is_alone = len(node.all_input_nodes) == 1
        if not any(_can_change(self.env[n], is_alone) for n in node.all_input_nodes if n in self._text):
            return False
        before = self._call(node, lambda n, value: value)
        try:
            after = self._call(node, lambda n, value: self._changed(n, value, is_alone))
        except (RuntimeError, IndexError):  # its whole numbers are bounded after all
            after = self._call(node, lambda n, value: self._changed(n, value, is_alone=False))
        return any(
            differ_elsewhere(a, b) or (_token_dim(a) is None and _differ(a, b))
            for a, b in zip(before, after, strict=True)
        )

    def _changed(self, node: fx.Node, value: Any, is_alone: bool) -> Any:
        return _changed(value, is_alone) if node in self._text else value

    def _call(self, node: fx.Node, change: Callable[[fx.Node, Any], Any]) -> list[torch.Tensor]:
        """The tensors that `node` gives for its inputs as `change` makes them, which stay as they are."""

        def value_of(n: fx.Node) -> Any:
            value = change(n, self.env[n])
            return value.clone() if isinstance(value, torch.Tensor) else value

        given: Any = (args_of(node), node.kwargs)
        args, kwargs = fx.map_arg(given, value_of)
        target: Any = node.target
        out = target(*args, **kwargs)
        return [each for each in (out if isinstance(out, (tuple, list)) else [out]) if _is_tensor(each)]


def _token_dim(value: Any) -> int | None:
    """The only dimension of LENGTH tokens behind that of the rows; None if there is none such."""
    dims = [dim for dim, size in enumerate(getattr(value, "shape", ())) if size == LENGTH]
    return dims[0] if len(dims) == 1 and dims[0] > 0 else None


def _can_change(value: Any, is_alone: bool) -> bool:
    """Whether `_changed` gives another value."""
    return _is_tensor(value) and not torch.equal(value, _changed(value, is_alone))


def _changed(value: Any, is_alone: bool) -> Any:
    """A tensor with other numbers for token CHANGED; itself if it has no single dimension of tokens.

    Whole numbers may be indices, so they become those of another token. Where nothing else is read
    (`is_alone`) they index nothing, and become larger than all others.
    """
    dim = _token_dim(value)
    if dim is None:
        return value
    own = value.select(dim, CHANGED)
    if value.dtype == torch.bool:
        other = ~own
    elif value.is_floating_point():
        other = (1 - own).nan_to_num(0.0, 0.0, 0.0)
    elif is_alone:
        other = torch.full_like(own, int(value.max()) + 1)
    else:
        others = (value.select(dim, i) for i in range(LENGTH) if i != CHANGED)
        other = next((each for each in others if not torch.equal(each, own)), own)
    changed = value.clone()
    changed.select(dim, CHANGED).copy_(other)
    return changed


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape != b.shape or not torch.allclose(a.double(), b.double(), rtol=1e-3, equal_nan=True)
