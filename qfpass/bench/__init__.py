"""Benchmarks: time and memory of a bounded decoder beside transformers' own caches.

One file a measurement: `decode`, `steady`, `chunks`, `prefill`, `memory`, `compile_time`, `profile`. Each
gives `Figure`s, which a `Record` keeps as JSON, shows as a table and plots. The command is `qfpass bench`.
"""
