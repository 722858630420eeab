"""C++ for reading memory, which is part of the source of each loop template."""

from pathlib import Path

STREAMS = Path(__file__).with_name("streams.cpp").read_text()
