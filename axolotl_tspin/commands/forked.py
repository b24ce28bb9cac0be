"""Steps of `run` in a copy of its own process.

Loading Axolotl and its trainer takes longer than a small step. `run` loads them once, and each
step is a fork: its memory is freed when it ends, and a crash does not affect the loop. CUDA forbids
forks of a process that has looked for GPUs, so this is done only where there are none.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.logs import forget_consoles
from axolotl_tspin.resolve.yaml_file import RawConfig
from axolotl_tspin.run.processes import end_with_parent

SEVERAL_PROCESSES = ("use_ray", "deepspeed", "fsdp", "fsdp_config")


def needs_no_launcher(raw: RawConfig, config: TSpinConfig, train_arguments: Sequence[str]) -> bool:
    """True if sampling and training are one process each, on CPUs, so that forks can do them."""
    asked_for = tuple(train_arguments) not in ((), ("--launcher", "python"))
    if asked_for or config.generation.backend != "transformers":
        return False
    if any(raw.get(key) for key in SEVERAL_PROCESSES) or not hasattr(os, "fork"):
        return False
    import torch
    from accelerate.commands.config.config_args import default_config_file

    return not (torch.accelerator.is_available() or Path(default_config_file).exists())


def load_what_steps_need() -> None:
    """Import the modules that take long."""

    import axolotl_tspin.generation.step
    import axolotl_tspin.plugin.plugin
    import axolotl_tspin.plugin.trainer  # noqa: F401


class ForkedStep:
    """A step that runs in a fork of this process.

    Args:
        arguments: of `axolotl`.
        environment: the step's environment.
        output: file number for what it prints; None to leave that as it is.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: int | None
    ) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _run(arguments, environment, output)
        with contextlib.suppress(OSError):  # the fork does the same; one of them comes first
            os.setpgid(self.pid, self.pid)

    def wait(self) -> int:
        """Wait for its end; return its exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run(arguments: Sequence[str], environment: Mapping[str, str], output: int | None) -> None:
    status = 1
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        end_with_parent()
        for number, handler in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
            (signal.SIGHUP, signal.SIG_DFL),
        ):
            signal.signal(number, handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        for name in ("stdout", "stderr"):
            setattr(sys, name, getattr(sys, f"__{name}__"))
        forget_consoles()
        os.environ.clear()
        os.environ.update(environment)
        status = _exit_status(arguments)
    finally:
        with contextlib.suppress(Exception):
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        os._exit(status)


def _exit_status(arguments: Sequence[str]) -> int:
    """Do what the command `axolotl` does."""
    from axolotl.cli.main import main

    sys.argv = ["axolotl", *arguments]
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0
