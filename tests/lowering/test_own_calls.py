"""Our own calls of transformers use the names of its version: none of them makes it warn."""

import logging
import warnings
from collections.abc import Iterator

import pytest
from bounded import compiled, llama
from decoders import text
from transformers.utils import logging as transformers_logging

import qfpass
from qfpass.tools.bench.contenders import FullCache
from qfpass.tools.evaluate.text_reader import CacheReader, SessionReader
from qfpass.upstream.cache import cache_name


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What transformers logs, each warning as if for the first time."""
    logger = transformers_logging.get_logger("transformers")
    transformers_logging.warning_once.cache_clear()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.WARNING)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_transformers_warns_of_none(told: pytest.LogCaptureFixture) -> None:
    original, ids = llama(), text(12)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        warnings.simplefilter("error", FutureWarning)
        model = compiled(original)
        session = model.session()
        model(ids, cache=session)
        model(ids, past_key_values=model.session())
        for name in ("cache", "past_key_values"):
            model.generate(ids, max_new_tokens=2, do_sample=False, **{name: model.session()})
        out = model.generate(ids, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
        assert isinstance(out[cache_name()], qfpass.Session)
        qfpass.calibrate(original, [ids[0]], progress=False)
        CacheReader(original).read(ids)
        SessionReader(model).read(ids)
        FullCache(original, "full", original).after(4, 1).read(ids[:, :1])
    assert not [record.message for record in told.records]
