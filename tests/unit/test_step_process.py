"""The process of a step: signals reach it once, and it ends with the process that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.data import ROOT

STEP = """
import signal, sys, time
came = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: came.append(number))
print("begun", flush=True)
while not came:
    time.sleep(0.01)
time.sleep(0.3)
print("got", *map(int, came), flush=True)
"""

PARENT = """
import sys
from pathlib import Path
from axolotl_tspin.commands.step_process import run_step
from axolotl_tspin.errors import Interrupted
try:
    print("status", run_step([sys.executable, "-c", sys.argv[1]], {}, Path(sys.argv[2])))
except Interrupted as stopped:
    print("interrupted", stopped.signal)
"""


def start(step: str, log: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, step, str(log)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(text: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_signal_reaches_the_step_once(tmp_path, number, send):
    """Also if it goes to the whole group, as Ctrl-C on a terminal does."""
    process = start(STEP, tmp_path / "log")
    wait_for("begun", tmp_path / "log")
    send(process.pid, number)
    assert process.communicate(timeout=60)[0] == f"interrupted {int(number)}\n"
    assert (tmp_path / "log").read_text() == f"begun\ngot {int(number)}\n"


def test_a_step_that_ends_by_itself_gives_its_status(tmp_path):
    process = start("print('said'); raise SystemExit(7)", tmp_path / "log")
    assert process.communicate(timeout=60)[0] == "status 7\n"
    assert (tmp_path / "log").read_text() == "said\n"


def test_a_step_ends_with_a_killed_run(tmp_path):
    process = start(
        "import os, time; print(os.getpid(), flush=True); time.sleep(600)", tmp_path / "log"
    )
    wait_for("\n", tmp_path / "log")
    process.kill()
    process.wait()
    step, deadline = int((tmp_path / "log").read_text()), time.monotonic() + 20
    while Path(f"/proc/{step}").exists() and not is_zombie(step):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] == "Z"


def test_a_child_that_outlives_the_step_does_not_hold_the_run(tmp_path):
    step = "import subprocess; subprocess.Popen(['sleep', '60']); print('done')"
    started = time.monotonic()
    process = start(step, tmp_path / "log")
    assert process.communicate(timeout=60)[0] == "status 0\n"
    assert time.monotonic() - started < 50
    assert "done" in (tmp_path / "log").read_text()
