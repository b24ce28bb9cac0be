"""Launching scripts on several ranks."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
SCRIPTS = Path(__file__).parent


def on_ranks(ranks: int, *arguments: object, timeout: int = 400) -> subprocess.CompletedProcess:
    """Runs a script on so many ranks; one that hangs has failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its ranks
        output, _ = process.communicate()
        output += f"\nended after {timeout} s"
    return subprocess.CompletedProcess(command, process.returncode, output)
