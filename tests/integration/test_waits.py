"""A training step makes the host wait for nothing: it reads no number from the device and makes no
small tensors on the host; one tensor describes a batch."""

import traceback

import pytest
import torch
from support.policies import make_family
from support.training import make_trainer, make_triplets
from torch.utils._python_dispatch import TorchDispatchMode

from axolotl_tspin.training.finite import FiniteWatch, NotFinite

READ = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}
MADE = {"lift_fresh", "lift_fresh_copy"}


class Waits(TorchDispatchMode):
    """Notes where a number is read from a tensor (`.item()`, `.tolist()`, `if tensor`), or a tensor
    is made of Python numbers, which on CUDA is a transfer."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in READ | MADE:
            files = (frame for frame in reversed(traceback.extract_stack()[:-1]))
            frame = next(f for f in files if "/torch/" not in f.filename)
            self.found.append(f"{frame.filename}:{frame.lineno} {func}")
        return func(*args, **(kwargs or {}))


def prepared(tmp_path, layout, **kwargs):
    """A trainer after its check, a batch on its device, and a step's number of triplets there."""
    policy = make_family("Gemma3", torch.float32)
    trainer = make_trainer(
        tmp_path, make_triplets(8), 4, 2, model=policy, t_spin_layout=layout, **kwargs
    )
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer._in_checked_layout(trainer.model, batch)
    return trainer, batch, torch.tensor(8, device=batch["indices"].device)


def test_a_step_in_shared_rows_waits_for_nothing(tmp_path):
    trainer, batch, count = prepared(tmp_path, "auto")
    with Waits() as waits:
        trainer.training_step(trainer.model, batch, count)
    assert waits.found == []


def test_a_step_in_padded_rows_waits_in_transformers_masks_only(tmp_path):
    trainer, batch, count = prepared(tmp_path, "padded")
    with Waits() as waits:
        trainer.training_step(trainer.model, batch, count)
    assert {found.split(":")[0].split("/")[-1] for found in waits.found} == {"masking_utils.py"}


def test_watching_whether_steps_are_finite_waits_for_nothing(tmp_path):
    """Until a step is judged, which is when the next one is queued."""
    watch = FiniteWatch(torch.device("cpu"), 0)
    loss, norm = torch.ones(()), torch.tensor(torch.inf)
    with Waits() as waits:
        watch.send(watch.counts())
        watch.add_loss(loss)
        watch.add_gradient(norm, 1)
        watch.send(watch.counts() + watch.counts())
    assert waits.found == []
    assert watch.judge_sent() == NotFinite("gradient", 1)


def test_a_wait_is_found(tmp_path):
    trainer, batch, _ = prepared(tmp_path, "auto")

    def body(module, args, output):
        output.last_hidden_state = output.last_hidden_state * torch.tensor(2.0)
        output.last_hidden_state.sum().item()

    trainer.model.model.register_forward_hook(body)
    with Waits() as waits:
        trainer.compute_loss(trainer.model, batch)
    assert len(waits.found) == 2 and all(__file__ in found for found in waits.found)


def test_a_batch_is_described_by_one_tensor(tmp_path):
    for layout, inputs in (("auto", "position_ids"), ("padded", "attention_mask")):
        _, batch, _ = prepared(tmp_path, layout)
        tensors = {name for name, value in batch.items() if isinstance(value, torch.Tensor)}
        assert tensors == {"input_ids", "labels", inputs, "indices"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_step_in_shared_rows_waits_for_nothing(tmp_path):
    trainer, batch, count = prepared(tmp_path, "auto", use_cpu=False, bf16=True)
    trainer.training_step(trainer.model, batch, count)  # compiles the head's kernels
    watch, norm = FiniteWatch(trainer.args.device, 0), torch.ones((), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.training_step(trainer.model, batch, count)
        watch.add_gradient(norm, 1)
        watch.send(watch.counts() + watch.counts())
    finally:
        torch.cuda.set_sync_debug_mode("default")
