"""transformers' own processors for the tiny models in `vision`, with tokenizers of one token a word.

Those of Qwen2-VL, Pixtral and InternVL ask for torchvision, even where there is no video. Of Qwen2-VL there
is the image processor.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from vision import IMAGE, VISION_LANGUAGE

SIZE = {"height": 8, "width": 8}
TURNS = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def picture(seed: int = 0, height: int = 8, width: int = 8) -> Image.Image:
    """A picture of random colours."""
    colours = numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(colours)


def word_tokenizer(**special: str) -> Any:
    """One token a word `word-i`; special tokens get ids from `IMAGE` down, the first named is the image's."""
    words = {i: f"word-{i}" for i in range(1, IMAGE + 1)} | {0: "<unknown>"}
    words |= {IMAGE - i: word for i, word in enumerate(special.values())}
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in words.items()}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<unknown>", bos_token="word-1", extra_special_tokens=special
    )


def llava_processor() -> Any:
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=SIZE)
    return transformers.LlavaProcessor(
        pictures, word_tokenizer(image_token="<image>"), patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def _idefics3() -> Any:
    largest = {"longest_edge": 8}
    pictures = transformers.Idefics3ImageProcessor(
        size=largest, max_image_size=largest, do_image_splitting=False
    )
    special = {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
    }  # fmt: skip
    return transformers.Idefics3Processor(pictures, word_tokenizer(**special), image_seq_len=1)


def _qwen2_vl() -> Callable[..., dict[str, torch.Tensor]]:
    tokenizer, token = word_tokenizer(image_token="<image>"), "<image>"
    pictures = transformers.Qwen2VLImageProcessor(
        patch_size=2, temporal_patch_size=1, merge_size=2, size={"shortest_edge": 16, "longest_edge": 96}
    )

    def processed(text: str, images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        seen = pictures(images, return_tensors=return_tensors)
        tokens = int(seen["image_grid_thw"].prod()) // 4
        ids = tokenizer(text.replace(token, token * tokens), return_tensors=return_tensors).input_ids
        return {**seen, "input_ids": ids, "mm_token_type_ids": (ids == IMAGE).long()}

    return processed


PROCESSORS: dict[str, Callable[[], Callable[..., Any]]] = {
    "llava": llava_processor,
    "idefics3": _idefics3,
    "qwen2_vl": _qwen2_vl,
}
"""By family, what makes its processor, for texts in which <image> stands for an image."""


def save_with_processor(folder: Path) -> None:
    """LLaVA and its processor, with a chat template."""
    processor = llava_processor()
    processor.chat_template = TURNS
    processor.save_pretrained(folder)
    VISION_LANGUAGE["llava"]().save_pretrained(folder)
