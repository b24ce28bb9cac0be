"""The generation step with a real (tiny) policy: same responses however often it is stopped."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axolotl.cli.config import load_cfg
from support.data import conversations, write_jsonl
from support.policies import tiny_llama
from support.runs import pretend_trained

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation import importing, step
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.steps import prepare_training
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.tables import TableWriter, read_table


def rows_of(path) -> list[dict]:
    return pq.read_table(path).to_pylist()


pytestmark = pytest.mark.usefixtures("small_blocks")


def test_triplets_hold_what_was_sampled(generated_run, tokenizer):
    _, directory = generated_run
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


def test_the_end_token_that_came_is_what_is_recorded(make_yaml, policy_dir, tokenizer, tmp_path):
    """The model's own list has a third of the vocabulary, so that most responses end by one."""
    model = shutil.copytree(policy_dir, tmp_path / "model")
    own = list(range(400, len(tokenizer)))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": own}))
    generate(make_yaml(rows=10, base_model=str(model)))
    rows = rows_of(RunDirectory(tmp_path / "out").iteration(0).triplets("train"))
    stops = {tokenizer.eos_token_id, *own}
    ends = set()
    for row in rows:
        assert row["stop_ids"] == [tokenizer.eos_token_id, *own]
        *before, last = row["synthetic_ids"]
        assert stops.isdisjoint(before)
        assert (last in stops) == (row["synthetic_finish_reason"] == "stop")
        words = before if last in stops else [*before, last]
        assert row["synthetic"] == tokenizer.decode(words, skip_special_tokens=True)
        ends |= {last} & stops
    assert len(ends) > 3, "not the template's in place of the one that came"


def test_generating_again_does_nothing(generated_run):
    path, directory = generated_run
    before = directory.iteration(0).triplets("train").stat().st_mtime_ns
    assert generate(path).generated == 0
    assert directory.iteration(0).triplets("train").stat().st_mtime_ns == before


def test_the_second_iteration_keeps_the_anchor(generated_run, policy_dir):
    path, directory = generated_run
    first = directory.iteration(0)
    pretend_trained(directory, 0)
    outcome = generate(path)
    assert (outcome.iteration, outcome.generated) == (1, 10)
    before, after = (rows_of(directory.iteration(t).triplets("train")) for t in (0, 1))
    for old, new in zip(before, after, strict=True):
        assert new["prompt_ids"] == old["prompt_ids"]
        assert new["proto_synthetic_ids"] == old["proto_synthetic_ids"]
    assert [r["synthetic_ids"] for r in after] != [r["synthetic_ids"] for r in before]
    initial, trained = directory.initial_policy(), first.training_record()["policy"]
    for row in after:
        assert (row["synthetic_policy"], row["synthetic_iteration"]) == (trained, 1)
        assert (row["proto_synthetic_policy"], row["proto_synthetic_iteration"]) == (initial, 0)
        assert row["synthetic_engine"].startswith("transformers ")
        assert json.loads(row["synthetic_sampling"])["temperature"] == 1.0
        assert row["synthetic_tokens"] == len(row["synthetic_ids"]) - (
            row["synthetic_finish_reason"] == "stop"
        )


def test_the_anchor_is_never_made_anew_and_can_be_put_together_again(generated_run):
    path, directory = generated_run
    first = directory.iteration(0)
    pretend_trained(directory, 0)
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


def test_other_sampling_settings_are_refused_in_a_half_sampled_iteration(generated_run, make_yaml):
    _, directory = generated_run
    directory.iteration(0).triplets("train").unlink()
    other = make_yaml(
        rows=10, t_spin={"generation": {"max_new_tokens": 12, "batch_size": 4, "temperature": 0.5}}
    )
    with pytest.raises(TSpinError, match=r"temperature = 1\.0, and the run now has 0\.5"):
        generate(other)
    assert generate(make_yaml(rows=10)).generated == 0


def test_blocks_of_another_data_set_are_refused(generated_run, make_yaml, tmp_path):
    path, directory = generated_run
    other = make_yaml(rows=8, name="other.yml", output_dir=str(tmp_path / "other"))
    generate(other)
    theirs = RunDirectory(tmp_path / "other").iteration(0)
    ours = directory.iteration(0)
    ours.triplets("train").unlink()
    block = next(theirs.responses("train").glob("*.parquet"))
    shutil.copy(block, ours.responses("train"))
    with pytest.raises(TSpinError, match=rf"{block.name}: .*prompts_fingerprint"):
        generate(path)


