"""Lowering: outlined FX graphs in, compiled callables out (chunk, step, head), by torch.compile.

decoder_graphs: a decoder's callables. lower: one graph by torch.compile with our options. inductor_backend:
the Inductor backend that records or reports its runs. by_device: a graph on several devices, in parts of one.
piecewise: layer after layer past Dynamo. replays: which calls are replayed; cpu_replay by recorded kernels,
cuda_replay by a CUDA graph. weight_guard: checks that weights have not changed. as_compiled: torch's autocast
and default dtype as they were at compile.
"""
