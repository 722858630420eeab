"""How our loops read memory: C++ that is part of the source of each."""

from pathlib import Path

STREAMS = Path(__file__).with_name("streams.cpp").read_text()
