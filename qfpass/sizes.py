"""How many tokens and slots a model's decoder has, as its settings give them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The sizes for one model.

    Attributes:
        context_length: the most tokens that a session may see.
        slots: slots a head, on average over the bounded layers.
        recent, sinks: how many of the newest and of the first tokens are never evicted.
        chunk: how many tokens of a prompt are read at a time; 1 if there are no chunks.
    """

    context_length: int
    slots: int
    recent: int
    sinks: int
    chunk: int

    @property
    def longest_chunk(self) -> int:
        """The longest chunk that graphs are made for; at least 3, so that its length stays dynamic."""
        return max(3, self.chunk)

    @property
    def largest_share(self) -> float:
        """The share of a layer that has a slot for every token of the context."""
        protected = self.recent + self.sinks
        return (self.context_length - protected) / max(1, self.slots - protected)

    def slots_of(self, share: float) -> int:
        """The slots a head of a bounded layer with this share."""
        return min(self.context_length, slots_of_share(share, self.slots, self.recent + self.sinks))


def slots_of_share(share: float, slots: int, protected: int) -> int:
    """The slots of a layer: the protected ones, and its share of the others; `slots` is the layers' mean."""
    return protected + int(share * (slots - protected))
