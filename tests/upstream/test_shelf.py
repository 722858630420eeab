"""Nothing but the shelf reaches what is private in torch, transformers and huggingface_hub."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import qfpass
from qfpass import upstream
from qfpass.upstream.entry import ENTRIES, Needed, OnlyFast, name_of

PACKAGE = Path(qfpass.__file__).parent
SHELF = PACKAGE / "upstream"
THEIRS = ("torch", "transformers", "huggingface_hub")
# Public by name, but said to change from version to version.
UNSTABLE = {"experimental"}
OF_PYTHON = {"_fields", "_replace", "_asdict", "_abc_impl"}  # of named tuples and abstract classes

SOURCES = [file for file in sorted(PACKAGE.rglob("*.py")) if SHELF not in file.parents]


def is_private(name: str) -> bool:
    return (name.startswith("_") and not name.startswith("__")) or name in UNSTABLE


def private_imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] in THEIRS and any(map(is_private, parts)):
                yield node.lineno, name


def private_attributes(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    """Attributes with an underscore that no class or function of the package defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own | OF_PYTHON:
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            name = node.args[1]
            is_theirs = isinstance(name, ast.Constant) and name.value not in own | OF_PYTHON
            if is_theirs and is_private(str(name.value)):
                yield node.lineno, ast.unparse(node)


def defined(trees: list[ast.Module]) -> set[str]:
    """Every name that a class or a function of the package defines or sets on itself."""
    names = set[str]()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and getattr(node.value, "id", "") in ("self", "cls")
        ):
            names.add(node.attr)
    return names


def test_only_the_shelf_reaches_private_names() -> None:
    trees = {file: ast.parse(file.read_text()) for file in SOURCES}
    own = defined(list(trees.values()))
    found = [
        f"{file.relative_to(PACKAGE)}:{line}: {name}"
        for file, tree in trees.items()
        for line, name in (*private_imports(tree), *private_attributes(tree, own))
    ]
    assert not found, "move these to qfpass/upstream:\n" + "\n".join(found)


def test_the_walk_finds_what_is_private() -> None:
    tree = ast.parse(
        "import torch._dynamo\n"
        "from torch.fx.experimental import proxy_tensor\n"
        "from transformers.utils import _internal\n"
        "torch._C.f()\n"
        "node.target._schema\n"
        "getattr(config, '_attn')\n"
        "self._mine\n"
    )
    own = {"_mine"}
    lines = [line for line, _ in (*private_imports(tree), *private_attributes(tree, own))]
    assert sorted(lines) == [1, 2, 3, 4, 5, 6]


def test_only_the_shelf_takes_the_place_of_private_methods() -> None:
    """A class outside of it overrides no method of theirs whose name has an underscore."""
    found = []
    for file in SOURCES:
        name = ".".join(("qfpass", *file.relative_to(PACKAGE).with_suffix("").parts))
        try:
            module = importlib.import_module(name.removesuffix(".__init__"))
        except ModuleNotFoundError as error:
            if error.name == "triton":  # not in every environment; what imports it has no classes
                continue
            raise
        for made in vars(module).values():
            if not inspect.isclass(made) or made.__module__ != module.__name__:
                continue
            theirs = [base for base in made.__mro__[1:] if base.__module__.split(".")[0] in THEIRS]
            private = {each for base in theirs for each in vars(base) if is_private(each)} - OF_PYTHON
            found += [f"{name}.{made.__name__}.{each}" for each in private & vars(made).keys()]
    assert not found


def entries() -> list[Needed | OnlyFast]:  # type: ignore[type-arg]
    for module in pkgutil.iter_modules(upstream.__path__):
        importlib.import_module(f"qfpass.upstream.{module.name}")
    return ENTRIES


@pytest.mark.parametrize("entry", entries(), ids=name_of)
def test_every_entry_says_what_for_and_has_a_canary(entry: Needed | OnlyFast) -> None:  # type: ignore[type-arg]
    assert "Without it: " in (entry.__doc__ or ""), f"{name_of(entry)} doesn't say what happens without it"
    name, subject = entry.function.__name__, entry.function.__module__.rpartition(".")[2]
    canaries = (Path(__file__).parent / f"test_{subject}.py").read_text()
    assert f"def test_{name}" in canaries, f"tests/upstream/test_{subject}.py has no test_{name}..."
