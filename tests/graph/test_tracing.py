"""Tracing leaves the model as it was."""

from tiny import FAMILIES

from qfpass.graph.tracing import trace_settings


def test_a_model_of_transformers_runs_sdpa_while_it_is_traced_and_its_own_attention_after() -> None:
    model = FAMILIES["llama"]()
    model.set_attn_implementation("eager")
    with trace_settings(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "eager"
