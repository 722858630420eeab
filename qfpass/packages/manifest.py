"""What a folder of packages holds: a decoder's sizes, layers and settings, and the weights that it reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import torch

from .. import code_digest
from ..config import STORE_KINDS, Config
from ..errors import PackageError
from ..sizes import Sizes
from ..store.layer import Layer, Rule
from ..store.ring import RingRule
from ..store.scores import SCORES
from ..store.slots import SlotRule

FILE = "qfpass.json"
FORMAT = 2
SETTINGS = ("recent", "sinks", "chunk", "skip_layers", "overflow")


class WeightEntry(TypedDict):
    """A weight's name in the model, and its form in words."""

    name: str
    form: str


def entry_of(name: str, weight: torch.Tensor) -> WeightEntry:
    """The entry of the model's weight `name`."""
    form = f"{str(weight.dtype).removeprefix('torch.')} {list(weight.shape)} with strides {weight.stride()}"
    return {"name": name, "form": f"{form} on {weight.device}"}


@dataclass(frozen=True)
class Manifest:
    """The contents of `qfpass.json`.

    Attributes:
        made_with: what must be the same where the packages run; see `made_with_now`.
        model: the class of the model.
        packages: the names of the packages, each a file NAME.pt2.
        identity: what sessions are told apart by: the model's fingerprint as `qfpass.compile` made it.
        fingerprint: of the weights that the packages read.
        weights: the model's name and the form of each weight, by `PACKAGE:NAME`.
        vocabulary: token ids are below this number; None if unknown.
        follows_length: see `lowering.decoder_graphs.DecoderGraphs`.
        has_filters: whether a folder of filters stands beside.
        settings: of `qfpass.compile`, those of `SETTINGS`, with the names of score and stored dtype.
    """

    made_with: dict[str, str]
    model: str
    packages: list[str]
    dtype: str
    device: str
    identity: str
    fingerprint: str
    weights: dict[str, WeightEntry]
    vocabulary: int | None
    follows_length: bool
    has_filters: bool
    has_own_model: bool
    sizes: dict[str, int]
    settings: dict[str, Any]
    layers: list[dict[str, Any]]

    def write(self, folder: Path) -> None:
        """Write this as JSON into `folder`."""
        (folder / FILE).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest in `folder`.

        Raises:
            PackageError: there is none, it can't be read, or it was made with other versions.
        """
        try:
            fields = json.loads((folder / FILE).read_text())
            if fields.pop("format") != FORMAT:
                raise PackageError(f"{folder} was written by another version of qfpass: export it again.")
            found = cls(**fields)
        except OSError as error:
            raise PackageError(f"{folder} holds no exported decoder: {error}.") from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, PackageError):
                raise
            raise PackageError(f"{folder / FILE} can't be read: {error}.") from error
        for name, now in made_with_now(found.device).items():
            if (then := found.made_with.get(name)) != now:
                raise PackageError(
                    f"{folder} was exported with {name} {then}, but here it is {now}: export it again."
                )
        missing = [name for name in found.packages if not (folder / f"{name}.pt2").is_file()]
        if missing:
            raise PackageError(f"{folder / missing[0]}.pt2 is missing: export the decoder again.")
        return found

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the model."""
        return _dtype(self.dtype)

    def config(self) -> Config:
        """The settings that sessions need."""
        settings = {**self.settings, "skip_layers": tuple(self.settings["skip_layers"])}
        stored, score = settings.pop("store_dtype"), settings.pop("score")
        return Config(
            budget=self.sizes["slots"],
            context_length=self.sizes["context_length"],
            score=SCORES[score] if score else None,
            store_dtype=next(name for name in STORE_KINDS if str(name) == stored),
            backend="packages compiled ahead of time",
            **settings,
        )

    def decoder_sizes(self) -> Sizes:
        """The sizes in tokens and slots."""
        return Sizes(**self.sizes)

    def decoder_layers(self) -> list[Layer]:
        """The layers of the decoder."""
        return [Layer(**{**fields, "rule": _rule(fields["rule"])}) for fields in self.layers]


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that `Manifest.config` takes."""
    own = {name: getattr(config, name) for name in SETTINGS}
    score = config.score.name if config.score else None
    return {**own, "store_dtype": str(config.store_dtype), "score": score}


def layers_as_json(layers: Sequence[Layer]) -> list[dict[str, Any]]:
    """The layers as `Manifest.decoder_layers` reads them."""
    return [{**vars(layer), "rule": _rule_as_json(layer.rule)} for layer in layers]


def made_with_now(device: str) -> dict[str, str]:
    """The versions and the processor that compiled code depends on, by name."""
    is_cuda = torch.device(device).type == "cuda"
    processor = torch.cuda.get_device_name() if is_cuda else torch.backends.cpu.get_cpu_capability()
    return {
        "qfpass": f"{version('qfpass')} {code_digest.DIGEST[:16]}",
        "torch": torch.__version__,
        "processor": processor,
    }


def _rule_as_json(rule: Rule) -> dict[str, Any]:
    if isinstance(rule, RingRule):
        return {"kind": "ring", "slots": rule.slots, "chunked": rule.chunked}
    if SCORES.get(rule.score.name) != rule.score:
        raise PackageError(
            f"the score {rule.score} is the caller's own, which a file can't hold: export a decoder with one "
            f"of {', '.join(SCORES)}."
        )
    own = rule.store_type
    if own not in STORE_KINDS.values():
        raise PackageError(
            f"the store {own.__name__} is the caller's own, which a file can't hold: compile without store=."
        )
    return {"kind": "slots", **vars(rule), "score": rule.score.name, "store_type": own.__name__}


def _rule(fields: Mapping[str, Any]) -> Rule:
    own = {name: value for name, value in fields.items() if name != "kind"}
    if fields["kind"] == "ring":
        return RingRule(**own)
    own["store_type"] = next(kind for kind in STORE_KINDS.values() if kind.__name__ == own["store_type"])
    return SlotRule(**own)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
