"""`softlaunch show RUN.json`: the rows of a run as its model sees them. The weights are not loaded."""

import argparse
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from softlaunch.arguments import DataArguments, parse_model_and_data
from softlaunch.data.dataset import checked_rows, encode_options
from softlaunch.data.explain import ExplainedRow, explain_row
from softlaunch.errors import ArgumentError, DataError
from softlaunch.messages import say
from softlaunch.models import load_tokenizer

_FIRST_ROWS = 3
_FILES = ("train", "validation", "test")
_WITH_LOSS, _WITHOUT_LOSS, _CUT = "bold green", "default", "red strike"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN.json, which row of which file, and any option of the run."""
    parser.usage = "softlaunch show RUN.json [--row N] [--file {train,validation,test}] [--option value …]"
    parser.add_argument("run_file", metavar="RUN.json", help="argument file of the run")
    _add_own(parser)
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--option value", help="any option of the run")


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--row", type=int, help="the row_id, counted from 0; the first three rows if not given")
    parser.add_argument("--file", choices=_FILES, help="which file; the first that the run names if not given")


def run(arguments: argparse.Namespace) -> None:
    """Print the rows. Raises ArgumentError, DataError or CheckpointError as the run itself would."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_own(own)
    arguments, overrides = own.parse_known_args(arguments.overrides, arguments)  # what stands behind RUN.json
    model, data = parse_model_and_data([arguments.run_file, *overrides])
    kind = arguments.file or next((name for name in _FILES if getattr(data, f"{name}_file")), "train")
    file = getattr(data, f"{kind}_file")
    if file is None:
        raise ArgumentError("{path} names no {kind}_file", path=arguments.run_file, kind=kind)
    rows = _choose(file, data, arguments.row, with_answer=kind != "test")
    tokenizer = load_tokenizer(model.model_name_or_path, prompt_style=model.prompt_style, **model.hub)
    options = encode_options(data)
    console = Console(highlight=False, soft_wrap=True)
    console.print(_legend(console))
    for row in rows:
        explained = explain_row(row, tokenizer, options, with_answer=kind != "test")
        _print_row(console, file, explained, reference=row["response"] if kind == "test" else None)


def _choose(file: str, data: DataArguments, row_id: int | None, *, with_answer: bool) -> Iterable[dict]:
    """The row asked for, else the first few; the file is read no further than that."""
    last = _FIRST_ROWS if row_id is None else row_id + 1
    if last < 1:
        raise ArgumentError("--row {row} is no row: they are counted from 0", row=row_id)
    rows = checked_rows(file, data, last, require_response=with_answer)
    chosen = [row for row in rows if row_id is None or row["row_id"] == row_id]
    if not chosen:
        raise DataError(
            "{path} has no usable row {row}: the rows read are {first} to {last}",
            path=file,
            row=row_id,
            first=rows[0]["row_id"],
            last=rows[-1]["row_id"],
        )
    return chosen


def _marks(console: Console) -> tuple[str, str]:
    """What stands around text with loss where colours cannot show it."""
    return ("", "") if console.is_terminal and not console.no_color else ("⟦", "⟧")


def _legend(console: Console) -> Text:
    before, after = _marks(console)
    legend = Text(say("The loss counts the tokens that look like this: "))
    return legend.append(f"{before}{say('tokens with loss')}{after}", _WITH_LOSS)


def _print_row(console: Console, file: str, row: ExplainedRow, reference: str | None) -> None:
    before, after = _marks(console)
    with_loss = sum(token.has_loss for token in row.tokens)
    title = say(
        "{file}, row {row_id}: {tokens} tokens, {with_loss} of them with loss",
        file=file,
        row_id=row.row_id,
        tokens=len(row.tokens),
        with_loss=with_loss,
    )
    console.print()
    console.print(Text(title, "bold"))
    text = Text()
    for span, has_loss in row.spans:
        text.append(f"{before}{span}{after}" if has_loss else span, _WITH_LOSS if has_loss else _WITHOUT_LOSS)
    console.print(text)
    if reference is not None:
        console.print(Text(say("reference: {text}", text=reference), "italic"))
    for cut in row.cuts:
        part = say("of the prompt") if cut.part == "prompt" else say("of the answer")
        console.print(Text(say("cut off {part}, {number} tokens: ", part=part, number=cut.num_tokens)), end="")
        console.print(Text(cut.text, _CUT))
    ids = Text(say("ids: "))
    for token in row.tokens:
        shown = f"{token.id} {_visible(token.text)}"
        ids.append(f"{before}{shown}{after}" if token.has_loss else shown, _WITH_LOSS if token.has_loss else "dim")
        ids.append("  ")
    console.print(ids)


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
