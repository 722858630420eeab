"""qfpass: run any decoder's long context in a small, constant memory.

`model = qfpass.compile(model, ratio=8)`; see `qfpass.compile`.
"""

from .backend import session
from .compile import compile
from .errors import QFPassError
from .filters import QFilters, TrainedFilters
from .filters.calibrate import calibrate
from .report import report
from .runtime.session import Session
from .switches import Switches
from .training.train import train

__version__ = "0.1.0"
__all__ = [
    "QFPassError",
    "QFilters",
    "Session",
    "Switches",
    "TrainedFilters",
    "calibrate",
    "compile",
    "report",
    "session",
    "train",
]
