"""Prove that the rewritten graph, without compression, computes the model's own logits.

In: a model and its settings. Out: `Proven`, its graph and attentions; what can't be proven is refused.
Files: `prove` (gets the graph and proves it), `verify` (compares logits), `text` (the ids that are read),
`rounding` (how far logits may differ), `length_dependence` (values that change with a text's length),
`longer_texts` (texts for which the trace's conditions don't hold).
"""
