"""Soft gates: thresholds that solve their equation, and attention that open gates don't change."""

import pytest
import torch
import torch.nn.functional as F

from qfpass.training.gates import gated_attention, log_gate, logistic_noise, thresholds


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
def test_so_many_keys_lie_above_a_threshold(temperature: float) -> None:
    score = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count = torch.tensor([4.0, 11.5, 30.0], dtype=torch.float64)
    found = thresholds(score, count, temperature)
    above = torch.sigmoid((score - found[:, None]) / temperature).sum(-1)
    torch.testing.assert_close(above, count, rtol=1e-5, atol=1e-5)


def test_the_gradients_are_those_of_the_equation() -> None:
    score = torch.randn(2, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count = torch.tensor([3.0, 7.0], dtype=torch.float64)
    score.requires_grad_(True)
    count.requires_grad_(True)
    with torch.no_grad():
        step = 1e-3
        for row, column in ((0, 3), (1, 5)):
            more = score.clone()
            more[row, column] += step
            numeric = (thresholds(more, count, 0.5) - thresholds(score, count, 0.5)) / step
            with torch.enable_grad():
                (exact,) = torch.autograd.grad(thresholds(score, count, 0.5)[row], score)
            torch.testing.assert_close(numeric[row], exact[row, column], rtol=1e-2, atol=1e-4)
        numeric = (thresholds(score, count + step, 0.5) - thresholds(score, count, 0.5)) / step
    (exact,) = torch.autograd.grad(thresholds(score, count, 0.5).sum(), count)
    torch.testing.assert_close(numeric, exact, rtol=1e-2, atol=1e-4)


def test_open_gates_are_plain_attention_and_shut_ones_hide() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 5, 8, generator=generator)
    key, value = (torch.randn(1, 2, 9, 8, generator=generator) for _ in range(2))
    gates = torch.zeros(2, 5, 9)
    plain = F.scaled_dot_product_attention(query, key, value, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(gated_attention(query, key, value, gates, 0.3), plain)
    gates[:, :, 6:] = float("-inf")
    fewer = F.scaled_dot_product_attention(query, key[:, :, :6], value[:, :, :6], scale=0.3, enable_gqa=True)
    torch.testing.assert_close(gated_attention(query, key, value, gates, 0.3), fewer)


def test_a_gate_is_a_coin_whose_mean_is_the_gate() -> None:
    torch.manual_seed(0)
    score = torch.full((20_000,), 0.4)
    margin = score + logistic_noise(score) * 0.3
    assert abs((margin > 0).float().mean() - torch.sigmoid(torch.tensor(0.4 / 0.3))) < 0.02
    never = torch.zeros(20_000, dtype=torch.bool)
    torch.testing.assert_close(log_gate(score, 0.3, never), F.logsigmoid(score / 0.3))
    assert (log_gate(score - 100, 0.3, ~never) == 0).all()
