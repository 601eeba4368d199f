"""The classes of a run: their names in a stable order, and which of them a row's label means."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from softlaunch.data.sources import BadRow
from softlaunch.errors import DataError
from softlaunch.messages import say


@dataclass(frozen=True)
class Classes:
    """Names of the classes by their number. `numbered`: a label may also be a class's number."""

    names: tuple[str, ...]
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def index(self, label: str) -> int | BadRow:
        """The number of the class that `label` means, or what is wrong with the label."""
        if label in self.names:
            return self.names.index(label)
        if self.numbered and label.isdigit() and int(label) < len(self):
            return int(label)
        near = get_close_matches(label, self.names, n=1, cutoff=0.5)  # one of two characters
        hint = say('{label!r}; did you mean "{near}"?', label=label, near=near[0]) if near else repr(label)
        if self.numbered:
            return BadRow("a class that neither the class file nor the model has", hint)
        return BadRow("a class that no training row has", hint)


def read_class_file(file: str, codec: str) -> Classes:
    """The classes in the order of the lines of `file`; raises DataError for a file that cannot be one."""
    path = Path(file)
    if not path.is_file():
        raise DataError("class_file {path} does not exist; it names one class on each line", path=path)
    try:
        names = [line.strip() for line in path.read_text(encoding=codec).rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError("{path} is not encoded as {codec}: set file_encoding", path=path, codec=codec) from error
    empty = [number for number, name in enumerate(names, start=1) if not name]
    if not names or empty:
        line = empty[0] if empty else 1
        raise DataError("{path}:{line} is empty; a class file names one class on each line", path=path, line=line)
    twice = [number for number, name in enumerate(names, start=1) if name in names[: number - 1]]
    if twice:
        name = names[twice[0] - 1]
        raise DataError("{path}:{line}: the class {name} is named twice", path=path, line=twice[0], name=name)
    return Classes(tuple(names), numbered=True)


def classes_of_labels(labels: Collection[str]) -> Classes:
    """The classes that occur, numbers by size and names by their characters."""
    names = set(labels)
    key = int if all(name.isascii() and name.removeprefix("-").isdigit() for name in names) else str
    return Classes(tuple(sorted(names, key=key)))


def check_class_file(file: str, classes: Classes, labels: Collection[str], path: Path) -> None:
    """Raise DataError when the labels of the training rows at `path` are numbers that `file` has too few lines for."""
    if all(label.isdigit() for label in labels) and not set(labels) <= set(classes.names):
        needed = max(int(label) for label in labels) + 1
        if needed > len(classes):
            raise DataError(
                "{file} names {lines} classes, but the labels of {path} go up to {largest}: {needed} lines are needed, "
                "the first of them for 0",
                file=file,
                lines=len(classes),
                path=path,
                largest=needed - 1,
                needed=needed,
            )


def check_number(classes: Classes, num_labels: int | None, source: str | Path) -> None:
    """Raise DataError when there is one class only, or not `num_labels` of them."""
    if len(classes) < 2:
        raise DataError(
            "{source} holds the single class {name}; there is nothing to tell apart. Set label_column to the column of "
            "the classes",
            source=source,
            name=classes.names[0],
        )
    if num_labels is not None and num_labels != len(classes):
        raise DataError(
            "num_labels is {asked}, but {source} has {found} classes: {names}. Leave num_labels out, or mend the data",
            asked=num_labels,
            source=source,
            found=len(classes),
            names=shorten(classes.names),
        )


def shorten(names: Sequence[str]) -> str:
    """The first names of a list, as text."""
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
