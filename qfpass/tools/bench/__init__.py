"""Benchmarks: time and memory of a bounded decoder beside transformers' own caches.

`decode`, `prefill`, `memory`, `compile_time` and `profile` measure; each returns `Figure`s, which a `Record`
saves as JSON and shows as tables, and which `plots` draws. The command is `qfpass bench`.
"""
