"""Tiny vision-language models with random weights, and texts with images for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

IMAGE, VOCABULARY, CONTEXT, EMBED = 60, 61, 192, 32


class Seen(NamedTuple):
    """Ids [1, S] with an image's tokens among them, and the arguments that carry the image."""

    ids: torch.Tensor
    image: dict[str, torch.Tensor]


def text_config(kind: str = "llama", **settings: Any) -> dict[str, Any]:
    return {
        "model_type": kind, "vocab_size": VOCABULARY, "hidden_size": EMBED, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": CONTEXT, "initializer_range": 0.2, "pad_token_id": 0,
        "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False,
    } | settings  # fmt: skip


VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4, "initializer_range": 0.2,
}  # fmt: skip


def _built(kind: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **settings))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def _llava(kind: str, text: str = "llama", vision: str = "clip_vision_model", **more: Any) -> nn.Module:
    vision_config = {**VISION, "model_type": vision}
    chosen: dict[str, Any] = {
        "image_token_index": IMAGE, "image_token_id": IMAGE, "image_seq_length": 4,
        "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
    }  # fmt: skip
    return _built(kind, text_config=text_config(text), vision_config=vision_config, **(chosen | more))


def _idefics(kind: str, vision: str) -> nn.Module:
    return _built(
        kind, text_config=text_config(), vision_config={**VISION, "model_type": vision},
        image_token_id=IMAGE, scale_factor=2,
    )  # fmt: skip


def _internvl() -> nn.Module:
    vision = {
        **VISION, "model_type": "internvl_vision", "image_size": [8, 8], "patch_size": [2, 2],
        "use_absolute_position_embeddings": True,
    }  # fmt: skip
    return _built(
        "internvl", text_config=text_config("qwen2"), vision_config=vision, image_token_id=IMAGE,
        image_seq_length=4, downsample_ratio=0.5, vision_feature_layer=-1,
    )  # fmt: skip


def _qwen(kind: str) -> nn.Module:
    vision = {
        "depth": 1, "embed_dim": 16, "hidden_size": EMBED if kind == "qwen2_vl" else 16, "num_heads": 2,
        "mlp_ratio": 1, "patch_size": 2, "temporal_patch_size": 1, "spatial_merge_size": 2,
        "out_hidden_size": EMBED, "intermediate_size": 16, "window_size": 8, "fullatt_block_indexes": [0],
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, "type": "mrope"}
    text = text_config(f"{kind}_text", rope_parameters=rope, rope_scaling=rope)
    return _built(
        kind, text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=59,
        vision_start_token_id=58, vision_end_token_id=57,
    )  # fmt: skip


VISION_LANGUAGE: dict[str, Callable[[], nn.Module]] = {
    "llava": lambda: _llava("llava", vision_feature_select_strategy="default"),
    "vipllava": lambda: _llava("vipllava", vision_feature_layers=[-1, -1]),
    "aya_vision": lambda: _llava("aya_vision", "cohere2", "siglip_vision_model", downsample_factor=1),
    "mistral3": lambda: _llava("mistral3", "mistral", "pixtral", spatial_merge_size=1),
    "idefics3": lambda: _idefics("idefics3", "idefics3_vision"),
    "smolvlm": lambda: _idefics("smolvlm", "smolvlm_vision"),
    "internvl": _internvl,
    "qwen2_vl": lambda: _qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: _qwen("qwen2_5_vl"),
    "gemma3": lambda: _llava("gemma3", "gemma3_text", "siglip_vision_model", mm_tokens_per_image=4),
    "paligemma": lambda: _llava("paligemma", "gemma", "siglip_vision_model", projection_dim=EMBED),
}


def seen(family: str, length: int = 30, seed: int = 0, start: int = 5) -> Seen:
    """Random ids [1, length] with an image at `start`, and the image."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (1, length), generator=generator)
    pixels = torch.randn(1, 3, 8, 8, generator=generator)
    tokens, image = 4, {"pixel_values": pixels}
    if family in ("idefics3", "smolvlm"):
        tokens, image = 1, {"pixel_values": pixels[None]}
    elif family == "mistral3":
        image |= {"image_sizes": torch.tensor([[8, 8]])}
    elif family.startswith("qwen"):
        tokens = 6
        grid = torch.tensor([[1, 4, 6]])
        patches = torch.randn(24, 3 * 2 * 2, generator=generator)
        kinds = torch.zeros_like(ids)
        kinds[:, start : start + tokens] = 1
        image = {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": kinds}
    elif family in ("gemma3", "paligemma"):
        kinds = torch.zeros_like(ids)
        kinds[:, start : start + tokens] = 1
        image |= {"token_type_ids": kinds}
    ids[:, start : start + tokens] = IMAGE
    return Seen(ids, image)
