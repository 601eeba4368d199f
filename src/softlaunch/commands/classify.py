"""`softlaunch classify RUN`: texts in, classes out, at a prompt, in a pipe or from a file."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from softlaunch.errors import DataError
from softlaunch.evaluation.classify import Prediction, Text, TextClassifier, load_classifier
from softlaunch.messages import say

_QUIT = "q"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "directory", metavar="RUN", help="output_dir of a run of recipes/classify.py, or a checkpoint in it"
    )
    parser.add_argument("--file", help="texts to classify, one on each line; of pairs, with a tab between the texts")
    parser.add_argument("--base", help="where the base model is, if not where it was when the run was trained")
    parser.add_argument("--json", action="store_true", help="print JSON lines with the probability of every class")


def run(arguments: argparse.Namespace) -> None:
    """Print a line for each text: class, probability, text, with tabs between them."""
    file = Path(arguments.file) if arguments.file else None
    if file is not None and not file.is_file():  # before the model is loaded
        raise DataError("there is no file {path}", path=file)
    classify = load_classifier(arguments.directory, base=arguments.base)
    if file is None and sys.stdin.isatty():
        _ask(classify)
        return
    write = _json_line if arguments.json else _plain_line
    name = str(file) if file else "stdin"
    with file.open("rb") if file else sys.stdin.buffer as lines:
        texts = list(_texts(lines.read(), name, pairs=classify.pairs))
    for text, prediction in zip(texts, classify.stream(texts), strict=True):
        sys.stdout.write(write(text, prediction) + "\n")
        sys.stdout.flush()


def _ask(classify: TextClassifier) -> None:
    console = Console(highlight=False, markup=False)
    console.print(
        say("classes: {names}. A text, or {quit} to end:", names=", ".join(classify.classes), quit=_QUIT),
        soft_wrap=True,
    )
    while True:
        try:
            line = console.input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == _QUIT:
            return
        try:
            if line:
                prediction = classify(_text(line, pairs=classify.pairs))
                console.print(f"{prediction.label}  {prediction.probability:.4f}", style="bold")
        except DataError as error:
            console.print(str(error), style="red")


def _texts(content: bytes, name: str, *, pairs: bool) -> Iterator[Text]:
    """Every line that is not empty; raises DataError for what cannot be one."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("{path}: the texts are not UTF-8: {error}", path=name, error=error) from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _text(line, pairs=pairs)
            except DataError as error:
                raise DataError("{path}:{line}: {error}", path=name, line=number, error=error) from error


def _text(line: str, *, pairs: bool) -> Text:
    if not pairs:
        return line
    first, tab, second = line.partition("\t")
    if not tab:
        raise DataError("this classifier was trained on pairs of texts: put a tab between the two")
    return first, second


def _plain_line(text: Text, prediction: Prediction) -> str:
    shown = text if isinstance(text, str) else "\t".join(text)
    return f"{prediction.label}\t{prediction.probability:.4f}\t{shown}"


def _json_line(text: Text, prediction: Prediction) -> str:
    record = {
        "text": text,
        "predict": prediction.label,
        "probability": round(prediction.probability, 6),
        "probabilities": {name: round(share, 6) for name, share in prediction.probabilities.items()},
    }
    return json.dumps(record, ensure_ascii=False)
