"""The lessons of a training, in memory or in files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import torch

from ..errors import FilterFileError
from ..waits import Wait
from .suffixes import Lesson


def lessons_in_memory(make: Callable[[int], Lesson], count: int, progress: bool) -> list[Lesson]:
    """Lessons 0 to `count`, made by `make`."""
    with Wait("reading lessons", shown=progress) as wait:
        return [make(number) for number in wait.count(range(count), count)]


class LessonsInFiles(Sequence[Lesson]):
    """Lessons 0 to `count` in files of a folder, so that memory holds those alone that are in use.

    A lesson holds the keys and values of all layers, so all of them may be larger than the model. Files that
    are there already, from a training that was interrupted, aren't made again.

    Raises:
        FilterFileError: the folder can't be written.
    """

    def __init__(self, folder: Path, make: Callable[[int], Lesson], count: int, progress: bool) -> None:
        self._folder, self._count = folder, count
        with Wait("reading lessons", shown=progress) as wait:
            for number in wait.count(range(count), count):
                if not self._file(number).is_file():
                    self._write(number, make(number))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Lesson: ...
    @overload
    def __getitem__(self, number: slice) -> list[Lesson]: ...
    def __getitem__(self, number: int | slice) -> Lesson | list[Lesson]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        return Lesson(**torch.load(self._file(number), weights_only=True))

    def _file(self, number: int) -> Path:
        return self._folder / f"lesson-{number}.pt"

    def _write(self, number: int, lesson: Lesson) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._file(number).with_suffix(".draft")
            torch.save(vars(lesson), draft)
            draft.replace(self._file(number))
        except (OSError, RuntimeError) as error:  # torch.save raises the latter for a full disk
            raise FilterFileError(
                f"The lessons can't be written ({error}): set QFPASS_CACHE to a folder with more space."
            ) from error
