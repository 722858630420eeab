"""The server in replicas by Ray Serve; needs the extra `ray`.

Ray's router sends a conversation, which the header x-session-id names, to the replica that a consistent hash
of the name gives. Where that replica is gone another one takes it, and finds the conversation's sessions in
the folder that all replicas see.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..model.compiled_decoder import decoder_of
from .ray_ranks import run_by_ranks
from .scheduler import Scheduler
from .server.app import Served, build_app
from .server.metrics import Metrics

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"

Load = Callable[[], tuple[Any, Any, Served]]
"""Makes, in a replica, a compiled model, its tokenizer and what is served."""


def replicated(
    load: Load, *, folder: Path, rows: int = 16, memory: int | None = None, disk: int = 2**34,
    queue: int = 64, replicas: int | tuple[int, int] = 1, ranks: int = 1, **options: Any,
) -> Any:  # fmt: skip
    """The application for `ray.serve.run`.

    Args:
        folder: where sessions are kept, which all replicas must see.
        replicas: how many; or the fewest and the most, between which Ray chooses so that each replica has
            about as many requests as rows.
        ranks: processes of a replica, each an actor in a bundle of the replica's placement group. All call
            `load`, within torch's process group, for a model that is split over them: tp_plan="auto".
        options: of Ray's deployment, such as `ray_actor_options`.
    """
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    def build() -> Any:
        given = load() if ranks == 1 else run_by_ranks(load, ranks, options.get("ray_actor_options", {}))
        model, tokenizer, served = given
        metrics = Metrics(decoder_of(model).sizes.slots)
        scheduler = Scheduler(
            model,
            rows=rows,
            memory=memory,
            disk=disk,
            folder=folder,
            queue=queue,
            observer=metrics,
            warm_up=True,
        )
        return build_app(scheduler, tokenizer, served, metrics)

    number: dict[str, Any] = {"num_replicas": replicas}
    if not isinstance(replicas, int):
        fewest, most = replicas
        number = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=fewest, max_replicas=most, target_ongoing_requests=rows
            )
        }
    if ranks > 1:
        options = {"placement_group_bundles": [_bundle(options)] * ranks, **options}
    application = serve.ingress(build)()
    deployment = serve.deployment(
        application, name="qfpass", max_ongoing_requests=rows + queue,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER), **number, **options,
    )  # fmt: skip
    return deployment.bind()


def _bundle(options: dict[str, Any]) -> dict[str, float]:
    """What one process of a replica needs."""
    actor = options.get("ray_actor_options", {})
    needs = {"CPU": actor.get("num_cpus", 1), "GPU": actor.get("num_gpus", 0), **actor.get("resources", {})}
    return {name: number for name, number in needs.items() if number}
