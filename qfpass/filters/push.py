"""Uploads filters to the hub, with a model card that says what they are and how they were made."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub  # lazy: imports its client on first attribute access

from ..errors import FilterFileError
from . import hub
from .q_filters import QFilters
from .trained_filters import TrainedFilters

CARD_FILE = "README.md"
UPLOAD_ERRORS: tuple[type[Exception], ...] = (
    *hub.UNAVAILABLE,
    RuntimeError,
)  # hf_xet reports a lost connection as a RuntimeError
METHODS = {
    "published": "A key is worth its projection on its head's filter, the direction in which queries grow "
    "(Godey et al. 2025, arXiv 2503.02812).",
    "trained": "A key is worth a projection of the token's keys and values, plus the norm of the value, less "
    "its age; filters and the layers' shares of the slots were trained so that the model with a bounded "
    "store says what it says with every key.",
}


def push_filters(
    filters: QFilters | TrainedFilters,
    repository: str,
    *,
    base_model: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload filters to the hub repository `repository`, created if it is missing; returns its address.

    A model card is added, unless the repository has one: its owner may have edited that.
    `qfpass.compile(model, filters=repository)` loads the uploaded filters.

    Args:
        repository: `organisation/name`.
        base_model: hub name of the model that the filters belong to, for the card.
        private: whether a repository that is created here is private.
        token: the hub's access token; by default the one that `hf auth login` stored.

    Raises:
        FilterFileError: `repository` is no valid name, or the hub refuses the upload.
    """
    if not hub.is_repository_name(repository):
        raise FilterFileError(f"{repository!r} is no name of a hub repository: give organisation/name.")
    api = huggingface_hub.HfApi(token=token)
    with TemporaryDirectory() as name:
        folder = Path(name)
        filters.save(folder)
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            if not api.file_exists(repository, CARD_FILE):
                model_card(filters, repository, base_model).save(folder / CARD_FILE)
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=f"{filters.score} filters"
            )
        except UPLOAD_ERRORS as error:
            raise FilterFileError(
                f"the hub didn't take the filters for {repository} ({error}): check the name, the connection "
                "and that you are logged in, with the right to write there."
            ) from error
    return str(address)


def model_card(
    filters: QFilters | TrainedFilters, repository: str, base_model: str | None
) -> "huggingface_hub.ModelCard":
    """The model card: what the filters are, how they are used and what they were made from."""
    data = huggingface_hub.ModelCardData(
        base_model=base_model, library_name="qfpass", tags=["qfpass", "kv-cache", "long-context"]
    )
    heads = sorted({tuple(tensor.shape) for tensor in filters.filters})
    shapes = ", ".join(f"[{rows}, {width}]" for rows, width in heads)
    return huggingface_hub.ModelCard(f"""---
{data.to_yaml()}
---

# {filters.score.capitalize()} filters{f" for {base_model}" if base_model else ""}

They rank the keys of a decoder's attention, so that it can keep a fixed number of them, however long the
text.
{METHODS[filters.score]}

```python
import qfpass

model = qfpass.compile(model, ratio={filters.source.get("ratio", 8):g}, filters="{repository}")
```

- layers: {len(filters.filters)}
- a layer's filters, [key/value heads, numbers]: {shapes}
- fingerprint of the weights that they belong to: `{filters.source.get("fingerprint", "not known")}`

## Made from

```json
{json.dumps(filters.source, indent=2)}
```
""")
