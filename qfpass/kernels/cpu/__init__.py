"""Attention kernels and products of a few tokens for processors.

In: operands as the contract in `qfpass.kernels` says, or tokens and weights. Out: (out, lse), or products.
Files: `flash` (PyTorch's FlashAttention, for many queries), `step_attention` (one query), `step_linear`
(products), `grouped_linear` (the same with quantised weights), `lowerings` (gives Inductor the C++ loops of
these three), `streams` and `streams.cpp` (memory access, part of each loop's source), `tokens` (how many the
products take).
"""
