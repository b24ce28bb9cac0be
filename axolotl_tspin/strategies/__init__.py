"""Dataset strategies: from a data set's rows to prompts and responses as token ids.

`datasets[].type: t_spin.<name>` names one of the modules `chat_template`, `instruction`, `spin`;
`triplets` reads what the generation step wrote. Each has the `load` that Axolotl calls. `rows`
reads rows, `encoding` is the one place where prompts and responses become tokens, for training
and for generation alike, and `tokenize` applies the two to a data set.
"""

PUBLIC_STRATEGIES = ("chat_template", "instruction", "spin")

DATASET_KEYS = {
    "field_prompt": "field_human",
    "field_response": "field_model",
    "prompt_template": "input_format",
}
"""This package's own keys of a `datasets:` entry, and the key that carries each through Axolotl.

Axolotl drops keys of a data set that its schema does not know; these three of its schema are
otherwise unused, and the first two enter its prepared-data hash.
"""
