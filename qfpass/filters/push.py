"""Filters to the hub, with a model card that says what they are and what they were made from."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub  # its client is imported when a name of it is asked for

from qfpass.errors import FilterFileError
from qfpass.filters import hub
from qfpass.filters.artifact import QFilters
from qfpass.filters.trained import TrainedFilters

CARD_FILE = "README.md"
NOT_TAKEN: tuple[type[Exception], ...] = (
    *hub.UNAVAILABLE,
    RuntimeError,
)  # RuntimeError is how hf_xet reports a lost connection
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
    """Upload filters to the hub repository `repository`, made if it is missing; its address.

    A card comes with them, unless the repository has one, which may have been edited.
    `qfpass.compile(model, filters=repository)` reads them from there.

    Args:
        repository: `organisation/name`.
        base_model: the hub name of the model that they are for, for the card.
        private: of a repository that is made.
        token: for the hub; by default the one that `hf auth login` left.

    Raises:
        FilterFileError: no such name can be, or the hub doesn't take them.
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
        except NOT_TAKEN as error:
            raise FilterFileError(
                f"the hub didn't take the filters for {repository} ({error}): check the name, the connection "
                "and that you are logged in, with the right to write there."
            ) from error
    return str(address)


def model_card(
    filters: QFilters | TrainedFilters, repository: str, base_model: str | None
) -> "huggingface_hub.ModelCard":
    """What the filters are, how they are used and what they were made from."""
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
