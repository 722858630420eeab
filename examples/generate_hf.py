"""Generate with transformers' own `generate` from a compiled model, and go on in the same session."""

import torch
from assets import weights_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

import qfpass


def main() -> None:
    """One answer with a streamer, then a second turn on the same session."""
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    model = qfpass.compile(model, ratio=8, backend="eager")

    session = model.session()
    chat: list[dict[str, str]] = []
    for question in ("Name three uses of a paper clip.", "Which of them is the oldest?"):
        chat.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        out = model.generate(
            ids, past_key_values=session, max_new_tokens=80, do_sample=False, streamer=streamer
        )
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        chat.append({"role": "assistant", "content": answer})
    print(session)


if __name__ == "__main__":
    main()
