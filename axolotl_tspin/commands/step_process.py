"""The process of one step of `run`: what is shown of its output, and signals on their way to it.

A step writes into a pipe. Text between the marks of `axolotl_tspin.logs`, and the trainer's bar, go
to the terminal; everything but the marked text goes into the log.
"""

import codecs
import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, BinaryIO, Protocol

from axolotl_tspin.errors import Interrupted
from axolotl_tspin.logs import BEGIN, END, RELAYED, console
from axolotl_tspin.run.processes import end_with_parent

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

MARKS = re.compile(f"([{BEGIN}{END}])".encode())
TRAINING_BAR = re.compile(rb" *\d+%\|.*\]")
"""The trainer's bar; those of other libraries begin with a name."""

CLEAR_LINE, SHOW_CURSOR = "\r\x1b[K", "\x1b[?25h"
SECONDS_FOR_THE_REST = 5.0
"""Wait for output after the step has ended: what it left running may hold the pipe open."""


class Step(Protocol):
    """A step that has been started, in a process group of its own."""

    pid: int

    def wait(self) -> int:
        """Wait for its end; return its exit status, negative for a signal."""
        ...


Start = Callable[[Sequence[str], Mapping[str, str], int | None], Step]
"""Starts a step: its command, its environment, and the file number that it prints to."""


def start_process(
    command: Sequence[str], environment: Mapping[str, str], output: int | None
) -> subprocess.Popen:
    """Start a command as a process. In a group of its own, a Ctrl-C reaches it only from here."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        process_group=0,
        preexec_fn=end_with_parent,
    )


def run_step(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path | None,
    start: Start = start_process,
) -> int:
    """Run a step's command to its end; return its exit status, negative for a signal.

    Args:
        log: the file to append its output to; None to leave its output as it is.

    Raises:
        Interrupted: signals came. Each was passed to the step once, and the step has ended.
    """
    came: list[int] = []
    shown = console()
    read = write = None
    if log:
        environment = {**environment, RELAYED: str(shown.width if shown.is_terminal else 0)}
        read, write = os.pipe()
    process = start(command, environment, write)

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    stack.callback(signal.signal, number, signal.signal(number, pass_on))
        if log and read is not None and write is not None:
            os.close(write)
            output = stack.enter_context(open(read, "rb", buffering=0))
            file = stack.enter_context(open(log, "ab", buffering=0))
            arguments = (output, file, _written_to(shown.file), shown.is_terminal)
            reader = threading.Thread(target=relay, args=arguments, daemon=True)
            reader.start()
            stack.callback(reader.join, SECONDS_FOR_THE_REST)
        status = process.wait()
    if came:
        raise Interrupted(came[0])
    return status


def relay(output: BinaryIO, log: BinaryIO, show: Callable[[str], None], is_terminal: bool) -> None:
    """Pass a step's output on, to its end.

    Args:
        output: unbuffered or with `read1`; what the step's processes print.
        log: gets complete lines, of a bar its last state.
        show: shows text between the marks and, on a terminal, the trainer's bar.
    """
    marked = bar = False
    line = b""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    for chunk in iter(lambda: os.read(output.fileno(), 2**16), b""):
        for part in MARKS.split(chunk):
            if part in (BEGIN.encode(), END.encode()):
                marked = part == BEGIN.encode()
            elif marked:
                show((CLEAR_LINE if bar else "") + decode(part))
                bar = False
            elif part:
                *lines, line = (line + part).split(b"\n")
                log.write(b"".join(_last_state(each) + b"\n" for each in lines))
                line = line[max(line.rfind(b"\r"), 0) :]
                state = _last_state(line)
                if is_terminal and TRAINING_BAR.fullmatch(state):
                    show(CLEAR_LINE + state.decode(errors="replace"))
                    bar = True
    if line:
        log.write(_last_state(line) + b"\n")
    if is_terminal:
        show((CLEAR_LINE if bar else "") + SHOW_CURSOR)


def _last_state(line: bytes) -> bytes:
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def _written_to(file: IO[str]) -> Callable[[str], None]:
    def show(text: str) -> None:
        file.write(text)
        file.flush()

    return show
