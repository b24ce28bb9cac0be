"""The steps look before they sample, and tell which settings have changed."""

import json
import socket

import pytest
from axolotl.utils.dict import DictDefault
from support.commands import call, refused
from support.preflight import interpreter, nobody_logged_in
from support.runs import pretend_trained

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.steps import prepare_training
from axolotl_tspin.resolve.yaml_file import read_yaml

SAMPLING = {"max_new_tokens": 12, "batch_size": 4}


@pytest.fixture(autouse=True)
def _nobody_logged_in(monkeypatch, tmp_path):
    nobody_logged_in(monkeypatch, tmp_path / "home")


def sampled_with(**keys) -> dict:
    return {"iterations": 2, "generation": SAMPLING | keys}


@pytest.mark.parametrize("command", ["generate", "run"])
def test_a_tracker_without_a_key_ends_the_command_before_anything_is_sampled(
    make_yaml, tmp_path, command
):
    path = make_yaml(wandb_project="p")
    assert "`wandb_project: p` asks for W&B" in refused(command, path)
    assert not (tmp_path / "out" / "prompts").exists()


def test_a_run_looks_before_a_training_too(generated_run, make_yaml):
    path = make_yaml(rows=10, hub_model_id="us/model")
    assert "`hub_model_id: us/model` asks for the hub" in refused("run", path)


def test_vllm_that_lacks_ends_the_command_before_the_data_is_read(make_yaml, tmp_path):
    python = interpreter(tmp_path / "env")
    path = make_yaml(t_spin=sampled_with(backend="vllm", python=python))
    for command in ("generate", "run"):
        assert "has no vLLM" in refused(command, path)
    assert not (tmp_path / "out" / "prompts").exists()


def test_a_server_that_is_away_is_told_at_once_and_waited_for(make_yaml, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        path = make_yaml(t_spin=sampled_with(backend="server", servers=[url], patience=0.5))
        with pytest.raises(TSpinError, match=r"no answer from .* for 0 s"):
            generate(path)
    assert f"{url} cannot be reached" in caplog.text


def test_settings_that_changed_in_the_middle_of_a_run_are_told_at_each_step(
    generated_run, make_yaml, caplog
):
    path, run = generated_run
    prepare_training(DictDefault(read_yaml(path)))
    pretend_trained(run, 0)
    assert json.loads(call("plan", path, "--json"))["changes"] == ""
    assert "Changed since" not in call("plan", path)
    assert "changed since" not in caplog.text

    changed = make_yaml(
        rows=10, learning_rate=5e-4, t_spin=sampled_with(temperature=0.7) | {"alpha": 0.5}
    )
    said = "t_spin.alpha 1.0 → 0.5, t_spin.generation.temperature 1.0 → 0.7"
    line = json.loads(call("plan", changed, "--json"))["changes"]
    assert line == f"since iteration 0: {said}, learning_rate 0.001 → 0.0005"
    assert f"Changed {line}" in call("plan", changed)
    caplog.clear()
    assert generate(changed).due == "train"
    assert f"changed {line}" in caplog.text
    caplog.clear()
    prepare_training(DictDefault(read_yaml(changed)))
    trained = "since iteration 0: t_spin.alpha 1.0 → 0.5, learning_rate 0.001 → 0.0005"
    assert f"changed {trained}" in caplog.text


def test_a_run_whose_settings_stay_says_nothing(generated_run, caplog):
    path, run = generated_run
    prepare_training(DictDefault(read_yaml(path)))
    pretend_trained(run, 0)
    assert generate(path).due == "train"
    prepare_training(DictDefault(read_yaml(path)))
    assert "changed since" not in caplog.text
