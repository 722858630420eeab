"""How many bits a model's stored keys and values need: measured once, and kept in the cache folder."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .local_cache import cache_folder

log = logging.getLogger(__name__)
FORMAT = "qfpass.key_precision/2"


@dataclass(frozen=True)
class KeyPrecision:
    """What a model's stores may hold.

    Attributes:
        smoothing: for each attention the factors [Hkv, D] of its keys; see `store.smoothing`.
        nats: by `store_dtype`, how far next-token predictions are from those of stores in the model's dtype:
            the mean Kullback-Leibler divergence. What has more bits than one that is good wasn't measured.
    """

    smoothing: tuple[torch.Tensor, ...]
    nats: Mapping[str, float]

    @classmethod
    def cached(cls, fingerprint: str) -> Self | None:
        """What was measured for the model with this fingerprint; None if nothing was, or it can't be read."""
        try:
            with safe_open(_file(fingerprint), framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    return None
                factors = tuple(file.get_tensor(str(i)) for i in range(len(file.keys())))
                return cls(factors, json.loads(header["nats"]))
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            log.debug("nothing measured for %s: %s", fingerprint, error)
            return None

    def keep(self, fingerprint: str) -> None:
        """Write this into the cache folder; only logged if that can't be written."""
        file, header = _file(fingerprint), {"format": FORMAT, "nats": json.dumps(dict(self.nats))}
        tensors = {str(i): factors.contiguous().cpu() for i, factors in enumerate(self.smoothing)}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(".draft")
            save_file(tensors, draft, metadata=header)
            draft.replace(file)
        except (OSError, SafetensorError) as error:
            log.warning("how many bits keys need couldn't be saved and is measured again: %s", error)


def _file(fingerprint: str) -> Path:
    return cache_folder() / "precision" / f"{fingerprint}.safetensors"
