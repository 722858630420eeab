"""Scores, which rank keys: the key with the lowest score is evicted first.

A score of your own is a subclass of `Score`, an instance of which goes to `qfpass.compile(model, score=...)`.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..errors import ConfigError
from ..upstream.process_groups import gathered_by_name


class Score(ABC):
    """Ranks the keys of a layer. A token's score is computed once, when it is read, and never changes.

    So it may depend on that token's key, value and position alone, whatever else is read with it. It takes
    any number of tokens and is compiled with the graph: no branch on values, no `.item()`. Two scores are
    equal if they are of one class and hold equal attributes, which must be hashable.

    Attributes:
        name: shown in reports, and part of what a saved session must fit.
        filters: the kind of filters that it reads: "published" for Q-Filters, "trained", or None.
        reads_all_heads: whether a head's score depends on the token's keys and values in other heads.
    """

    name = ""
    filters: str | None = None
    reads_all_heads = False

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__name__

    @abstractmethod
    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        """The scores [B, Hkv, S] of tokens; they are kept in float32.

        Args:
            keys: [B, Hkv, S, D] as the store holds them, positions applied.
            values: [B, Hkv, S, Dv].
            positions: [B, S] int64.
            filters: [Hkv, P] float32, if the score reads some.
        """

    def recent(self, slots: int) -> int:
        """How many of `slots` slots protect the newest tokens, if `recent=` isn't given: a quarter."""
        return max(1, slots // 4)

    def over_processes(self, size: int, group_name: str) -> "Score":
        """This score where each of `size` processes, the group of this name, has its part of the heads.

        Raises:
            ConfigError: it reads the heads that other processes have.
        """
        if self.reads_all_heads:
            raise ConfigError(
                f"the score {self.name} reads all heads of a layer, and each process has its part of them: "
                "take another score."
            )
        return self

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *sorted(vars(self).items())))

    def __repr__(self) -> str:
        held = ", ".join(f"{name}={_word_for(value)}" for name, value in sorted(vars(self).items()))
        return f"{self.name}({held})" if held else self.name