def test_triplets_of_another_data_set_or_damaged_ones_are_refused(generated_run):
    path, directory = generated_run
    triplets = directory.iteration(0).triplets("train")
    whole = triplets.read_bytes()
    table, metadata = read_table(triplets)

    def refused(message, table=table, **changed):
        with TableWriter(triplets, table.schema) as writer:
            for start in range(0, 10, 4):
                writer.write(table.slice(start, 4))
            writer.close(metadata | changed)
        with pytest.raises(TSpinError, match=message):
            prepare_training(read_yaml(path))

    refused(r"\(9 rows\) does not belong to .* \(10 rows\)", rows=9)
    refused("made for another data set", prompts_fingerprint="other")

    def with_column(name, values):
        index = table.column_names.index(name)
        return table.set_column(index, table.schema.field(name), pa.array(values))

    hashes = table["prompt_hash"].to_pylist()
    refused(
        "row 8 answers another prompt",
        with_column("prompt_hash", [*hashes[:8], hashes[9], hashes[8]]),
    )
    ours = table["synthetic_policy"].to_pylist()
    foreign = ["feed"] * 6 + ours[6:]
    refused(
        r"6 synthetic responses \(rows 0, 1, 2, 3, 4, … 5\) were sampled by the policy feed",
        with_column("synthetic_policy", foreign),
    )
    refused(
        r"6 proto_synthetic responses .* the policy that this iteration anchors to",
        with_column("proto_synthetic_policy", foreign),
    )
    allowed = read_yaml(path)
    allowed["t_spin"]["allow_foreign"] = True
    prepare_training(allowed)
    [finding] = allowed.t_spin.resolved.foreign
    assert finding.startswith("6 proto_synthetic responses"), "what was accepted is recorded"

    triplets.write_bytes(whole[:100])
    with pytest.raises(TSpinError, match=r"train\.parquet cannot be read"):
        prepare_training(read_yaml(path))
    triplets.write_bytes(whole)
    prepare_training(read_yaml(path))

    prompts = directory.prompts("train")
    prompts.write_bytes(prompts.read_bytes()[:100])
    with pytest.raises(TSpinError, match=r"prompts/train\.parquet cannot be read"):
        prepare_training(read_yaml(path))


def test_weights_that_were_changed_in_their_folder_are_refused(generated_run, policy_dir):
    path, directory = generated_run
    pretend_trained(directory, 0)
    tiny_llama(600, seed=77).save_pretrained(directory.iteration(0).model)
    with pytest.raises(TSpinError, match="are not those that iteration 0 trained"):
        generate(path)


def test_rows_with_one_prompt_share_a_response_where_that_is_asked_for(make_yaml, tmp_path):
    rows = conversations(4)
    data = write_jsonl(tmp_path / "data.jsonl", [*rows, rows[1], rows[1], rows[3]])
    entry = {"path": str(data), "type": "t_spin.chat_template"}
    generation = {"max_new_tokens": 12, "batch_size": 4, "deduplicate": True}
    path = make_yaml(
        datasets=[entry], t_spin={"generation": generation}, dataset_exact_deduplication=False
    )
    assert generate(path).generated == 4
    triplets = rows_of(tmp_path / "out/iteration_0/triplets/train.parquet")
    assert len(triplets) == 7
    responses = {}
    for row in triplets:
        responses.setdefault(row["prompt"], set()).add(tuple(row["synthetic_ids"]))
    assert len(responses) == 4 and all(len(r) == 1 for r in responses.values())


def test_an_output_folder_that_cannot_be_written_to_is_refused_before_anything(make_yaml, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TSpinError, match="not a folder that can be written to"):
        generate(make_yaml(output_dir=str(tmp_path / "file" / "out")))


@pytest.mark.parametrize("module", [step, importing])
def test_a_run_that_another_process_begins_meanwhile_is_not_taken_for_ours(
    make_yaml, tmp_path, monkeypatch, module
):
    first = make_yaml(rows=4, name="first.yml")
    rows = [{**row, "synthetic": "no", "proto_synthetic": "no"} for row in conversations(4)]
    entry = {
        "path": str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        "type": "t_spin.chat_template",
    }
    ours = make_yaml(rows=6) if module is step else make_yaml(datasets=[entry])

    def meanwhile(raw):
        monkeypatch.setattr(module, "load_cfg", load_cfg)
        generate(first)
        return load_cfg(raw)

    monkeypatch.setattr(module, "load_cfg", meanwhile)
    with pytest.raises(TSpinError, match=r"begun with another configuration|has begun meanwhile"):
        (step.generate if module is step else importing.import_run)(ours)
    assert Prompts(RunDirectory(tmp_path / "out").prompts("train")).rows == 4
