"""The stand-in for GPUs refuses what a GPU refuses, without which tests on it would show nothing."""

from pathlib import Path

import pytest
import torch
from host_device import CARDS, in_a_process, needs_ninja


def operands_of_both_devices(_: Path) -> None:
    first, second = (torch.ones(2, 2, device=card) for card in CARDS)
    for mixed in (lambda: first @ second, lambda: torch.cat([first, second]), lambda: first.add_(second)):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    assert (first.to(CARDS[1]) @ second).device == second.device


@needs_ninja
@pytest.mark.slow
def test_operands_of_both_devices_are_refused(tmp_path: Path) -> None:
    in_a_process([operands_of_both_devices], tmp_path)
