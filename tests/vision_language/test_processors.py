"""What transformers' own processors give, on sessions, against the original."""

import pytest
import torch
from vision import CONTEXT, IMAGE, VISION_LANGUAGE
from vision_processors import PROCESSORS, picture

import qfpass


@pytest.mark.parametrize("family", PROCESSORS)
@torch.no_grad()
def test_what_a_processor_gives_is_read_as_by_the_original(family: str) -> None:
    original = VISION_LANGUAGE[family]()
    model = qfpass.compile(original, backend="eager", context_length=CONTEXT)
    processor, text = PROCESSORS[family](), "<image> word-7 word-8 word-9"
    given = processor(text=text, images=picture(), return_tensors="pt")
    assert (given["input_ids"] == IMAGE).any() and "pixel_values" in given
    expected = original(**given).logits
    torch.testing.assert_close(model(**given).logits, expected, atol=1e-4, rtol=1e-4)
    other = processor(text=text, images=picture(1), return_tensors="pt")
    assert not torch.allclose(original(**other).logits, expected, atol=1e-3)  # so the image matters
    written = [each.generate(**given, max_new_tokens=30, do_sample=False) for each in (original, model)]
    assert written[1].tolist() == written[0].tolist()
