"""The errors that qfpass raises, one class for each reason; messages say what, where and what to do."""


class QFPassError(Exception):
    """The base class of every error that qfpass raises on purpose."""


class UpstreamError(QFPassError):
    """This version of torch or transformers lacks something that the pass needs."""


class ConfigError(QFPassError, ValueError):
    """A setting has a value that can't work."""


class CaptureError(QFPassError):
    """The model can't be captured as one causal decoder graph."""


class NoAttentionError(QFPassError):
    """The captured graph holds no attention that the pass can rewrite."""


class UnsupportedOpError(QFPassError):
    """The pass doesn't understand an operation around an attention."""


class VerificationError(QFPassError):
    """Without compression, the rewritten graph doesn't give the original model's logits."""


class MachineError(QFPassError):
    """This machine lacks what compiling needs: a compiler, or a folder that can be written."""


class FilterMismatchError(QFPassError, ValueError):
    """Filters were made for a model of another shape."""


class FilterFileError(QFPassError, ValueError):
    """A folder, file or repository can't be read as filters."""


class InputError(QFPassError, ValueError):
    """A call's ids, masks, positions or lengths can't be run."""


class SessionError(QFPassError, ValueError):
    """A cache object isn't a session of this model, or a session is used wrongly."""


class PackageError(QFPassError, ValueError):
    """A decoder can't be exported, or an exported one can't be loaded here or with this model."""


class CancelledError(SessionError):
    """`session.cancel()` has ended this call."""


class RanksError(QFPassError):
    """Processes that run one model together differ in settings or results."""


class QueueFullError(QFPassError):
    """More requests wait than a scheduler's queue holds.

    Attributes:
        retry_after: seconds after which one more is likely to find a place.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(QFPassError):
    """A request has not ended by its deadline."""


class ClosedError(QFPassError):
    """A scheduler that has been closed, or is closing, takes no more requests."""
