"""What of a data set's name is kept and published: no keys, no folders of this machine."""

import json

import pytest
from support.commands import call, refused
from support.data import conversations, write_jsonl

from axolotl_tspin.diagnostics.model_card import model_card
from axolotl_tspin.diagnostics.report import shown_settings
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.steps import prepare_generation
from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.public_names import (
    data_without_credentials,
    on_the_hub,
    public_name,
    without_credentials,
)
from axolotl_tspin.run.tables import read_table

SECRET = "https://user:t0ken@host/data/train.jsonl?X-Amz-Signature=s1gned"
CLEAN = "https://host/data/train.jsonl"


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        (SECRET, CLEAN),
        ("https://host/a@b.jsonl#part", "https://host/a@b.jsonl"),
        ("simplecache::https://me:pass@host/a", "simplecache::https://host/a"),
        ("s3://bucket/train.jsonl", "s3://bucket/train.jsonl"),
        ("what?.jsonl", "what?.jsonl"),
        ("user/data", "user/data"),
    ],
)
def test_a_url_loses_what_can_hold_keys(name, clean):
    assert without_credentials(name) == clean
    assert on_the_hub(public_name(name)) == (name == "user/data")


def test_a_local_path_is_cut_to_its_name(tmp_path):
    (tmp_path / "here").mkdir()
    for path in (tmp_path / "here", "/away/here", "./here", "a/b/here"):
        assert public_name(str(path)) == "here"
    assert public_name("data/train.jsonl") == "train.jsonl"
    assert public_name(SECRET) == CLEAN
    assert public_name("HuggingFaceH4/ultrachat_200k") == "HuggingFaceH4/ultrachat_200k"


def test_only_urls_of_data_sets_are_changed():
    entry = {"path": "json", "type": "t", "data_files": {"train": [SECRET]}, "note": SECRET}
    assert data_without_credentials([entry]) == [entry | {"data_files": {"train": [CLEAN]}}]
    assert data_without_credentials(None) is None


def test_a_signature_that_changes_is_the_same_run_and_is_not_kept(make_yaml, tmp_path):
    path = make_yaml(datasets=[{"path": SECRET, "type": "t_spin.chat_template"}])
    begun = make_yaml(name="clean.yml", datasets=[{"path": CLEAN, "type": "t_spin.chat_template"}])
    run = RunDirectory(tmp_path / "out")
    run.begin({"datasets": read_yaml(begun).to_dict()["datasets"]}, {}, initial_policy="p")
    plan = prepare_generation(read_yaml(path))
    kept = json.dumps(plan.identity)
    assert CLEAN in kept and "t0ken" not in kept and "s1gned" not in kept
    assert plan.identity["datasets"] == [{"path": CLEAN, "type": "t_spin.chat_template"}]


def test_data_that_cannot_be_loaded_is_named_without_its_key(make_yaml):
    bad = SECRET.replace("https", "ftp")
    output = refused(
        "generate", make_yaml(datasets=[{"path": bad, "type": "t_spin.chat_template"}])
    )
    assert "ftp://host/data/train.jsonl" in output
    assert "t0ken" not in output and "s1gned" not in output


def test_card_and_report_have_no_keys(make_yaml, tmp_path):
    path = make_yaml(rows=4)
    generate(path)
    run = RunDirectory(tmp_path / "out")
    manifest = json.loads(run.manifest.read_text())
    manifest["identity"]["datasets"][0]["path"] = SECRET
    run.manifest.write_text(json.dumps(manifest))
    settings, _ = inspect_run(read_yaml(path))
    resolved = "t_spin: {resolved: {beta: 0.1}}"
    run.iteration(0).training_config.write_text(resolved)
    card = model_card(run, 0, settings)
    assert f"`{CLEAN}`" in card and "t0ken" not in card and "s1gned" not in card
    assert "datasets:" not in card.split("---")[1], "it is none of the hub's"
    raw = {"datasets": [{"path": SECRET}], "base_model": "m"}
    shown = shown_settings(raw, settings)["datasets"]
    assert CLEAN in shown and "t0ken" not in shown


def test_imported_rows_name_their_file_without_its_folder(make_yaml, tmp_path):
    rows = [row | {"synthetic": "1", "proto_synthetic": "1"} for row in conversations(2)]
    folder = tmp_path / "private"
    folder.mkdir()
    data = write_jsonl(folder / "rows.jsonl", rows)
    call("import", make_yaml(datasets=[{"path": str(data), "type": "t_spin.chat_template"}]))
    run = RunDirectory(tmp_path / "out")
    triplets = read_table(run.iteration(0).triplets("train"))[0]
    assert set(triplets["synthetic_policy"].to_pylist()) == {"foreign:rows.jsonl"}
