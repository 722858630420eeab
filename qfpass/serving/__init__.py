"""Many conversations served over one compiled model, in a memory known before the first token.

scheduler: Scheduler, a thread that owns a pool. live_rows: the requests in the pool's rows. request, answer:
one request, and its stream of tokens. check_request: what is refused. sampling: how tokens are chosen.
kept_sessions, session_files: conversations kept for their next turn, in memory and on disk. observer: what
metrics are made of. conversation: messages as token ids. answer_text: tokens as text. model_defaults: what a
model states itself. ray: replicas by Ray Serve; ray_ranks: one of several processes; follow: how these make
the same calls.
"""

from .answer import Answer
from .observer import Observer
from .sampling import Sampling
from .scheduler import Scheduler

__all__ = ["Answer", "Observer", "Sampling", "Scheduler"]
