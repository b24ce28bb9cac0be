"""Correlations of the training reward with each kind of judge."""

import functools
import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import kendalltau, spearmanr
from support.runs import pretend_trained
from transformers import LlamaConfig, LlamaForSequenceClassification

from axolotl_tspin.commands import t_spin
from axolotl_tspin.diagnostics.judges import Answer, JudgedTriplet, RewardModel, ScoreColumns
from axolotl_tspin.diagnostics.reward_check import correlations
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.step import generate
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import Scores, write_scores
from axolotl_tspin.run.tables import read_table
from axolotl_tspin.verdicts.answers import answer_of

NAMES = ("annotated", "synthetic", "proto_synthetic")


@pytest.fixture
def run(make_yaml, tmp_path):
    """Eight rows, iteration 0 trained, its scores known."""
    path = make_yaml(rows=8, t_spin={"alpha": 0.5, "generation": {"max_new_tokens": 6}})
    generate(path)
    directory = RunDirectory(tmp_path / "out")
    pretend_trained(directory, 0)
    iteration = directory.iteration(0)
    logps = np.random.default_rng(1).normal(-30, 9, (8, 3))
    policy = iteration.training_record()["policy"]
    write_scores(iteration.scores, Scores(np.arange(8), logps, policy), iteration.triplets("train"))
    return path, directory, logps


def call(*arguments, code=0) -> str:
    command = ["reward-check", *map(str, arguments)]
    result = CliRunner().invoke(t_spin, command, catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_columns_of_scores_give_scipys_correlations(run, tmp_path):
    path, directory, logps = run
    judged = np.random.default_rng(2).normal(size=(8, 3)) + 0.1 * logps
    columns = {"row": np.arange(8), **dict(zip(NAMES, judged.T, strict=True))}
    file = tmp_path / "scores.parquet"
    pq.write_table(pa.table(columns), file)
    checked = json.loads(call(path, "--scores", file, "--json"))
    assert (checked["iteration"], checked["rows"]) == (0, 8)
    found = {(c["of"], c["reward"]): c for c in checked["correlations"]}
    triplets = read_table(directory.iteration(0).triplets("train"))[0]
    tokens = np.array([[len(i) for i in triplets[f"{n}_ids"].to_pylist()] for n in NAMES]).T
    for reward, values in (("sum", 0.5 * logps), ("per token", 0.5 * logps / tokens)):
        for of, x, y in (
            ("all responses", values.ravel(), judged.ravel()),
            ("y − y′", values[:, 0] - values[:, 1], judged[:, 0] - judged[:, 1]),
            ("y′ − y0", values[:, 1] - values[:, 2], judged[:, 1] - judged[:, 2]),
        ):
            one = found[of, reward]
            assert one["n"] == len(x)
            assert one["spearman"] == pytest.approx(spearmanr(x, y)[0])
            assert one["kendall"] == pytest.approx(kendalltau(x, y)[0])
            assert one["spearman_low"] <= one["spearman"] <= one["spearman_high"]
    table = call(path, "--scores", file)
    assert all(f"{found[of, 'sum']['spearman']:.3f}" in table for of in ("y − y′", "y′ − y0"))


def test_intervals_cover_the_true_correlation_and_narrow_with_more_prompts():
    generator = np.random.default_rng(3)
    tokens = np.ones((200, 3))
    widths, covered = [], 0
    for rows in (25, 200):
        rewards = generator.normal(size=(rows, 3))
        # Of bivariate normal variables with correlation r, Kendall's τ is 2/π · arcsin r.
        judged = 0.6 * rewards + 0.8 * generator.normal(size=(rows, 3))
        one = next(c for c in correlations(rewards, tokens[:rows], judged) if c.of == "y − y′")
        widths.append(one.kendall_high - one.kendall_low)
        covered += one.kendall_low <= 2 / math.pi * math.asin(0.6) <= one.kendall_high
    assert widths[1] < widths[0] / 2 and covered == 2


def test_a_checkable_answer_is_compared_with_the_annotated_one():
    answer = Answer(r"#### (-?[0-9.,]+)")
    of = functools.partial(answer_of, re.compile(r"#### (-?[0-9.,]+)"))
    assert of("1,000 is no answer\n#### 1,234.") == "1234"
    assert of("#### 3\n#### 4") == "4", "the last one counts"
    assert of("none") is None
    triplet = JudgedTriplet(0, "q", None, "so\n#### 72", "#### 72.", "#### 7")
    other = JudgedTriplet(1, "q", None, "no number", "#### 72", "#### 7")
    scores = answer([triplet, other])
    assert scores[0].tolist() == [1, 1, 0] and np.isnan(scores[1]).all()
    # What is right by definition says nothing of the reward of y.
    rewards = np.array([[0.0, -1, -2], [0, -3, -1], [0, -2, -5], [0, -4, -4]])
    judged = np.array([[1.0, 1, 0], [1, 0, 1], [1, 1, 0], [1, 0, 0]])
    groups = {c.of for c in correlations(rewards, np.ones((4, 3)), judged)}
    assert groups == {"y′ and y0", "y − y′", "y′ − y0"}
    with pytest.raises(TSpinError, match="is not a regular expression"):
        Answer("(")
    with pytest.raises(TSpinError, match="matches none of the annotated responses"):
        answer([other])


def test_a_reward_model_scores_prompt_and_response(tmp_path, tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes, num_labels=1)
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    messages = [{"role": "user", "content": "How many?"}]
    triplets = [
        JudgedTriplet(0, "ignored", messages, "Five.", "Seven of them.", "Seven of them."),
        JudgedTriplet(1, "Plain: ", None, "a", "b, and more", "c"),
    ]
    scores = RewardModel(str(tmp_path / "judge"))(triplets)
    assert scores.shape == (2, 3) and scores[0, 1] == scores[0, 2]
    for i, triplet in enumerate(triplets):
        for j, name in enumerate(NAMES):
            text = triplet.prompt + getattr(triplet, name)
            if triplet.messages:
                turn = {"role": "assistant", "content": getattr(triplet, name)}
                text = tokenizer.apply_chat_template([*triplet.messages, turn], tokenize=False)
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                alone = model(ids).logits[0, 0].item()
            assert scores[i, j] == pytest.approx(alone, abs=1e-5), "padding changes nothing"


def test_what_cannot_be_checked_is_named(run, tmp_path):
    path, directory, _ = run
    assert "name one judge" in call(path, code=1)
    assert "name one judge" in call(path, "--answer", "x", "--reward-model", "y", code=1)
    assert "iteration 1 of the run" in call(path, "--answer", "x", "--iteration", 1, code=1)
    file = tmp_path / "scores.csv"
    file.write_text("row,quality\n0,1\n")
    assert "`row` and some of annotated, synthetic" in call(path, "--scores", file, code=1)
    file.write_text("row,synthetic\n100,1\n101,2\n")
    assert "no score for any of the rows" in call(path, "--scores", file, code=1)
    file.write_text("row,synthetic\n0,good\n")
    assert "scores must be numbers" in call(path, "--scores", file, code=1)
    directory.iteration(0).scores.unlink()
    assert "report" in call(path, "--answer", "x", code=1)
    with pytest.raises(TSpinError, match=r"expected \*\.parquet"):
        ScoreColumns(tmp_path / "scores.txt")
