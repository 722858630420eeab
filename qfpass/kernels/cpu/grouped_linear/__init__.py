"""A few tokens' products with weights of few bits, each group of whose numbers has a scale.

In: x [T, K] float32 and weights [N, K] as codes, scales and zeros. Out: their products, concatenated to
[T, N + N + ...] float32.
Files: `op` (the operator, and how codes are packed), `lowering` (gives Inductor the loops), `loops.cpp` (the
loops).
"""
