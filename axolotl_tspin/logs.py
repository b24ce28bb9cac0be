"""Loggers of this package, and the messages that a user of its commands sees.

Our commands are quiet: what Axolotl and the libraries print goes into a log file. On the terminal
are our own messages, with the time, and Axolotl's warnings. `run` starts its steps with `RELAYED`
in the environment. Each process of a step, whichever launcher started it, puts what is for the
terminal between two marks, and `run` passes that on.
"""

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from rich.console import Console

RELAYED = "AXOLOTL_TSPIN_RELAYED"
"""Set by `run` for its steps: the width of its terminal in columns, or 0 if it has none."""

BEGIN, END = "\x0e", "\x0f"
"""Marks around what a step prints for the terminal: characters that no library prints."""

LOGGERS = ("", "axolotl")
"""Loggers that need a handler: messages of Axolotl's do not reach the root's."""

NOT_ABOUT_THE_YAML = ("Processing datasets during training",)
"""Beginnings of Axolotl's warnings that a user of these commands can do nothing about."""

_console: "Console | None" = None


class RankZeroLogger(logging.LoggerAdapter):
    """A logger that is silent on all ranks but the first, as Axolotl's are."""

    def isEnabledFor(self, level: int) -> bool:
        return os.environ.get("RANK", "0") == "0" and super().isEnabledFor(level)


def get_logger(name: str) -> RankZeroLogger:
    """Get a module's logger. Handlers decide what is shown: in `axolotl train`, Axolotl's."""
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    return RankZeroLogger(logger, {})


def console() -> "Console":
    """Get the console for messages and progress: stderr, or what stands for it while stderr goes
    into a log file."""
    from rich.console import Console

    return _console or Console(stderr=True)


def relayed_console() -> "Console":
    """Make a console whose output `run` passes on to its own terminal."""
    from rich.console import Console

    width = int(os.environ[RELAYED])
    return Console(file=cast(IO[str], _Marked()), force_terminal=width > 0, width=width or None)


@contextlib.contextmanager
def shown_on(where: "Console") -> Iterator[None]:
    """Show messages on this console meanwhile, in addition to the handlers that there are."""
    global _console
    handler, before = _show_on(where), _console
    _console = where
    try:
        yield
    finally:
        _console = before
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)


def join_run() -> None:
    """Show the messages of this process on the terminal of the `run` that started it, if one did,
    until the process ends."""
    global _console
    if RELAYED in os.environ and _console is None:
        _console = relayed_console()
        _show_on(_console)


def forget_consoles() -> None:
    """Show messages nowhere any more but where other handlers do, as in a process just begun."""
    global _console
    _console = None
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in [h for h in logger.handlers if isinstance(h, _ForTheUser)]:
            logger.removeHandler(handler)


def _show_on(where: "Console") -> logging.Handler:
    handler = _ForTheUser(where)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    return handler


class _ForTheUser(logging.Handler):
    """Shows our messages, and Axolotl's warnings; what libraries say is not for the user."""

    def __init__(self, where: "Console") -> None:
        super().__init__(logging.INFO)
        self._where = where

    def emit(self, record: logging.LogRecord) -> None:
        ours = record.name.split(".")[0] == "axolotl_tspin"
        axolotls = record.name.split(".")[0] == "axolotl" and record.levelno >= logging.WARNING
        try:
            text = record.getMessage().removeprefix("T-SPIN: ")
            if not (ours or axolotls) or text.startswith(NOT_ABOUT_THE_YAML):
                return
            kind = f"{record.levelname.capitalize()}: " if record.levelno > logging.INFO else ""
            line = time.strftime("%H:%M:%S ", time.localtime(record.created)) + kind + text
            self._where.print(line, markup=False, highlight=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


class _Marked(io.TextIOBase):
    """A stream on stderr's file whose text stands between the marks."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        if text:
            sys.stderr.flush()
            os.write(2, f"{BEGIN}{text}{END}".encode())
        return len(text)

    def isatty(self) -> bool:
        return False
