"""The outermost layer of a program: logging, the exit code, and the end of the process group."""

import atexit
import errno
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from softlaunch import lifeline, restarts
from softlaunch.errors import UserError
from softlaunch.messages import say

USER_ERROR_EXIT_CODE = 2
_FIRST_PROCESS_SPEAKS_S = 5.0
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def run(main: Callable[[], None]) -> None:
    """Run a recipe's or command's `main` and end the process.

    A `UserError` ends with its message alone and exit code 2; any other exception keeps its traceback. Process 0 logs
    at INFO, the others only errors. The process group is destroyed at the end: without that, a CPU run in four fails
    after its work is done; with it one in thirty still does, in a destructor of one of the libraries, and a scheduler
    takes that for the run's. So a process that had a group ends without them.
    """
    _set_up_logging()
    _find_deepspeed_config()
    code: object = 0
    try:
        _run(main)
    except SystemExit as end:
        code = end.code
        raise
    except BaseException:
        code = None
        raise
    finally:
        if _destroy_process_group() and isinstance(code, int):
            _leave(code)


def _run(main: Callable[[], None]) -> None:
    try:
        restarts.meet_anew()
        main()
        lifeline.farewell()
    except UserError as error:
        _end_with(error)
    except (SystemExit, KeyboardInterrupt):
        lifeline.farewell()
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_IS_FULL:
            where = f"{error.filename}: " if error.filename else ""
            _end_with(UserError("{where}{reason}. Make room and start again", where=where, reason=error.strerror))
        if lifeline.is_consequence(error):
            if lifeline.others_were_asked():
                from softlaunch import preemption  # it is at work then, and so is torch

                preemption.leave()
            sys.exit(lifeline.EXIT_CODE)
        raise


def _end_with(error: UserError) -> NoReturn:
    lifeline.failed()
    _report(error)
    sys.exit(USER_ERROR_EXIT_CODE)


def _report(error: UserError) -> None:
    """Most errors meet every process: the first says it, and its end is the others'. What only they met, they say."""
    _tell_torch_launcher(str(error))
    if _is_first_process():
        message = say("error: {error}", error=error)
        if _is_alone_under_accelerate():
            message += "\n" + say("(A traceback below is accelerate's own and adds nothing; --quiet leaves it out.)")
    else:
        time.sleep(_FIRST_PROCESS_SPEAKS_S)
        message = say("error on process {rank}: {error}", rank=os.environ["RANK"], error=error)
    sys.stderr.write(message + "\n")


def _tell_torch_launcher(message: str) -> None:
    """Let torch's launcher, whose report of failed processes comes last, show the message in place of a traceback.

    The file is what `torch.distributed.elastic.multiprocessing.errors` writes for exceptions.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        report = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        Path(file).write_text(json.dumps({"message": report}), encoding="utf-8")


def _is_alone_under_accelerate() -> bool:
    """Whether `accelerate launch` started this process without torch's launcher: it then raises an error of its own."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by the launcher; the process group may not exist yet


def _set_up_logging() -> None:
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_ToStderr()])
    logging.getLogger("softlaunch").setLevel(logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # see `arguments`, which a recipe has imported by now
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # worker processes are forked after the first use
    if not _is_first_process():
        _be_quiet()
    _show_no_bars(but_downloads=_is_first_process() and sys.stderr.isatty())


class _ToStderr(logging.StreamHandler):
    """Writes to what `sys.stderr` is by then: while a progress bar is shown, lines go above it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _be_quiet() -> None:
    """The first process shows warnings, of the libraries too; of the others only errors are shown."""
    logging.disable(logging.WARNING)  # not a logger's level: Trainer sets that of transformers again
    warnings.filterwarnings("ignore")


def _show_no_bars(*, but_downloads: bool) -> None:
    """The libraries' bars would stand beside the run's own, and a log file would hold every state of them."""
    asked = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")  # both are read when imported
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not but_downloads:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("datasets", "transformers"):
        library = sys.modules.get(f"{name}.utils.logging")
        if library is not None:
            library.disable_progress_bar()
    hub = sys.modules.get("huggingface_hub.utils")
    if but_downloads and hub is not None and asked is None:
        hub.enable_progress_bars()  # transformers has switched them off too


def _find_deepspeed_config() -> None:
    """Let `ds_configs/…`, as the launch files name it, be found from any directory: in the recipe's project."""
    name = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if name and not Path(name).exists():
        in_project = Path(sys.argv[0]).resolve().parents[1] / name
        if in_project.is_file():
            os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(in_project)


def _destroy_process_group() -> bool:
    """Whether there was one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    torch.distributed.destroy_process_group()
    return True


def _leave(code: int) -> NoReturn:
    """What the interpreter does at its end, up to the destructors."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
