"""`type: t_spin.chat_template`: conversations under the model's chat template."""

from typing import Any

from axolotl.utils.chat_templates import extract_chat_template_args, get_chat_template_from_config

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.strategies.columns import (
    generated_columns,
    read_response,
    settings,
    text_dataset,
)
from axolotl_tspin.strategies.encoding import ChatEncoder, RowText
from axolotl_tspin.strategies.rows import SYSTEM_COLUMN, RowReader
from axolotl_tspin.strategies.tokenize import TripletDataset

THINKING = "reasoning_content"
"""Axolotl's default of `field_thinking` and `template_thinking_key`."""


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> TripletDataset:
    """Make the strategy; Axolotl calls this for each data set of this type.

    The column `field_messages` (default "messages") holds messages in OpenAI's or ShareGPT's
    shape. The last assistant turn is the annotated response, everything before it the prompt.
    """
    reader, encoder = chat_reader(ds_cfg), chat_encoder(tokenizer, cfg, ds_cfg)
    messages_column = ds_cfg.get("field_messages") or "messages"
    tools_column = ds_cfg.get("field_tools") or "tools"
    generated = generated_columns(settings(cfg))

    def text(row: dict[str, Any], index: int) -> RowText:
        conversation = reader.conversation(
            index, messages_column, row[messages_column], row.get(SYSTEM_COLUMN)
        )
        responses = [(conversation.response, True)]
        responses += [
            read_response(reader, row, index, column, conversation.prompt) for column in generated
        ]
        tools = reader.tools(index, tools_column, row.get(tools_column))
        where = f"{reader.source}: row {index}"
        return encoder.text(conversation.prompt, responses, tools, where=where)

    return text_dataset(text, encoder, cfg, reader.source, [messages_column, *generated])


def chat_reader(ds_cfg: Any) -> RowReader:
    """Make a reader from Axolotl's keys for conversations."""
    mappings = dict(ds_cfg.get("message_property_mappings") or {})
    for key, name in (("role", "message_field_role"), ("content", "message_field_content")):
        if ds_cfg.get(name):
            mappings.setdefault(key, ds_cfg.get(name))
    thinking = ds_cfg.get("field_thinking") or THINKING
    mappings.setdefault(ds_cfg.get("template_thinking_key") or THINKING, thinking)
    return RowReader(
        ds_cfg.get("path"),
        message_keys=mappings,
        roles=ds_cfg.get("roles"),
        drop_system_message=bool(ds_cfg.get("drop_system_message")),
        field_training=ds_cfg.get("message_field_training"),
    )


def chat_encoder(tokenizer: Any, cfg: Any, ds_cfg: Any) -> ChatEncoder:
    """Make an encoder with the chat template that Axolotl would use.

    Raises:
        TSpinError: neither the YAML nor the tokenizer has a chat template.
    """
    if isinstance(tokenizer.chat_template, dict):
        # Several named templates; transformers takes this one, too.
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    choice, _ = extract_chat_template_args(cfg, ds_cfg)
    if choice == "tokenizer_default" and not tokenizer.chat_template:
        raise TSpinError(
            f"{ds_cfg.get('path')}: the tokenizer {tokenizer.name_or_path} has no chat template; "
            "set `chat_template:` (chatml, llama3, …), or use `type: t_spin.instruction` with a "
            "`prompt_template`"
        )
    return ChatEncoder(
        tokenizer,
        get_chat_template_from_config(cfg=cfg, ds_cfg=ds_cfg, tokenizer=tokenizer),
        template_kwargs=dict(cfg.get("chat_template_kwargs") or {}),
        eot_tokens=cfg.get("eot_tokens"),
        source=ds_cfg.get("path"),
    )
