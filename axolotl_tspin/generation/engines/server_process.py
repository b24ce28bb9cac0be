"""Start and stop of the server that `t_spin.generation.server_command` names."""

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import get_logger
from axolotl_tspin.run.directory import Policy

LOG = get_logger(__name__)

_LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def start_server(command: str, policy: Policy) -> subprocess.Popen[bytes]:
    """Start the YAML's `server_command`; it ends with this process.

    Args:
        command: `{model}` and `{adapter}` stand for the policy's folders.

    Raises:
        TSpinError: it cannot be run.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise TSpinError(
            f"`t_spin.generation.server_command: {command}` is not a shell command ({error}); "
            "expected one such as `vllm serve {model} --port 8000`"
        ) from error
    # str.format would fail on other braces in the command, such as JSON.
    arguments = [
        word.replace("{model}", policy.base_model).replace("{adapter}", policy.adapter_dir or "")
        for word in words
    ]
    LOG.info("T-SPIN: starting the server: %s", shlex.join(arguments))
    try:
        # A separate process group lets us stop all of its processes.
        return subprocess.Popen(
            arguments,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    except OSError as error:
        raise TSpinError(
            f"`t_spin.generation.server_command: {command}` cannot be run ({error.strerror})"
        ) from error


def _end_with_parent() -> None:
    """Ask the kernel, in the child, for SIGTERM when the parent dies, even by SIGKILL."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """Stop a server with all of its processes, with SIGKILL if it does not end."""
    for sign, seconds in ((signal.SIGTERM, 60), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
