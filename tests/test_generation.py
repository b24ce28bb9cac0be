"""The generation step with a real (tiny) policy: same responses however often it is stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, conversations, tiny_llama, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation import step
from axolotl_tspin.generation.engine import TransformersEngine
from axolotl_tspin.generation.step import generate
from axolotl_tspin.generation.store import read_table, write_table
from axolotl_tspin.run_directory import RunDirectory


def rows_of(path) -> list[dict]:
    return pq.read_table(path).to_pylist()


@pytest.fixture(autouse=True)
def _a_shard_for_every_batch(monkeypatch):
    monkeypatch.setattr(step, "SECONDS_BETWEEN_SHARDS", 0.0)


@pytest.fixture
def run(make_yaml, tmp_path):
    """A generated run of 10 rows in batches of 4, and its YAML."""
    path = make_yaml(rows=10)
    outcome = generate(path)
    assert (outcome.iteration, outcome.due, outcome.generated) == (0, "train", 10)
    return path, RunDirectory(tmp_path / "out")


def test_triplets_hold_what_was_sampled(run, tokenizer):
    _, directory = run
    rows = rows_of(directory.iteration(0).triplets("train"))
    assert [row["row"] for row in rows] == list(range(10))
    annotated = {row["messages"][1]["content"] for row in conversations(10)}
    assert {row["annotated"] for row in rows} == annotated
    reasons = set()
    for row in rows:
        reasons.add(row["synthetic_finish_reason"])
        ended = row["synthetic_finish_reason"] == "stop"
        ids = row["synthetic_ids"]
        assert (ids[-1] == tokenizer.eos_token_id) == ended
        assert tokenizer.eos_token_id not in ids[:-1]
        assert len(ids) <= 12 and (ended or len(ids) == 12)
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["synthetic"]
        assert row["prompt_ids"] == tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        for key in ("", "_ids", "_finish_reason"):
            assert row[f"proto_synthetic{key}"] == row[f"synthetic{key}"]
    assert "length" in reasons


def test_generating_again_does_nothing(run):
    path, directory = run
    before = directory.iteration(0).triplets("train").stat().st_mtime_ns
    assert generate(path).generated == 0
    assert directory.iteration(0).triplets("train").stat().st_mtime_ns == before


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lost=st.sets(st.integers(0, 2)), damaged=st.sets(st.integers(0, 2)))
def test_a_resumed_step_gives_what_an_uninterrupted_one_gives(run, lost, damaged):
    """Whatever shards are missing or torn, their rows and no others are made again, the same."""
    path, directory = run
    iteration = directory.iteration(0)
    whole = rows_of(iteration.triplets("train"))
    shards = sorted(iteration.responses("train").glob("*.parquet"))
    assert len(shards) == 3
    kept = {s: s.read_bytes() for i, s in enumerate(shards) if i not in lost | damaged}
    for i, shard in enumerate(shards):
        if i in damaged:
            shard.write_bytes(shard.read_bytes()[:-20])
        elif i in lost:
            shard.unlink()
    iteration.triplets("train").unlink()
    generated = generate(path).generated
    assert generated == sum((4, 4, 2)[i] for i in lost | damaged)
    assert rows_of(iteration.triplets("train")) == whole
    assert all(s.read_bytes() == data for s, data in kept.items())
    for torn in iteration.responses("train").glob("*.damaged"):
        torn.unlink()


def test_a_killed_step_goes_on_where_it_was(make_yaml, tmp_path):
    """SIGKILL in the middle of sampling, in a process of its own."""
    path = make_yaml(rows=24, t_spin={"generation": {"max_new_tokens": 40, "batch_size": 1}})
    uninterrupted = make_yaml(
        rows=24,
        name="whole.yml",
        output_dir=str(tmp_path / "whole"),
        t_spin={"generation": {"max_new_tokens": 40, "batch_size": 1}},
    )
    code = (
        "import sys; from axolotl_tspin.generation import step; "
        "step.SECONDS_BETWEEN_SHARDS = 0.0; step.generate(sys.argv[1])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=tmp_path)
    shards = RunDirectory(tmp_path / "out").iteration(0).responses("train")
    deadline = time.monotonic() + 180
    while len(list(shards.glob("*.parquet"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, "the step ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    made = len(list(shards.glob("*.parquet")))
    assert 3 <= made < 24
    assert generate(path).generated == 24 - made
    generate(uninterrupted)
    assert rows_of(tmp_path / "out/iteration_0/triplets/train.parquet") == rows_of(
        tmp_path / "whole/iteration_0/triplets/train.parquet"
    )


def test_the_second_iteration_keeps_the_anchor(run, policy_dir):
    path, directory = run
    first = directory.iteration(0)
    tiny_llama(600, seed=5).save_pretrained(first.model)
    first.mark_trained({})
    outcome = generate(path)
    assert (outcome.iteration, outcome.generated) == (1, 10)
    before, after = (rows_of(directory.iteration(t).triplets("train")) for t in (0, 1))
    for old, new in zip(before, after, strict=True):
        assert new["prompt_ids"] == old["prompt_ids"]
        assert new["proto_synthetic_ids"] == old["proto_synthetic_ids"]
    assert [r["synthetic_ids"] for r in after] != [r["synthetic_ids"] for r in before]
    _, metadata = read_table(directory.iteration(1).triplets("train"))
    assert metadata["synthetic"]["policy"] == "iteration_0"
    assert metadata["proto_synthetic"]["policy"] == "initial"


def test_the_anchor_is_never_made_anew_and_can_be_put_together_again(run):
    path, directory = run
    first = directory.iteration(0)
    tiny_llama(600, seed=5).save_pretrained(first.model)
    first.mark_trained({})
    triplets = first.triplets("train")
    whole = rows_of(triplets)
    triplets.write_bytes(triplets.read_bytes()[:50])
    with pytest.raises(TSpinError, match=r"iteration_0/triplets/train\.parquet cannot be read"):
        generate(path)
    triplets.unlink()
    first.trained_marker.rename(directory.path / "kept.json")
    assert generate(path).generated == 0
    assert rows_of(triplets) == whole
    (directory.path / "kept.json").rename(first.trained_marker)
    outcome = generate(path)
    assert (outcome.iteration, outcome.generated) == (1, 0), "its responses were kept too"


def test_other_sampling_settings_are_refused_in_a_half_sampled_iteration(run, make_yaml):
    _, directory = run
    directory.iteration(0).triplets("train").unlink()
    other = make_yaml(
        rows=10, t_spin={"generation": {"max_new_tokens": 12, "batch_size": 4, "temperature": 0.5}}
    )
    with pytest.raises(TSpinError, match=r"temperature = 1\.0, and the run now has 0\.5"):
        generate(other)
    assert generate(make_yaml(rows=10)).generated == 0


def test_shards_of_another_data_set_are_refused(run, make_yaml, tmp_path):
    path, directory = run
    other = make_yaml(rows=8, name="other.yml", output_dir=str(tmp_path / "other"))
    generate(other)
    theirs = RunDirectory(tmp_path / "other").iteration(0)
    ours = directory.iteration(0)
    ours.triplets("train").unlink()
    shard = next(theirs.responses("train").glob("*.parquet"))
    shutil.copy(shard, ours.responses("train") / "stray.parquet")
    with pytest.raises(TSpinError, match=r"stray\.parquet: .*prompts_fingerprint"):
        generate(path)


def test_triplets_of_another_data_set_or_damaged_ones_are_refused(run, make_yaml, tmp_path):
    from axolotl.utils.dict import DictDefault
    from test_resolve import read

    from axolotl_tspin.resolve import prepare_training

    path, directory = run
    triplets = directory.iteration(0).triplets("train")
    whole = triplets.read_bytes()
    table, metadata = read_table(triplets)
    write_table(triplets, table.slice(0, 9), metadata)
    with pytest.raises(TSpinError, match=r"\(9 rows\) does not belong to .* \(10 rows\)"):
        prepare_training(read(path))
    write_table(triplets, table, metadata | {"prompts_fingerprint": "other"})
    with pytest.raises(TSpinError, match="made for another data set"):
        prepare_training(read(path))
    triplets.write_bytes(whole[:100])
    with pytest.raises(TSpinError, match=r"train\.parquet cannot be read"):
        prepare_training(read(path))
    triplets.write_bytes(whole)
    prepare_training(read(path))

    prompts = directory.prompts("train")
    prompts.write_bytes(prompts.read_bytes()[:100])
    with pytest.raises(TSpinError, match=r"prompts/train\.parquet cannot be read"):
        prepare_training(DictDefault(read(path)))


def test_an_output_folder_that_cannot_be_written_to_is_refused_before_anything(make_yaml, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TSpinError, match="not a folder that can be written to"):
        generate(make_yaml(output_dir=str(tmp_path / "file" / "out")))


def test_evaluation_data_gets_its_responses_too(make_yaml, tmp_path):
    data = write_jsonl(tmp_path / "held_out.jsonl", conversations(3))
    held_out = [{"path": str(data), "type": "t_spin.chat_template"}]
    assert generate(make_yaml(rows=5, test_datasets=held_out)).generated == 8
    assert len(rows_of(tmp_path / "out/iteration_0/triplets/test.parquet")) == 3


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


def sampled(policy, prompts, seed=0, limit=9, **sampling):
    engine = TransformersEngine(
        policy, pad_token_id=0, sampling=GenerationConfig(batch_size=4, **sampling)
    )
    return engine.sample(
        prompts, max_new_tokens=[limit] * len(prompts), stop_token_ids=[2], seed=seed
    )


def test_greedy_sampling_follows_the_argmax_whatever_else_is_in_the_batch():
    policy = tiny_llama(50).double()
    prompts = [[1, 7, 8, 9], [1, 30], [1, 12, 13]]
    together = sampled(policy, prompts, temperature=0)
    for prompt, response in zip(prompts, together, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(9):
                ids.append(policy(torch.tensor([ids])).logits[0, -1].argmax().item())
        expected = ids[len(prompt) :]
        ended = 2 in expected
        assert response.ids == expected[: expected.index(2)] if ended else expected
        assert response.finish_reason == ("stop" if ended else "length")


def test_the_checkpoints_own_generation_config_adds_nothing():
    policy = tiny_llama(50)
    plain = sampled(policy, [[1, 7]] * 64, limit=1)
    policy.generation_config.top_k = 1
    policy.generation_config.repetition_penalty = 9.0
    assert sampled(policy, [[1, 7]] * 64, limit=1) == plain
    assert len({tuple(r.ids) for r in plain}) > 3


def test_samples_follow_the_policys_distribution():
    """Frequencies of first tokens against softmax(logits), at temperature 1 and 0.5."""
    policy = tiny_llama(12)
    with torch.no_grad():
        logits = policy(torch.tensor([[1, 7]])).logits[0, -1].double()
    n = 4000
    for temperature in (1.0, 0.5):
        responses = sampled(policy, [[1, 7]] * n, limit=1, temperature=temperature)
        counts = torch.zeros(12)
        for response in responses:
            counts[response.ids[0] if response.ids else 2] += 1
        expected = (logits / temperature).softmax(0)
        error = (counts / n - expected).abs()
        assert (error < 5 * (expected * (1 - expected) / n).sqrt() + 1e-4).all()
