"""Keeps secrets out of messages and of the record of a run."""

import json
import re
from typing import Any

HIDDEN = "<hidden>"
_SECRET_NAME = re.compile("token|key|secret|password|credential", re.IGNORECASE)
_NOT_SECRET = {"include_num_input_tokens_seen"}  # takes text ("all"), and counts tokens of another kind
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def redact(value: Any, name: str = "") -> Any:
    """`value` of the option or key `name` with its secrets replaced by `<hidden>`, at any depth.

    Hidden are all values but numbers and switches (`average_tokens_across_devices`) under a name that speaks of a
    token, key, secret, password or credential, hub tokens anywhere, and logins in URLs.
    """
    is_number = value is None or isinstance(value, (bool, int, float))
    if value and not is_number and _SECRET_NAME.search(name) and name not in _NOT_SECRET:
        return HIDDEN
    if isinstance(value, dict):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name) for item in value]
    if isinstance(value, str):
        return _redact_text(value, name)
    return value


def _redact_text(text: str, name: str) -> str:
    if text.lstrip().startswith("{"):  # a JSON object given on the command line
        try:
            return json.dumps(redact(json.loads(text), name), ensure_ascii=False)
        except json.JSONDecodeError:
            pass
    return _URL_LOGIN.sub(HIDDEN, _HUB_TOKEN.sub(HIDDEN, text))


def redact_argv(argv: list[str] | tuple[str, ...]) -> list[str]:
    """A command line with its secrets replaced by `<hidden>`, whether given as `--name value` or `--name=value`."""
    clean = []
    name = ""
    for token in argv:
        if not token.startswith("--"):
            clean.append(redact(token, name))
            continue
        name, equals, text = token[2:].partition("=")
        name = name.replace("-", "_")
        clean.append(f"--{token[2:].partition('=')[0]}{equals}{redact(text, name)}")
    return clean
