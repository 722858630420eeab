"""What torch promises of operators and their schemas."""

import pytest
import torch
from torch import fx
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from qfpass.upstream.operators import (
    argument_names,
    available_operators,
    flex_attention_call,
    may_give_views,
    name_of,
    value_arguments,
    written_arguments,
)

aten = torch.ops.aten


@torch.library.custom_op("qfpass_test::written", mutates_args={"second"})
def written(first: torch.Tensor, second: torch.Tensor) -> None:
    second.copy_(first)


def test_name_of_an_overload_says_which_one() -> None:
    assert name_of(aten.add_.Tensor) == "aten::add_.Tensor"
    assert name_of(aten.relu.default) == "aten::relu"
    others = (torch.add, torch.ops.higher_order.cond, aten.add, "get_attr")
    assert [name_of(other) for other in others] == [""] * len(others)


@pytest.mark.parametrize("operator", [aten.add_.Tensor, aten.relu.default, aten.max.dim])
def test_available_operators_go_by_the_names_that_they_tell(operator: object) -> None:
    assert available_operators(name_of(operator)) == (operator,)


def test_available_operators_leaves_out_what_there_is_not() -> None:
    assert available_operators("aten::no_such", "aten::add.no_such", "no_such::add") == ()


def test_available_operators_without_a_public_name_are_those_of_this_version() -> None:
    """Graphs may hold them; what does their work now, if one is gone, must be known in its place."""
    names = ("aten::_to_copy", "aten::_unsafe_view", "aten::_assert_tensor_metadata")
    softmaxes = ("aten::_softmax", "aten::_safe_softmax")
    assert len(available_operators(*names, *softmaxes)) == len(names) + len(softmaxes)


def test_argument_names_are_in_order() -> None:
    assert argument_names(aten.linear.default) == ["input", "weight", "bias"]


def test_value_arguments_are_computed_with() -> None:
    assert value_arguments(aten.add.Tensor) == {0, "self", 1, "other", 2, "alpha"}
    assert value_arguments(aten.full.default) == {1, "fill_value"}
    assert value_arguments(aten.slice.Tensor) == {0, "self"}
    assert value_arguments(max) == set()


def test_written_arguments_are_the_places_that_change() -> None:
    assert written_arguments(aten.add_.Tensor) == [(0, "self")]
    assert written_arguments(torch.ops.qfpass_test.written.default) == [(1, "second")]
    assert written_arguments(aten.add.out) == [(3, "out")]
    assert not written_arguments(aten.add.Tensor)
    assert not written_arguments(aten.view.default)
    assert not written_arguments("get_attr")


def test_may_give_views_where_a_result_may_share_memory() -> None:
    x = torch.arange(6.0).view(2, 3)
    for operator, *given in ((aten.view.default, x, [3, 2]), (aten.reshape.default, x, [6])):
        assert may_give_views(operator)
        assert operator(*given).data_ptr() == x.data_ptr()
    assert may_give_views(aten.contiguous.default) and may_give_views("placeholder")
    for operator in (aten.add.Tensor, aten.mul.Tensor, aten.clone.default, aten.cat.default):
        assert not may_give_views(operator)


class Flex(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.ones(1))
        self.register_buffer("window", torch.tensor(2))

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        block_mask = create_block_mask(lambda b, h, i, j: i - j < self.window, None, None, 4, 4, device="cpu")
        return flex_attention(
            query, key, value, lambda score, *_: score + self.bias[0], block_mask=block_mask, scale=0.3
        )


def test_flex_attention_call_tells_operands_and_functions_apart() -> None:
    given = tuple(torch.ones(1, 1, 4, 8) * i for i in range(3))
    graph = torch.export.export(Flex(), given, strict=False).graph
    calls = [call for call in map(flex_attention_call, graph.nodes) if call]
    assert len(calls) == 1
    (call,) = calls
    assert [call.query.name, call.key.name, call.value.name] == ["query", "key", "value"]
    assert call.scale == 0.3
    assert isinstance(call.score_mod, fx.Node) and call.score_mod.op == call.mask_mod.op == "get_attr"
    assert call.score_mod is not call.mask_mod
    (bias,), (window,) = call.score_inputs, call.mask_inputs
    assert (bias.meta["val"].dtype, window.meta["val"].dtype) == (torch.float32, torch.int64)
