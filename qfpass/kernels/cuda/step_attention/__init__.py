"""Attention of one query a head over a store on a GPU, which reads keys and values once, in any bits.

In: query [B, Hq, 1, D], a store's keys and values, float, int8 or in four bits with scales, and how many
slots each row has filled. Out: (out, lse).
Files: `attend` (the entry), `op` (the operator, its fake and its reference), `launch` (parts and tiles),
`loops` (the Triton kernels). Only the last two import Triton, when the operator first runs.
"""
