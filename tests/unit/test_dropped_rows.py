"""Rows that a run left out: counted by kind when its prompts are frozen, and shown."""

import json

import pytest
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets
from support.commands import call
from support.data import conversations, write_jsonl

from axolotl_tspin.diagnostics.report import provenance_of_run
from axolotl_tspin.diagnostics.status import dropped_text
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.importing import import_run
from axolotl_tspin.generation.step import freeze
from axolotl_tspin.resolve.steps import prepare_generation
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.strategies.dropped import count_dropped, dropped_rows

DROP = {"iterations": 2, "on_bad_rows": "drop", "generation": {"max_new_tokens": 4}}
TEXTS = [
    {"prompt": "2 + 3?", "response": "5"},
    {"prompt": " ", "response": "5"},
    {"prompt": "2 + 2?", "response": None},
    {"prompt": "3 + 3?", "response": "6"},
]
KINDS = {"empty text": 3, "no assistant turn": 2, "content that is not text": 1}
"""Of `data_sets`."""


def data_sets(folder, **columns) -> dict:
    """Two data sets and one for tests, of two types, with bad rows of several kinds."""
    good, bad = conversations(6), {"messages": [{"role": "user", "content": "2?"}]}
    files = {
        "chat": [row | columns for row in (*good, bad, bad)],
        "texts": [row | columns for row in TEXTS],
        "tests": [row | columns for row in (*TEXTS[:2], TEXTS[1])],
    }
    paths = {n: str(write_jsonl(folder / f"{n}.jsonl", rows)) for n, rows in files.items()}
    texts = {"type": "t_spin.instruction"}
    chat = {"path": paths["chat"], "type": "t_spin.chat_template"}
    return {
        "datasets": [chat, texts | {"path": paths["texts"]}],
        "test_datasets": [texts | {"path": paths["tests"]}],
    }


def frozen(path) -> RunDirectory:
    """A run whose prompts are frozen, as its first step leaves it before it samples."""
    raw = read_yaml(path)
    plan = prepare_generation(raw)
    freeze(plan, load_cfg(raw))
    return plan.run


@pytest.mark.parametrize("processes", [1, 2])
def test_dropped_rows_are_counted_and_shown(make_yaml, tmp_path, processes):
    path = make_yaml(t_spin=DROP, dataset_num_proc=processes, **data_sets(tmp_path))
    run = frozen(path)
    assert run.dropped() == KINDS
    (shown,) = json.loads(call("status", path, "--json"))
    assert (shown["dropped"], shown["rows"]) == (KINDS, 9)
    text = "6 rows dropped: 3 × empty text, 2 × no assistant turn, 1 × content that is not text"
    assert dropped_text(run.dropped()) == text
    assert provenance_of_run(run, [])["data"] == text


def test_imported_runs_count_too_and_old_runs_have_no_counts(make_yaml, tmp_path):
    responses = {"synthetic": "7", "proto_synthetic": "8"}
    path = make_yaml(t_spin=DROP, **data_sets(tmp_path, **responses))
    run = import_run(path)
    assert run.dropped() == KINDS
    manifest = json.loads(run.manifest.read_text())
    del manifest["dropped"]
    run.manifest.write_text(json.dumps(manifest))
    assert run.dropped() == {}
    assert json.loads(call("status", path, "--json"))[0]["dropped"] == {}
    assert "data" not in provenance_of_run(run, [])


def test_without_dropped_rows_nothing_is_shown(make_yaml):
    path = make_yaml(rows=4)
    (shown,) = json.loads(call("status", path, "--json"))
    assert shown["dropped"] == {}  # the run has not begun
    run = frozen(path)
    assert (run.dropped(), dropped_text(run.dropped())) == ({}, "")
    assert "data" not in provenance_of_run(run, [])


def test_rows_are_counted_for_the_enclosing_block_alone():
    count_dropped({"a": 1})
    with dropped_rows() as outer:
        count_dropped({"a": 1})
        with dropped_rows() as inner:
            count_dropped({"a": 5})
        count_dropped({"a": 1, "b": 2})
    count_dropped({"a": 1})
    assert (outer, inner) == ({"a": 2, "b": 2}, {"a": 5})


def test_one_row_is_described():
    assert dropped_text({"empty text": 1}) == "1 row dropped: 1 × empty text"


def test_prepared_rows_follow_a_change_of_on_bad_rows(make_yaml, tmp_path):
    """In a training on the data's own responses, whose rows Axolotl keeps."""
    data = data_sets(tmp_path, synthetic="7", proto_synthetic="8") | {"test_datasets": None}

    def prepared(on_bad_rows):
        path = make_yaml(t_spin={"on_bad_rows": on_bad_rows}, **data)
        return len(load_datasets(cfg=load_cfg(str(path))).train_dataset)

    with pytest.raises(TSpinError, match="2 of 8 rows cannot be trained on"):
        prepared("raise")
    assert [prepared("drop"), prepared("drop")] == [8, 8]
    with pytest.raises(TSpinError, match="2 of 8 rows cannot be trained on"):
        prepared("raise")
    assert prepared("drop") == 8
