"""The form of a layer's logits, as it is read from the graph and passed to the kernels."""

from dataclasses import dataclass

from .distance_bias import DistanceBias


@dataclass(frozen=True)
class AttentionForm:
    """logits = c * tanh(scale * <query, key> / c) + bias.

    Attributes:
        scale: the factor of the products of query and key.
        softcap: c; None if the logits aren't capped.
        bias: what is added by distance, with numbers for each query head; None if nothing is.
        has_sink: whether each query head has a learned sink, one more logit whose value is zero.
    """

    scale: float
    softcap: float | None = None
    bias: DistanceBias | None = None
    has_sink: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the logits are scale * <query, key> and nothing else."""
        return self == AttentionForm(self.scale)

    def __str__(self) -> str:
        cap = "" if self.softcap is None else f", soft cap {self.softcap:g}"
        bias, sink = ", bias by distance" if self.bias else "", ", sink" if self.has_sink else ""
        return f"scale {self.scale:g}{cap}{bias}{sink}"
