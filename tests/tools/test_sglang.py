"""`sglang serve --model-type qfpass`: what sglang 0.5.23 finds by the entry point, and what that starts."""

import enum
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qfpass.tools import serve

GROUP = "sglang.serve_backends"


class ServeBackendDetection(enum.StrEnum):
    """As sglang has it."""

    MATCH = "match"
    NO_MATCH = "no_match"


@dataclass(frozen=True)
class ServeRequest:
    """As sglang has it."""

    argv: tuple[str, ...]
    model_path: str | None
    model_path_is_positional: bool = False


@dataclass(frozen=True)
class ServeBackend:
    """As sglang has it."""

    api_version: int
    run: Callable[[ServeRequest], None]
    detect: Callable[[ServeRequest], ServeBackendDetection] | None = None
    requires_model_path: bool = True


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The backend as sglang finds it: by the entry point that pyproject.toml has, without arguments."""
    module = ModuleType("sglang.cli.serve_backends")
    module.ServeBackend, module.ServeBackendDetection = ServeBackend, ServeBackendDetection  # type: ignore[attr-defined]
    for name in ("sglang", "sglang.cli"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"][GROUP].items()
    assert name == "qfpass"
    return EntryPoint(name, value, GROUP).load()()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would be loaded and served."""
    seen = dict[str, Any]()

    def load(model: str, tokenizer: str | None, **settings: Any) -> tuple[Any, Any]:
        seen.update(settings, model=model, tokenizer=tokenizer)
        return object(), type("Words", (), {"eos_token_id": None})

    def run_server(model: Any, words: Any, served: Any, **settings: Any) -> None:
        seen.update(settings, name=served.name, token=served.token)

    monkeypatch.setattr(serve, "load_compiled", load)
    monkeypatch.setattr("qfpass.serving.server.run.run_server", run_server)
    return seen


def run(backend: Any, *arguments: str) -> int:
    """The status with which a backend ends that sglang runs."""
    with pytest.raises(SystemExit) as ended:
        backend.run(ServeRequest(argv=arguments, model_path=None))
    return int(ended.value.code or 0)


def test_sglang_takes_the_backend(backend: Any) -> None:
    assert isinstance(backend, ServeBackend) and backend.api_version == 1 and backend.requires_model_path


def test_sglangs_names_and_ours_reach_the_server(backend: Any, served: dict[str, Any]) -> None:
    line = (
        "--model-path org/model --served-model-name=mine --api-key heron --port 123 --tokenizer-path words "
        "--max-running-requests 3 --max-queued-requests 9 --ratio 4"
    )
    assert run(backend, *line.split()) == 0
    expected = {
        "model": "org/model", "tokenizer": "words", "name": "mine", "token": "heron", "port": 123, "rows": 3,
        "queue": 9, "ratio": 4.0,
    }  # fmt: skip
    assert {name: served[name] for name in expected} == expected


@pytest.mark.parametrize("option", ["--tp-size", "--trust-remote-code", "--mem-fraction-static=0.9"])
def test_what_isnt_ours_is_refused_by_name(
    backend: Any, served: dict[str, Any], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(backend, "--model=org/model", option) == 2
    assert option.partition("=")[0] in capsys.readouterr().err and not served


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_starts_nothing(
    backend: Any, served: dict[str, Any], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(backend, flag) == 0
    assert "--ratio" in capsys.readouterr().out and not served


def test_only_exported_folders_are_taken_unasked(backend: Any, tmp_path: Path) -> None:
    found = [backend.detect(ServeRequest((), path)) for path in (None, "org/model", str(tmp_path))]
    assert found == [ServeBackendDetection.NO_MATCH] * 3
    (tmp_path / "qfpass.json").touch()
    assert backend.detect(ServeRequest((), str(tmp_path))) is ServeBackendDetection.MATCH
