"""The outermost layer of a program: logging, the exit code, and the end of the process group."""

import logging
import os
import sys
import warnings
from collections.abc import Callable

from softlaunch.errors import UserError

USER_ERROR_EXIT_CODE = 2


def run(main: Callable[[], None]) -> None:
    """Run a recipe's or command's `main` and end the process.

    A `UserError` ends with its message alone and exit code 2; any other exception keeps its traceback. Process 0 logs
    at INFO, the others only errors. The process group is destroyed at the end: without that, a CPU run in four fails
    after its work is done.
    """
    _set_up_logging()
    try:
        main()
    except UserError as error:
        if _is_first_process():
            sys.stderr.write(f"error: {error}\n")
        sys.exit(USER_ERROR_EXIT_CODE)
    finally:
        _destroy_process_group()


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by the launcher; the process group may not exist yet


def _set_up_logging() -> None:
    level = logging.INFO if _is_first_process() else logging.ERROR
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("softlaunch").setLevel(level)
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # worker processes are forked after the first use


def _destroy_process_group() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
