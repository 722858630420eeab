"""Capture a causal decoder. In: a model; out: its ATen graph (input_ids, position_ids) -> logits, `Captured`.

export.py: torch.export; cache.py: graphs kept between processes; computation_digest.py: a hash of what a
model computes; operator_log.py: the operators it runs; equal_layers.py, layer_copies.py, leaves.py: equal
layers are traced once; decoder_call.py: how to call a decoder; dynamo_graph.py: Dynamo's graph as a decoder;
suitable.py: refused models; original.py: the model in a wrapper; module_snapshot.py: what modules hold, to
notice changes; ranks.py: processes that must decide alike; local_shards.py, parallel_forwards.py,
local_stages.py: a model that transformers splits over processes, as one of them computes it;
library_linears.py, quantised_linears.py: linears of quantisation libraries, traced in plain torch.
"""
