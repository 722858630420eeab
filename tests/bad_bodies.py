"""Bodies of requests, good ones and malformed ones."""

import json
from typing import Any

from served_chat import NAME

GOOD = {"model": NAME, "prompt": "abc", "max_tokens": 4}
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "abc"}], "max_tokens": 4}

MALFORMED: list[tuple[str, Any]] = [
    ("/v1/completions", b""),
    ("/v1/completions", b"{"),
    ("/v1/completions", b"\xff\xfe"),
    ("/v1/completions", b"[" * 15_000),
    ("/v1/completions", b'{"model": "tiny", "prompt": "\\ud800"}'),
    ("/v1/completions", b'{"model": "tiny", "prompt": "a", "temperature": NaN}'),
    ("/v1/completions", b'{"model": "tiny", "prompt": "a", "temperature": 1e999}'),
    ("/v1/completions", b'{"model": "tiny", "prompt": "a", "seed": 1' + b"0" * 5000 + b"}"),
    ("/v1/completions", [1, 2]),
    ("/v1/completions", None),
    ("/v1/completions", {**GOOD, "prompt": ""}),
    ("/v1/completions", {**GOOD, "prompt": []}),
    ("/v1/completions", {**GOOD, "prompt": ["a", "b"]}),
    ("/v1/completions", {**GOOD, "prompt": [10**9]}),
    ("/v1/completions", {**GOOD, "prompt": [10**30]}),
    ("/v1/completions", {**GOOD, "prompt": [-1]}),
    ("/v1/completions", {**GOOD, "max_tokens": 0}),
    ("/v1/completions", {**GOOD, "max_tokens": "many"}),
    ("/v1/completions", {**GOOD, "n": 2}),
    ("/v1/completions", {**GOOD, "best_of": 3}),
    ("/v1/completions", {**GOOD, "logprobs": 3}),
    ("/v1/completions", {**GOOD, "temperature": -1}),
    ("/v1/completions", {**GOOD, "top_p": 7}),
    ("/v1/completions", {**GOOD, "top_k": 2**40}),
    ("/v1/completions", {**GOOD, "seed": 2**70}),
    ("/v1/completions", {**GOOD, "stop": ["a"] * 5}),
    ("/v1/completions", {**GOOD, "stop": [""]}),
    ("/v1/completions", {**GOOD, "stop": "a" * 300}),
    ("/v1/completions", {**GOOD, "logit_bias": {"x": 1}}),
    ("/v1/completions", {**GOOD, "logit_bias": {"9999": 1}}),
    ("/v1/completions", {**GOOD, "trust_remote_code": True}),
    ("/v1/completions", {**GOOD, "generation_config": "/etc/passwd"}),
    ("/v1/chat/completions", {**CHAT, "messages": []}),
    ("/v1/chat/completions", {**CHAT, "messages": ["hello"]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{}]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": 3, "content": "a"}]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "nobody", "content": "a"}]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": 3}]}),
    ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": {"a": 1}}]}),
    ("/v1/chat/completions", {**CHAT, "tools": ["x"]}),
    ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function"}] * 200}),
    ("/v1/chat/completions", {**CHAT, "tool_choice": "required"}),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}),
    ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}),
    ("/v1/chat/completions", {**CHAT, "chat_template_kwargs": {"tokenize": True}}),
    ("/v1/chat/completions", {**CHAT, "chat_template": "{{ 1 }}"}),
]  # fmt: skip


def sent(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()
