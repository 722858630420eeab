"""One token's product with a weight that is stored as exact 8-bit codes.

In: x [1, 1, K] float32 and the `Codes` of a weight [N, K]. Out: [1, 1, N] float32.
Files: `op` (finds codes, and the operator), `lowering` (gives Inductor the loops), `loops.cpp` (the loops).
"""
