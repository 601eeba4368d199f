"""One large JSON array as a stream of its values; the standard library's `json` reads it whole or not at all."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from softlaunch.errors import DataError
from softlaunch.messages import say

_BLOCK_CHARACTERS = 1 << 20
_LONGEST_TOKEN = 16  # of the tokens that cannot be read in part: "-Infinity", "\\ud83d\\ude00", …
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")
_scan_value = json.JSONDecoder().raw_decode


def array_values(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    """The values of the one array that `file` holds, each with the line on which it begins, counted from 1.

    Memory is a few blocks of 1 Mi characters, or a few times the longest value where that is more.

    Raises:
        DataError: broken JSON. Where an array goes on after its first broken place is anybody's guess, so this is a
            fault of the file and not of one row.
    """
    text = _JsonText(path, file)
    delimiter = text.take("[")
    if text.peek() == "]":
        delimiter = text.take("]")
    while delimiter != "]":
        text.peek()
        yield text.line, text.value()
        delimiter = text.take(",]")
    if text.peek():
        raise text.error(say("something follows after the end of the array"))


class _JsonText:
    """A cursor in JSON text that is read block by block; `line` is the line it stands on."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.line = 1
        self._path = path
        self._file = file
        self._text = ""
        self._position = 0

    def peek(self) -> str:
        """Goes to the next character that is no white space and returns it; "" at the end of the file."""
        while True:
            match = _WHITE_SPACE.match(self._text, self._position)
            assert match  # the pattern matches nothing, too
            self._advance(match.end())
            if self._position < len(self._text) or not self._read_on():
                return self._text[self._position : self._position + 1]

    def take(self, allowed: str) -> str:
        """Goes past the next character, which must be one of `allowed`, and returns it."""
        character = self.peek()
        if not character or character not in allowed:
            expected = say(" or ").join(allowed)
            if character:
                raise self.error(say("expected {expected}, found {found}", expected=expected, found=character))
            raise self.error(say("expected {expected}, the file ends", expected=expected))
        self._advance(self._position + 1)
        return character

    def value(self) -> Any:
        """Goes past the value that begins here and returns it."""
        while True:
            try:
                value, end = _scan_value(self._text, self._position)
            except json.JSONDecodeError as error:
                if _may_be_cut(error) and self._read_on():
                    continue
                self._advance(error.pos)
                raise self.error(error.msg) from None
            except (ValueError, RecursionError) as error:
                raise self.error(str(error)) from None
            if end <= len(self._text) - _LONGEST_TOKEN or not self._read_on():  # the rest of a number may follow
                self._advance(end)
                return value

    def error(self, problem: str) -> DataError:
        return DataError(
            "{path}:{line}: broken JSON: {problem}. Mend it there; skip_bad_rows can drop a broken line of JSON "
            "lines, but not a part of an array.",
            path=self._path,
            line=self.line,
            problem=problem,
        )

    def _advance(self, position: int) -> None:
        self.line += self._text.count("\n", self._position, position)
        self._position = position

    def _read_on(self) -> bool:
        """Appends the next block and forgets what lies behind the cursor; False, unchanged, at the file's end."""
        rest = self._text[self._position :]
        block = self._file.read(max(_BLOCK_CHARACTERS, len(rest)))  # doubles, so that a long value costs linear time
        if block:
            self._text, self._position = rest + block, 0
        return bool(block)


def _may_be_cut(error: json.JSONDecodeError) -> bool:
    """Whether the text fails only because it ends: then it fails at its end, or in a string that nothing closes."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc) - _LONGEST_TOKEN
