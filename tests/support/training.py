"""A TripletTrainer of a tiny policy on random triplets."""

from types import SimpleNamespace

import torch

from axolotl_tspin import triplets as words
from axolotl_tspin.training.arguments import TSpinTrainingArguments
from axolotl_tspin.training.collator import TripletCollator
from axolotl_tspin.training.trainer import TripletTrainer
from axolotl_tspin.triplets import TripletTokens
from support.policies import tiny_llama

ALPHA, BETA = 0.3, 0.4


def make_triplets(n: int) -> list[TripletTokens]:
    generator = torch.Generator().manual_seed(3)

    def ids(low, high):
        length = torch.randint(low, high, (), generator=generator)
        return torch.randint(3, 50, (int(length),), generator=generator).tolist()

    return [TripletTokens(ids(2, 6), ids(1, 9), ids(1, 9), ids(1, 9)) for _ in range(n)]


class Collator(TripletCollator):
    """Takes triplets, or pairs of a triplet and its reference log-probabilities, too."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(pad_token_id=0))

    def __call__(self, triplets):
        return super().__call__([as_row(t) for t in triplets])


def as_row(item) -> dict:
    if isinstance(item, dict):
        return item
    triplet, reference = (item, None) if isinstance(item, TripletTokens) else item
    row = words.as_row(triplet)
    return row if reference is None else row | {"reference_logps": reference}


def numbered(triplets: list[TripletTokens]) -> list[dict]:
    return [as_row(triplet) | {"row": row} for row, triplet in enumerate(triplets)]


def make_trainer(
    path,
    triplets,
    batch_size,
    accumulation,
    model=None,
    beta=BETA,
    use_cpu=True,
    save_strategy="no",
    **kwargs,
) -> TripletTrainer:
    args = TSpinTrainingArguments(
        output_dir=str(path),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=3,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        num_train_epochs=1,
        report_to=[],
        save_strategy=save_strategy,
        use_cpu=use_cpu,
        disable_tqdm=True,
        t_spin_alpha=ALPHA,
        t_spin_beta=beta,
        **kwargs,
    )
    return TripletTrainer(
        model=tiny_llama(50).double() if model is None else model,
        args=args,
        train_dataset=triplets,
        eval_dataset=triplets,
        data_collator=Collator(),
    )
