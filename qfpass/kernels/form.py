"""The form of a layer's logits, as it is read from the graph and passed to the kernels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionForm:
    """logits = c * tanh(scale * <query, key> / c) + slope * (key position - query position).

    Attributes:
        scale: the factor of the products of query and key.
        softcap: c; None if the logits aren't capped.
        slopes: one positive number a query head, for attention with linear biases (Press et al. 2021,
            arXiv 2108.12409); None without these.
        has_sink: whether each query head has a learned sink, one more logit whose value is zero.
    """

    scale: float
    softcap: float | None = None
    slopes: tuple[float, ...] | None = None
    has_sink: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the logits are scale * <query, key> and nothing else."""
        return self == AttentionForm(self.scale)

    def __str__(self) -> str:
        cap = "" if self.softcap is None else f", soft cap {self.softcap:g}"
        return (
            f"scale {self.scale:g}{cap}{', slopes' if self.slopes else ''}{', sink' if self.has_sink else ''}"
        )
