"""The C++ compiler that Inductor uses on processors."""

from .entry import only_fast


def _unknown() -> str | None:
    return ""


@only_fast("own_loops", plain=_unknown)
def cpp_compiler() -> str | None:
    """The compiler's command, None where Inductor finds none, "" where it can't be asked.

    Without it: a missing compiler is told by Inductor's own error, at the first call.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return str(get_cpp_compiler())
    except InvalidCxxCompiler:
        return None
