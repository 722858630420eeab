"""AOTInductor: compile an exported program to a file ahead of time, and run that file without a compiler."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from .entry import Needed

Weights = Mapping[str, torch.Tensor]


@Needed
def compile_package(program: torch.export.ExportedProgram, file: Path, options: Mapping[str, Any]) -> None:
    """Write the compiled program to `file`, which ends in .pt2; its weights stay outside.

    Without it: nothing can be exported.
    """
    from torch._inductor import aoti_compile_and_package

    config = {**options, "aot_inductor.package_constants_in_so": False}
    with warnings.catch_warnings():  # torch warns of what it uses itself
        warnings.simplefilter("ignore", FutureWarning)
        aoti_compile_and_package(program, package_path=str(file), inductor_configs=config)


@Needed
def traced_size(count: torch.Tensor, most: int) -> Any:
    """The number in a tensor [], which a trace takes as any size from 0 to `most`.

    Without it: nothing can be exported.
    """
    size = count.item()
    torch._check(size >= 0)
    torch._check(size <= most)
    return size


class LoadedPackage:
    """A compiled program that is called with the inputs of its module, and its weights' names."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self._outputs = pytree.treespec_loads(loader.get_call_spec()[1])
        self.weight_names: Sequence[str] = loader.get_constant_fqns()

    def read_weights_from(self, weights: Weights) -> None:
        """Read these tensors in place from now on; the caller keeps them."""
        self._loader.load_constants(dict(weights), False, True, True)

    def __call__(self, *inputs: Any) -> Any:
        """The program's output."""
        tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        return pytree.tree_unflatten(self._loader.run(tensors), self._outputs)


@Needed
def load_package(file: Path, device: torch.device) -> LoadedPackage:
    """The compiled program in `file`, on `device`; it needs its weights before it can run.

    torch's own `aoti_load_package` first tries which vector instructions Inductor could compile for, which
    takes seconds and a compiler, and it reads the program's signature again in each call.

    Without it: nothing that was exported can be loaded.
    """
    index = -1 if device.index is None else device.index
    return LoadedPackage(torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, index))
