"""`softlaunch classify RUN`: texts in, classes out, at a prompt, in a pipe or from a file."""

import argparse
import codecs
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from rich.console import Console

from softlaunch.data.text_encoding import codec_name
from softlaunch.errors import DataError
from softlaunch.evaluation.classify import Prediction, Text, TextClassifier, load_classifier
from softlaunch.messages import say

_QUIT = "q"
_BLOCK_BYTES = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "directory", metavar="RUN", help="output_dir of a run of recipes/classify.py, or a checkpoint in it"
    )
    parser.add_argument("--file", help="texts to classify, one on each line; of pairs, with a tab between the texts")
    parser.add_argument("--encoding", default="utf-8", help="encoding of the texts, such as gb18030 (%(default)s)")
    parser.add_argument("--base", help="where the base model is, if not where it was when the run was trained")
    parser.add_argument("--json", action="store_true", help="print JSON lines with the probability of every class")


def run(arguments: argparse.Namespace) -> None:
    """Print a line for each line of the input: class, probability, text, with tabs between them; no class for a line
    without text. What has arrived in a pipe is answered before more is read.
    """
    codec = codec_name(arguments.encoding, "--encoding")
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
        number = 1
        for arrived in _lines(cast(io.BufferedReader, lines), codec, name):
            texts = [_text_at(classify, line, name, number + index) for index, line in enumerate(arrived)]
            predictions = classify.stream(text for text in texts if text is not None)
            for text in texts:
                sys.stdout.write((write("", None) if text is None else write(text, next(predictions))) + "\n")
                sys.stdout.flush()
            number += len(arrived)


def _ask(classify: TextClassifier) -> None:
    console = Console(highlight=False, markup=False)
    console.print(
        say("classes: {names}. A text, or {quit} to end:", names=", ".join(classify.classes), quit=_QUIT),
        soft_wrap=True,
    )
    while True:
        try:
            line = console.input("> ").strip()
        except UnicodeDecodeError:
            line = "\udcff"  # said below, as where the terminal's encoding lets such bytes through
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


def _lines(stream: io.BufferedReader, codec: str, name: str) -> Iterator[Sequence[str]]:
    """The lines that have arrived, again and again up to the end. Raises DataError for what `codec` cannot decode."""
    decoder = codecs.getincrementaldecoder(codec)()
    begun, number = "", 1
    while True:
        block = stream.read1(_BLOCK_BYTES)
        try:
            text = begun + decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            good = error.object[: error.start].decode(codec, errors="replace")
            line = number + good.count("\n")
            raise DataError(
                "{path}:{line}: this is not {codec} ({error}); name the encoding, as in --encoding gb18030",
                path=name,
                line=line,
                codec=codec.removesuffix("-sig"),
                error=error.reason,
            ) from error
        *whole, begun = text.split("\n")
        if not block and begun:
            whole = [begun]
        if whole:
            yield [line.removesuffix("\r") for line in whole]
        if not block:
            return
        number += len(whole)


def _text_at(classify: TextClassifier, line: str, name: str, number: int) -> Text | None:
    """The text of a line, None where there is none; raises DataError for what cannot be one."""
    if not line.strip():
        return None
    try:
        text = _text(line, pairs=classify.pairs)
        classify.checked(text)
    except DataError as error:
        raise DataError("{path}:{line}: {error}", path=name, line=number, error=error) from error
    return text


def _text(line: str, *, pairs: bool) -> Text:
    if not pairs:
        return line
    first, tab, second = line.partition("\t")
    if not tab:
        raise DataError("this classifier was trained on pairs of texts: put a tab between the two")
    return first, second


def _plain_line(text: Text, prediction: Prediction | None) -> str:
    shown = text if isinstance(text, str) else "\t".join(text)
    return f"{prediction.label}\t{prediction.probability:.4f}\t{shown}" if prediction else f"\t\t{shown}"


def _json_line(text: Text, prediction: Prediction | None) -> str:
    record = {
        "text": text,
        "predict": prediction and prediction.label,
        "probability": prediction and round(prediction.probability, 6),
        "probabilities": prediction and {name: round(share, 6) for name, share in prediction.probabilities.items()},
    }
    return json.dumps(record, ensure_ascii=False)
