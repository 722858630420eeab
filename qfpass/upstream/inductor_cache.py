"""Inductor's cache folder."""

from pathlib import Path

from .entry import only_fast

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # the environment variable that names it


def _none() -> Path | None:
    return None


@only_fast("capture_cache", plain=_none)
def cache_folder() -> Path | None:
    """The folder in which Inductor caches what it compiles; None if its caches are turned off.

    Without it: no graph is kept between processes.
    """
    from torch._inductor import config  # imports Inductor
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) if config.fx_graph_cache and not config.force_disable_caches else None
