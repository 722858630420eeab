"""Processes that run one model together: what each decides by itself, they decide alike, or all stop.

A graph with collectives (tensor parallelism) must be proven, calibrated and run by all processes of its
groups in step: one that found filters and one that makes them would pair their collectives wrongly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch.distributed
from torch import fx

from ..errors import RanksError
from ..upstream.process_groups import groups_joined_by

R = TypeVar("R")


def are_several() -> bool:
    """Whether this process is one of several that may run models together."""
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


class Ranks:
    """The processes that a graph's collectives join. One that runs a model alone agrees with itself."""

    def __init__(self, groups: Sequence[Any] = ()) -> None:
        self._groups = tuple(groups)

    @classmethod
    def of(cls, module: fx.GraphModule) -> "Ranks":
        """Those of a captured graph."""
        return cls(groups_joined_by(module.graph)) if are_several() else cls()

    def all(self, value: bool) -> bool:
        """Whether it is so for every process."""
        told = self._told(value)
        return value and all(all(each) for each in told)

    def require_same(self, values: Mapping[str, object]) -> None:
        """See that every process has the same values of these names.

        Raises:
            RanksError: in all of them, if not; tells which differ.
        """
        for told in self._told({name: str(value) for name, value in values.items()}):
            for name in values:
                each = [own.get(name) for own in told]
                if len(set(each)) > 1:
                    shown = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(each))
                    raise RanksError(
                        f"processes that run this model together compile it differently: {name} is {shown}. "
                        "Give all of them the same settings."
                    )

    def together(self, step: Callable[[], R]) -> R:
        """What `step` gives, which joins no other process, once every process has done it.

        Raises:
            RanksError: it failed in another process; in the one where it did, its own error.
        """
        failure: Exception | None = None
        try:
            result = step()
        except Exception as error:  # told to the others first
            failure = error
        for told in self._told(f"{type(failure).__name__}: {failure}" if failure else None):
            for rank, reason in enumerate(told):
                if reason is not None and failure is None:
                    failure = RanksError(f"rank {rank}, which runs this model with others, can't: {reason}")
        if failure is not None:
            raise failure
        return result

    def _told(self, value: object) -> list[list[Any]]:
        """What each process tells, a list for each group."""
        everything = []
        for group in self._groups:
            told: list[Any] = [None] * group.size()
            try:
                torch.distributed.all_gather_object(told, value, group=group)
            except RuntimeError as error:  # of a backend's time limit, or another process' end
                raise RanksError(
                    "the processes that run this model together must all compile it, with the same settings; "
                    f"not all did: {str(error).splitlines()[0]}"
                ) from error
            everything.append(told)
        return everything


ALONE = Ranks()
