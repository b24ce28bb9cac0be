"""The real commands in processes of their own: `axolotl t-spin generate`, `axolotl train`, …"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.commands import BIN, ENVIRONMENT, axolotl, losses, record, train
from support.data import conversations, write_jsonl
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from axolotl_tspin.commands.loop import AXOLOTL, generation_launcher
from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_table


@pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available(),
    reason="Axolotl asks a CUDA build of torch about its devices, which needs a driver",
)
def test_torchruns_processes_sample_as_one_does(make_yaml, tmp_path):
    """What `run --launcher torchrun -- --nproc_per_node 2` starts for the sampling."""
    paths = [
        make_yaml(rows=140, name=f"{name}.yml", output_dir=str(tmp_path / name))
        for name in ("two", "one")
    ]
    config, two = inspect_run(read_yaml(paths[0]))
    arguments = ["--launcher", "torchrun", "--", "--nproc_per_node", "2"]
    launcher = generation_launcher(read_yaml(paths[0]), config, arguments)
    command = [sys.executable, *launcher, *AXOLOTL, "t-spin", "generate", str(paths[0])]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shares = [int(n) for n in re.findall(r"Iteration 0: (\d+) responses sampled", done.stdout)]
    assert sum(shares) == 140 and min(shares) > 0
    axolotl("t-spin", "generate", paths[1])
    one = RunDirectory(tmp_path / "one")
    both = [read_table(run.iteration(0).triplets("train"))[0] for run in (two, one)]
    assert both[0]["synthetic_ids"].equals(both[1]["synthetic_ids"])


def test_only_transformers_under_torchrun_samples_in_several_processes(make_yaml):
    raw = read_yaml(make_yaml())
    config, _ = inspect_run(raw)
    torchrun = ["--launcher=torchrun", "--", "--nnodes", "2"]
    assert generation_launcher(raw, config, torchrun)[-2:] == ["--nnodes", "2"]
    assert generation_launcher(raw, config, ["--launcher", "accelerate"]) == []
    assert generation_launcher(raw | {"use_ray": True}, config, torchrun) == []
    sampling = config.generation.model_copy(update={"backend": "vllm"})
    with_vllm = config.model_copy(update={"generation": sampling})
    assert generation_launcher(raw, with_vllm, torchrun) == []


def test_lora_continues_its_adapter(make_yaml, tmp_path):
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    # Axolotl's fused LoRA kernels are on by default and need a GPU.
    kernels = {f"lora_{part}_kernel": False for part in ("mlp", "qkv", "o")}
    path = make_yaml(rows=6, **lora, **kernels)
    run = RunDirectory(tmp_path / "out")
    for _ in range(2):
        axolotl("t-spin", "generate", path)
        train(path)
    assert run.due(2).step == "done"
    before, after = (
        load_file(run.iteration(t).model / "adapter_model.safetensors") for t in (0, 1)
    )
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)
    assert not (run.iteration(1).model / "model.safetensors").exists()


def test_a_killed_training_resumes_and_ends_as_an_uninterrupted_one(make_yaml, tmp_path):
    """SIGKILL between checkpoints; the weights at the end are the same."""
    keys = {"save_strategy": "steps", "save_steps": 2, "num_epochs": 4, "save_total_limit": 2}
    paths = [
        make_yaml(rows=8, name=f"{name}.yml", output_dir=str(tmp_path / name), **keys)
        for name in ("killed", "whole")
    ]
    for path in paths:
        axolotl("t-spin", "generate", path)
    train(paths[1])
    whole = RunDirectory(tmp_path / "whole").iteration(0)

    run = RunDirectory(tmp_path / "killed")
    process = subprocess.Popen(
        [str(BIN / "axolotl"), "train", str(paths[0]), "--launcher", "python"],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while run.iteration(0).last_checkpoint() is None and time.monotonic() < deadline:
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert run.due(2) == (0, "train")
    output = train(paths[0])
    assert "resumed from:" in output
    resumed = load_file(run.iteration(0).model / "model.safetensors")
    for name, weight in load_file(whole.model / "model.safetensors").items():
        assert weight.sub(resumed[name]).abs().max() < 1e-5, name
    assert losses(run, 0) == pytest.approx(losses(RunDirectory(tmp_path / "whole"), 0), rel=1e-3)


def test_accumulation_through_axolotl_gives_one_loss_and_gradient(make_yaml, tmp_path):
    """8 at once, 4×2 and 2×4 in the whole stack: the same loss, gradient norm and weights."""
    rows = [
        row | {"synthetic": f"It is {i}.", "proto_synthetic": f"Perhaps {i}, or {2 * i}?"}
        for i, row in enumerate(conversations(8))
    ]
    data = write_jsonl(tmp_path / "direct.jsonl", rows)
    outcomes = []
    for micro, accumulation in ((8, 1), (4, 2), (2, 4)):
        out = tmp_path / f"out-{micro}"
        path = make_yaml(
            datasets=[{"path": str(data), "type": "t_spin.chat_template"}],
            output_dir=str(out),
            micro_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            save_strategy="steps",
            save_steps=1,
            optimizer="sgd",
            max_grad_norm=0.0,
        )
        train(path)
        state = json.loads((out / "checkpoint-1" / "trainer_state.json").read_text())
        outcomes.append((state["log_history"][0], load_file(out / "model.safetensors")))
        assert not (out / "t_spin.json").exists()
    (first_log, first_weights), *others = outcomes
    for log, weights in others:
        assert log["loss"] == pytest.approx(first_log["loss"], rel=1e-5)
        assert log["grad_norm"] == pytest.approx(first_log["grad_norm"], rel=1e-4)
        for name, weight in first_weights.items():
            assert weight.sub(weights[name]).abs().max() < 1e-6, name


def test_preprocess_fills_the_cache_that_training_reads(make_yaml, tmp_path):
    path = make_yaml(rows=6)
    axolotl("t-spin", "generate", path)
    axolotl("preprocess", path)
    assert "Loading prepared dataset from disk" in train(path)


def test_a_run_without_rl_t_spin_trains_as_ever(make_yaml, tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", conversations(6))
    path = make_yaml(rl=None, t_spin=None, datasets=[{"path": str(data), "type": "chat_template"}])
    keys = yaml.safe_load(path.read_text())
    output = train(path)
    assert "T-SPIN" not in output
    path.write_text(yaml.safe_dump({k: v for k, v in keys.items() if k != "plugins"}))
    with_plugin = load_file(tmp_path / "out" / "model.safetensors")
    train(path)
    without = load_file(tmp_path / "out" / "model.safetensors")
    assert all(weight.equal(without[name]) for name, weight in with_plugin.items())


def test_two_iterations_from_one_yaml(make_yaml, tmp_path):
    """generate → train → generate → train → evaluate, the YAML never edited."""
    path = make_yaml(val_set_size=4, eval_strategy="epoch", use_tensorboard=True)
    run = RunDirectory(tmp_path / "out")
    early = train(path, check=False)
    assert "nothing to train on yet" in early

    assert "Iteration 0: 12 responses sampled" in axolotl("t-spin", "generate", path).stdout
    output = axolotl("train", path).stdout
    assert output.count("T-SPIN iteration 0 of 0 to 1 (beta 0.0)") == 1
    first = record(run, 0)["log_history"]
    logged = next(entry for entry in first if "loss" in entry)
    assert logged["advantages/historical"] == 0.0
    assert logged["loss"] == pytest.approx(logged["loss/current"], rel=1e-4)
    assert any("eval_rewards/margins" in entry for entry in first)
    assert "ppl" not in logged
    assert output.count("the historical term is off at iteration 0") == 1
    events = EventAccumulator(str(next(run.iteration(0).model.rglob("*tfevents*")).parent))
    scalars = events.Reload().Tags()["scalars"]
    assert {"train/rewards/margins", "eval/rewards/margins", "train/logps/annotated"} <= set(
        scalars
    )

    assert "Iteration 1: 12 responses sampled" in axolotl("t-spin", "generate", path).stdout
    output = train(path)
    assert f"policy: {run.iteration(0).model}" in output
    logged = next(e for e in record(run, 1)["log_history"] if "loss" in e)
    assert logged["advantages/historical"] != 0.0
    assert logged["loss"] == pytest.approx(
        logged["loss/current"] + 0.1 * logged["loss/historical"], rel=1e-4
    )
    before, after = (load_file(run.iteration(t).model / "model.safetensors") for t in (0, 1))
    assert any(not before[name].equal(after[name]) for name in before)

    assert "All iterations" in axolotl("t-spin", "generate", path).stdout
    refused = train(path, check=False)
    assert "iteration 1 of the run in" in refused and "is trained already" in refused
    assert after.keys() == load_file(run.iteration(1).model / "model.safetensors").keys()
    trained_at = (run.iteration(0).model / "model.safetensors").stat().st_mtime
    again = train(run.iteration(0).training_config, check=False)
    assert "iteration 0 of the run in" in again and "is trained already" in again
    assert (run.iteration(0).model / "model.safetensors").stat().st_mtime == trained_at
    axolotl("evaluate", path, "--launcher", "python")
    summary = (run.iteration(1).model / "eval_summary.csv").read_text()
    assert "rewards/margins" in summary and "logps/annotated" in summary
