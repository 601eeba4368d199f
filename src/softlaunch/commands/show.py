"""`softlaunch show RUN.json`: the rows of a run as its model sees them. The weights are not loaded."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from softlaunch.arguments import ClassificationArguments, DataArguments, ModelArguments, parse_to_look
from softlaunch.data.classes import Classes, read_class_file
from softlaunch.data.classification import columns_of
from softlaunch.data.dataset import checked_rows, encode_options
from softlaunch.data.explain import ExplainedRow, explain_row, explain_text
from softlaunch.data.label_sources import Source, find_source
from softlaunch.data.labelled import read_labelled
from softlaunch.data.text_encoding import codec_name
from softlaunch.errors import ArgumentError, DataError
from softlaunch.launching.settings import CLASSIFIER_DEFAULTS, read_settings
from softlaunch.messages import say
from softlaunch.models import load_tokenizer
from softlaunch.models.encoder import load_text_tokenizer

_FIRST_ROWS = 3
_FILES = ("train", "validation", "test")
_WITH_LOSS, _WITHOUT_LOSS, _CUT = "bold green", "default", "red strike"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN.json, which row of which file, and any option of the run."""
    parser.usage = "softlaunch show RUN.json [--row N] [--file {train,validation,test}] [--option value …]"
    parser.add_argument("run_file", metavar="RUN.json", help="argument file of the run; any option of it may follow")
    parser.add_argument("--row", type=int, help="the row_id, counted from 0; the first three rows if not given")
    parser.add_argument("--file", choices=_FILES, help="which file; the first that the run names if not given")
    parser.set_defaults(overrides=[])


def run(arguments: argparse.Namespace) -> None:
    """Print the rows. Raises ArgumentError, DataError or CheckpointError as the run itself would."""
    argv = [arguments.run_file, *arguments.overrides]
    classifies = read_settings(argv).classifies
    defaults = CLASSIFIER_DEFAULTS if classifies else {}
    model, data, classification = parse_to_look(argv, classifies=classifies, defaults=defaults)
    kind = arguments.file or next((name for name in _FILES if getattr(data, f"{name}_file")), "train")
    console = Console(highlight=False, soft_wrap=True)
    if classifies:
        found = find_source(data, kind)
        if found is None:
            raise ArgumentError("{path} names no {kind}_file", path=arguments.run_file, kind=kind)
        _show_texts(console, found, arguments.row, model, data, classification, with_label=kind != "test")
        return
    file = getattr(data, f"{kind}_file")
    if file is None:
        raise ArgumentError("{path} names no {kind}_file", path=arguments.run_file, kind=kind)
    rows = _choose(file, data, arguments.row, with_answer=kind != "test")
    tokenizer = load_tokenizer(model.model_name_or_path, prompt_style=model.prompt_style, **model.hub)
    options = encode_options(data)
    console.print(_legend(console))
    for row in rows:
        explained = explain_row(row, tokenizer, options, with_answer=kind != "test")
        title = say(
            "{file}, row {row_id}: {tokens} tokens, {with_loss} of them with loss",
            file=file,
            row_id=explained.row_id,
            tokens=len(explained.tokens),
            with_loss=sum(token.has_loss for token in explained.tokens),
        )
        _print_row(console, title, explained, reference=row["response"] if kind == "test" else None)


def _show_texts(
    console: Console,
    source: Source,
    row_id: int | None,
    model: ModelArguments,
    data: DataArguments,
    classification: ClassificationArguments,
    *,
    with_label: bool,
) -> None:
    """Rows of a run that tells classes apart, with their classes by name where the data tell the names."""
    columns, codec = columns_of(classification, require_label=with_label), codec_name(data.file_encoding)
    rows, problems = read_labelled(source.path, columns, codec, source.split)
    if not rows:
        raise problems.error(source.path)
    classes = Classes(tuple(source.class_names(columns.label) or ()), numbered=True)
    if classification.class_file:
        classes = read_class_file(classification.class_file, codec)
    limit = data.max_source_length
    tokenizer = load_text_tokenizer(model.model_name_or_path, limit, **model.hub)
    for row in _chosen(rows, row_id, str(source), lambda row: row.row_id):
        explained = explain_text(row, tokenizer, limit)
        number = classes.index(row.label) if row.label is not None else None
        name = classes.names[number] if isinstance(number, int) else row.label
        title = say(
            "{file}, row {row_id}: {tokens} tokens, class {name}",
            file=source.place(row),
            row_id=row.row_id,
            tokens=len(explained.tokens),
            name="–" if name is None else name,
        )
        _print_row(console, title, explained, reference=None)


def _choose(file: str, data: DataArguments, row_id: int | None, *, with_answer: bool) -> Iterable[dict]:
    """The row asked for, else the first few; the file is read no further than that."""
    last = _FIRST_ROWS if row_id is None else max(row_id + 1, 1)
    rows = checked_rows(file, data, last, require_response=with_answer)
    return _chosen(rows, row_id, file, lambda row: row["row_id"])


def _chosen(rows: Iterable[Any], row_id: int | None, file: str, id_of: Callable[[Any], int]) -> list[Any]:
    """The row asked for, else the first few."""
    if row_id is not None and row_id < 0:
        raise ArgumentError("--row {row} is no row: they are counted from 0", row=row_id)
    rows = list(rows)
    chosen = rows[:_FIRST_ROWS] if row_id is None else [row for row in rows if id_of(row) == row_id]
    if not chosen:
        raise DataError(
            "{path} has no usable row {row}: the rows read are {first} to {last}",
            path=file,
            row=row_id,
            first=id_of(rows[0]),
            last=id_of(rows[-1]),
        )
    return chosen


def _marks(console: Console) -> tuple[str, str]:
    """What stands around text with loss where colours cannot show it."""
    return ("", "") if console.is_terminal and not console.no_color else ("⟦", "⟧")


def _legend(console: Console) -> Text:
    before, after = _marks(console)
    legend = Text(say("The loss counts the tokens that look like this: "))
    return legend.append(f"{before}{say('tokens with loss')}{after}", _WITH_LOSS)


def _print_row(console: Console, title: str, row: ExplainedRow, reference: str | None) -> None:
    before, after = _marks(console)
    parts = {
        "prompt": say("of the prompt"),
        "answer": say("of the answer"),
        "text": say("of the text"),
        "second text": say("of the second text"),
    }
    console.print()
    console.print(Text(title, "bold"))
    text = Text()
    for span, has_loss in row.spans:
        text.append(f"{before}{span}{after}" if has_loss else span, _WITH_LOSS if has_loss else _WITHOUT_LOSS)
    console.print(text)
    if reference is not None:
        console.print(Text(say("reference: {text}", text=reference), "italic"))
    for cut in row.cuts:
        lost = say("cut off {part}, {number} tokens: ", part=parts[cut.part], number=cut.num_tokens)
        console.print(Text(lost), end="")
        console.print(Text(cut.text, _CUT))
    ids = Text(say("ids: "))
    for token in row.tokens:
        shown = f"{token.id} {_visible(token.text)}"
        ids.append(f"{before}{shown}{after}" if token.has_loss else shown, _WITH_LOSS if token.has_loss else "dim")
        ids.append("  ")
    console.print(ids)


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
