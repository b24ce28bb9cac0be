"""What is checked before sampling: trackers, the hub, vLLM's environment, servers."""

import logging
import os
import socket

import pytest
import yaml
from huggingface_hub import constants
from support.data import ROOT
from support.preflight import install, interpreter, nobody_logged_in, web_server

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.preflight import check_before_run
from axolotl_tspin.resolve.preflight import engines
from axolotl_tspin.resolve.preflight.engines import (
    check_vllm,
    tell_unreachable_servers,
    vllm_requirement,
)
from axolotl_tspin.resolve.preflight.hub import check_hub
from axolotl_tspin.resolve.preflight.trackers import check_trackers

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _nobody_logged_in(monkeypatch, tmp_path):
    nobody_logged_in(monkeypatch, tmp_path / "home")


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A folder of packages that this process and its children find."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture
def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield free.getsockname()[1]  # bound, but nobody listens


@pytest.mark.parametrize(
    ("keys", "asking"),
    [
        ({"wandb_project": "p"}, "`wandb_project: p`"),
        ({"use_wandb": True}, "`use_wandb: true`"),
        ({"use_wandb": True, "wandb_mode": "online"}, "`use_wandb: true`"),
    ],
)
def test_wandb_needs_a_key(keys, asking):
    with pytest.raises(TSpinError, match="wandb login") as error:
        check_trackers(keys)
    assert asking in str(error.value) and "W&B" in str(error.value)
    assert "WANDB_PROJECT" not in os.environ, "what Axolotl would set is put back"


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_needs_no_key_where_it_stays_here(mode, monkeypatch):
    check_trackers({"wandb_project": "p", "wandb_mode": mode})
    monkeypatch.setenv("WANDB_MODE", mode)
    check_trackers({"wandb_project": "p"})
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(TSpinError, match="wandb login"):
        check_trackers({"wandb_project": "p"})


def test_wandbs_key_is_found_in_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    check_trackers({"use_wandb": True})


def test_wandbs_key_is_found_in_netrc_for_its_own_host(tmp_path, monkeypatch):
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    netrc.chmod(0o600)
    check_trackers({"use_wandb": True})
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(TSpinError, match=r"no key for wandb\.example\.org"):
        check_trackers({"use_wandb": True})
    other = tmp_path / "netrc"
    other.write_text(f"machine wandb.example.org login user password {KEY}\n")
    other.chmod(0o600)
    monkeypatch.setenv("NETRC", str(other))
    check_trackers({"use_wandb": True})


@pytest.mark.parametrize("line", [f"api_key = {KEY}", "mode = offline"])
def test_wandbs_files_of_settings_are_read(tmp_path, line):
    settings = tmp_path / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nentity = us\n")
    with pytest.raises(TSpinError, match="wandb login"):
        check_trackers({"use_wandb": True})
    settings.write_text(f"[default]\n{line}\n")
    check_trackers({"use_wandb": True})


def test_a_tracker_that_is_off_is_not_looked_at():
    check_trackers({"use_wandb": False, "use_mlflow": None, "wandb_name": "x"})
    check_trackers({"mlflow_tracking_uri": "http://127.0.0.1:1"})  # Axolotl leaves MLflow off


@pytest.mark.parametrize(
    ("keys", "package"),
    [
        ({"use_mlflow": True}, "mlflow"),
        ({"mlflow_experiment_name": "e"}, "mlflow"),
        ({"use_comet": True}, "comet_ml"),
        ({"comet_project_name": "c"}, "comet_ml"),
    ],
)
def test_a_tracker_must_be_installed(keys, package):
    with pytest.raises(TSpinError, match=f"not installed here: `pip install {package}`"):
        check_trackers(keys)


def test_mlflows_server_must_answer(site, closed_port):
    install(site, "mlflow")
    check_trackers({"use_mlflow": True})
    with web_server(401, {}) as url:
        check_trackers({"use_mlflow": True, "mlflow_tracking_uri": url})
    away = f"http://user:secret@127.0.0.1:{closed_port}"
    with pytest.raises(TSpinError, match="cannot be reached") as error:
        check_trackers({"mlflow_experiment_name": "e", "mlflow_tracking_uri": away})
    assert "`mlflow_experiment_name: e`" in str(error.value)
    assert "secret" not in str(error.value) and f"127.0.0.1:{closed_port}" in str(error.value)


@pytest.mark.parametrize("uri", ["{}/runs", "file://{}/runs", "sqlite:///{}/mlflow.db"])
def test_mlflows_folder_must_be_one_that_can_be_written_to(site, tmp_path, uri):
    install(site, "mlflow")
    check_trackers({"use_mlflow": True, "mlflow_tracking_uri": uri.format(tmp_path / "new")})
    (tmp_path / "file").write_text("")
    with pytest.raises(TSpinError, match=r"file(/runs)? cannot be written to"):
        check_trackers({"use_mlflow": True, "mlflow_tracking_uri": uri.format(tmp_path / "file")})


COMET = """
import os
class config:
    get_config = staticmethod(lambda name: os.environ.get("COMET_API_KEY"))
"""


def test_comet_needs_a_key(site):
    install(site, "comet_ml", COMET)
    with pytest.raises(TSpinError, match="type `comet login`"):
        check_trackers({"comet_project_name": "c"})
    check_trackers({"comet_project_name": "c", "comet_api_key": "k"})


