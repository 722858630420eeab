"""The example of docs/pool.md runs."""

from pathlib import Path
from typing import Any

import torch
from pools import model_of
from rows import text

PAGE = Path(__file__).parents[2] / "docs" / "pool.md"


def test_the_example_runs() -> None:
    code = PAGE.read_text().split("```python\n")[1].split("```")[0]
    model = model_of("a layer with every key")
    names: dict[str, Any] = {"model": model, "question": text(9)[0], "document": text(40)[0]}
    exec(code, names)
    pool, session = names["pool"], names["session"]
    assert pool.free == (3,)
    assert session.tokens_seen == 9 + 5 == pool.tokens_seen(names["fourth"])
    alone, ids = model.session(), session.read_ids.rows()[0][None].long()
    for piece in (ids[:, :9], *ids[:, 9:].split(1, dim=1)):
        model(piece, past_key_values=alone)
    wanted = model(text(1), past_key_values=alone).logits[0]
    torch.testing.assert_close(pool.read(names["third"], text(1)), wanted, atol=1e-4, rtol=1e-4)
