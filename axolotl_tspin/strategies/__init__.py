"""Dataset strategies: from a data set's rows to prompts and responses as token ids.

`datasets[].type: t_spin.<name>` names one of the modules `chat_template`, `instruction`, `spin`.
`triplets` reads the files of the generation step. Each has the `load` that Axolotl calls. `rows`
reads rows. `encoding` is the only place where prompts and responses become tokens, for training
and for generation. `tokenize` applies the two to a data set.
"""

DATASET_KEYS = {
    "field_prompt": "field_human",
    "field_response": "field_model",
    "prompt_template": "input_format",
    "turns": "conversation",
}
"""This package's own keys of a `datasets:` entry, and the key that carries each through Axolotl.

Axolotl drops keys of a data set that are not in its schema. These schema keys are otherwise unused,
and enter its prepared-data hash.
"""

LOADING_KEYS = (
    "path",
    "type",
    "split",
    "name",
    "data_files",
    "ds_type",
    "revision",
    "trust_remote_code",
    "shards",
    "shards_idx",
    "preprocess_shards",
    "weight",
)
"""Keys of a `datasets:` entry with which Axolotl loads rows, for every strategy."""

CHAT_KEYS = (
    "chat_template",
    "chat_template_jinja",
    "message_property_mappings",
    "message_field_role",
    "message_field_content",
    "field_thinking",
    "template_thinking_key",
    "roles",
    "drop_system_message",
    "message_field_training",
    "message_field_training_detail",
    "split_thinking",
)

STRATEGY_KEYS = {
    "chat_template": (*CHAT_KEYS, "field_messages", "field_tools", "turns"),
    "instruction": ("field_prompt", "field_response", "prompt_template"),
    "spin": CHAT_KEYS,
}
"""Keys that each public strategy also reads; others have no effect and are refused."""
