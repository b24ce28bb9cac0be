"""`axolotl-tspin`: completion, schema, version, and what the commands refuse."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import yaml
from pydantic import ValidationError
from support.commands import call, refused
from support.data import ROOT

from axolotl_tspin import __version__
from axolotl_tspin.__main__ import main
from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.run.directory import RunDirectory


def completed(words: str, number: int) -> list[str]:
    variables = {
        "_AXOLOTL_TSPIN_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(number),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "axolotl_tspin"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [line.split(",")[1] for line in done.stdout.splitlines() if line]


def test_the_shell_completes_commands_and_options():
    assert completed("axolotl-tspin re", 1) == ["report", "reward-check"]
    assert completed("axolotl-tspin nothing", 1) == []
    assert "--format" in completed("axolotl-tspin export --f", 2)


def test_the_shell_gets_its_script():
    done = subprocess.run(
        [sys.executable, "-m", "axolotl_tspin"],
        env=os.environ | {"_AXOLOTL_TSPIN_COMPLETE": "bash_source", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "complete -o nosort -F _axolotl_tspin_completion axolotl-tspin" in done.stdout


def test_the_console_script_is_the_module():
    (script,) = entry_points(group="console_scripts", name="axolotl-tspin")
    assert script.load() is main


def test_the_version():
    assert call("--version").split() == ["axolotl-tspin,", "version", __version__]


def test_the_schema_has_the_block_as_a_user_writes_it():
    schema = json.loads(call("schema"))
    assert set(schema["properties"]) == set(TSpinConfig.model_fields) - {"resolved"}
    assert "ResolvedRun" not in json.dumps(schema)
    generation = schema["$defs"]["GenerationConfig"]["properties"]
    assert generation["backend"]["enum"] == ["transformers", "vllm", "server"]
    assert schema["additionalProperties"] is False, "editors mark misspelt keys"
    with pytest.raises(ValidationError):
        TSpinConfig.model_validate({"iteratons": 3})


def test_status_of_a_folder_without_a_run(make_yaml):
    output = refused("status", make_yaml())
    assert "holds no run yet; `axolotl t-spin run" in output


def test_status_of_another_run(make_yaml, tmp_path):
    run = RunDirectory(tmp_path / "out")
    run.path.mkdir()
    run.begin({"base_model": "another"}, {}, initial_policy="0")
    for options in ((), ("--json",)):
        assert "another configuration (base_model: the run has 'another'" in refused(
            "status", make_yaml(), *options
        )
    path = make_yaml()
    ours = {"base_model": yaml.safe_load(path.read_text())["base_model"]}
    run.begin(ours, {}, initial_policy="0")
    assert "iterations 0 to 1" in call("status", path)


def test_lm_eval_without_tasks(make_yaml):
    assert "has no `lm_eval_tasks`; name some" in refused("lm-eval", make_yaml())
