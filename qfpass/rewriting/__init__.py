"""Rewrite a captured decoder so that each attention works on its layer's key/value store.

In: a `Captured` graph and its `Site`s. Out: a graph (input_ids, position_ids, *`StepInputs`) -> logits.
Files: `rewrite` (replaces attentions), `site` (an attention, its rule and kernel), `step_inputs` (the graph's
inputs), `positions`, `text_length` (values made from the call follow the whole text), `rotary` (the rotation
of keys), `vocabulary` (the ids that the graph takes), `on_stores` (the graph
with its stores, run eagerly), `uncompressed` (the same without eviction).
"""
