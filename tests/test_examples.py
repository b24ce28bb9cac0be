"""The examples are true: the data is what the script makes, every YAML is one that runs."""

import importlib.util
import json

import numpy as np
import pyarrow as pa
import pytest
import yaml
from axolotl.utils.config import prepare_plugins, validate_config
from axolotl.utils.dict import DictDefault
from conftest import ROOT, WORD_PROBLEMS, tiny_llama

from axolotl_tspin.fingerprints import policy_fingerprint
from axolotl_tspin.generation.blocks import block_path
from axolotl_tspin.generation.store import (
    RESPONSES_SCHEMA,
    Prompts,
    Sources,
    assemble_triplets,
    freeze_prompts,
    prompt_hash,
)
from axolotl_tspin.plugin import _settings
from axolotl_tspin.run_directory import Policy, RunDirectory
from axolotl_tspin.strategies.encoding import PAPER_TEMPLATE, ChatEncoder
from axolotl_tspin.tables import write_table

YAMLS = sorted((ROOT / "examples" / "yaml").glob("*.yml"))


def test_the_word_problems_are_what_the_script_makes_and_their_answers_are_right():
    spec = importlib.util.spec_from_file_location("maker", ROOT / "scripts/make_word_problems.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    rows = [json.loads(line) for line in WORD_PROBLEMS.read_text().splitlines()]
    assert rows == maker.make_rows(256, 7)
    for row in rows:
        solution = row["messages"][-1]["content"].splitlines()
        assert solution[-1] == f"#### {row['answer']}"
        for line in solution[:-1]:
            left, right = line.rsplit("=", 1)
            words = left.split()
            operation = next(i for i, word in enumerate(words) if word in "+-*/")
            a, op, b = words[operation - 1 : operation + 2]
            result = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
            result["/"] = int(a) // int(b)
            assert int(right.split()[0]) == result[op]


def test_there_are_the_examples_that_the_readme_names():
    assert [path.name for path in YAMLS] == [
        "mistral_tspin.yml",
        "smollm2_quickstart.yml",
        "zephyr_tspin.yml",
    ]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_an_example_resolves_and_passes_axolotls_validation(path, tmp_path):
    """With a run already begun, so that neither the data nor the model has to be fetched."""
    cfg = DictDefault(yaml.safe_load(path.read_text()))
    run = RunDirectory(tmp_path / "run")
    model = tmp_path / "model"
    tiny_llama(50).save_pretrained(model)
    cfg["tokenizer_config"], cfg["base_model"] = cfg["base_model"], str(model)
    fingerprint = policy_fingerprint(Policy(str(model)), run.fingerprints)
    run.begin({}, {}, initial_policy=fingerprint)
    row = {"prompt": "p", "annotated": "a", "input_ids": [1, 2], "labels": [-100, 2], "end_id": 2}
    freeze_prompts(run.prompts("train"), [row | {"prompt_messages": ""}], 1)
    prompts = Prompts(run.prompts("train"))
    response = {
        "row": 0,
        "prompt_hash": prompt_hash([1]),
        "text": "b",
        "ids": [3],
        "finish_reason": "length",
        "tokens": 1,
        "iteration": 0,
        "policy": fingerprint,
        "sampling": "{}",
        "engine": "none",
    }
    block = block_path(run.iteration(0).responses("train"), 0)
    responses = pa.Table.from_pylist([response], schema=RESPONSES_SCHEMA)
    write_table(block, responses, {"seconds": 0.0})
    everything = np.ones(1, dtype=bool)
    sources = Sources(lambda number: block, everything, np.arange(1), None, None)
    assemble_triplets(run.iteration(0).triplets("train"), prompts, sources, {})
    cfg["output_dir"] = str(run.path)
    prepare_plugins(cfg)
    cfg = validate_config(cfg)
    config, resolved = _settings(cfg)
    assert resolved.iteration == 0 and resolved.beta == 0.0
    assert cfg.optimizer == "rmsprop" and cfg.warmup_ratio == 0.1 and cfg.weight_decay == 0.0
    if path.stem != "smollm2_quickstart":
        assert (config.alpha, config.beta, config.iterations) == (1.0, 0.1, 5)
        assert cfg.sequence_len == 2048
        assert cfg.micro_batch_size * cfg.gradient_accumulation_steps * 8 == 64


def test_the_examples_chat_template_is_the_papers(tokenizer):
    for name in ("zephyr_tspin.yml", "mistral_tspin.yml"):
        cfg = yaml.safe_load((ROOT / "examples" / "yaml" / name).read_text())
        encoder = ChatEncoder(tokenizer, cfg["chat_template_jinja"])
        user = [{"role": "user", "content": "Say hello."}]
        expected = tokenizer.bos_token + PAPER_TEMPLATE.format(prompt="Say hello.")
        (row,) = encoder.triplets([encoder.text(user, [("Hello.", True)])])
        assert row.prompt_text == expected
        assert tokenizer.decode(row.annotated) == "Hello.<|im_end|>"
