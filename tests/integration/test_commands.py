"""status, plan, export and import, on a run with a real (tiny) policy."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from axolotl.utils.dict import DictDefault
from datasets import Dataset, load_dataset
from support.commands import call, refused
from support.data import ROOT, conversations, write_jsonl
from support.runs import pretend_trained

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.steps import prepare_training
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_metadata, read_table, write_table


@pytest.fixture
def run(make_yaml, tmp_path):
    """Ten rows, iteration 0 trained, iteration 1 due."""
    path = make_yaml(rows=10)
    generate(path)
    directory = RunDirectory(tmp_path / "out")
    pretend_trained(directory, 0)
    record = directory.iteration(0).training_record()
    log = [
        {"step": 1, "loss": 0.9, "advantages/current": 1.0, "advantages/historical": 0.0},
        {"step": 3, "loss": 0.5, "advantages/current": 2.0, "advantages/historical": 0.5},
        {"step": 3, "train_runtime": 12.0, "train_loss": 0.7},
    ]
    directory.iteration(0).mark_trained(record | {"log_history": log})
    return path, directory


def test_status_tells_each_iteration(run):
    path, directory = run
    first, second = json.loads(call("status", path, "--json"))
    triplets, _ = read_table(directory.iteration(0).triplets("train"))
    tokens = sum(triplets["synthetic_tokens"].to_pylist())
    assert (first["step"], first["rows"], first["sampled"]) == ("done", 10, 10)
    assert first["tokens"] == tokens
    assert (first["loss"], first["training"], first["training_seconds"]) == (0.5, [3, 3], 12.0)
    assert (first["current_advantage"], first["historical_advantage"]) == (2.0, 0.5)
    assert first["policy"] == directory.iteration(0).training_record()["policy"]
    assert (second["step"], second["sampled"], second["model"]) == ("generate", 0, None)
    table = call("status", path)
    assert "generate" in table and "kept" in table


def test_status_before_the_run_has_begun(make_yaml):
    [row] = json.loads(call("status", make_yaml(), "--json"))
    assert (row["step"], row["rows"], row["sampled"]) == ("generate", 0, 0)


@pytest.mark.parametrize("command", ["status", "plan"])
def test_json_for_programs_is_alone_on_stdout(make_yaml, command):
    """Through the real process, with Axolotl's loggers and all."""
    done = subprocess.run(
        [sys.executable, "-m", "axolotl_tspin", command, str(make_yaml()), "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "AXOLOTL_LOG_LEVEL": "DEBUG"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"rl: t_spin\ndatasets: [x: {", "not valid YAML"),
        (b"\xff\xfe\x00\x01", "not text in UTF-8"),
        (b"- rl: t_spin\n", "holds a list; expected keys and values"),
        (b"rl", "holds `rl`; expected keys"),
        (b"", "holds nothing; expected keys"),
    ],
)
def test_a_file_that_is_no_yaml_is_named(tmp_path, content, expected):
    path = tmp_path / "run.yml"
    path.write_bytes(content)
    for command in ("status", "generate", "plan"):
        output = refused(command, path)
        assert output.startswith("Error: ") and "run.yml" in output and expected in output


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"datasets": {"path": "x"}}, "`datasets` is a block of keys; expected a list of data"),
        ({"datasets": "foo"}, "`datasets` is `foo`; expected a list of data sets"),
        ({"datasets": ["x.jsonl"]}, "`datasets[0]` is `x.jsonl`; expected a data set's keys"),
        ({"test_datasets": [{"type": "t_spin.spin"}]}, "`test_datasets[0].path` is missing"),
        ({"accelerator_config": True}, "`accelerator_config` is `True`; expected keys and values"),
        ({"output_dir": ["out"]}, "`output_dir` is a list; expected text"),
        ({"t_spin": [1]}, "`t_spin` is a list; expected keys"),
    ],
)
def test_a_value_of_another_shape_is_named_with_its_key(make_yaml, keys, expected):
    path = make_yaml(**keys)
    for command in ("status", "generate"):
        output = refused(command, path)
        assert output.startswith("Error: ") and "run.yml: " in output and expected in output
    with pytest.raises(TSpinError, match=re.escape(expected)):
        prepare_training(DictDefault(yaml.safe_load(path.read_text())))


@pytest.mark.parametrize("data", [{"path": "away.jsonl"}, {"path": "here.jsonl", "split": "rest"}])
def test_data_that_cannot_be_loaded_is_named(make_yaml, tmp_path, data):
    write_jsonl(tmp_path / "here.jsonl", conversations(2))
    path = make_yaml(datasets=[data | {"type": "t_spin.chat_template"}])
    for command in ("generate", "plan", "import"):
        output = refused(command, path)
        assert f"`datasets[0]`: the data in {data['path']} cannot be loaded" in output


