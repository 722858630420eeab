"""Cut a rewritten decoder into its repeated layers, so that each kind of layer is compiled once.

In: the rewritten graph. Out: `Outlined`, a body that calls shared regions and a head, or `Pieces` of it.
Files: `cuts` (where a graph can be cut), `outline` (the regions, body and head), `pieces` (a body taken
apart, to run layer after layer), `step_linears` (linears that stream their weights for one token),
`packed_weights` (quantised weights in their own bits), `group_codes` (how they are found in a graph),
`packed_copy` (one of them as the loops read it).
"""
