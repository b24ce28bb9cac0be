"""`axolotl t-spin report --watch`: the page, written again whenever a run directory changed."""

import time
from collections.abc import Sequence
from pathlib import Path

from axolotl_tspin.diagnostics.report import write_report
from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys

SECONDS = 2.0
"""Between two looks at a run directory."""

SHOWN = {".json", ".parquet", ".yml"}
"""Endings of the files that the page is made from; weights and the page itself are not."""


def keep_written(configs: Sequence[Path], out: Path) -> None:
    """Write the page whenever a file that it is made from changed, until KeyboardInterrupt. The
    last page does not read itself again.

    Args:
        configs: the runs' YAMLs.
        out: the page.
    """
    seen = None
    try:
        while True:
            now = files_of(configs)  # before it is read: what changes meanwhile is seen next
            if now != seen:
                write_report(configs, out, reloads=True)
                seen = now
            time.sleep(SECONDS)
    except KeyboardInterrupt:
        write_report(configs, out)


def files_of(configs: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """List the files that the page is made from, with their times of change and their sizes."""
    found = {}
    for config in configs:
        _, run = inspect_run(read_keys(config))
        for path in [config, *run.path.rglob("*")]:
            if path.suffix not in SHOWN or path.name.startswith("."):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # replaced or deleted since it was listed
                continue
            found[path] = (status.st_mtime_ns, status.st_size)
    return found
