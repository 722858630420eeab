"""A decoder's graph with other ends: embeddings in the place of ids, hidden states beside the logits.

model_ends: makes such graphs, when they are first asked for. original: what the original gives. values: the
nodes that hold it. cut: makes nodes inputs and outputs of a graph. prove: the graphs must give what the
original gives.
"""
