"""Finds out whether Inductor supports vector instructions of this CPU."""

from .entry import only_fast


@only_fast("own_loops", plain=lambda: False)
def has_vectors() -> bool:
    """Whether Inductor supports vector instructions of this CPU, which our loops need.

    Without it: Inductor's own kernels run.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return bool(pick_vec_isa())
