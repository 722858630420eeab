"""The C++ compiler that Inductor finds."""

import pytest

from qfpass.upstream.cpp_compiler import cpp_compiler


def test_cpp_compiler() -> None:
    assert cpp_compiler.function()  # the machine that runs the tests has one


def test_no_compiler_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none_found() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    assert cpp_compiler.function() is None
