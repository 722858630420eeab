"""A compiled model behind LitServe: `python examples/litserve_server.py MODEL`; needs `pip install litserve`.

LitServe brings its own routes, workers and limits; a scheduler in each worker answers its requests at once.
"""

import argparse
from collections.abc import AsyncIterator
from typing import Any

import litserve
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass.serving import Answer, Scheduler
from qfpass.serving.answer_text import AnswerText
from qfpass.serving.model_defaults import default_sampling, stop_tokens


class Completions(litserve.LitAPI):
    """POST /predict {"prompt": "...", "max_new_tokens": 100} streams {"text": "..."}."""

    def __init__(self, model: str, ratio: float, rows: int, **settings: Any) -> None:
        super().__init__(enable_async=True, stream=True)
        self._name, self._ratio, self._rows, self._settings = model, ratio, rows, settings

    def setup(self, device: str) -> None:
        """Compile the model in the worker."""
        self._tokenizer = AutoTokenizer.from_pretrained(self._name)
        model = AutoModelForCausalLM.from_pretrained(self._name).eval().to(device)
        compiled = qfpass.compile(model, ratio=self._ratio, **self._settings)
        self._stop, self._sampling = stop_tokens(compiled, self._tokenizer), default_sampling(compiled)
        self._scheduler = Scheduler(compiled, rows=self._rows, warm_up=True)

    async def decode_request(self, request: dict[str, Any]) -> Answer:
        """Ask the scheduler, which refuses what can't be answered."""
        ids = self._tokenizer(str(request["prompt"])).input_ids
        most = int(request.get("max_new_tokens", 100))
        return self._scheduler.submit(ids, self._sampling, max_new_tokens=most, stop=self._stop)

    async def predict(self, answer: Answer) -> AsyncIterator[str]:
        """The answer's text as it comes; a client that leaves cancels it."""
        text = AnswerText(self._tokenizer)
        try:
            async for token in answer:
                if piece := text.add(token):
                    yield piece
            if rest := text.finish():
                yield rest
        finally:
            answer.cancel()

    async def encode_response(self, pieces: AsyncIterator[str]) -> Any:  # LitServe makes a schema of it
        """One JSON object a piece."""
        async for piece in pieces:
            yield {"text": piece}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a folder or a hub name")
    parser.add_argument("--ratio", type=float, default=8.0)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    asked = parser.parse_args()
    api = Completions(asked.model, asked.ratio, asked.rows, backend=asked.backend)
    litserve.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=asked.port, generate_client_file=False
    )


if __name__ == "__main__":
    main()
