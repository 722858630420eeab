"""What Prometheus reads at /metrics."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..answer import Answer
from ..observer import Observer
from ..scheduler import Scheduler

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)


class Metrics(Observer):
    """Counts what a scheduler does; give it as its `observer`, then `watch` the scheduler.

    Args:
        slots: keys that a head of a bounded layer holds; further tokens have evicted others.
    """

    def __init__(self, slots: int) -> None:
        self._slots, self._registry = slots, CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        seconds = partial(Histogram, registry=self._registry, buckets=_SECONDS)
        self._answers = counter("qfpass_answers", "Answers that have ended, by reason.", ["reason"])
        self._prompt = counter("qfpass_prompt_tokens", "Tokens of prompts.")
        self._cached = counter("qfpass_cached_tokens", "Tokens of prompts that had been read before.")
        self._written = counter("qfpass_completion_tokens", "Tokens of answers.")
        self._evicted = counter("qfpass_evicted_keys", "Keys evicted, a head of a bounded layer.")
        self._first = seconds("qfpass_time_to_first_token_seconds", "From request to first token.")
        self._next = seconds("qfpass_time_between_tokens_seconds", "Between tokens of an answer.")

    def watch(self, scheduler: Scheduler) -> None:
        """Tell a scheduler's rows, queue and bytes whenever they are read."""
        for name, text, value in (
            ("rows", "Rows of the pool.", lambda: scheduler.rows),
            ("rows_in_use", "Rows with a request.", lambda: scheduler.rows_in_use),
            ("queue", "Requests that wait for a row.", lambda: scheduler.waiting),
            ("kv_bytes", "Keys and values in memory: pool and kept sessions.", lambda: scheduler.nbytes),
            ("disk_bytes", "Kept sessions on disk.", lambda: scheduler.disk_nbytes),
        ):
            Gauge(f"qfpass_{name}", text, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self._registry)

    def first_token(self, seconds: float) -> None:
        """See `Observer`."""
        self._first.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """See `Observer`."""
        self._next.observe(seconds)

    def ended(self, answer: Answer, tokens_read: int) -> None:
        """See `Observer`."""
        cached = answer.cached_tokens or 0
        self._answers.labels(answer.finish_reason or "error").inc()
        self._prompt.inc(answer.prompt_tokens)
        self._cached.inc(cached)
        self._written.inc(len(answer.tokens))
        self._evicted.inc(max(0, tokens_read - max(cached, self._slots)))
