"""Attention kernels and one-token products for processors.

In: operands as the contract in `qfpass.kernels` says, or one token and weights. Out: (out, lse), or products.
Files: `flash` (PyTorch's FlashAttention, for many queries), `step_attention` (one query), `step_linear` (one
token's products), `coded_linear` (the same with coded weights), `lowerings` (gives Inductor the C++ loops of
these three), `streams` and `streams.cpp` (memory access, part of each loop's source).
"""
