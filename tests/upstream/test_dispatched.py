"""What accelerate promises of models that it spreads over devices."""

import pytest
import torch
from torch import nn

from qfpass.upstream.dispatched import inside_hook, waiting_elsewhere

hooks = pytest.importorskip("accelerate.hooks", reason="accelerate isn't installed: pip install accelerate")


def test_inside_hook() -> None:
    model = nn.Linear(2, 2)
    own = model.forward
    assert inside_hook(model) is None
    hooks.add_hook_to_module(model, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
    assert model.forward is not own and inside_hook(model) == own
    torch.testing.assert_close(own(torch.ones(2)), model(torch.ones(2)))


def test_waiting_elsewhere() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    hooks.add_hook_to_module(model[0], hooks.AlignDevicesHook(execution_device="cpu"))
    assert waiting_elsewhere(model) is None
    hook = hooks.AlignDevicesHook(
        execution_device="cpu", offload=True, weights_map=dict(model[1].state_dict())
    )
    hooks.add_hook_to_module(model[1], hook)
    assert model[1].weight.is_meta and waiting_elsewhere(model) == "1"
    hooks.add_hook_to_module(model[0], hooks.SequentialHook(hook))
    assert waiting_elsewhere(model) == "0"
