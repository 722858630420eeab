"""How much a model holds of a text: slots and bytes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Footprint:
    """The budget of one row of a batch: slots a kv head (None: every key) and bytes of keys and values."""

    slots: int | None
    nbytes: int

    def __str__(self) -> str:
        return f"{'every key' if self.slots is None else self.slots}, {self.nbytes / 2**20:.2f} MiB"
