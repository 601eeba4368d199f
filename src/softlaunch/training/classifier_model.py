"""The classifier of a run: a new one of the method that is asked for, or one that was trained before."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softlaunch.arguments import Arguments
from softlaunch.arguments.methods import chosen_methods
from softlaunch.data.classes import read_class_file, shorten
from softlaunch.data.text_encoding import codec_name
from softlaunch.errors import ArgumentError, CheckpointError, DataError
from softlaunch.models.encoder import load_base_encoder
from softlaunch.models.load import read_config
from softlaunch.tuning.classifier import (
    METHODS,
    WHOLE_MODELS,
    ClassifierSettings,
    add_method,
    find_classifier,
    load_trained,
    read_settings,
)
from softlaunch.tuning.own_settings import check_own_settings


def choose_method(arguments: Arguments) -> str:
    """What the run trains or has trained: that of the classifier that it starts from, else what its options ask for.

    Raises ArgumentError for two methods at once, CheckpointError when `adapter` holds no classifier.
    """
    trained = _trained(arguments)
    found = trained and read_settings(trained)
    if found:
        return found[0].method
    methods = chosen_methods(arguments, METHODS)
    if len(methods) > 1:
        raise ArgumentError(
            "classifiers take one method at a time: set tuning to one of {names}", names=", ".join(methods)
        )
    return methods[0]


def trained_classes(arguments: Arguments) -> list[str] | None:
    """The classes of the model that the run starts from, in their order; None when the data are to tell them.

    Raises DataError when `class_file` names others.
    """
    trained, asked = _trained(arguments), arguments.classification.class_file
    in_file = list(read_class_file(asked, codec_name(arguments.data.file_encoding)).names) if asked else None
    found = trained and read_settings(trained)
    if found:
        names = found[1]
    elif arguments.training.do_train:
        return None
    else:
        config = read_config(arguments.model.model_name_or_path, **arguments.model.hub)
        labels = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
        names = in_file or [labels[number] for number in sorted(labels, key=int)]
    if in_file and in_file != names:
        raise DataError(
            "class_file {file} names {asked}, but the model tells apart {found}: leave class_file out, or train anew",
            file=asked,
            asked=shorten(in_file),
            found=shorten(names),
        )
    return names


def load_classifier_model(arguments: Arguments, method: str, names: Sequence[str]) -> tuple[Any, ClassifierSettings]:
    """The model of the run, with only that trainable which `method` trains, and what is saved with it.

    Raises CheckpointError for a model without a head where nothing is trained, and for what was made for another base.
    """
    trained, trains = _trained(arguments), arguments.training.do_train
    whole = trained if method in WHOLE_MODELS else None
    base = load_base_encoder(
        arguments,
        names,
        path=None if whole is None else str(whole),
        must_be_trained=not trains and (trained is None or whole is not None),
        will_be_loaded=trained is not None and whole is None,
    )
    settings = ClassifierSettings(
        method=method,
        base=arguments.model.model_name_or_path,
        max_length=arguments.data.max_source_length,
        pairs=arguments.classification.text_pair_column is not None,
        head=base.head,
    )
    if trained is not None and whole is None:
        check_own_settings(arguments, trained)
        return load_trained(base.model, trained, trainable=trains), settings
    return (add_method(base.model, base.head, method, arguments.tuning) if trains else base.model), settings


def _trained(arguments: Arguments) -> Path | None:
    """The directory of the classifier that the run starts from: `adapter`, or without training what it has left."""
    asked = arguments.tuning.adapter
    if asked is None and arguments.training.do_train:
        return None
    found = find_classifier(asked or str(arguments.training.output_dir))
    if asked is not None and found is None:
        raise CheckpointError("{path}: there is no trained classifier here, in adapter/ or in model/", path=asked)
    return found
