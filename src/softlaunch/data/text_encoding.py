"""The encoding of a text file: the name that was asked for, and what to say when the bytes do not fit it."""

import codecs
import io
from pathlib import Path

from softlaunch.errors import ArgumentError, DataError
from softlaunch.messages import say

_BLOCK_BYTES = 1 << 20
_GUESSES = ("utf-8", "gb18030")
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def codec_name(name: str, option: str = "file_encoding") -> str:
    """Python's name of the encoding that `option` names; for UTF-8 the one that also accepts a byte order mark.

    Raises:
        ArgumentError: no text encoding has this name.
    """
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name)  # unlike codecs.lookup, refuses "hex" and the like
    except LookupError:
        raise ArgumentError(
            '{option} is "{name}", which is no known text encoding. Write "utf-8", "gb18030" '
            '(covers GBK and GB2312), "big5", "utf-16" or another name that Python knows.',
            option=option,
            name=name,
        ) from None
    codec = codecs.lookup(name).name
    return "utf-8-sig" if codec == "utf-8" else codec


def encoding_error(path: Path, codec: str) -> DataError:
    """What to tell about a file that `codec` cannot decode: the line, the likely encoding, how that line then reads."""
    offset, line = _first_undecodable(path, codec)
    with path.open("rb") as file:
        begin = max(0, offset - _BLOCK_BYTES)
        file.seek(begin)
        around = file.read(2 * _BLOCK_BYTES)
    byte = around[offset - begin]
    what = say(
        "{path}:{line}: byte 0x{byte:02x} is not {codec}", path=path, line=line, byte=byte, codec=_public_name(codec)
    )
    if _is_utf8_with_damage(codec, around):
        return DataError(
            "{what}, though the text around it is: the line is damaged, the encoding is right. Mend or delete the "
            "line; skip_bad_rows does not reach into a line that cannot be decoded.",
            what=what,
        )
    guess = _guess(path, codec)
    if guess is None:
        return DataError(
            "{what}, and no other likely encoding fits. Save the file as UTF-8, or set file_encoding.", what=what
        )
    line_begin = around.rfind(b"\n", 0, offset - begin) + 1
    shown = around[line_begin:].decode(guess, errors="replace").partition("\n")[0].strip()[:40]
    return DataError(
        '{what}. Read as {guess} the line begins: {shown}\nIf that is right, set file_encoding to "{guess}".',
        what=what,
        guess=guess,
        shown=shown,
    )


def _public_name(codec: str) -> str:
    return codec.removesuffix("-sig")


def _first_undecodable(path: Path, codec: str) -> tuple[int, int]:
    """Where decoding fails: the offset in the file, and the line, counted from 1."""
    decoder = codecs.getincrementaldecoder(codec)()
    line = 1
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                good = error.object[: error.start].decode(codec, errors="replace")
                offset = file.tell() - len(error.object) + error.start  # the object is what was pending, and the block
                return offset, line + good.count("\n")
            assert block, f"{path} decodes as {codec}"


def _is_utf8_with_damage(codec: str, data: bytes) -> bool:
    """Whether the text is UTF-8 but for a few bytes: ten good non-ASCII characters for each bad place.

    Only UTF-8 lets one tell: text in another encoding is hardly ever valid in it, while gb18030 takes almost any bytes.
    """
    if codec != "utf-8-sig":
        return False
    text = data.decode(codec, errors="replace")
    num_bad = text.count("\ufffd")
    num_non_ascii = sum(character > "\x7f" for character in text)
    return num_non_ascii > 11 * num_bad


def _guess(path: Path, codec: str) -> str | None:
    with path.open("rb") as file:
        if file.read(2) in _UTF16_MARKS:
            return "utf-16"
    others = (name for name in _GUESSES if name != _public_name(codec))
    return next((name for name in others if _decodes(path, name)), None)


def _decodes(path: Path, codec: str) -> bool:
    try:
        with path.open(encoding=codec) as file:
            while file.read(_BLOCK_BYTES):
                pass
    except UnicodeDecodeError:
        return False
    return True
