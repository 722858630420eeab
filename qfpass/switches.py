"""Switches for the optimisations: each can be turned off alone, and the results stay the same."""

import dataclasses
import os
from dataclasses import dataclass, field

from .errors import ConfigError

VARIABLE = "QFPASS_OFF"


def _on(does: str, without: str) -> bool:
    """A field that is on by default, with words on what it does and what happens without it."""
    return field(default=True, metadata={"does": does, "without": without})


@dataclass(frozen=True)
class Switches:
    """The optimisations that rely on private parts of torch, all on by default.

    `qfpass.compile(model, ratio=8, switches=qfpass.Switches(replay=False))` turns one off for a model. The
    environment variable QFPASS_OFF="replay,own_loops" (or "all") turns some off for a process. This helps to
    find the one that makes a result wrong or slow. `qfpass.report(model)` says which were used, and why
    others weren't.

    Raises:
        ConfigError: a value isn't True or False.
    """

    piecewise: bool = _on(
        "each kind of layer is compiled once and called with every layer's weights, past Dynamo",
        "torch.compile gets the whole graph, which takes longer to compile and to call",
    )
    replay: bool = _on(
        "the kernels of a step on full stores are recorded once (on a GPU, as a CUDA graph) and called again",
        "every step runs the Python that Inductor generated",
    )
    trace_layers_once: bool = _on(
        "of layers that do the same only the first is traced", "every layer is traced, for a slower compile"
    )
    capture_cache: bool = _on(
        "captured graphs are kept between processes, in Inductor's cache folder",
        "every process captures the model anew",
    )
    own_loops: bool = _on(
        "a step's attention and products run in C++ loops of ours, on processors",
        "Inductor's own kernels run, for slower steps",
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool):
                raise ConfigError(f"Switches({name}=...) must be True or False, not {value!r}.")

    def without_those_of_environment(self) -> "Switches":
        """These switches, with those that QFPASS_OFF names turned off.

        Raises:
            ConfigError: the variable names something that isn't a switch.
        """
        named = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")} - {""}
        if "all" in named:
            return Switches(**dict.fromkeys(NAMES, False))
        if unknown := sorted(named - set(NAMES)):
            raise ConfigError(
                f"the environment variable {VARIABLE} names {', '.join(unknown)}, which is no switch: give "
                f"{', '.join(NAMES)}, or all."
            )
        return dataclasses.replace(self, **dict.fromkeys(named, False))


NAMES = tuple(each.name for each in dataclasses.fields(Switches))
_METADATA = {each.name: each.metadata for each in dataclasses.fields(Switches)}


def without(name: str) -> str:
    """What happens where this optimisation is off or not available, in words."""
    return str(_METADATA[name]["without"])
