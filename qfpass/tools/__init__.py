"""Command-line tools: evaluation, benchmarks and the census of models. The compiler imports none of them."""
