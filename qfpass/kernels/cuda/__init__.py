"""Attention kernels for NVIDIA GPUs.

In and out: as the contract in `qfpass.kernels` says.
Files: `flash_attn` (the flash-attn package, where it is installed), `sdpa` (PyTorch's own fused kernels),
`sdpa_ops` (these as custom operators, which a compiled graph calls), `step_attention` (one query, by Triton).
"""
