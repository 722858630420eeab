"""Give each kind of computation one form. In: a traced ATen graph; out: the same graph, rewritten in place.

passes.py: all passes in order; shape_sources.py: sizes and dtypes taken from other tensors;
flex_attention.py: flex_attention as a softmax; written_buffers.py: buffers that a forward writes;
in_place.py: in-place operators; matmuls.py: products over heads; sink_gates.py: learned sinks;
grad_mode.py: parts that run with gradients on, inlined by `capture` before all others.
"""
