"""What torch promises of hooks, of tensors made of several, and of counting changes."""

from typing import Any

import torch
from torch import nn

from qfpass.upstream.modules import (
    UNREAD,
    attributes_of,
    has_hooks,
    parts_of,
    version_counters,
    weight_stores,
)


class Scaled(torch.Tensor):
    """A tensor of whole numbers and a scale, as quantised weights are."""

    @staticmethod
    def __new__(cls, whole: torch.Tensor, scale: torch.Tensor) -> "Scaled":
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype)

    def __init__(self, whole: torch.Tensor, scale: torch.Tensor) -> None:
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["whole", "scale"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], *_: Any) -> "Scaled":
        return Scaled(parts["whole"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Scaled(args[0].whole, args[0].scale)
        raise AssertionError(f"{func} is called, where nothing is computed")


def test_has_hooks_of_code_before_and_after_a_forward() -> None:
    assert not has_hooks(nn.Linear(1, 1))
    for register in (nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook):
        for settings in ({}, {"with_kwargs": True}):
            module = nn.Linear(1, 1)
            handle = register(module, lambda *_: None, **settings)
            assert has_hooks(module)
            handle.remove()
            assert not has_hooks(module)


def test_parts_of_a_quantised_weight_are_those_that_torch_compile_takes_apart() -> None:
    whole, scale = torch.ones(2, dtype=torch.int8), torch.ones(1)
    for tensor in (Scaled(whole, scale), nn.Parameter(Scaled(whole, scale), requires_grad=False)):
        assert isinstance(tensor, Scaled)
        assert {name: id(part) for name, part in parts_of(tensor).items()} == {
            "whole": id(whole),
            "scale": id(scale),
        }
    assert not parts_of(torch.ones(1)) and not parts_of(nn.Parameter(torch.ones(1)))


def test_version_counters_follow_what_is_done_in_place() -> None:
    weight, other = nn.Parameter(torch.zeros(2)), torch.zeros(2)
    before = version_counters([weight, other])
    assert version_counters([weight, other]) == before
    with torch.no_grad():
        weight.view(2)[0] = 1.0
    weight_now, other_now = version_counters([weight, other])
    assert weight_now > before[0] and other_now == before[1]


def test_attributes_of_are_all_that_can_be_set_on_a_module_and_change_with_it() -> None:
    module = nn.Linear(2, 2)
    values = attributes_of(module)
    module.flag = 3  # type: ignore[assignment]
    hook = module.register_forward_hook(lambda *args: None)
    assert values["flag"] == 3
    assert list(values["_forward_hooks"]) == [hook.id]
    assert values["_parameters"]["weight"] is module.weight
    assert attributes_of(module) is values


def test_what_is_unread_matters_to_no_forward_without_gradients() -> None:
    """Hooks of other calls change no output; what says how to call a forward hook comes with one."""
    module, x = nn.BatchNorm1d(2).eval(), torch.ones(3, 2)
    assert vars(module).keys() >= UNREAD
    before = module(x)
    module.register_full_backward_hook(lambda *_: None)
    module.register_full_backward_pre_hook(lambda *_: None)
    module.register_state_dict_pre_hook(lambda *_: None)
    module.register_load_state_dict_pre_hook(lambda *_: None)
    module.register_load_state_dict_post_hook(lambda *_: None)
    with torch.no_grad():
        assert torch.equal(module(x), before)
    held = attributes_of(module)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        counts = [len(held[name]) for name in ("_forward_hooks", "_forward_pre_hooks")]
        register(lambda *_: None, with_kwargs=True)
        assert [len(held[name]) for name in ("_forward_hooks", "_forward_pre_hooks")] != counts


def test_weight_stores_hold_what_the_forward_reads() -> None:
    module = nn.BatchNorm1d(2)
    parameters, buffers = weight_stores(module)
    assert parameters.keys() == {"weight", "bias"} and "running_mean" in buffers
    parameters["weight"] = other = nn.Parameter(torch.ones(2))
    assert module.weight is other
