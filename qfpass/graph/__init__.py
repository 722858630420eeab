"""Tools for FX graphs that every later step uses. In: nodes, graphs, graph modules; out: the same, or facts.

captured.py: a decoder's captured graph; subgraph.py: the part that computes given nodes; dependence.py: nodes
that depend on the text; position_program.py: the part that depends on positions alone, run for any length;
nodes.py: names, attributes, insertion; patterns.py: operators of attention; no_ops.py: operators that change
nothing; part.py, shards.py, stages.py: which part of a split model this is; devices.py: where it runs;
module_paths.py: attributes by path; in_float32.py: run in float32; tracing.py: settings of a trace.
"""