def test_plan_counts_what_is_left(run, make_yaml, tmp_path):
    path, directory = run
    fresh = make_yaml(rows=10, name="fresh.yml", output_dir=str(tmp_path / "fresh"))
    before = json.loads(call("plan", fresh, "--json"))
    assert not (tmp_path / "fresh").exists(), "nothing was done"
    assert before["lengths"]["rows"] == 10 and not before["lengths"]["measured"]
    assert [i["responses"] for i in before["iterations"]] == [10, 10]
    assert before["iterations"][0]["sampled_tokens"] == 10 * 12, "at most max_new_tokens each"
    assert before["iterations"][0]["optimizer_steps"] == 3, "10 triplets, 4 an update"

    after = json.loads(call("plan", path, "--json"))
    [left] = after["iterations"]
    assert (left["iteration"], left["steps"], left["responses"]) == (1, ["generate", "train"], 10)
    frozen, _ = read_table(directory.prompts("train"))
    prompt = sum(map(len, frozen["prompt_ids"].to_pylist()))
    assert after["lengths"]["measured"] and left["prompt_tokens"] == prompt
    assert before["lengths"]["prompt"] == after["lengths"]["prompt"]
    assert before["lengths"]["annotated"] == after["lengths"]["annotated"]
    assert "responses" in call("plan", path)

    # Times, from the iteration that is trained.
    assert before["iterations"][0]["training_seconds"] is None
    [trained] = [row for row in json.loads(call("status", path, "--json")) if row["step"] == "done"]
    assert left["training_seconds"] == trained["training_seconds"] == 12.0
    rate = trained["tokens"] / trained["generation_seconds"]
    assert left["sampling_seconds"] == pytest.approx(left["sampled_tokens"] / rate)


def test_plan_counts_the_responses_of_both_splits(make_yaml, tmp_path):
    """Stopped half-way, those of one split are not taken for the other's."""
    write_jsonl(tmp_path / "test.jsonl", conversations(4))
    test = {"path": str(tmp_path / "test.jsonl"), "type": "t_spin.chat_template"}
    path = make_yaml(rows=10, test_datasets=[test])

    def responses() -> list[int]:
        planned = json.loads(call("plan", path, "--json"))
        assert (planned["lengths"]["rows"], planned["lengths"]["test_rows"]) == (10, 4)
        return [row["responses"] for row in planned["iterations"]]

    assert responses() == [14, 14]
    assert "10 rows and 4 for evaluation" in " ".join(call("plan", path).split())
    generate(path)
    assert responses() == [0, 14]
    iteration = RunDirectory(tmp_path / "out").iteration(0)
    iteration.triplets("train").unlink()
    iteration.triplets("test").unlink()
    assert responses() == [0, 14], "their responses are there"
    shutil.rmtree(iteration.responses("train"))
    assert responses() == [10, 14]


def test_plan_measures_the_last_triplets_of_ten_and_more(run, make_yaml):
    """iteration_10 comes after iteration_9."""
    _, directory = run
    long = make_yaml(rows=10, name="long.yml", t_spin={"iterations": 12})
    for number in (9, 10):
        shutil.copytree(directory.iteration(0).path, directory.iteration(number).path)
    table, _ = read_table(directory.iteration(0).triplets("train"))
    metadata = read_metadata(directory.iteration(0).triplets("train"))
    metadata |= {"sampled": 10, "tokens": 70}
    write_table(directory.iteration(10).triplets("train"), table, metadata)
    assert json.loads(call("plan", long, "--json"))["lengths"]["response"] == 7.0


def test_a_pinned_iteration_that_is_trained_is_the_one_named(run, make_yaml):
    path, directory = run
    pinned = {"iterations": 2, "iteration": 0}
    once = make_yaml(rows=10, name="pinned.yml", t_spin=pinned)
    for command in ("generate", "run"):
        output = call(command, once)
        assert "Iteration 0 of the run" in output and "All iterations" not in output
    pretend_trained(directory, 1)
    assert "All iterations of the run" in call("generate", path)


def test_plan_knows_how_training_partitions_its_model(make_yaml):
    """In one process without a launcher, where Axolotl could not set DeepSpeed up."""
    zero2 = str(ROOT / "examples" / "deepspeed" / "zero2.json")
    names = [
        json.loads(call("plan", make_yaml(**keys), "--json", "--ranks", 4))["memory"]["setting"][
            "name"
        ]
        for keys in ({}, {"deepspeed": zero2})
    ]
    assert names == ["DDP", "ZeRO-2"]


