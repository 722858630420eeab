"""A few tokens' products with weights, each of which is read once from memory.

In: x [T, K] and weights [N, K]. Out: their products, concatenated to [T, N + N + ...] float32.
Files: `op` (the operator), `lowering` (gives Inductor the loops), `loops.cpp` (the loops).
"""
