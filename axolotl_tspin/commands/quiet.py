"""Output of a command that loads Axolotl: messages on the terminal, all the rest in a log file."""

import contextlib
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click

from axolotl_tspin.errors import Interrupted, StepFailed, TSpinError, Unexpected
from axolotl_tspin.logs import RELAYED, relayed_console, shown_on
from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys
from axolotl_tspin.run.processes import end_with_parent

LOG_NAME = "t_spin.log"


@contextlib.contextmanager
def quiet(
    config: Path, *, verbose: bool, begins: bool = False, as_json: bool = False
) -> Iterator[Path | None]:
    """Show only messages for the user meanwhile; append all else that is printed to `t_spin.log` in
    the run directory.

    Faults of the YAML are raised before anything is loaded. In a step of `run`, which keeps that
    file itself, nothing is redirected.

    Args:
        config: the run's YAML. If its run directory does not exist, the log is a temporary file,
            which is kept after an unexpected error.
        verbose: True to show everything.
        begins: True to make the run directory; it is removed again if it stays empty.
        as_json: True to keep stdout for the JSON that follows when everything is shown.

    Yields:
        The log file; None if nothing is redirected.

    Raises:
        TSpinError: as `inspect_run` does.
        Unexpected: an error that is neither TSpinError nor click's was raised within.
    """
    folder = inspect_run(read_keys(config))[1].path
    if verbose or RELAYED in os.environ:
        with contextlib.ExitStack() as stack:
            if as_json:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            import axolotl.cli  # noqa: F401  sets up its logging, on the stdout that it finds

            if not verbose:
                end_with_parent()
                stack.enter_context(shown_on(relayed_console()))
            yield None
        return
    with _log_file(folder, begins) as path, _redirected(path):
        try:
            yield path
        except (TSpinError, StepFailed, Interrupted, click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            traceback.print_exc()
            raise Unexpected(error, path) from error


@contextlib.contextmanager
def _log_file(folder: Path, begins: bool) -> Iterator[Path]:
    made = begins and not folder.exists()
    path, temporary = folder / LOG_NAME, False
    try:
        if begins:
            folder.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError:  # no run yet, or not a folder that can be written to, as the command will say
        handle, name = tempfile.mkstemp(prefix="t_spin_", suffix=".log")
        os.close(handle)
        path, temporary = Path(name), True
    try:
        yield path
    except Unexpected:
        raise
    except BaseException:
        _remove(path, folder if made else None, temporary)
        raise
    else:
        _remove(path, None, temporary)


def _remove(path: Path, folder: Path | None, temporary: bool) -> None:
    """Remove a log that nobody needs: a temporary one, or the only file of a folder made for it."""
    if temporary or (folder and list(folder.iterdir()) == [path]):
        path.unlink(missing_ok=True)
        if folder and not temporary:
            folder.rmdir()


@contextlib.contextmanager
def _redirected(path: Path) -> Iterator[None]:
    """Point the files 1 and 2, which libraries in C and child processes write to, at the log."""
    from rich.console import Console

    with contextlib.ExitStack() as stack:
        log = stack.enter_context(open(path, "a", encoding="utf-8", buffering=1))
        log.write(f"\n==== {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(sys.argv)}\n")
        terminal = sys.stderr
        if _writes_to(sys.stderr, 2):
            copy = os.dup(2)
            terminal = stack.enter_context(open(copy, "w", encoding="utf-8", buffering=1))
        stack.enter_context(_pointed_at(log.fileno()))
        import axolotl.cli  # noqa: F401  sets up its logging, on the stdout that it finds

        if terminal is sys.stderr:  # not the process's own streams, as in tests
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
        stack.enter_context(shown_on(Console(file=terminal)))
        yield


def _writes_to(stream: TextIO, number: int) -> bool:
    try:
        return stream.fileno() == number
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _pointed_at(target: int) -> Iterator[None]:
    kept = {number: os.dup(number) for number in (1, 2)}
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for number in kept:
        os.dup2(target, number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, copy in kept.items():
            os.dup2(copy, number)
            os.close(copy)
