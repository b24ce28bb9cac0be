"""Blocks: journals survive being cut anywhere, and one process at a time has a block."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.blocks import claim_blocks, read_journal, rows_done
from axolotl_tspin.generation.shards import Shard, this_shard
from axolotl_tspin.run import prompts as run_prompts
from axolotl_tspin.run.prompts import Prompts, freeze_prompts
from axolotl_tspin.run.tables import read_table

MADE_WITH = {"policy": "feed", "temperature": 1.0}


def response(row: int) -> dict:
    return {
        "row": row,
        "prompt_hash": "00",
        "text": f"é {row}",
        "ids": [row, 2],
        "finish_reason": "stop",
        "tokens": 1,
        "iteration": 0,
        "policy": "feed",
        "sampling": "{}",
        "engine": "none",
    }


@pytest.fixture
def prompts(tmp_path, monkeypatch) -> Prompts:
    """70 prompts in blocks of 32, 32 and 6."""
    monkeypatch.setattr(run_prompts, "SMALLEST_BLOCK", 32)
    rows = [
        {
            "prompt": "p",
            "annotated": "a",
            "prompt_messages": "",
            "input_ids": [row, 1],
            "labels": [-100, 1],
            "stop_ids": [2],
            "source_row": 0,
        }
        for row in range(70)
    ]
    freeze_prompts(tmp_path / "prompts.parquet", rows, 70)
    return Prompts(tmp_path / "prompts.parquet")


def claims(folder, prompts, shard=None, made_with=MADE_WITH):
    return claim_blocks(folder, prompts, np.ones(70, dtype=bool), made_with, shard or Shard())


def test_blocks_are_completed_one_by_one_and_left_clean(tmp_path, prompts):
    folder = tmp_path / "responses"
    for block in claims(folder, prompts):
        block.add([response(row) for row in reversed(block.rows)])
        block.publish(1.0)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"block_{number:06d}.parquet" for number in range(3)]
    assert rows_done(folder) == (70, 70)
    assert read_table(folder / names[2])[0]["row"].to_pylist() == list(range(64, 70))
    assert list(claims(folder, prompts)) == []


def test_a_block_that_is_held_is_passed_over(tmp_path, prompts):
    folder = tmp_path / "responses"
    held = next(claims(folder, prompts))
    others = list(claims(folder, prompts))
    assert [block.rows[0] for block in others] == [32, 64]
    for block in (held, *others):
        block.leave()
    assert len(list(claims(folder, prompts))) == 3


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_journal_that_is_cut_or_altered_keeps_what_came_before(tmp_path, prompts, data):
    folder = tmp_path / "responses"
    block = next(claims(folder, prompts))
    block.add([response(row) for row in block.rows[:10]])
    block.leave()
    whole = block.journal.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    altered = bytearray(whole)
    altered[position] ^= 0x10
    block.journal.write_bytes(data.draw(st.sampled_from([whole[:position], bytes(altered)])))
    kept, _ = read_journal(block.journal, MADE_WITH)
    assert kept == {row: response(row) for row in list(range(10))[: len(kept)]}
    lines_before = whole[:position].count(b"\n")
    assert len(kept) == max(lines_before - 1, 0)

    resumed = next(claims(folder, prompts))
    assert resumed.missing == block.rows[len(kept) :]
    resumed.add([response(row) for row in resumed.rows])
    resumed.publish(0.0)
    table, _ = read_table(resumed.path)
    assert table.to_pylist() == [response(row) for row in block.rows]
    resumed.path.unlink()


def test_responses_made_otherwise_are_refused(tmp_path, prompts):
    folder = tmp_path / "responses"
    block = next(claims(folder, prompts))
    block.add([response(0)])
    block.leave()
    with pytest.raises(TSpinError, match=r"temperature = 1\.0, and the run now has 0\.5"):
        next(claims(folder, prompts, made_with=MADE_WITH | {"temperature": 0.5}))


def test_a_full_disk_is_named_and_what_was_made_is_kept(tmp_path, prompts):
    folder = tmp_path / "responses"
    block = next(claims(folder, prompts))
    block.add([response(0)])
    journal, block._file = block._file, open("/dev/full", "r+b")  # noqa: SIM115
    with pytest.raises(TSpinError, match=r"block_000000\.journal: the disk is full"):
        block.add([response(1)])
    journal.close()
    block.leave()
    assert next(claims(folder, prompts)).missing == block.rows[1:]


@given(total=st.integers(1, 9))
def test_shards_are_a_partition(total):
    blocks = range(40)
    shares = [block for number in range(total) for block in blocks[number::total]]
    assert sorted(shares) == list(blocks)


def test_the_share_comes_from_the_yaml_or_the_environment():
    assert this_shard("2/5", {}) == Shard(2, 5)
    assert this_shard(None, {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Shard(1, 4)
    step = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"}
    assert this_shard(None, step) == Shard(3, 8)
    assert this_shard(None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == Shard()
