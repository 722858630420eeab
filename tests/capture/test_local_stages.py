"""One stage of a pipeline as a graph: its own attentions, and the hand-offs of all stages in one chain."""

from itertools import pairwise

import pytest
import torch.distributed as dist
from staged import as_stage
from tiny import FAMILIES
from torch import fx

import qfpass
from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.errors import CaptureError
from qfpass.regions.outline import outline
from qfpass.regions.pieces import take_apart
from qfpass.rewriting.rewrite import rewrite
from qfpass.rewriting.site import Site
from qfpass.rewriting.uncompressed import keep_all, kernel_call_of
from qfpass.upstream.process_groups import hand_offs

OWN = [["0", "1"], ["2"], ["3"]]  # of four layers, by stage


def sources(graph: fx.Graph) -> list[int]:
    """The stages that hand on, in the order of the graph."""
    return [node.all_input_nodes[0].args[1] for node in hand_offs(graph)]  # type: ignore[misc]


@pytest.mark.parametrize("rank", range(3))
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_stage_has_its_own_attentions_and_all_hand_offs(
    family: str, rank: int, world: dist.ProcessGroup
) -> None:
    model = as_stage(FAMILIES[family](layers=4), rank, 3, world)
    before = [(vars(module).get("forward"), set(vars(module))) for module in model.modules()]
    captured = capture(model)
    assert [a.name.split(".")[2] for a in find_attentions(captured, None)] == OWN[rank]
    assert sources(captured.module.graph) == [0, 1, 2]
    chain = hand_offs(captured.module.graph)
    for node, later in pairwise(chain):
        assert depends_on(later, node)
    assert [(vars(module).get("forward"), set(vars(module))) for module in model.modules()] == before


def depends_on(node: fx.Node, other: fx.Node) -> bool:
    seen, waiting = set[fx.Node](), [node]
    while waiting:
        each = waiting.pop()
        if each not in seen:
            seen.add(each)
            waiting += each.all_input_nodes
    return other in seen


@pytest.mark.parametrize("rank", range(3))
def test_prologue_and_head_hold_no_hand_off_of_hidden_values(rank: int, world: dist.ProcessGroup) -> None:
    """A prologue may run once more, and a head may not run, which every process decides for itself."""
    captured = capture(as_stage(FAMILIES["llama"](layers=4), rank, 3, world))
    attentions = find_attentions(captured, None)
    sites = [Site(a, keep_all(a, 32), kernel_call_of(captured, a)) for a in attentions]
    outlined = outline(rewrite(captured, sites))
    pieces = take_apart(outlined)
    assert outlined.head is not None
    assert (sources(pieces.prologue.graph), sources(outlined.head.graph)) == ([], [2])
    run = [source for layer in pieces.layers for source in sources(pieces.kinds[layer.kind].graph)]
    assert run == [0, 1]


def test_layers_that_lie_elsewhere_than_expected(world: dist.ProcessGroup) -> None:
    model = as_stage(FAMILIES["llama"](layers=4), 0, 2, world)
    model.model.layers[3] = model.model.layers[0]
    with pytest.raises(CaptureError, match=r"layers\.3 is in another process than expected"):
        capture(model)


def test_find_looks_at_whole_models(world: dist.ProcessGroup) -> None:
    """A stage's attentions would be counted from 0."""
    with pytest.raises(CaptureError, match=r"one stage of a pipeline \(pp_size\)"):
        qfpass.find(as_stage(FAMILIES["llama"](layers=4), 1, 2, world))
