"""Everything that qfpass refuses, one class a reason; each message says what, where and what to do."""


class QFPassError(Exception):
    """Base of every error that qfpass raises on purpose."""


class UpstreamError(QFPassError):
    """This version of torch or transformers lacks something that the pass can't do without."""


class ConfigError(QFPassError, ValueError):
    """A setting has a value that can't work."""


class CaptureError(QFPassError):
    """The model can't be captured as one causal decoder graph."""


class NoAttentionError(QFPassError):
    """The captured graph holds no attention that the pass can rewrite."""


class UnsupportedOpError(QFPassError):
    """An operation around an attention is not one that the pass understands."""


class VerificationError(QFPassError):
    """The rewritten graph does not reproduce the original model without compression."""


class FilterMismatchError(QFPassError, ValueError):
    """Filters were made for a model of another shape."""


class FilterFileError(QFPassError, ValueError):
    """A filter folder, file or repository can't be read as Q-Filters."""


class InputError(QFPassError, ValueError):
    """A call's arguments can't be run: ids, masks, positions or lengths."""


class SessionError(QFPassError, ValueError):
    """A cache object that isn't a session of this model, or a session used wrongly."""


class CancelledError(SessionError):
    """A call that `session.cancel()` has ended."""


class RanksError(QFPassError):
    """Processes that run one model together don't do the same."""
