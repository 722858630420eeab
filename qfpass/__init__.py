"""qfpass: run any decoder's long context in a small, constant memory.

`model = qfpass.compile(model, ratio=8)`; see `qfpass.compile`.
"""

from typing import TYPE_CHECKING

from .attention_pass import find, rewrite
from .errors import QFPassError
from .filters import QFilters, TrainedFilters
from .filters.calibrate import calibrate
from .kernels.kernel import Kernel
from .load_exported import load
from .pipeline import compile
from .reporting import report
from .sessions.session import Session
from .store.scores import Score
from .store.store_kind import StoreKind
from .switches import Switches
from .torch_backend import session

__all__ = [
    "Kernel",
    "QFPassError",
    "QFilters",
    "Score",
    "Session",
    "StoreKind",
    "Switches",
    "TrainedFilters",
    "calibrate",
    "compile",
    "find",
    "load",
    "report",
    "rewrite",
    "session",
    "train",
    "tune",
]

if TYPE_CHECKING:
    from .training.train import train
    from .training.tune import tune

    __version__: str
else:

    def __getattr__(name: str) -> object:
        """Imported when it is asked for: few processes train, and none needs the version to run."""
        if name == "train":
            from .training.train import train

            return train
        if name == "tune":
            from .training.tune import tune

            return tune
        if name == "__version__":
            from importlib.metadata import version

            return version("qfpass")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
