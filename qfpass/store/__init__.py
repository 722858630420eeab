"""What a layer keeps of the keys and values that it has seen, and its attention over them.

In: a layer's query, key, value and `LayerInputs`. Out: the attention's output; the store changes in place.
Files: `reference` (the idea on one page: read it first), `slots` (a bounded store), `int8_slots` and
`int4_values` (the same in few bits), `smoothing` (of keys, before they are rounded), `ring` (a window's
tokens), `scores` (which rank keys), `try_score` (for a caller's own), `slot_attention`, `ring_attention` (the
modules), `layer_inputs` (their inputs), `kernel_call` (kernel, biases, learned sink). No graphs here.
"""
