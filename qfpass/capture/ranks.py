"""Agreement between processes (ranks) that run one model together: they decide alike, or all of them stop.

A graph with collectives (tensor parallelism) must be proven, calibrated and run by all processes of its
groups in step. If one found filters while another makes them, their collectives would be paired wrongly.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed
from torch import fx, nn

from ..errors import RanksError
from ..upstream.pipeline_parallel import stage_of
from ..upstream.process_groups import groups_joined_by, is_lost, timeouts_of
from ..upstream.tensor_parallel import is_spread

R = TypeVar("R")
PATIENCE = timedelta(seconds=60)


def are_several() -> bool:
    """Whether this process is one of several that may run models together."""
    group = torch.distributed
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


class Ranks:
    """The processes that a graph's collectives join; without `groups`, this process alone.

    A process alone agrees with itself: nothing is sent.
    """

    def __init__(self, groups: Sequence[Any] = ()) -> None:
        self._groups = tuple(groups)

    @classmethod
    def of(cls, module: fx.GraphModule) -> "Ranks":
        """The processes that the collectives of a captured graph join."""
        return cls(groups_joined_by(module.graph)) if are_several() else cls()

    @classmethod
    def of_model(cls, model: nn.Module) -> "Ranks":
        """The processes over which a model's layers or weights are split; this one alone if it is whole."""
        if not isinstance(model, nn.Module):
            return ALONE
        if stage := stage_of(model):
            return cls([stage.group])
        weights = (*model.parameters(), *model.buffers())
        mesh: Any = next((w.device_mesh for w in weights if is_spread(w)), None)  # type: ignore[attr-defined]
        return ALONE if mesh is None or mesh.ndim > 1 else cls([mesh.get_group()])

    def all(self, value: bool) -> bool:
        """Whether `value` is True in every process."""
        gathered = self._gather(value)
        return value and all(all(values) for values in gathered)

    def each(self, value: R) -> list[R]:
        """What every process passes, by rank, group after group."""
        return [each for gathered in self._gather(value) for each in gathered] or [value]

    def first(self, value: R | None) -> R | None:
        """What the first process passes that doesn't pass None; None if all do."""
        return next((each for each in self.each(value) if each is not None), None)

    def require_same(self, values: Mapping[str, object]) -> None:
        """Check that every process passes the same values under these names.

        Raises:
            RanksError: values differ; raised in all processes, with their names.
        """
        for gathered in self._gather({name: str(value) for name, value in values.items()}):
            for name in values:
                each = [own.get(name) for own in gathered]
                if len(set(each)) > 1:
                    shown = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(each))
                    raise RanksError(
                        f"processes that run this model together compile it differently: {name} is {shown}. "
                        "Give all of them the same settings."
                    )

    def together(self, step: Callable[[], R]) -> R:
        """The result of `step`, after every process has run it; `step` itself runs no collective.

        Raises:
            RanksError: `step` failed in another process. In the process where it failed, its own error.
        """
        failure: BaseException | None = None
        try:
            result = step()
        except BaseException as error:  # an interrupt too; raised once the others know of it
            failure = error
        for gathered in self._gather(f"{type(failure).__name__}: {failure}" if failure else None):
            for rank, reason in enumerate(gathered):
                if reason is not None and failure is None:
                    failure = RanksError(f"rank {rank}, which runs this model with others, can't: {reason}")
        if failure is not None:
            raise failure
        return result

    @contextmanager
    def in_step(self, what: str) -> Iterator[None]:
        """Around collectives that all processes run in step, which is `what` in words.

        If one of them fails in between, the others can't be told; they wait for it `PATIENCE` and no longer.

        Raises:
            RanksError: another process failed. The process group can't be used any more.
        """
        if not self._groups:
            yield
            return
        self.together(lambda: None)  # all have come this far
        try:
            with timeouts_of(self._groups, PATIENCE):
                yield
        except Exception as error:
            if not is_lost(error):
                raise
            raise RanksError(
                f"another process that runs this model with this one failed in {what}, or took more than "
                f"{PATIENCE.seconds} seconds longer: look for its error, and start all of them again."
            ) from error

    def _gather(self, value: object) -> list[list[Any]]:
        """The values that the processes pass, one list by rank for each group."""
        everything = []
        for group in self._groups:
            gathered: list[Any] = [None] * group.size()
            try:
                torch.distributed.all_gather_object(gathered, value, group=group)
            except RuntimeError as error:  # the backend's timeout, or another process has ended
                raise RanksError(
                    "the processes that run this model together must all compile it, with the same settings; "
                    f"not all did: {str(error).splitlines()[0]}"
                ) from error
            everything.append(gathered)
        return everything


ALONE = Ranks()