def test_plan_estimates_the_memory_of_a_rank(make_yaml, tmp_path):
    keys = {"rows": 10, "output_dir": str(tmp_path / "fresh")}
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    full = json.loads(call("plan", make_yaml(**keys), "--json", "--ranks", 8))
    assert full["iterations"][0]["optimizer_steps"] == 1, "10 triplets, 32 an update"
    memory = full["memory"]
    assert memory["setting"]["name"] == "DDP" and memory["choice"]["layout"] == "shared_prefix"
    assert memory["estimate"]["weights"] == 4 * memory["shape"]["parameters"]
    longest = full["lengths"]["longest"]
    assert memory["batch"]["tokens"] == 2 * (longest[0] + longest[1] + 2 * longest[2])
    adapted = json.loads(call("plan", make_yaml(**keys, **lora), "--json"))["memory"]
    matrices = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)]
    assert adapted["shape"]["trained"] == 2 * 4 * sum(i + o for i, o in matrices)
    table = call("plan", make_yaml(**keys), "--ranks", 8)
    assert "Memory of one rank in training: DDP, 8 ranks" in table and "MiB" in table


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_an_export_reads_back_in_each_format(run, tmp_path, ending):
    path, directory = run
    triplets = read_table(directory.iteration(0).triplets("train"))[0].to_pylist()
    asked = [row["messages"][0]["content"] for row in conversations(10)]

    def exported(style: str) -> list[dict]:
        target = tmp_path / f"{style}.{ending}"
        assert "10 rows of iteration 0" in call("export", path, target, "--format", style)
        kind = "json" if ending == "jsonl" else "parquet"
        return list(load_dataset(kind, data_files=str(target), split="train"))

    plain = exported("triplets")
    assert [r["synthetic"] for r in plain] == [r["synthetic"] for r in triplets]
    assert [r["proto_synthetic_policy"] for r in plain] == [directory.initial_policy()] * 10
    for row, triplet in zip(exported("trl"), triplets, strict=True):
        assert row["prompt"][-1]["role"] == "user" and row["prompt"][-1]["content"] in asked
        assert row["chosen"] == [{"role": "assistant", "content": triplet["annotated"]}]
        assert row["rejected"] == [{"role": "assistant", "content": triplet["synthetic"]}]
    for row, triplet in zip(exported("spin"), triplets, strict=True):
        assert row["real"][:-1] == row["generated"][:-1]
        assert row["real"][-1]["content"] == triplet["annotated"]
        assert row["generated"][-1]["content"] == triplet["synthetic"]


def test_an_export_to_the_hub_pushes_the_rows(run, monkeypatch):
    """All but the upload itself."""
    path, _ = run
    pushed = {}
    monkeypatch.setattr(
        Dataset, "push_to_hub", lambda data, name: pushed.update({name: data.to_list()})
    )
    assert "10 rows" in call("export", path, "hub:me/triplets")
    assert len(pushed["me/triplets"]) == 10 and pushed["me/triplets"][0]["messages"]


def test_an_export_that_cannot_be_is_named(run, tmp_path):
    path, _ = run
    assert "neither .parquet nor .jsonl" in refused("export", path, tmp_path / "rows.csv")
    assert "no triplets of iteration 1" in refused("export", path, "a.jsonl", "--iteration", 1)


def test_an_export_of_spin_begins_a_run_by_import(run, make_yaml, tmp_path):
    """SPIN's format there and back: its generated responses are the proto-synthetic ones."""
    path, directory = run
    call("export", path, tmp_path / "spin.jsonl", "--format", "spin")
    theirs = read_table(directory.iteration(0).triplets("train"))[0].to_pylist()
    other = make_yaml(
        name="imported.yml",
        output_dir=str(tmp_path / "imported"),
        datasets=[{"path": str(tmp_path / "spin.jsonl"), "type": "t_spin.spin"}],
    )
    assert "allow_foreign" in call("import", other)
    imported = RunDirectory(tmp_path / "imported")
    ours = read_table(imported.iteration(0).triplets("train"))[0].to_pylist()
    key = "annotated"
    texts = {row[key]: row["synthetic"] for row in theirs}
    for row in ours:
        assert row["synthetic"] == row["proto_synthetic"] == texts[row[key]]
        assert row["synthetic_policy"] != imported.initial_policy()
    with pytest.raises(TSpinError, match="allow_foreign"):
        prepare_training(read_yaml(other))
    assert "has begun" in refused("import", other) or "already" in refused("import", other)
    allowed = make_yaml(
        name="allowed.yml",
        output_dir=str(tmp_path / "imported"),
        datasets=[{"path": str(tmp_path / "spin.jsonl"), "type": "t_spin.spin"}],
        t_spin={"iterations": 2, "allow_foreign": True},
    )
    raw = read_yaml(allowed)
    prepare_training(raw)
    assert raw.t_spin["resolved"]["foreign"], "what was accepted is recorded"


def test_imported_responses_that_differ_keep_the_historical_term(make_yaml, tmp_path):
    """At iteration 0 too: its v is not 0 there."""
    rows = [
        row | {"synthetic": f"It is {i}.", "proto_synthetic": "It is 0."}
        for i, row in enumerate(conversations(4))
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    path = make_yaml(
        datasets=[{"path": str(data), "type": "t_spin.chat_template"}],
        t_spin={"beta": 0.3, "allow_foreign": True},
    )
    call("import", path)
    prepare_training(raw := read_yaml(path))
    assert raw.t_spin["resolved"]["iteration"] == 0
    assert raw.t_spin["resolved"]["beta"] == 0.3


def test_a_data_set_without_responses_is_not_imported(make_yaml, tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", conversations(3))
    path = make_yaml(datasets=[{"path": str(rows), "type": "t_spin.chat_template"}])
    assert "synthetic" in refused("import", path)
    assert not (tmp_path / "out" / "t_spin.json").exists()
