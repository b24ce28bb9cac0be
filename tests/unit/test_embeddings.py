"""Tokens that the initial policy has no embeddings for are refused before anything is sampled."""

import copy
import textwrap

import pytest
from axolotl.cli.config import load_cfg
from support.data import conversations, write_jsonl
from support.policies import tiny_llama

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.importing import import_run
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.embeddings import refuse_new_embeddings
from axolotl_tspin.resolve.steps import prepare_generation
from axolotl_tspin.resolve.yaml_file import read_yaml
from axolotl_tspin.run.directory import RunDirectory

NEW = ["<|one|>", "<|two|>"]


def check(path) -> None:
    raw = read_yaml(path)
    prepare_generation(raw)
    refuse_new_embeddings(load_cfg(raw))


@pytest.fixture
def padded_policy(tmp_path, tokenizer):
    """A policy whose embeddings have room for two more tokens, as most models' have."""
    path = tmp_path / "padded"
    tiny_llama(len(tokenizer) + 2).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "keys",
    [
        {"tokens": NEW},
        {"special_tokens": {"additional_special_tokens": NEW}},
        {"tokens": NEW[:1], "special_tokens": {"pad_token": NEW[1]}},
    ],
)
def test_tokens_without_embeddings_are_refused_and_the_remedy_helps(
    make_yaml, tmp_path, tokenizer, policy_dir, keys
):
    entries = len(tokenizer) + 2
    with pytest.raises(
        TSpinError, match=rf"has {entries} entries.*{policy_dir} have {len(tokenizer)} rows"
    ) as refusal:
        generate(make_yaml(rows=4, **keys))
    assert not RunDirectory(tmp_path / "out").exists()
    exec(textwrap.dedent(str(refusal.value).partition("\n")[2]))
    resized = f"{policy_dir.name}-resized"
    assert f"base_model: ./{resized}" in str(refusal.value)
    check(make_yaml(rows=4, base_model=f"./{resized}", **keys))


def test_tokens_that_have_room_are_not_refused(make_yaml, padded_policy):
    assert generate(make_yaml(rows=4, base_model=str(padded_policy), tokens=NEW)).generated == 4


def test_tokens_put_in_place_of_reserved_ones_are_not_refused(make_yaml, tmp_path, tokenizer):
    path, reserving = tmp_path / "reserving", copy.deepcopy(tokenizer)
    reserving.add_tokens(["<|reserved|>"], special_tokens=True)
    tiny_llama(len(reserving)).save_pretrained(path)
    reserving.save_pretrained(path)
    keys = {"added_tokens_overrides": {len(reserving) - 1: NEW[0]}}
    check(make_yaml(rows=4, base_model=str(path), **keys))


def test_rounding_up_to_32_is_refused_where_it_adds_rows(make_yaml, tmp_path, tokenizer):
    size = -(-len(tokenizer) // 32) * 32
    assert size > len(tokenizer)
    with pytest.raises(TSpinError, match=rf"rounds up to {size}[^$]*embeddings\({size}\)"):
        check(make_yaml(rows=4, resize_token_embeddings_to_32x=True))
    path = tmp_path / "wide"
    tiny_llama(size).save_pretrained(path)
    tokenizer.save_pretrained(path)
    keys = {"base_model": str(path), "resize_token_embeddings_to_32x": True}
    check(make_yaml(rows=4, **keys))


def test_an_import_is_refused_too(make_yaml, tmp_path):
    rows = [row | {"synthetic": "1", "proto_synthetic": "2"} for row in conversations(4)]
    path = write_jsonl(tmp_path / "direct.jsonl", rows)
    entry = {"path": str(path), "type": "t_spin.chat_template"}
    with pytest.raises(TSpinError, match="entries with this YAML"):
        import_run(make_yaml(datasets=[entry], tokens=NEW))
    assert import_run(make_yaml(datasets=[entry])).exists()
