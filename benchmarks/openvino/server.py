"""OpenVINO GenAI behind what `benchmarks/serving.py` uses of OpenAI's API: server.py GGUF PORT [SLOTS]

Its continuous batching with the prefix cache; with SLOTS also its cache eviction, at so many tokens a
sequence, a multiple of 32. It has no server of its own on PyPI. One thread steps the pipeline, which requests
join.
"""

import json
import sys
import threading
from collections.abc import Iterator
from queue import Queue

import openvino_genai as genai
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

gguf, port, slots = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None
scheduling = genai.SchedulerConfig()
scheduling.cache_size = 4  # GiB, more than eight texts of 8,192 tokens need
scheduling.enable_prefix_caching = True
scheduling.max_num_batched_tokens = 512
if slots:
    scheduling.use_cache_eviction = True
    start, recent = 32, slots // 2 // 32 * 32
    scheduling.cache_eviction_config = genai.CacheEvictionConfig(
        start, recent, slots, genai.AggregationMode.NORM_SUM
    )
pipeline = genai.ContinuousBatchingPipeline(gguf, scheduling, "CPU")
tokenizer = pipeline.get_tokenizer()
working, number = threading.Condition(), 0
waiting: list[tuple[int, list[dict[str, str]], int, "Queue[list[int] | None]"]] = []


def step_forever() -> None:
    running = {}
    while True:
        with working:
            while not waiting and not running:
                working.wait()
            joining, waiting[:] = list(waiting), []
        for key, messages, tokens, written in joining:
            prompt = tokenizer.apply_chat_template(messages, True)
            settings = genai.GenerationConfig(max_new_tokens=tokens, do_sample=False)
            settings.set_eos_token_id(tokenizer.get_eos_token_id())
            ids = tokenizer.encode(prompt, add_special_tokens=False).input_ids
            running[key] = pipeline.add_request(key, ids, settings), written
        pipeline.step()
        for key, (handle, written) in list(running.items()):
            while handle.can_read():
                for output in handle.read().values():
                    written.put(list(output.generated_ids))
            if handle.get_status() != genai.GenerationStatus.RUNNING:
                written.put(None)
                del running[key]


def events(written: "Queue[list[int] | None]") -> Iterator[str]:
    ids, sent = [], ""
    while (more := written.get()) is not None:
        ids += more
        text = tokenizer.decode(ids)
        piece, sent = text[len(sent) :], text
        yield said({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
    usage = {"prompt_tokens": 0, "completion_tokens": len(ids), "total_tokens": len(ids)}
    yield said({"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def said(event: dict[str, object]) -> str:
    whole = {"id": "answer", "object": "chat.completion.chunk", "created": 0, "model": "openvino", **event}
    return f"data: {json.dumps(whole)}\n\n"


async def chat(request: Request) -> Response:
    global number
    asked = await request.json()
    written: Queue[list[int] | None] = Queue()
    with working:
        number += 1
        waiting.append((number, asked["messages"], asked["max_tokens"], written))
        working.notify()
    return StreamingResponse(iterate_in_threadpool(events(written)), media_type="text/event-stream")


async def models(request: Request) -> Response:
    one = {"id": "openvino", "object": "model", "created": 0, "owned_by": "openvino"}
    return JSONResponse({"object": "list", "data": [one]})


async def metrics(request: Request) -> Response:
    return Response("")


routes = [
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/models", models),
    Route("/metrics", metrics),
]
threading.Thread(target=step_forever, daemon=True).start()
uvicorn.run(Starlette(routes=routes), port=port, log_level="warning")
