"""`axolotl t-spin run`: generate → train for every iteration that is left.

Each step is the command that a user would type, in a process of its own, so that its memory is
free for the next one and a crash takes nothing with it.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from axolotl.utils.logging import get_logger

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve import inspect_run, read_yaml
from axolotl_tspin.run_directory import Due

LOG = get_logger(__name__)

AXOLOTL = [sys.executable, "-m", "axolotl.cli.main"]


class StepFailed(Exception):
    """A step's command failed; its own error is in the output above."""

    def __init__(self, command: str, status: int) -> None:
        super().__init__(f"`{command}` failed with status {status}; its own error stands above")
        self.status = status


def run(config_path: Path, train_arguments: Sequence[str] = ()) -> None:
    """Do what is left of a run. Called again after any interruption, it goes on.

    Args:
        train_arguments: for `axolotl train`, such as `--launcher torchrun -- --nproc_per_node 8`.

    Raises:
        StepFailed: a step failed.
        TSpinError: bad configuration, or a step that ended well left its work undone.
    """
    before: Due | None = None
    while True:
        config, directory = inspect_run(read_yaml(config_path))
        due = directory.due(config.iterations, config.iteration)
        if due.step == "done":
            return
        if due == before:
            raise TSpinError(
                f"iteration {due.iteration} still has its step '{due.step}' to do, although the "
                "command ended well; with `t_spin.generation.shard` another process has the rest"
            )
        before = due
        last = config.iterations - 1
        LOG.info("T-SPIN: iteration %s of 0 to %s: %s", due.iteration, last, due.step)
        if due.step == "generate":
            _call("t-spin", "generate", str(config_path))
        else:
            _call("train", str(config_path), *train_arguments)


def _call(*arguments: str) -> None:
    shown = " ".join(["axolotl", *arguments])
    started = time.monotonic()
    status = subprocess.run([*AXOLOTL, *arguments]).returncode
    if status != 0:
        raise StepFailed(shown, status)
    LOG.info("T-SPIN: `%s` took %.0f s", shown, time.monotonic() - started)
