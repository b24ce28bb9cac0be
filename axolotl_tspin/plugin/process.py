"""What the plugin sets in a process of `axolotl train`: where messages and errors are shown."""

import functools
import os
import sys
from types import TracebackType

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import RELAYED, console, join_run
from axolotl_tspin.run.processes import end_with_parent


@functools.cache
def set_up_process() -> None:
    """Show our own errors as one message without a traceback. In a step of `run`, show messages on
    its terminal, and end with it."""
    if RELAYED in os.environ:
        join_run()
        end_with_parent()
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, place: TracebackType | None) -> None:
        ours = isinstance(error, TSpinError)
        if not ours or RELAYED in os.environ:
            before(kind, error, place)
        if ours or RELAYED in os.environ:
            text = str(error) if ours else f"{kind.__name__}: {error}"
            console().print(f"Error: {text}", markup=False, highlight=False, soft_wrap=True)

    sys.excepthook = show
