"""Datasets on the hub, in the place of a file: `owner/name`, or one split of it as `owner/name/split`."""

import re
from functools import cache
from pathlib import Path
from typing import cast

import datasets

from softlaunch.errors import DataError

# A dot stands before a number alone, as in v1.5: a misspelt file is then not looked for on the hub
_NAME = re.compile(r"(?P<name>[\w-]+/[\w-]+(\.\d[\w-]*)*)(/(?P<split>[\w-]+))?")


def hub_splits(name: str) -> dict[str, datasets.Dataset]:
    """The splits of a dataset on the hub; {} for what exists here or cannot be a name there.

    Raises DataError when there is no such dataset or it cannot be loaded.
    """
    found = _NAME.fullmatch(name)
    if Path(name).exists() or found is None or found["split"]:
        return {}
    return _load(name)


def hub_rows(path: Path) -> datasets.Dataset | None:
    """The rows of `owner/name/split`, or of `owner/name` if it has one split; None for what cannot be such a name.

    Raises DataError as `hub_splits`, and when it has no such split or several of them.
    """
    found = None if path.exists() else _NAME.fullmatch(path.as_posix())
    if found is None:
        return None
    splits = _load(found["name"])
    if found["split"] in splits:
        return splits[found["split"]]
    if len(splits) == 1 and not found["split"]:
        return next(iter(splits.values()))
    raise DataError(
        "{path} holds several splits: {splits}. Give one, such as {first}.",
        path=found["name"],
        splits=", ".join(splits),
        first=f"{found['name']}/{next(iter(splits))}",
    )


@cache
def _load(name: str) -> dict[str, datasets.Dataset]:
    try:
        return dict(cast(datasets.DatasetDict, datasets.load_dataset(name)))
    except Exception as error:  # whatever datasets, the hub's client and the network raise
        raise DataError(
            "{name}: no such file or directory, and no dataset of this name can be loaded from the hub: {error}",
            name=name,
            error=error,
        ) from error