def test_comet_that_does_not_import_is_told_with_the_reason(site):
    install(site, "comet_ml", "raise ImportError('torn')")
    with pytest.raises(TSpinError, match=r"`import comet_ml` fails .*torn"):
        check_trackers({"use_comet": True})


def test_trackio_needs_a_token_only_for_a_space(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    check_trackers({"use_trackio": True})
    with pytest.raises(TSpinError, match="no token to write to its Space us/logs"):
        check_trackers({"trackio_project_name": "t", "trackio_space_id": "us/logs"})


def test_the_hub_that_is_switched_off_is_told(monkeypatch):
    check_hub({})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TSpinError, match=r"`hub_model_id: us/model`.*HF_HUB_OFFLINE is set"):
        check_hub({"hub_model_id": "us/model"})


def asks_the_hub(monkeypatch, role, status=200, token="hf_x"):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    answer = {"name": "us", "auth": {"accessToken": {"role": role}}}
    with web_server(status, answer) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        check_hub({"hub_model_id": "us/model"})


@pytest.mark.parametrize("role", ["write", "fineGrained", None])
def test_a_token_that_may_write_passes(monkeypatch, role):
    asks_the_hub(monkeypatch, role)


def test_a_token_that_may_not_write_is_told(monkeypatch):
    with pytest.raises(TSpinError, match="may only read, not write to us/model"):
        asks_the_hub(monkeypatch, "read")
    with pytest.raises(TSpinError, match="refuses its token"):
        asks_the_hub(monkeypatch, "write", status=401)


def test_no_token_is_told(monkeypatch):
    with pytest.raises(TSpinError, match="no token to write to us/model: type `hf auth login`"):
        asks_the_hub(monkeypatch, "write", token=None)


def test_a_hub_that_does_not_answer_is_warned_of(monkeypatch, closed_port, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port}")
    check_hub({"hub_model_id": "us/model"})
    assert "did not say whether its token may write to us/model" in caplog.text


def vllm(python) -> GenerationConfig:
    return GenerationConfig(backend="vllm", python=python)


def test_vllm_of_another_environment_is_found_without_its_import(tmp_path, caplog):
    check_vllm(vllm(interpreter(tmp_path, "9.1.0")))
    assert caplog.text == ""


def test_an_old_vllm_is_warned_of(tmp_path, caplog):
    check_vllm(vllm(interpreter(tmp_path, "0.5.0")))
    assert "has vLLM 0.5.0" in caplog.text and str(vllm_requirement()) in caplog.text


def test_an_interpreter_without_vllm_is_told_with_what_to_type(tmp_path):
    python = interpreter(tmp_path)
    with pytest.raises(TSpinError, match="has no vLLM") as error:
        check_vllm(vllm(python))
    assert f"`{python} -m pip install vllm`" in str(error.value)
    check_vllm(GenerationConfig(python=python))  # another backend


def test_an_interpreter_that_does_not_run_is_told(tmp_path):
    with pytest.raises(TSpinError, match="cannot be run"):
        check_vllm(vllm(str(tmp_path / "none")))
    with pytest.raises(TSpinError, match=r"ended with status 3 \(torn\)"):
        check_vllm(vllm(interpreter(tmp_path, body="echo torn >&2; exit 3")))


def test_an_interpreter_that_hangs_is_left_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(engines, "SECONDS_TO_START", 0.5)
    check_vllm(vllm(interpreter(tmp_path, body="exec sleep 60")))
    assert "did not say within" in caplog.text


def test_servers_that_are_not_there_yet_are_told_with_how_long_they_are_waited_for(
    closed_port, caplog
):
    away = f"http://127.0.0.1:{closed_port}/v1"
    with web_server(503, {}) as url:
        config = GenerationConfig(backend="server", servers=[f"{url}/v1", away], patience=120)
        assert tell_unreachable_servers(config) == [away]
    assert f"{away} cannot be reached" in caplog.text
    assert "`patience: 120`" in caplog.text and url not in caplog.text


def test_servers_that_the_step_starts_are_not_looked_for(closed_port, caplog):
    away = f"http://127.0.0.1:{closed_port}/v1"
    config = GenerationConfig(backend="server", servers=[away], server_command="vllm serve {model}")
    assert tell_unreachable_servers(config) == [] and caplog.text == ""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "yaml").glob("*.yml")), ids=lambda path: path.stem
)
def test_an_example_passes_where_nobody_is_logged_in(path, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    cfg = yaml.safe_load(path.read_text()) | {"output_dir": str(tmp_path / "out")}
    if cfg["t_spin"]["generation"].get("backend") == "vllm":
        cfg["t_spin"]["generation"]["python"] = interpreter(tmp_path / "without")
        with pytest.raises(TSpinError, match="has no vLLM"):
            check_before_run(cfg)
        cfg["t_spin"]["generation"]["python"] = interpreter(tmp_path / "with", "9.1.0")
    check_before_run(cfg)
    assert caplog.text == ""
    with pytest.raises(TSpinError, match="wandb login"):
        check_before_run(cfg | {"wandb_project": "p"})
    with pytest.raises(TSpinError, match="hub_model_id"):
        check_before_run(cfg | {"hub_model_id": "us/model"})
