"""A few tokens' products with a weight that is stored as exact 8-bit codes.

In: x [T, K] float32 and the `Codes` of a weight [N, K]. Out: [T, N] float32.
Files: `op` (finds codes, and the operator), `lowering` (gives Inductor the loops), `loops.cpp` (the loops).
"""
