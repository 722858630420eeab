"""The lowered decoder: reads tokens into a session's stores and gives the logits asked for.

Three graphs serve every mix of prompts and steps: one token (`step`), a chunk of any length
(`chunk`, which gives hidden states) and the logits of chosen tokens (`head`).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

from ..config import Config, Sizes
from ..errors import InputError
from ..filters import QFilters
from ..graph.regions import Outlined
from ..graph.rewrite import Site
from .session import Session


class Decoder:
    """A decoder on stores, compiled; holds no state of any text."""

    def __init__(
        self,
        outlined: Outlined,
        sites: Sequence[Site],
        filters: QFilters | None,
        sizes: Sizes,
        config: Config,
        device: torch.device,
        dtype: torch.dtype,
        fingerprint: str,
    ) -> None:
        self.fingerprint = fingerprint
        self.sites, self.sizes, self.config = tuple(sites), sizes, config
        self.device, self.dtype, self.filters = device, dtype, filters
        self.outlined = outlined
        self._modules = _modules(outlined)
        self._chunk = _compile(self._modules["chunk"], config)
        self._step = _compile(self._modules["step"], config)
        self._head = _compile(self._modules["head"], config) if outlined.head else None
        self._count = torch.empty(sizes.context_length + 1, device=device)

    def session(self) -> Session:
        """A new, empty session."""
        return Session(self.sites, self.dtype, self.device, owner=self)

    @property
    def identity(self) -> dict[str, str]:
        """What a saved session must have in common with this decoder to go on here."""
        filters = hashlib.sha256()
        for tensor in self.filters.filters if self.filters else ():
            filters.update(tensor.cpu().numpy().tobytes())
        return {
            "weights": self.fingerprint,
            "dtype": str(self.dtype),
            "stores": "; ".join(str(site.rule) for site in self.sites),
            "filters": filters.hexdigest() if self.filters else "none",
        }

    @property
    def graphs_compiled(self) -> int:
        """Graphs that torch.compile has made for this decoder so far."""
        codes = {m.forward.__code__ for m in self._modules.values()}
        return sum(len(_debug_get_cache_entry_list(code)) for code in codes)

    @torch.no_grad()
    def read(self, ids: torch.Tensor, session: Session, wanted: torch.Tensor) -> torch.Tensor:
        """Read ids [B, S] int64 into `session`; logits [B, len(wanted), V] at the `wanted` indices of S.

        `wanted` is an ascending int64 tensor on the CPU.
        """
        session.allocate(ids.shape[0])
        parts = []
        for start in range(0, ids.shape[1], self.sizes.chunk):
            piece = ids[:, start : start + self.sizes.chunk]
            inside = wanted[(wanted >= start) & (wanted < start + piece.shape[1])] - start
            parts.append(self._read_piece(piece, session, inside))
        kept = [part for part in parts if part is not None]
        return kept[0] if len(kept) == 1 else torch.cat(kept, dim=1)

    def _read_piece(self, ids: torch.Tensor, session: Session, wanted: torch.Tensor) -> torch.Tensor | None:
        seen, length = session.tokens_seen, ids.shape[1]
        position = torch.arange(seen, seen + length, device=self.device).expand(ids.shape[0], -1)
        position = position.contiguous()
        ids = ids.clone(memory_format=torch.contiguous_format)
        stores = self._store_inputs(session)
        if length == 1:
            visible = _countable(self._count[: seen + 1])
            out = self._step(ids, position, visible, *stores)
        else:
            for tensor in (ids, position):
                torch._dynamo.mark_dynamic(tensor, 1, min=2, max=max(3, self.sizes.chunk))
            out = self._chunk(ids, position, _countable(self._count[:seen]), *stores)
        session.tokens_seen = seen + length
        if len(wanted) == 0:
            return None
        if length == 1:
            return out
        chosen = out[:, wanted.to(self.device)]
        return chosen if self._head is None else self._logits(chosen)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head on hidden [B, T, E]; one token is read twice, so that one graph serves every T."""
        tokens = hidden.shape[1]
        if tokens == 1:
            hidden = hidden.repeat(1, 2, 1)
        hidden = hidden.contiguous()
        torch._dynamo.mark_dynamic(hidden, 1)
        assert self._head is not None
        return self._head(hidden)[:, :tokens]

    def _store_inputs(self, session: Session) -> list[torch.Tensor]:
        inputs: list[torch.Tensor] = []
        for site, store in zip(self.sites, session.stores, strict=True):
            if site.rule.needs_filters:
                assert self.filters is not None
                inputs.append(self.filters.filters[site.attention.index])
            inputs.extend(store)
        return inputs


def _countable(tensor: torch.Tensor) -> torch.Tensor:
    """Mark a tensor whose length is all that matters, so that no length of it is special."""
    torch._dynamo.decorators.mark_unbacked(tensor, 0)
    return tensor


def _modules(outlined: Outlined) -> dict[str, fx.GraphModule]:
    if outlined.head is None:
        return {"chunk": outlined.body, "step": outlined.body}
    step = _sequence(outlined.body, outlined.head)
    return {"chunk": outlined.body, "step": step, "head": outlined.head}


def _sequence(body: fx.GraphModule, head: fx.GraphModule) -> fx.GraphModule:
    """body then head, as one graph with the body's inputs."""
    graph = fx.Graph()
    inputs = [graph.placeholder(n.name) for n in body.graph.nodes if n.op == "placeholder"]
    hidden = graph.call_module("body", tuple(inputs))
    graph.output(graph.call_module("head", (hidden,)))
    return fx.GraphModule(nn.ModuleDict({"body": body, "head": head}), graph)


def _compile(module: fx.GraphModule, config: Config) -> Callable[..., Any]:
    return torch.compile(module.forward, fullgraph=True, backend=config.backend, **config.compile_options)


def wanted_indices(logits_to_keep: int | torch.Tensor, length: int) -> torch.Tensor:
    """Hugging Face's `logits_to_keep` as ascending indices: 0 all, n the last n, a tensor of indices."""
    if isinstance(logits_to_keep, torch.Tensor):
        chosen = logits_to_keep.cpu().long()
        if chosen.dim() != 1 or len(chosen) == 0:
            raise InputError("logits_to_keep as a tensor must be a non-empty list of token indices.")
        chosen = torch.where(chosen < 0, chosen + length, chosen)
        if bool((chosen < 0).any() or (chosen >= length).any() or (chosen.diff() <= 0).any()):
            raise InputError(
                f"logits_to_keep must hold ascending indices of the {length} tokens of this call, "
                f"not {logits_to_keep.tolist()}."
            )
        return chosen
    if isinstance(logits_to_keep, bool) or not isinstance(logits_to_keep, int) or logits_to_keep < 0:
        raise InputError(f"logits_to_keep must be a whole number from 0, not {logits_to_keep!r}.")
    keep = min(logits_to_keep or length, length)
    return torch.arange(length - keep, length)
