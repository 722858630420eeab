"""The torch.compile backend: torch.compile(model, backend="qfpass", options={"ratio": 8}).

The contract:
- `options` are the arguments of `qfpass.compile`. With `dynamic=True` the pass works on Dynamo's own graph.
  A graph for one length can't serve others: then the module is traced as `qfpass.compile` traces it, and
  Dynamo's graph is proved to compute the same.
- The model is called with token ids [B, S], `use_cache=False` and, if it takes them, `position_ids` [B, S] by
  name. It gives the logits of every token. Other arguments are refused, and so is a model that Dynamo traces
  in pieces.
- Inside `with qfpass.session():` the calls of one model continue one text, however it is cut. Outside, each
  call is a text of its own.
- Logits have no gradient.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import fx, nn

from .capture.decoder_call import call_decoder, logits_of, own_context_length
from .capture.dynamo_graph import IN_PIECES, DynamoDecoder, note_sources, read_dynamo_graph
from .config import Config
from .errors import CaptureError, ConfigError, NoAttentionError, SessionError, VerificationError
from .model.compiled_decoder import CompiledDecoder
from .pipeline import build
from .proof.rounding import relative_difference, tolerance_of
from .sessions.session import Session
from .upstream.dynamo import sizes_are_fixed
from .upstream.dynamo_graph import module_being_traced

_open: ContextVar["OpenSession | None"] = ContextVar("qfpass_session", default=None)


def qfpass(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> "GraphReader":
    """The callable that replaces a graph traced by Dynamo; torch.compile calls this as its backend."""
    model = module_being_traced()
    length = own_context_length(model) if model is not None else None
    return GraphReader(graph, model, {"context_length": length, **(options or {})}, mode)


def _config(options: Mapping[str, Any], mode: str | None) -> Config:
    """The settings in torch.compile's `options` and `mode`.

    Raises:
        ConfigError: there is no such option, or a value can't work.
    """
    known = {field.name for field in dataclasses.fields(Config)} - {"compile_options"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(
            f"options has {', '.join(unknown)}, which qfpass.compile doesn't take; it takes "
            f"{', '.join(sorted(known))}."
        )
    return Config(**options, compile_options={"mode": mode} if mode else {})


class OpenSession:
    """A text that calls of a model compiled by the backend continue, inside `with session:`.

    Attributes:
        budget: slots per key/value head; None for those compiled for.
        current: the model's own session; None before the first call, which makes it.
        model: the decoder that reads the text; None before the first call.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.current: Session | None = None
        self.model: CompiledDecoder | None = None
        self._tokens = list[Token["OpenSession | None"]]()

    def __enter__(self) -> "OpenSession":
        self._tokens.append(_open.set(self))
        return self

    def __exit__(self, *failure: object) -> None:
        _open.reset(self._tokens.pop())

    @property
    def tokens_seen(self) -> int:
        """Tokens read so far."""
        return self.current.tokens_seen if self.current else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the stores."""
        return self.current.nbytes if self.current else 0

    def reset(self) -> None:
        """Forget all tokens read; the stores keep their memory."""
        if self.current:
            self.current.reset()

    def fork(self) -> "OpenSession":
        """A copy of this session: it has read the same tokens, and later calls change only one of the two."""
        twin = OpenSession(self.budget)
        twin.model, twin.current = self.model, self.current.fork() if self.current else None
        return twin


def session(budget: int | None = None) -> OpenSession:
    """A new session, one text, for models compiled with `torch.compile(model, backend="qfpass")`.

    Args:
        budget: slots per key/value head, at most those compiled for.
    """
    return OpenSession(budget)


class GraphReader:
    """A callable in the place of a graph of Dynamo's, which reads a call's tokens into the open session.

    Dynamo makes another graph for calls of one token, or where its guards fail. All graphs that are called in
    one session use the decoder of its first call, once they have been proved to compute the same.
    """

    def __init__(
        self, graph: fx.GraphModule, module: nn.Module | None, options: Mapping[str, Any], mode: str | None
    ) -> None:
        note_sources(graph)
        self._graph, self._module, self._options, self._mode = graph, module, options, mode
        self._decoders = list[tuple[DynamoDecoder, CompiledDecoder | None]]()
        self._proved = list[tuple[DynamoDecoder, CompiledDecoder]]()

    def __call__(self, *inputs: Any) -> tuple[torch.Tensor]:
        # Under torch.compile(dynamic=True), what is compiled inside would get dynamic sizes everywhere.
        with sizes_are_fixed():
            return (self._read(inputs),)

    def _read(self, inputs: Sequence[Any]) -> torch.Tensor:
        """Read a call's tokens and return their logits [B, S, V]."""
        index = self._index(inputs)
        traced, _ = self._decoders[index]
        open_session = _open.get()
        model = open_session.model if open_session and open_session.model else self._model(index)
        self._prove_same(traced, model)
        current = open_session.current if open_session else None
        if current is None:
            current = model.session(open_session.budget if open_session else None)
        positions = None if traced.positions is None else inputs[traced.positions]
        if positions is not None and positions.dim() == 1:
            positions = positions[None].expand(len(inputs[traced.ids]), -1)
        ids = inputs[traced.ids].long()
        logits = logits_of(model(ids, position_ids=positions, past_key_values=current))
        if open_session:  # only now, so that a first call that fails leaves the session empty
            open_session.model, open_session.current = model, current
        return logits

    def _index(self, inputs: Sequence[Any]) -> int:
        """The index of the decoder for the parameters in `inputs`, which is added if it is new.

        Dynamo calls one graph for all models of one class.
        """
        for index, (traced, _) in enumerate(self._decoders):
            if traced.belongs_to(inputs):
                return index
        self._decoders.append((read_dynamo_graph(self._graph, inputs), None))
        return len(self._decoders) - 1

    def _model(self, index: int) -> CompiledDecoder:
        """The compiled decoder of this index, built on first use."""
        traced, model = self._decoders[index]
        if model is None:
            try:
                model = self._build(traced)
            except NoAttentionError as error:
                raise NoAttentionError(f"{error} {IN_PIECES}") from error
            self._decoders[index] = traced, model
        return model

    def _build(self, traced: DynamoDecoder) -> CompiledDecoder:
        """A decoder compiled from Dynamo's graph, or from the module if the graph is for one length only."""
        config = _config(self._options, self._mode)
        is_whole = self._module is not None and _owns_parameters_of(self._module, traced)
        if traced.length is None:
            try:
                model = build(traced.module, config, traced.batch)
            except NoAttentionError:
                # Dynamo leaves nn.TransformerEncoderLayer's fused operator whole, attention and all.
                if not is_whole:
                    raise
            else:
                self._proved.append((traced, model))
                return model
        if self._module is None or not is_whole:
            raise CaptureError(
                f"Dynamo made a graph for texts of {traced.length} tokens only, and qfpass can't trace "
                "another, since the graph isn't a module's whole forward: compile the module, or pass "
                "dynamic=True and begin with two tokens or more."
            )
        return build(self._module, config)

    @torch.no_grad()
    def _prove_same(self, traced: DynamoDecoder, model: CompiledDecoder) -> None:
        """Raise if a graph's logits for a short text differ from those of `model`'s original.

        Raises:
            SessionError: the session belongs to another model.
            VerificationError: the graph computes something else.
        """
        if any(traced is ours and model is theirs for ours, theirs in self._proved):
            return
        original = model.qfpass_original
        if not _owns_parameters_of(original, traced):
            raise SessionError("the open session belongs to another model: open one for each.")
        tokens = traced.length or 3
        rows = traced.batch or 1
        ids = torch.arange(rows * (tokens + 1)).reshape(rows, -1) % 7
        ids = ids.to(model.qfpass_decoder.device)
        positions = torch.arange(tokens + 1, device=ids.device).expand(rows, -1)
        expected = logits_of(call_decoder(original, ids, positions))[:, :tokens]
        actual = logits_of(call_decoder(traced.module, ids[:, :tokens], positions[:, :tokens]))
        if not relative_difference(actual, expected) <= tolerance_of(expected.dtype):
            raise VerificationError(
                "this call computes something else than the session's first call, or than the model does by "
                "default: make all calls of a session alike, without flags that change the logits."
            )
        self._proved.append((traced, model))


def _owns_parameters_of(module: nn.Module, traced: DynamoDecoder) -> bool:
    """Whether every parameter that the traced graph reads is one of the module's."""
    known = {id(part) for part in module.parameters()}
    return all(id(part) in known for part in traced.module.parameters())
