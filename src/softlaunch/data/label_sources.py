"""Where the rows of a classification run come from: files, and the splits of a `datasets` directory or hub name."""

from dataclasses import dataclass
from pathlib import Path

import datasets

from softlaunch.arguments import Arguments, DataArguments
from softlaunch.data.hub import hub_rows, hub_splits
from softlaunch.data.labelled import LabelledRow
from softlaunch.data.sources import place
from softlaunch.errors import DataError

_OTHER_NAMES = {"validation": ("validation", "valid", "dev"), "test": ("test",), "train": ("train",)}


@dataclass(frozen=True)
class Source:
    """A file or directory, or one `split` of a dataset, which is then given whole."""

    path: Path
    split: datasets.Dataset | None = None

    def __str__(self) -> str:
        return str(self.path)

    def place(self, row: LabelledRow) -> str:
        """`file:line` of a row."""
        return place(self.path, row.number)

    def class_names(self, column: str) -> list[str] | None:
        """The names of the classes, if the dataset itself knows them."""
        saved = (self.path / "state.json").is_file()
        rows = datasets.load_from_disk(str(self.path)) if saved else self.split
        features = getattr(hub_rows(self.path) if rows is None else rows, "features", {})
        kind = features.get(column)
        return kind.names if isinstance(kind, datasets.ClassLabel) else None


def find_sources(arguments: Arguments) -> dict[str, Source]:
    """The source of every step (train, validation, test) that the run takes and that has one.

    A dataset with splits, given as train_file, serves all steps for which no file is given. Without validation rows
    anywhere there is no source for them: they are held out of the training rows, which are then read for it too.

    Raises DataError when a hub name cannot be loaded, or when there are no test rows.
    """
    data, training = arguments.data, arguments.training
    splits = _splits(data.train_file) if data.train_file else {}
    sources = {}
    if training.do_eval and data.validation_file:
        sources["validation"] = Source(Path(data.validation_file))
    elif training.do_eval and "validation" in splits:
        sources["validation"] = splits["validation"]
    if training.do_predict and data.test_file:
        sources["test"] = Source(Path(data.test_file))
    elif training.do_predict:
        if "test" not in splits:
            raise DataError("do_predict needs test_file: {path} has no test split", path=data.train_file)
        sources["test"] = splits["test"]
    if data.train_file and (training.do_train or (training.do_eval and "validation" not in sources)):
        if splits and "train" not in splits:
            raise DataError(
                "{path} has no train split; its splits are: {names}", path=data.train_file, names=", ".join(splits)
            )
        sources = {"train": splits.get("train", Source(Path(data.train_file))), **sources}
    return sources


def find_source(data: DataArguments, step: str) -> Source | None:
    """The source of a step if there is one, whether the run takes it or not. Raises DataError as `find_sources`."""
    splits = _splits(data.train_file) if data.train_file else {}
    file = getattr(data, f"{step}_file")
    return Source(Path(file)) if file and not (splits and step == "train") else splits.get(step)


def _splits(name: str) -> dict[str, Source]:
    """The splits of what `DatasetDict.save_to_disk` wrote or of a dataset on the hub; {} for anything else."""
    path = Path(name)
    if (path / "dataset_dict.json").is_file():
        return _by_step({folder.name: Source(folder) for folder in path.iterdir() if folder.is_dir()})
    return _by_step({split: Source(Path(f"{name}/{split}"), rows) for split, rows in hub_splits(name).items()})


def _by_step(splits: dict[str, Source]) -> dict[str, Source]:
    found = {step: [splits[n] for n in names if n in splits] for step, names in _OTHER_NAMES.items()}
    return {step: sources[0] for step, sources in found.items() if sources}
