"""Find the attentions of a captured graph. In: a `Captured`; out: a list of `Attention`, in graph order.

find.py: all attentions; operators.py: calls of attention operators; softmax.py: attention written out between
two matmuls; logit_chain.py: the terms of its logits, from the softmax down to the product of query and key;
mask.py: masks cut out and evaluated; span.py: the window, chunk or bias that they mean; token_mixing.py:
layers that pass state between tokens outside attention.
"""
