"""Train on triplets with transformers, without Axolotl.

    python examples/python/train_triplets.py MODEL TRIPLETS.jsonl OUTPUT

Each row of TRIPLETS.jsonl has the texts `prompt` (with the chat template applied), `annotated`,
`synthetic` and `proto_synthetic`. `axolotl t-spin export` writes such a file.
"""

import sys

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_tspin import TripletCollator, TripletTrainer, TSpinTrainingArguments
from axolotl_tspin.triplets import RESPONSES, TripletTokens, as_row

model_name, data, output = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_name)


def encode(row: dict[str, str]) -> dict[str, list[int]]:
    texts = [row["prompt"], *(row[name] + tokenizer.eos_token for name in RESPONSES)]
    return as_row(TripletTokens(*tokenizer(texts, add_special_tokens=False).input_ids))


triplets = load_dataset("json", data_files=data, split="train")
trainer = TripletTrainer(
    model=AutoModelForCausalLM.from_pretrained(model_name),
    args=TSpinTrainingArguments(
        output_dir=output,
        learning_rate=2e-5,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        logging_steps=1,
        report_to=[],
        t_spin_alpha=0.1,
        t_spin_beta=0.1,
    ),
    train_dataset=triplets.map(encode, remove_columns=triplets.column_names),
    data_collator=TripletCollator(tokenizer),
)
trainer.train()
trainer.save_model(output)
