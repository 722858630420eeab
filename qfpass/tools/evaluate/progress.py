"""How far an evaluation is, on standard error, or nothing."""

from ...waits import Wait


def told(name: str, total: int, shown: bool) -> Wait:
    """A context that tells of `total` steps, counted by its `advance`; says nothing unless `shown`."""
    return Wait(name, shown=shown).expect(total)
