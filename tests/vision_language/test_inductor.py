"""A vision-language model under Inductor: layers in turn, replayed steps."""

import torch
from vision import CONTEXT, VISION_LANGUAGE, seen

import qfpass


@torch.no_grad()
def test_inductor_reads_and_writes_what_the_eager_backend_does() -> None:
    original = VISION_LANGUAGE["llava"]()
    settings = {"budget": 16, "chunk": 8, "score": "recency", "context_length": CONTEXT}
    ids, image = seen("llava", 20)
    eager, model = (
        qfpass.compile(original, backend=backend, **settings) for backend in ("eager", "inductor")
    )
    expected, actual = (each(input_ids=ids, **image).logits for each in (eager, model))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    written = [
        each.generate(input_ids=ids, **image, max_new_tokens=12, do_sample=False).tolist()
        for each in (eager, model)
    ]
    assert written[1] == written[0]
    text_model = model.model.language_model
    embeddings = original.get_input_embeddings()(ids)
    torch.testing.assert_close(
        text_model(inputs_embeds=embeddings).last_hidden_state,
        eager.model.language_model(inputs_embeds=embeddings).last_hidden_state,
        atol=1e-4,
        rtol=1e-4,
    )
