"""A decoder that was exported and loaded computes what the compiled one does; what doesn't fit is refused."""

import json
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from decoders import text
from rows import padded
from tiny import FAMILIES

import qfpass
from qfpass.errors import ConfigError, InputError, PackageError, SessionError

CONTEXT, ROWS = 64, 2
SETTINGS: dict[str, Any] = {"budget": 16, "context_length": CONTEXT, "chunk": 8, "score": "random"}


def model() -> Any:
    """With a windowed layer and a bounded one."""
    return FAMILIES["gemma3"](window=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder exported for calls of one row or two."""
    made = tmp_path_factory.mktemp("exported") / "decoder"
    qfpass.compile(model(), **SETTINGS, verify=False).export(made, rows=ROWS)
    return made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return qfpass.load(folder, model())


@pytest.fixture(scope="module")
def eager() -> Any:
    return qfpass.compile(model(), **SETTINGS, backend="eager", verify=False)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("ends", [(0, 1, 2, 3, 11, 12, 40, 41, 42), (0, 40), tuple(range(30))])
def test_a_text_read_in_parts_is_the_same(loaded: Any, eager: Any, rows: int, ends: tuple[int, ...]) -> None:
    ids, theirs, ours = text(ends[-1], batch=rows), eager.session(), loaded.session()
    for a, b in pairwise(ends):
        expected = eager(ids[:, a:b], past_key_values=theirs).logits
        actual = loaded(ids[:, a:b], past_key_values=ours).logits
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


def test_rows_of_different_lengths_and_generation_are_the_same(loaded: Any, eager: Any) -> None:
    asked: dict[str, Any] = {**padded([text(9), text(5)], "left"), "max_new_tokens": 20, "do_sample": False}
    assert torch.equal(loaded.generate(**asked), eager.generate(**asked))


def test_a_session_of_less_slots_forks_and_is_saved(loaded: Any, eager: Any, tmp_path: Path) -> None:
    ids, theirs, ours = text(50), eager.session(budget=12), loaded.session(budget=12)
    for session, each in ((theirs, eager), (ours, loaded)):
        each(ids[:, :40], past_key_values=session)
    theirs.save(tmp_path / "session")
    again = loaded.session(budget=12).load(tmp_path / "session")
    expected = eager(ids[:, 40:], past_key_values=theirs).logits
    for session in (ours.fork(), again):
        actual = loaded(ids[:, 40:], past_key_values=session).logits
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


def test_a_pool_of_as_many_rows_as_were_exported(loaded: Any, eager: Any) -> None:
    pool, theirs = loaded.pool(ROWS), [eager.session(budget=budget) for budget in (None, 12)]
    for row, (session, length) in enumerate(zip(theirs, (5, 30), strict=True)):
        pool.join(loaded.session(budget=session.slots))
        expected = eager(text(length), past_key_values=session).logits[0]
        torch.testing.assert_close(pool.read(row, text(length), 0), expected, atol=1e-4, rtol=1e-3)
    for token in range(14):
        for session, actual in zip(theirs, pool.step({0: token, 1: token}), strict=True):
            expected = eager(torch.tensor([[token]]), past_key_values=session).logits[0, 0]
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)
    with pytest.raises(ConfigError, match="exported for calls of 1 or 2"):
        loaded.pool(3)


def test_a_pool_of_packages_has_nothing_to_warm_up(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = loaded.pool(ROWS)
    monkeypatch.setattr(pool, "read", None)
    pool.warm_up()
    assert pool.free == tuple(range(ROWS))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_decoder_on_a_gpu_is_the_same(eager: Any, tmp_path: Path) -> None:
    own = model().cuda()
    qfpass.compile(own, **SETTINGS, verify=False).export(tmp_path / "decoder")
    loaded, ids, theirs = qfpass.load(tmp_path / "decoder", own), text(42), eager.session()
    ours = loaded.session()
    for a, b in pairwise((0, 1, 2, 11, 40, 41, 42)):
        expected = eager(ids[:, a:b], past_key_values=theirs).logits
        actual = loaded(ids[:, a:b].cuda(), past_key_values=ours).logits.cpu()
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


def test_weights_are_read_in_place(folder: Path, eager: Any) -> None:
    own, ids = model(), text(20)
    ours = qfpass.load(folder, own)
    with torch.no_grad():
        own.lm_head.weight.mul_(2)
        doubled = qfpass.compile(own, **SETTINGS, backend="eager", verify=False)
        torch.testing.assert_close(ours(ids).logits, doubled(ids).logits, atol=1e-4, rtol=1e-3)
        own.lm_head.weight.data = own.lm_head.weight / 2
        torch.testing.assert_close(ours(ids).logits, doubled(ids).logits, atol=1e-4, rtol=1e-3)


def test_the_model_beside_the_packages_is_taken(folder: Path, loaded: Any) -> None:
    torch.testing.assert_close(qfpass.load(folder)(text(20)).logits, loaded(text(20)).logits)


def test_nothing_is_compiled_in_a_new_process(folder: Path) -> None:
    code = (
        "import sys, torch, qfpass; from torch._dynamo.utils import counters;"
        "logits = qfpass.load(sys.argv[1])(torch.arange(20)[None]).logits;"
        "assert logits.shape[1] == 20; print(dict(counters['stats']))"
    )
    run = [sys.executable, "-c", code, str(folder)]
    environment = {"CXX": "/nonexistent", "PATH": ""}
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("{}")


@pytest.mark.slow
def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "exported.py"
    runpy.run_path(str(example), run_name="__main__")
    assert "the same 20 tokens: True" in capsys.readouterr().out


def test_other_numbers_of_rows_are_refused(loaded: Any) -> None:
    with pytest.raises(InputError, match="3 rows, but this decoder was exported for calls of 1 or 2"):
        loaded(text(5, batch=3))


@pytest.mark.parametrize("drafts", [{"use_mtp": True}, {"assistant_early_exit": 1}], ids=str)
def test_drafts_that_need_more_than_was_exported_are_refused(loaded: Any, drafts: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="export"):
        loaded.generate(text(5), max_new_tokens=3, do_sample=False, **drafts)


def test_a_changed_model_is_refused(folder: Path) -> None:
    own = model()
    ours = qfpass.load(folder, own)
    own.model.layers[0].mlp.act_fn = torch.nn.ReLU()
    with pytest.raises(PackageError, match="has changed since its export was loaded"):
        ours(text(5))


def test_another_models_session_is_refused(loaded: Any, eager: Any) -> None:
    with pytest.raises(SessionError, match="another compiled model"):
        loaded(text(5), past_key_values=eager.session())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: FAMILIES["gemma3"](window=6, seed=1), "has other weights"),
        (lambda: FAMILIES["gemma3"](window=6, dtype=torch.bfloat16), "is bfloat16.*where it is float32"),
        (lambda: FAMILIES["gemma3"](window=6, layers=1), r"has no model\.layers\.1.*made of another model"),
    ],
)
def test_another_model_is_refused(folder: Path, other: Any, message: str) -> None:
    with pytest.raises(PackageError, match=message):
        qfpass.load(folder, other())


@pytest.mark.parametrize("name", ["torch", "qfpass", "processor"])
def test_another_version_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    fields = json.loads((folder / "qfpass.json").read_text())
    fields["made_with"][name] = "another"
    (tmp_path / "qfpass.json").write_text(json.dumps(fields))
    with pytest.raises(PackageError, match=f"was exported with {name} another"):
        qfpass.load(tmp_path, model())


def test_a_missing_package_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "qfpass.json").write_text((folder / "qfpass.json").read_text())
    with pytest.raises(PackageError, match=r"chunk-1\.pt2 is missing"):
        qfpass.load(tmp_path, model())


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="holds no exported decoder"):
        qfpass.load(tmp_path)
    (tmp_path / "qfpass.json").write_text("{")
    with pytest.raises(PackageError, match="can't be read"):
        qfpass.load(tmp_path)


class Own(qfpass.Score):
    """A score of the caller's own."""

    def __call__(self, keys: Any, values: Any, positions: Any, filters: Any) -> torch.Tensor:
        return keys.float().norm(dim=-1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "eager"}, "compiled by Inductor, not by 'eager'"),
        ({"score": Own()}, "the caller's own"),
        ({"overflow": "rerotate"}, "overflow='rerotate'"),
    ],
)
def test_what_cannot_be_exported_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    compiled = qfpass.compile(FAMILIES["llama"](), **{**SETTINGS, **settings}, verify=False)
    with pytest.raises(PackageError, match=message):
        compiled.export(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(loaded: Any, folder: Path) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(PackageError, match="is there already"):
        loaded.export(folder)
    assert sorted(folder.iterdir()) == before


def test_what_was_loaded_is_not_exported_again(loaded: Any, tmp_path: Path) -> None:
    with pytest.raises(PackageError):
        loaded.export(tmp_path / "new")
