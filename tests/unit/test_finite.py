"""What is not finite is found: in losses and gradients of steps, weights, files, and JSON."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.directory import Iteration
from axolotl_tspin.run.files import write_json
from axolotl_tspin.training.finite import (
    FiniteWatch,
    NotFinite,
    non_finite_parameter,
    refuse_non_finite_files,
    stopped,
)

CPU = torch.device("cpu")
BAD = [math.nan, math.inf, -math.inf]


def watched(steps, patience=0, others=0):
    """What is judged of every step (losses of micro-batches, norm), and of the last one at once.

    Args:
        others: what the other ranks count in every step.
    """
    watch, judged = FiniteWatch(CPU, patience), []
    for step, (losses, norm) in enumerate(steps, 1):
        watch.send(watch.counts() + others)
        for loss in losses:
            watch.add_loss(torch.tensor(loss))
        watch.add_gradient(norm, step)
        judged.append(watch.judge_sent())
    return judged, watch.judge_now(lambda counts: counts + others)


GOOD = ([0.3, 1e30], torch.tensor(2.0))


def test_finite_steps_are_not_stopped():
    assert watched([GOOD] * 5) == ([None] * 5, None)


@pytest.mark.parametrize("bad", BAD)
def test_a_step_is_judged_in_the_next_one_or_at_once(bad):
    loss, gradient = ([0.3, bad], torch.tensor(bad)), ([0.3], torch.tensor(bad))
    assert watched([GOOD, loss, GOOD]) == ([None, None, NotFinite("loss", 2)], None)
    assert watched([GOOD, gradient, GOOD]) == ([None, None, NotFinite("gradient", 2)], None)
    assert watched([GOOD, gradient]) == ([None, None], NotFinite("gradient", 2))


@pytest.mark.parametrize(
    ("norm", "found"), [(None, False), (0.0, False), (-1, True), (math.inf, True), (math.nan, True)]
)
def test_the_norm_that_deepspeed_gives_is_a_number(norm, found):
    assert watched([([0.3], norm)])[1] == (NotFinite("gradient", 1) if found else None)


def test_what_another_rank_counted_stops_this_one():
    assert watched([GOOD, GOOD], others=torch.tensor([1, 0]))[0] == [None, NotFinite("loss", 1)]


def test_a_step_that_was_judged_at_once_is_not_judged_again():
    watch = FiniteWatch(CPU, 0)
    watch.add_gradient(math.nan, 1)
    assert watch.judge_now(lambda counts: counts) == NotFinite("gradient", 1)
    assert watch.judge_now(lambda counts: counts) is None
    watch.send(watch.counts())
    assert watch.judge_sent() is None


def test_steps_that_fp16_skips_end_the_training_only_if_none_is_taken_for_long():
    skipped = ([0.3], math.inf)
    assert watched([skipped] * 3, patience=3) == ([None] * 3, None)
    assert watched([skipped] * 4, patience=3)[1] == NotFinite("gradient", 4)
    taken = [skipped] * 3 + [GOOD] + [skipped] * 3
    assert watched(taken, patience=3) == ([None] * 7, None)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_trained_parameter_that_is_not_finite_is_named(bad, dtype):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4), nn.Linear(4, 0)).to(dtype)
    assert non_finite_parameter(model) is None
    with torch.no_grad():
        model[0].weight[1, 2] = model[1].weight[3, 1] = bad
    assert non_finite_parameter(model) == "0.weight"
    model[0].requires_grad_(False)  # was so from the start
    assert non_finite_parameter(model) == "1.weight"
    assert non_finite_parameter(model.requires_grad_(False)) is None


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_saved_weights_that_are_not_finite_are_named(tmp_path, kind):
    def save(name, **weights):
        if kind == "bin":
            torch.save(weights, tmp_path / f"pytorch_model-{name}.bin")
        else:
            save_file(weights, tmp_path / f"model-{name}.safetensors")

    torch.save({"no": "weights"}, tmp_path / "training_args.bin")
    save("1", a=torch.ones(3, dtype=torch.float16), b=torch.ones(2, dtype=torch.int8))
    refuse_non_finite_files(tmp_path)
    save("2", c=torch.tensor([1.0, math.inf]), d=torch.empty(0))
    with pytest.raises(TSpinError, match=rf"model-2\.{kind}: the weights `c` are not finite"):
        refuse_non_finite_files(tmp_path)


def arguments(folder, fp16=False, loss="logistic"):
    return SimpleNamespace(
        output_dir=str(folder), learning_rate=1e3, fp16=fp16, t_spin_alpha=0.5, t_spin_loss=loss
    )


def test_the_error_names_the_last_good_checkpoint_and_says_what_to_do(tmp_path):
    def said(untrained=False, **settings):
        error = stopped("the loss is", 7, arguments(tmp_path, **settings), untrained=untrained)
        return str(error)

    assert said().startswith("the loss is not finite at step 7, so")
    assert "There is no checkpoint. Lower `learning_rate` (now 1000). " in said()
    for step in (5, 10, 40):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-10'}. " in said()
    assert "move the checkpoints away. " in said()
    assert "learning_rate" not in said(untrained=True) and "check its weights" in said(True)
    assert "fp16" not in said() and "`bf16` in place of `fp16`" in said(fp16=True)
    assert "t_spin.alpha" not in said()
    assert "lower `t_spin.alpha` (now 0.5)" in said(loss="exponential")


def test_json_is_valid_whatever_the_numbers(tmp_path):
    def refuse(token):
        raise AssertionError(token)

    path = tmp_path / "x.json"
    write_json(path, {"log": [{"a": math.nan, "b": (math.inf, 1.5)}, -math.inf], "é": "NaN"})
    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found == {"log": [{"a": None, "b": [None, 1.5]}, None], "é": "NaN"}


def test_readers_of_a_log_find_finite_numbers_only(tmp_path):
    log = [{"step": 1, "loss": math.nan, "eval_loss": 0.5}, {"step": 2, "loss": math.inf}]
    iteration = Iteration(tmp_path / "iteration_0")
    checkpoint = iteration.model / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    state = {"log_history": log, "global_step": 2, "max_steps": 9}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))  # as transformers does
    expected = [{"step": 1, "eval_loss": 0.5}, {"step": 2}]
    assert iteration.training_log() == (expected, (2, 9))
    iteration.mark_trained({"policy": "p", "log_history": log})
    assert iteration.training_log() == (expected, (2, 2))
    assert iteration.training_record() == {"policy": "p", "log_history": expected}
