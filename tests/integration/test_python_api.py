"""The names for those who train without Axolotl."""

import json
import subprocess
import sys

import pytest
from datasets import Dataset
from support.data import ROOT, conversations, write_jsonl
from support.policies import tiny_llama
from transformers import AutoModelForCausalLM

import axolotl_tspin
from axolotl_tspin import TripletCollator, TripletTrainer, TSpinTrainingArguments
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.triplets import TripletTokens, as_row


def test_the_example_lowers_the_loss_without_axolotl(policy_dir, tmp_path):
    """Axolotl, TRL and what they bring are hidden from it."""
    rows = [
        {
            "prompt": f"<|im_start|>user\n{row['messages'][0]['content']}<|im_end|>\n",
            "annotated": row["messages"][-1]["content"],
            "synthetic": "I do not know",
            "proto_synthetic": "who knows",
        }
        for row in conversations(8)
    ]
    data = write_jsonl(tmp_path / "triplets.jsonl", rows)
    code = (
        "import runpy, sys\n"
        "sys.modules['axolotl'] = sys.modules['trl'] = None\n"
        "sys.argv[0] = sys.argv.pop(1)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    example = ROOT / "examples" / "python" / "train_triplets.py"
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, (example, policy_dir, data, output))],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = max(output.glob("checkpoint-*"))
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 4 and sum(losses[2:]) < sum(losses[:2]), "each epoch has two steps"
    before = AutoModelForCausalLM.from_pretrained(policy_dir).lm_head.weight
    after = AutoModelForCausalLM.from_pretrained(output).lm_head.weight
    assert not before.equal(after)


def trainer_of(tmp_path, tokenizer, rows, **arguments) -> TripletTrainer:
    return TripletTrainer(
        model=tiny_llama(len(tokenizer)),
        args=TSpinTrainingArguments(
            output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, **arguments
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=TripletCollator(tokenizer),
    )


def test_the_arguments_keep_the_responses_and_a_lost_column_is_named(tmp_path, tokenizer):
    rows = [as_row(TripletTokens([5, 6], [7], [8, 9], [10]))] * 2
    trainer_of(tmp_path, tokenizer, rows, max_steps=1).train()
    with pytest.raises(TSpinError) as error:
        trainer_of(tmp_path, tokenizer, rows, max_steps=1, remove_unused_columns=True).train()
    message = str(error.value)
    assert "no column synthetic_ids, proto_synthetic_ids" in message
    assert "`TSpinTrainingArguments`" in message


def test_every_public_name_is_there_and_another_is_not():
    for name in axolotl_tspin.__all__:
        assert getattr(axolotl_tspin, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'TripletTrainr'"):
        axolotl_tspin.TripletTrainr  # noqa: B018


def test_without_axolotl_the_plugin_says_in_one_line_what_is_needed():
    code = (
        "import sys; sys.modules['axolotl'] = None\n"
        "import axolotl_tspin\n"
        "axolotl_tspin.TSpinPlugin\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "`TSpinPlugin` needs Axolotl" in last and "pip install" in last
