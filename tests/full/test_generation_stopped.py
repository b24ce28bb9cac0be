"""The generation step, stopped, killed, shared between processes, and with each selection."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.data import ROOT, conversations, write_jsonl
from support.policies import plain_logp, tiny_llama
from support.runs import pretend_trained

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.blocks import rows_done
from axolotl_tspin.generation.shards import Shard
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.steps import prepare_training
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory


def rows_of(path) -> list[dict]:
    return pq.read_table(path).to_pylist()


pytestmark = pytest.mark.usefixtures("small_blocks")


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lost=st.sets(st.integers(0, 2)), damaged=st.sets(st.integers(0, 2)))
def test_a_resumed_step_gives_what_an_uninterrupted_one_gives(generated_run, lost, damaged):
    """Whatever blocks are missing or torn, their rows and no others are made again, the same."""
    path, directory = generated_run
    iteration = directory.iteration(0)
    whole = rows_of(iteration.triplets("train"))
    blocks = sorted(iteration.responses("train").glob("*.parquet"))
    assert len(blocks) == 3
    kept = {b: b.read_bytes() for i, b in enumerate(blocks) if i not in lost | damaged}
    for i, block in enumerate(blocks):
        if i in damaged:
            data = bytearray(block.read_bytes())
            data[len(data) // 3] ^= 1
            block.write_bytes(data)
        elif i in lost:
            block.unlink()
    iteration.triplets("train").unlink()
    generated = generate(path).generated
    assert generated == sum((4, 4, 2)[i] for i in lost | damaged)
    assert rows_of(iteration.triplets("train")) == whole
    assert all(b.read_bytes() == data for b, data in kept.items())
    for torn in iteration.responses("train").glob("*.damaged"):
        torn.unlink()


def test_a_killed_step_goes_on_where_it_was(make_yaml, tmp_path):
    """SIGKILL in the middle of a block; no response that was made is made again."""
    keys = {"rows": 24, "t_spin": {"generation": {"max_new_tokens": 40, "batch_size": 1}}}
    path = make_yaml(**keys)
    whole = make_yaml(name="whole.yml", output_dir=str(tmp_path / "whole"), **keys)
    code = (
        "import sys; from axolotl_tspin.generation import step; "
        "from axolotl_tspin.run import prompts; "
        "prompts.SMALLEST_BLOCK = 4; prompts.BLOCKS_AT_LEAST = 1000; step.generate(sys.argv[1])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=tmp_path)
    folder = RunDirectory(tmp_path / "out").iteration(0).responses("train")
    deadline = time.monotonic() + 180
    while rows_done(folder)[0] < 6 and time.monotonic() < deadline:
        assert process.poll() is None, "the step ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    made = rows_done(folder)[0]
    assert 6 <= made < 24
    assert generate(path).generated == 24 - made
    generate(whole)
    triplets = "iteration_0/triplets/train.parquet"
    assert rows_of(tmp_path / "out" / triplets) == rows_of(tmp_path / "whole" / triplets)
    left = sorted(p.name for p in folder.iterdir())
    assert left == [f"block_{number:06d}.parquet" for number in range(6)]


def test_many_processes_share_one_run(make_yaml, tmp_path):
    """Two shards, one after the other; the second one finds all complete and ends the step."""
    path = make_yaml(rows=14)
    first = generate(path, Shard(0, 2))
    assert (first.due, first.generated) == ("generate", 8)
    second = generate(path, Shard(1, 2))
    assert (second.due, second.generated) == ("train", 6)
    whole = make_yaml(rows=14, name="whole.yml", output_dir=str(tmp_path / "whole"))
    generate(whole)
    triplets = "iteration_0/triplets/train.parquet"
    assert rows_of(tmp_path / "out" / triplets) == rows_of(tmp_path / "whole" / triplets)


def test_a_shard_sampled_with_other_settings_is_refused(make_yaml):
    generate(make_yaml(rows=14), Shard(0, 2))
    generation = {"max_new_tokens": 12, "batch_size": 4, "temperature": 0.3}
    other = make_yaml(rows=14, name="other.yml", t_spin={"generation": generation})
    with pytest.raises(TSpinError, match=r"temperature = 1\.0, and the run now has 0\.3"):
        generate(other, Shard(1, 2))


def test_a_damaged_block_of_another_shard_is_put_aside_for_that_shard(make_yaml, tmp_path):
    path = make_yaml(rows=14)
    generate(path, Shard(0, 2))
    directory = RunDirectory(tmp_path / "out")
    block = directory.iteration(0).responses("train") / "block_000000.parquet"
    block.write_bytes(block.read_bytes()[:100])
    assert generate(path, Shard(1, 2)).due == "generate"
    assert not block.exists() and block.with_name(f"{block.name}.damaged").exists()
    again = generate(path, Shard(0, 2))
    assert (again.due, again.generated) == ("train", 4)


@pytest.mark.parametrize("select", ["fraction", "advantage"])
def test_unselected_prompts_keep_their_last_response(make_yaml, tmp_path, select):
    generation = {"max_new_tokens": 12, "batch_size": 4, "select": select, "fraction": 0.3}
    path = make_yaml(rows=10, t_spin={"iterations": 3, "generation": generation})
    directory = RunDirectory(tmp_path / "out")
    assert generate(path).generated == 10, "iteration 0 needs all"
    pretend_trained(directory, 0)
    assert generate(path).generated == 3
    before, after = (rows_of(directory.iteration(t).triplets("train")) for t in (0, 1))
    new = [row["row"] for row in after if row["synthetic_iteration"] == 1]
    assert len(new) == 3
    for old, row in zip(before, after, strict=True):
        if row["row"] not in new:
            assert {k: v for k, v in row.items() if k.startswith("synthetic")} == {
                k: v for k, v in old.items() if k.startswith("synthetic")
            }
    prepare_training(read_yaml(path))
    if select == "advantage":
        trained = tiny_llama(600, seed=5).double().eval()
        advantages = [
            plain_logp(trained, row["prompt_ids"], row["annotated_ids"])
            - plain_logp(trained, row["prompt_ids"], row["synthetic_ids"])
            for row in before
        ]
        assert sorted(new) == sorted(sorted(range(10), key=lambda i: -advantages[i])[:3])


def test_evaluation_data_gets_its_responses_too(make_yaml, tmp_path):
    data = write_jsonl(tmp_path / "held_out.jsonl", conversations(3))
    held_out = [{"path": str(data), "type": "t_spin.chat_template"}]
    assert generate(make_yaml(rows=5, test_datasets=held_out)).generated == 8
    assert len(rows_of(tmp_path / "out/iteration_0/triplets/test.parquet")) == 3


def test_what_a_first_step_froze_that_failed_is_frozen_anew(make_yaml, tmp_path):
    """The YAML had evaluation data, and other rows."""
    data = write_jsonl(tmp_path / "held_out.jsonl", conversations(3))
    held_out = [{"path": str(data), "type": "t_spin.chat_template"}]
    generate(make_yaml(rows=4, test_datasets=held_out))
    directory = RunDirectory(tmp_path / "out")
    directory.manifest.unlink()
    shutil.rmtree(directory.iteration(0).path / "responses")
    outcome = generate(make_yaml(rows=6))
    assert (outcome.due, outcome.generated) == ("train", 6)
    assert directory.splits() == ["train"]
    assert len(rows_of(directory.iteration(0).triplets("train"))) == 6


def test_the_script_is_the_command(make_yaml, tmp_path):
    path = make_yaml(rows=4)
    command = [sys.executable, str(ROOT / "scripts" / "generate.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Iteration 0: 4 responses sampled" in done.stdout
    path.write_text(path.read_text().replace("t_spin.chat_template", "t_spin.chat"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "Error: `datasets[0].type: t_spin.chat` is not a type of" in done.stderr
