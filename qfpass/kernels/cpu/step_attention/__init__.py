"""Attention of one query a head, which reads each key and value once from memory.

In: query [B, Hq, 1, D], keys and values, float or int8 with scales. Out: (out, lse).
Files: `attend` (the entry), `op` (the operator), `lowering` (gives Inductor the loops), `loops.cpp` (the
loops), `computed_once` (keeps Inductor from computing a value again in each loop).
"""
