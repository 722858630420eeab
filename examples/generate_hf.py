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

    session, ids = model.session(), torch.empty(1, 0, dtype=torch.long)
    chat: list[dict[str, str]] = []
    for question in ("Name three uses of a paper clip.", "Which of them is the oldest?"):
        said = chat[-1]["content"] if chat else ""
        chat.append({"role": "user", "content": question})
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        # What follows the last answer, whose ids stay as the model wrote them.
        text = text.rpartition(said)[2] if said else text
        new = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        ids = torch.cat([ids, new], dim=1)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        out = model.generate(
            ids, past_key_values=session, max_new_tokens=80, do_sample=False, streamer=streamer
        )
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
        chat.append({"role": "assistant", "content": answer})
        ids = out[:, :-1] if out[0, -1] == tokenizer.eos_token_id else out
    print(session)


if __name__ == "__main__":
    main()
