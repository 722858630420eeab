"""One token's products with weights, each of which is read once from memory.

In: x [1, 1, K] float32 and weights [N, K]. Out: their products, concatenated to [1, 1, N + N + ...] float32.
Files: `op` (the operator), `lowering` (gives Inductor the loops), `loops.cpp` (the loops).
"""
