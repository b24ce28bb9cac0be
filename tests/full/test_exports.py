"""Exports of data with messages, text, tool calls and empty responses."""

import math

import pytest
import torch
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from datasets import load_dataset
from support.commands import call, refused
from support.data import write_jsonl
from support.policies import tiny_llama

from axolotl_tspin.generation.step import generate
from axolotl_tspin.run import exporting
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_table

CALL = {"function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}

MIXED = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3", "name": "add"},
]


@pytest.fixture
def mixed(make_yaml, tmp_path):
    """A run of three rows of plain text and one with messages that carry tool calls."""
    texts = [{"prompt": f"Say {i}.", "response": f"It is {i}."} for i in range(3)]
    answer = {"role": "assistant", "content": "It is 3."}
    write_jsonl(tmp_path / "texts.jsonl", texts)
    write_jsonl(tmp_path / "messages.jsonl", [{"messages": [*MIXED, answer]}])
    path = make_yaml(
        datasets=[
            {"path": str(tmp_path / "texts.jsonl"), "type": "t_spin.instruction"},
            {
                "path": str(tmp_path / "messages.jsonl"),
                "type": "t_spin.chat_template",
                "chat_template": "qwen_25",  # has a place for tool calls
            },
        ],
        sequence_len=448,
        shuffle_merged_datasets=False,
    )
    generate(path)
    return path


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize("group", [1, 1000])
def test_an_export_of_mixed_data_loses_nothing(mixed, tmp_path, ending, group, monkeypatch):
    """Neither messages, where the first row has none, nor a message's other keys."""
    monkeypatch.setattr(exporting, "GROUP", group)

    def exported(style: str) -> list[dict]:
        target = tmp_path / "made" / f"{style}.{ending}"
        assert "4 rows" in call("export", mixed, target, "--format", style)
        kind = "json" if ending == "jsonl" else "parquet"
        rows = list(load_dataset(kind, data_files=str(target), split="train"))
        return sorted(rows, key=lambda row: "1 + 2?" in str(row))

    *texts, last = exported("triplets")
    assert [row["messages"] for row in texts] == [None] * 3
    assert [without_nulls(m) for m in last["messages"]] == MIXED
    assert texts[0]["annotated"].startswith("It is ")
    *texts, last = exported("spin")
    assert [without_nulls(m) for m in last["real"][:-1]] == MIXED
    assert without_nulls(last["real"][-1])["content"] == "It is 3."
    assert all(len(row["generated"]) == 2 for row in texts)


def without_nulls(message: dict) -> dict:
    """What Parquet and `datasets` fill in for keys that other messages have."""
    return {key: value for key, value in message.items() if value is not None}


def test_trl_has_no_place_for_mixed_data(mixed, tmp_path):
    output = refused("export", mixed, tmp_path / "trl.jsonl", "--format", "trl")
    assert "row 0 was made of plain text, row 3 of messages" in output
    assert [p.name for p in tmp_path.iterdir() if "trl" in p.name] == [], "nothing is left behind"


def test_an_export_that_parquet_cannot_hold_is_told(make_yaml, tmp_path):
    for name, note in (("first", 1), ("second", {"by": "hand"})):
        question = {"role": "user", "content": "1 + 2?", "note": note}
        answer = {"role": "assistant", "content": "It is 3."}
        write_jsonl(tmp_path / f"{name}.jsonl", [{"messages": [question, answer]}])
    kind = "t_spin.chat_template"
    path = make_yaml(
        output_dir=str(tmp_path / "other"),
        datasets=[
            {"path": str(tmp_path / f"{name}.jsonl"), "type": kind} for name in ("first", "second")
        ],
    )
    generate(path)
    assert "Export to *.jsonl" in refused("export", path, tmp_path / "rows.parquet")
    assert "2 rows" in call("export", path, tmp_path / "rows.jsonl")


@pytest.fixture
def policy_that_often_ends_at_once(tmp_path, tokenizer):
    """Half of its responses are empty: one token alone is likely, after every text."""
    model = tiny_llama(len(tokenizer))
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = math.log(len(tokenizer) - 1) / 32
    model.save_pretrained(tmp_path / "brief")
    tokenizer.save_pretrained(tmp_path / "brief")
    return tmp_path / "brief"


def test_responses_that_ended_at_once_come_back_from_an_export(
    make_yaml, tmp_path, tokenizer, policy_that_often_ends_at_once
):
    keys = {"rows": 12, "base_model": str(policy_that_often_ends_at_once)}
    path = make_yaml(**keys)
    generate(path)
    theirs = read_table(RunDirectory(tmp_path / "out").iteration(0).triplets("train"))[0]
    empty = {r["annotated"]: r["synthetic"] == "" for r in theirs.to_pylist()}
    assert 0 < sum(empty.values()) < len(empty) == 12
    end = [tokenizer.eos_token_id]

    spin, out = tmp_path / "spin.parquet", tmp_path / "imported"
    call("export", path, spin, "--format", "spin")
    entry = {"path": str(spin), "type": "t_spin.spin"}
    call("import", make_yaml(name="import.yml", output_dir=str(out), datasets=[entry], **keys))
    ours = read_table(RunDirectory(out).iteration(0).triplets("train"))[0].to_pylist()
    assert {r["annotated"]: r["synthetic"] == "" for r in ours} == empty
    assert all((r["synthetic_ids"] == end) == empty[r["annotated"]] for r in ours)

    rows = tmp_path / "triplets.jsonl"
    call("export", path, rows)
    entry = {"path": str(rows), "type": "t_spin.instruction", "field_response": "annotated"}
    entry |= {"prompt_template": "{prompt}"}
    direct = make_yaml(name="d.yml", output_dir=str(tmp_path / "d"), datasets=[entry], **keys)
    data = load_datasets(cfg=load_cfg(str(direct))).train_dataset
    assert sum(ids == end for ids in data["synthetic_ids"]) == sum(empty.values())


def test_an_export_of_conversations_with_tool_calls(make_yaml, tmp_path):
    def row(name, arguments):
        calls = [{"id": "c", "function": {"name": name, "arguments": arguments}}]
        return {
            "messages": [
                {"role": "user", "content": f"What is {arguments}?"},
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "2"},
                {"role": "assistant", "content": "It is 2."},
            ]
        }

    data = [row("add", '{"x": 1}'), row("add", '{"x": "one"}'), row("find", '{"x": {"y": 1}}')]
    entry = {"path": str(write_jsonl(tmp_path / "calls.jsonl", data)), "chat_template": "qwen_25"}
    path = make_yaml(datasets=[entry | {"type": "t_spin.chat_template"}], sequence_len=448)
    generate(path)
    target = tmp_path / "triplets.parquet"
    call("export", path, target)
    exported = load_dataset("parquet", data_files=str(target), split="train")
    calls = [messages[1]["tool_calls"][0]["function"] for messages in exported["messages"]]
    asked = [row["messages"][1]["tool_calls"][0]["function"] for row in data]
    assert sorted(c["arguments"] for c in calls) == sorted(c["arguments"] for c in asked)
    for style, column in (("trl", "prompt"), ("spin", "real")):
        target = tmp_path / f"{style}.parquet"
        call("export", path, target, "--format", style)
        rows = load_dataset("parquet", data_files=str(target), split="train")
        kept = [messages[1]["tool_calls"][0]["function"] for messages in rows[column]]
        assert sorted(c["arguments"] for c in kept) == sorted(c["arguments"] for c in asked)