class Published(Score):
    """The projection of each key on its head's Q-Filter (Godey et al. 2025, arXiv 2503.02812).

    The expected product of queries with a key k, E_Q<Q, k>, is close to kappa <k, v1>, where v1 is the main
    direction of the queries. So <k, v1> ranks keys by the attention that they can expect.
    """

    name = "published"
    filters = "published"

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        assert filters is not None, "the published score reads filters"
        return (keys.float() * filters[:, None, :]).sum(-1)

    def recent(self, slots: int) -> int:
        """Half of the slots: best for this score, as measured in docs/quality.md."""
        return max(1, slots // 2)


class Trained(Score):
    """The score that `qfpass.train` learned, from keys, values and position.

    It is the sum of a projection of the token's keys and values in all heads, a weight times the log of the
    norm of the head's own value, and a weight times the position, which says how fast the head forgets.
    At time t, a head ranks key i by <w, [k_i; v_i]> + a log|v_i| - c (t - i). All keys have the same c t, so
    the score needs the position i alone and never changes.
    """

    name = "trained"
    filters = "trained"
    reads_all_heads = True

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        assert filters is not None, "the trained score reads filters"
        heads, width = keys.shape[1], keys.shape[-1] + values.shape[-1]
        weights, norm_weight, position_weight = filters.split([heads * width, 1, 1], dim=1)
        if keys.shape[2] == 1:
            projection = _project_one_token(keys, values, weights.unflatten(1, (heads, width)))
        else:
            pairs = torch.cat([keys, values], dim=-1).float().transpose(1, 2).flatten(2)
            projection = (pairs @ weights.T).transpose(1, 2)
        return _with_own_terms(projection, values, positions, norm_weight, position_weight)

    def recent(self, slots: int) -> int:
        """An eighth of up to 256 slots, half of 1,024 or more; in between, the share grows with the slots.

        Perplexity depends most on a few hundred of the newest tokens, whatever the score. A store that has no
        room for these is better filled with the keys of highest score, as measured in docs/quality.md.
        """
        return max(1, slots // 8, min(slots // 2, slots**2 // 2048))

    def over_processes(self, size: int, group_name: str) -> Score:
        """The same score of the heads of one process, which asks the others for their keys and values."""
        return TrainedOverProcesses(size, group_name)


class TrainedOverProcesses(Trained):
    """The trained score of the heads of one of `size` processes, which form the group `group_name`.

    The keys and values of the tokens that are read go from every process to every other.
    """

    name = "trained"

    def __init__(self, size: int, group_name: str) -> None:
        self.size, self.group_name = size, group_name

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        assert filters is not None, "the trained score reads filters"
        pairs = torch.cat([keys, values], dim=-1)
        parts = gathered_by_name(pairs, self.size, self.group_name)  # [processes, B, Hkv, S, D + Dv]
        every = parts.permute(1, 0, 2, 3, 4).flatten(1, 2)
        weights, norm_weight, position_weight = filters.split([filters.shape[1] - 2, 1, 1], dim=1)
        projection = every.float().transpose(1, 2).flatten(2) @ weights.T
        return _with_own_terms(projection.transpose(1, 2), values, positions, norm_weight, position_weight)

    def __repr__(self) -> str:
        return self.name


def _with_own_terms(
    projection: Tensor, values: Tensor, positions: Tensor, norm_weight: Tensor, position_weight: Tensor
) -> Tensor:
    """The trained score: its projection, and what it takes from the head's own value and the position."""
    norm = torch.linalg.vector_norm(values.float(), dim=-1).clamp_min(1e-12)
    return projection + norm_weight * norm.log() + position_weight * positions[:, None, :].float()


def _project_one_token(keys: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Projections [B, Hkv, 1] on weights [Hkv, Hkv, D + Dv], as sums that Inductor can fuse."""
    for_keys, for_values = weights.split([keys.shape[-1], values.shape[-1]], dim=-1)
    of_keys = (keys.float().squeeze(2)[:, None] * for_keys).sum((-1, -2))
    of_values = (values.float().squeeze(2)[:, None] * for_values).sum((-1, -2))
    return (of_keys + of_values)[..., None]


class Recency(Score):
    """The position: with sinks, this is StreamingLLM (Xiao et al. 2023, arXiv 2309.17453).

    float32 holds positions exactly up to 2^24.
    """

    name = "recency"

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        return positions[:, None, :].expand(-1, keys.shape[1], -1).float()


class KNorm(Score):
    """Minus the norm of each key: small keys get most attention (Devoto et al. 2024, arXiv 2406.11430)."""

    name = "knorm"

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        return -torch.linalg.vector_norm(keys.float(), dim=-1)


class Random(Score):
    """A hash of position and head, as a baseline: every key is equally likely to be evicted.

    All layers evict the same positions, since a score doesn't know its layer.
    """

    name = "random"

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        # Inductor computes the head's part in 32 bits on a GPU, so it stays small.
        head = torch.arange(keys.shape[1], device=keys.device)[None, :, None] * 65537
        # Two rounds of multiply and shift on 32 bits; no product reaches 2^63.
        bits = ((positions[:, None, :] + head) * 2654435761 + 374761393) & 0xFFFFFFFF
        for _ in range(2):
            bits = ((bits ^ (bits >> 16)) * 73244475) & 0xFFFFFFFF
        return ((bits ^ (bits >> 16)) >> 8).float()  # the 24 bits that a float32 holds exactly


published, trained, recency, knorm, random = Published(), Trained(), Recency(), KNorm(), Random()
SCORES: dict[str, Score] = {score.name: score for score in (published, trained, recency, knorm, random)}


def _word_for(value: object) -> str:
    """The same in every process, unlike the address that a function is shown by."""
    return getattr(value, "__qualname__", None) or repr(value)


def score_named(score: str | Score) -> Score:
    """The score of that name, or a score of the caller's own as it is.

    Raises:
        ConfigError: there is no such name, or a score of the caller's own can't be told from others.
    """
    if isinstance(score, str) and score in SCORES:
        return SCORES[score]
    if not isinstance(score, Score):
        raise ConfigError(f"score must be one of {', '.join(SCORES)}, or a qfpass.Score, not {score!r}.")
    if score.filters not in (None, "published", "trained"):
        raise ConfigError(
            f"{score.name}.filters must be None, 'published' or 'trained', not {score.filters!r}."
        )
    try:
        hash(score)
    except TypeError as error:
        raise ConfigError(
            f"the score {score.name} holds something that can't be hashed ({error}): hold numbers, strings "
            "and tuples; a dataclass needs frozen=True."
        ) from error
    return score
