"""Decoders that others wrote, with random weights, as they are: without eviction, compiled is original."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounded import llama
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.errors import CaptureError, ConfigError, InputError
from qfpass.proof.verify import original_logits

VOCABULARY, CONTEXT, TOKENS = 53, 48, 30
# These packages ask for a torch of their own, and torchtune for an older torchao.
APART = "needs: pip install --no-deps --target FOLDER"


class MaskedAttention(nn.Module):
    """nanoGPT's: fused projections, a product, a mask kept in a buffer, a softmax, a product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.fused, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("bias", torch.tril(torch.ones(CONTEXT, CONTEXT)).view(1, 1, CONTEXT, CONTEXT))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.size()
        query, key, value = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.fused(x).split(width, dim=2)
        )
        logits = (query @ key.transpose(-2, -1)) * (1.0 / (width // self.heads) ** 0.5)
        logits = logits.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        mixed = (F.softmax(logits, dim=-1) @ value).transpose(1, 2).contiguous()
        return self.out(mixed.view(batch, length, width))


class Nano(nn.Module):
    """In the manner of nanoGPT: (idx, targets) -> (logits, loss), learned places, tied head or not."""

    def __init__(self, tied: bool, last_only: bool = False) -> None:
        super().__init__()
        width = 32
        self.last_only = last_only
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.attentions = nn.ModuleList(MaskedAttention(width, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        if tied:
            self.wte.weight = self.lm_head.weight

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, None]:
        x = self.wte(idx) + self.wpe(torch.arange(0, idx.shape[1], dtype=torch.long, device=idx.device))
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return self.lm_head(x[:, [-1], :] if self.last_only else x), None


class Fast(nn.Module):
    """In the manner of gpt-fast: positions [S] are an argument that it needs; rotations come from a table."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.outer(torch.arange(CONTEXT), 10 ** -torch.arange(4.0))
        self.register_buffer("freqs_cis", torch.stack([angle.cos(), angle.sin()], dim=-1))
        self.register_buffer("causal_mask", torch.tril(torch.ones(CONTEXT, CONTEXT, dtype=torch.bool)))
        self.tok_embeddings = nn.Embedding(VOCABULARY, 32)
        self.wqkv, self.wo = nn.Linear(32, 32 + 2 * 16, bias=False), nn.Linear(32, 32, bias=False)
        self.output = nn.Linear(32, VOCABULARY, bias=False)

    def rotate(self, x: torch.Tensor, freqs: torch.Tensor) -> torch.Tensor:
        pairs, freqs = x.reshape(*x.shape[:-1], -1, 2), freqs.view(1, x.shape[1], 1, -1, 2)
        turned = (
            pairs[..., 0] * freqs[..., 0] - pairs[..., 1] * freqs[..., 1],
            pairs[..., 1] * freqs[..., 0] + pairs[..., 0] * freqs[..., 1],
        )
        return torch.stack(turned, dim=-1).flatten(3)

    def forward(self, idx: torch.Tensor, input_pos: torch.Tensor) -> torch.Tensor:
        mask = self.causal_mask[input_pos][:, input_pos][None, None]
        freqs, x = self.freqs_cis[input_pos], self.tok_embeddings(idx)
        query, key, value = self.wqkv(x).split([32, 16, 16], dim=-1)
        query = self.rotate(query.unflatten(-1, (4, 8)), freqs)
        key, value = self.rotate(key.unflatten(-1, (2, 8)), freqs), value.unflatten(-1, (2, 8))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        key, value = (part.repeat_interleave(2, dim=1) for part in (key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.0)
        return self.output(x + self.wo(mixed.transpose(1, 2).flatten(2)))


def seeded(model: nn.Module) -> nn.Module:
    """Random weights wide enough that every token matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                parameter.normal_(std=0.2)
    return model.eval()


def agrees(model: nn.Module, tolerance: float = 1e-4) -> None:
    """Compiled without eviction and read in calls of every size, the logits are the model's own."""
    compiled: Any = qfpass.compile(model, ratio=1, context_length=CONTEXT, chunk=9, backend="eager")
    ids = torch.randint(VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    session = compiled.session()
    parts = [compiled(ids[:, a:b], past_key_values=session) for a, b in pairwise((0, 1, 2, 13, 14, TOKENS))]
    parts = [part[0] if isinstance(part, tuple) else getattr(part, "logits", part) for part in parts]
    actual = torch.cat(parts, dim=1)
    expected = original_logits(model, ids)
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0.0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_module_with_a_mask_in_a_buffer(tied: bool) -> None:
    agrees(seeded(Nano(tied)))


def test_a_module_that_gives_the_last_token_alone_is_refused() -> None:
    with pytest.raises(CaptureError, match="wrap it in a module that gives those of every token"):
        qfpass.compile(seeded(Nano(tied=False, last_only=True)), context_length=CONTEXT, backend="eager")


def test_a_module_that_takes_positions() -> None:
    agrees(seeded(Fast()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    agrees(seeded(llama()).to(dtype), tolerance)


@pytest.mark.parametrize("size", ["grouped", "parallel"])
def test_litgpt(size: str) -> None:
    model = pytest.importorskip(
        "litgpt.model", reason=f"{APART} litgpt lightning lightning-utilities torchmetrics"
    )
    own = {"parallel_residual": True, "rotary_percentage": 0.25, "norm_class_name": "LayerNorm"}
    config = model.Config(
        block_size=CONTEXT, vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY, n_layer=2, n_head=4,
        n_embd=32, intermediate_size=48, bias=False,
        **({"n_query_groups": 2} if size == "grouped" else own),
    )  # fmt: skip
    agrees(seeded(model.GPT(config)))


def test_torchtune() -> None:
    models = pytest.importorskip(
        "torchtune.models.llama3", reason=f"{APART} torchtune torchao==0.5.0 datasets omegaconf"
    )
    model = models.llama3(
        vocab_size=VOCABULARY, num_layers=2, num_heads=4, num_kv_heads=2, embed_dim=32,
        max_seq_len=CONTEXT, intermediate_dim=48,
    )  # fmt: skip
    agrees(seeded(model))


def test_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft", reason=f"{APART} peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    agrees(seeded(peft.get_peft_model(llama(), config)))


@pytest.mark.parametrize("function", [qfpass.compile, qfpass.find])
def test_a_name_is_no_model(function: Callable[[Any], Any]) -> None:
    with pytest.raises(CaptureError, match=r"not its name 'gpt2': load it, .*from_pretrained\('gpt2'\)"):
        function("gpt2")


def test_one_text_is_no_list_of_texts() -> None:
    model = FAMILIES["llama"](layers=1)
    with pytest.raises(InputError, match=r"a list of texts, not one string"):
        qfpass.train(model, None, "a text")
    with pytest.raises(InputError, match=r"token ids, not text: give tokenizer\(text\)\.input_ids"):
        qfpass.calibrate(model, ["a text"])


def test_a_layer_is_no_list_of_layers() -> None:
    with pytest.raises(ConfigError, match=r"by number, such as \[0\], not 0"):
        qfpass.compile(FAMILIES["llama"](layers=1), ratio=8, skip_layers=0)  # type: ignore[arg-type]


def test_a_context_beyond_the_models_own_is_told() -> None:
    settings = {"budget": 16, "score": "recency", "backend": "eager"}
    with pytest.warns(UserWarning, match=r"is 10,000,000 tokens, but the model was made for 256"):
        qfpass.compile(FAMILIES["llama"](layers=1), context_length=10_000_000, **settings)
