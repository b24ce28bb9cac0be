"""The README's YAML and its two commands, as a user copies them."""

import re

import torch
import yaml
from support.commands import ENVIRONMENT, axolotl
from support.data import ROOT, conversations, write_jsonl
from support.ranks import TESTS
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from axolotl_tspin.run.directory import RunDirectory

PLUGIN = "  - axolotl_tspin.TSpinPlugin\n"
NO_TRITON = "lora_mlp_kernel: false\nlora_qkv_kernel: false\nlora_o_kernel: false\n"
STAND_INS = {
    PLUGIN: PLUGIN + "  - support.plugin_for_cpu_ranks.CPUPlugin\n",
    "load_in_4bit: true\n": "load_in_4bit: true\n" + NO_TRITON,
    "alignment-handbook/zephyr-7b-sft-full": "model",
    "HuggingFaceH4/ultrachat_200k": "train.jsonl",
    "train_sft[:14000]": "train[:8]",
    "max_new_tokens: 256": "max_new_tokens: 8",
    # Random weights end no turn.
    "iterations: 5": "iterations: 2\n  on_warning: continue",
    "gradient_accumulation_steps: 64": "gradient_accumulation_steps: 2",
}
"""What a test on a CPU has instead: a tiny model, local data, less of everything."""


def test_the_yaml_runs_in_an_empty_folder(tmp_path, policy_dir, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(TESTS))
    [text] = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    for shipped, stand_in in STAND_INS.items():
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, stand_in)
    (tmp_path / "run.yml").write_text(text)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(policy_dir)
    # Wide enough for 4-bit blocks.
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "train.jsonl", conversations(8))

    axolotl("t-spin", "run", "run.yml")
    run = RunDirectory(tmp_path / yaml.safe_load(text)["output_dir"])
    assert [run.step_of(t).step for t in (0, 1)] == ["done", "done"]
    axolotl("t-spin", "report", "run.yml")
    assert "<html" in (run.path / "report.html").read_text()
