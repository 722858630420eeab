"""The command line on a tiny model in a folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from qfpass import QFilters, TrainedFilters
from qfpass.errors import QFPassError
from qfpass.filters import load_filters
from qfpass.tools import cli
from qfpass.tools.evaluate import command, protocol


@pytest.fixture(scope="module")
def folder(model: nn.Module, tokenizer: Any, essays: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its tokenizer and a text, as a user has them."""
    path = tmp_path_factory.mktemp("tiny")
    saved: Any = model
    saved.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    (path / "essays").mkdir()
    (path / "essays" / "all.txt").write_text(essays)
    return path


@pytest.fixture(scope="module")
def compiled_once() -> dict[str, Any]:
    return {}


@pytest.fixture(autouse=True)
def shared_compiles(compiled_once: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command loads the same weights, so equal settings need one capture among all tests."""
    real = protocol.compile_budget

    def once(model: nn.Module, slots: int, method: Any, options: dict[str, Any]) -> Any:
        key = repr((slots, method, options))
        if key not in compiled_once:
            compiled_once[key] = real(model, slots, method, options)
        return compiled_once[key]

    monkeypatch.setattr(protocol, "compile_budget", once)


def run(folder: Path, *words: Any) -> Any:
    """A command that must succeed."""
    arguments = [*map(str, words), "--data", str(folder / "essays"), "--no-progress"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


EVALUATIONS: dict[str, list[Any]] = {
    "perplexity": ["--length", 60, "--texts", 2],
    "needle": ["--length", 200, "--depths", 2, "--needles", 1, "--kind", "numbers"],
    "ruler": ["--length", 600, "--task", "niah_single_1", "--samples", 1],
    "generation": ["--new-tokens", 8, "--length", 40, "--prompts", 2],
}


@pytest.mark.parametrize("kind", EVALUATIONS)
def test_evaluations_leave_a_record_and_a_plot(folder: Path, tmp_path: Path, kind: str) -> None:
    words = [*EVALUATIONS[kind], "--score", "recency", "--budget", 16, "--out", tmp_path, "--seed", 3]
    if kind == "needle":
        words += ["--score", "keydiff"]
    result = run(folder, "evaluate", kind, folder / "model", *words)
    record = json.loads((tmp_path / f"{kind}.json").read_text())
    names = [row["name"] for row in record["rows"]]
    assert names[:2] == ["uncompressed", "recency 16 slots"]
    assert record["settings"]["seed"] == 3
    assert record["rows"][1]["footprint"]["slots"] == 16
    assert record["rows"][0]["footprint"]["nbytes"] > record["rows"][1]["footprint"]["nbytes"]
    assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert "uncompressed" in result.output and "recency" in result.output


def test_every_score_meets_every_size(folder: Path, tmp_path: Path) -> None:
    chosen = command._methods(["recency", "random"], [3.0], [16], recent=5, sinks=2, store_dtype=None)
    assert [str(m) for m in chosen] == ["recency 16 slots", "random 16 slots", "recency 3x", "random 3x"]
    assert {(m.recent, m.sinks) for m in chosen} == {(5, 2)}
    assert [str(m) for m in command._methods(None, None, None, None, 4, None)] == ["published 8x"]
    words = [*EVALUATIONS["perplexity"], "--score", "recency", "--ratio", 3, "--budget", 16, "--no-plot"]
    run(folder, "evaluate", "perplexity", folder / "model", *words, "--out", tmp_path)
    record = json.loads((tmp_path / "perplexity.json").read_text())
    names = [row["name"] for row in record["rows"]]
    assert names == ["uncompressed", "recency 16 slots", "recency 3x"]
    assert record["settings"]["first"] == 24
    assert [row["footprint"]["slots"] for row in record["rows"]] == [None, 16, 24]
    assert not (tmp_path / "perplexity.png").exists()


def test_in_eight_bits_a_ratio_holds_more_slots(folder: Path, tmp_path: Path) -> None:
    words = [*EVALUATIONS["perplexity"], "--score", "recency", "--ratio", 4, "--store-dtype", "int8"]
    run(folder, "evaluate", "perplexity", folder / "model", *words, "--no-plot", "--out", tmp_path)
    record = json.loads((tmp_path / "perplexity.json").read_text())
    full, small = record["rows"]
    assert small["name"] == "recency 4x int8"
    assert small["footprint"]["slots"] == record["settings"]["first"] > 60 / 4 + 8
    assert small["footprint"]["nbytes"] < full["footprint"]["nbytes"]


def test_calibrated_filters_serve_an_evaluation(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "filters"
    run(folder, "calibrate", folder / "model", "--out", made, "--sequences", 3, "--length", 64)
    filters = QFilters.load(made)
    assert len(filters.filters) == 2
    assert "3 x 64 tokens of essays" in filters.source["data"]
    words = [*EVALUATIONS["perplexity"], "--score", "published", "--budget", 16, "--filters", made]
    run(folder, "evaluate", "perplexity", folder / "model", *words, "--out", tmp_path)
    record = json.loads((tmp_path / "perplexity.json").read_text())
    assert record["rows"][1]["name"] == "published 16 slots"


def test_trained_filters_serve_an_evaluation_beside_others(folder: Path, tmp_path: Path) -> None:
    trained, calibrated = tmp_path / "trained", tmp_path / "calibrated"
    few = ["--steps", 2, "--lessons", 1, "--length", 600, "--dtype", "float32"]
    run(folder, "train", folder / "model", "--out", trained, *few)
    filters = load_filters(trained)
    assert isinstance(filters, TrainedFilters) and filters.source["data"] == "essays"
    run(folder, "calibrate", folder / "model", "--out", calibrated, "--sequences", 2, "--length", 64)
    words = [*EVALUATIONS["perplexity"], "--score", "trained", "--score", "published", "--budget", 16]
    words += ["--filters", trained, "--filters", calibrated]
    run(folder, "evaluate", "perplexity", folder / "model", *words, "--out", tmp_path)
    record = json.loads((tmp_path / "perplexity.json").read_text())
    assert [row["name"] for row in record["rows"][1:]] == ["trained 16 slots", "published 16 slots"]
    assert [row["footprint"]["slots"] for row in record["rows"][1:]] == [16, 16]
    ours, published = (row["footprint"]["nbytes"] for row in record["rows"][1:])
    assert ours <= published


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--score", "best"], "score must be one of"),
        (["--dtype", "int8"], "dtype must be one of"),
        (["--device", "nowhere"], "device 'nowhere'"),
        (["--length", "100000"], "too few"),
        (["--budget", "16", "--first", "59"], "nothing to count"),
    ],
)
def test_settings_that_cannot_work(folder: Path, tmp_path: Path, words: list[str], message: str) -> None:
    given = ["--budget", "16", "--score", "recency", "--out", tmp_path, "--no-plot"]
    with pytest.raises(QFPassError, match=message):
        run(folder, "evaluate", "perplexity", folder / "model", *EVALUATIONS["perplexity"], *given, *words)


@pytest.mark.parametrize("command", ["calibrate", "evaluate perplexity"])
def test_what_is_not_there(folder: Path, tmp_path: Path, command: str) -> None:
    with pytest.raises(QFPassError, match=r"can't load a causal model from .*missing"):
        run(folder, *command.split(), folder / "missing", "--out", tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / "model" / name).read_bytes())
    with pytest.raises(QFPassError, match="can't load a tokenizer"):
        run(folder, *command.split(), bare, "--out", tmp_path)


def test_the_program_says_what_went_wrong_in_one_line(folder: Path) -> None:
    words = ["calibrate", str(folder / "model"), "--data", str(folder / "missing"), "--out", "x"]
    code = "from qfpass.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] and "qfpass: can't read text" in done.stderr
    assert "Traceback" not in done.stderr


def test_qfpass_imports_without_the_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'typer', 'wonderwords', 'datasets'): sys.modules[name] = None\n"
        "import qfpass\nfrom qfpass.tools import evaluate\nevaluate.perplexity\n"
        "from qfpass.__main__ import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "qfpass: the command line needs typer: pip install 'qfpass[evaluate]'"
    )


def test_versions_need_no_extra() -> None:
    code = "import sys; sys.modules['typer'] = None; sys.argv[1:] = ['--version']\n"
    code += "from qfpass.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("qfpass ") and "torch " in done.stdout and "transformers " in done.stdout


def test_hints_keep_their_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise QFPassError("pip install 'qfpass[evaluate]'")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.run()
    assert capsys.readouterr().err == "qfpass: pip install 'qfpass[evaluate]'\n"


@pytest.mark.parametrize("command", ["evaluate perplexity", "bench"])
def test_plots_are_asked_for_before_the_work(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = [*command.split(), "no such model", "--out", str(tmp_path)]
    words += ["--data", "no such text"] if command.startswith("evaluate") else []
    with pytest.raises(QFPassError, match="plots need matplotlib"):
        CliRunner().invoke(cli.app, words, catch_exceptions=False)


@pytest.mark.parametrize("command", ["evaluate perplexity", "evaluate needle", "bench"])
def test_help_names_scores_and_defaults(command: str) -> None:
    told = " ".join(
        CliRunner().invoke(cli.app, [*command.split(), "--help"], env={"COLUMNS": "300"}).output.split()
    )
    for score in ("published", "trained", "recency", "knorm", "random"):
        assert score in told
    assert "else" in told or "default: published" in told


def test_one_option_means_one_thing() -> None:
    """Tokens of a text that is read are --length, tokens written --new-tokens, tokens seen before --seen."""
    for words in ("check", "calibrate", "train", "bench", *(f"evaluate {kind}" for kind in EVALUATIONS)):
        told = CliRunner().invoke(cli.app, [*words.split(), "--help"], env={"COLUMNS": "300"}).output
        assert "--tokens" not in told, words
