"""What a user sees of a command that loads Axolotl, and what goes into the log file; in processes
of their own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.commands import ENVIRONMENT, axolotl
from support.data import ROOT

DUMP = '"sequence_len": 192'
"""Of the configuration that Axolotl logs."""


def started(*arguments, status: int = 0, module: str = "axolotl_tspin") -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done.stdout, done.stderr


def test_a_command_shows_messages_and_logs_the_rest(make_yaml, tmp_path):
    path = make_yaml(rows=4)
    stdout, stderr = started("generate", path)
    assert re.fullmatch(r"Iteration 0: 4 responses sampled; .*\n", stdout)
    lines = stderr.splitlines()
    times = [line[:8] for line in lines]
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", time) for time in times) and times == sorted(times)
    assert "sampling from" in stderr and DUMP not in stderr and "@@" not in stderr
    text = (tmp_path / "out" / "t_spin.log").read_text()
    assert DUMP in text and "sampling from" in text and "generate" in text.splitlines()[1]


def test_all_is_shown_if_asked_for(make_yaml, tmp_path):
    stdout, stderr = started("generate", make_yaml(rows=4), "--verbose")
    assert DUMP in stdout + stderr
    assert not (tmp_path / "out" / "t_spin.log").exists()


def test_an_unexpected_error_is_one_line_and_its_traceback_in_the_log(
    make_yaml, tmp_path, policy_dir
):
    broken = tmp_path / "broken"
    shutil.copytree(policy_dir, broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    _, stderr = started("generate", make_yaml(base_model=str(broken)), status=1)
    last = stderr.splitlines()[-1]
    assert last.startswith("Error: ") and "Traceback" not in stderr
    log = Path(re.search(r"its traceback is in (.*)\)$", last).group(1))
    assert log == tmp_path / "out" / "t_spin.log" and "Traceback" in log.read_text()


def test_bad_input_leaves_no_folder(make_yaml, tmp_path):
    _, stderr = started("generate", make_yaml(sequence_len=None), status=1)
    assert "`sequence_len` is missing" in stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_warning_of_axolotls_about_the_yaml_is_seen(make_yaml):
    _, stderr = started("plan", make_yaml(rows=4, learing_rate=1.0, eval_batch_size=4))
    assert "Warning: `learing_rate` is not a key" in stderr
    assert "Warning: eval_batch_size" in stderr, stderr


def test_an_error_of_ours_in_axolotl_train_has_no_traceback(make_yaml):
    output = axolotl("train", make_yaml(), "--launcher", "python", check=False).stdout
    assert "Error: nothing to train on yet" in output and "Traceback" not in output


def test_another_error_in_axolotl_train_keeps_its_traceback(make_yaml):
    output = axolotl("train", make_yaml(plugins=["a.B"]), "--launcher", "python", check=False)
    assert output.returncode != 0 and "Traceback" in output.stdout
