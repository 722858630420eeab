"""The order of the rooms: each imports only rooms that stand before it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import qfpass

PACKAGE = Path(qfpass.__file__).parent
# From the bottom up. Rooms of one line know nothing of each other.
ROOMS = (
    {"errors", "code_digest", "sizes", "waits"},
    {"switches"},
    {"upstream"},
    {"graph", "kernels"},
    {"store", "normalize", "attention", "regions"},
    {"capture", "rewriting"},
    {"filters"},
    {"config", "training", "machine"},
    {"sessions", "choose_filters", "layer_rules", "proof", "attention_pass"},
    {"choose_store", "ends"},
    {"lowering", "plan"},
    {"decoder"},
    {"packages"},
    {"model"},
    {"vision_language"},
    {"pipeline", "reporting", "load_exported"},
    {"serving"},
    {"torch_backend", "tools"},
    {"__init__", "__main__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def room_of(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imported(file: Path) -> Iterator[str]:
    """The rooms that a file imports, wherever the import stands in it."""
    inside = file.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = inside[: len(inside) - node.level]
            path = (*folder, *(node.module.split(".") if node.module else ()))
            names = [path] if path else [(alias.name,) for alias in node.names]
            yield from (name[0] for name in names)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            assert not any(name.split(".")[0] == "qfpass" for name in names), f"{file}: import relatively"


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_a_room_imports_only_those_before_it(room: str) -> None:
    files = (
        [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else [*(PACKAGE / room).rglob("*.py")]
    )
    assert files, f"{room} is no room any more"
    upward = {
        f"{file.relative_to(PACKAGE)} imports {other}"
        for file in files
        for other in imported(file)
        if other != room and FLOOR[other] >= FLOOR[room]
    }
    assert upward == set()


def test_every_file_stands_in_a_room() -> None:
    assert {room_of(file.relative_to(PACKAGE).parts) for file in PACKAGE.rglob("*.py")} == set(FLOOR)


def test_no_class_name_stands_twice() -> None:
    seen = dict[str, Path]()
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in seen, f"{node.name} stands in {seen[node.name]} and in {file}"
                seen[node.name] = file


def test_no_public_name_is_also_a_module() -> None:
    modules = {file.stem for file in PACKAGE.iterdir() if file.suffix == ".py" or file.is_dir()}
    assert modules.isdisjoint(qfpass.__all__)
