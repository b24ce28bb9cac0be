"""`type: t_spin.chat_template`: conversations under the model's chat template."""

from typing import Any, Literal

from axolotl.utils.chat_templates import extract_chat_template_args, get_chat_template_from_config

from axolotl_tspin.errors import BadRow, TSpinError
from axolotl_tspin.strategies import DATASET_KEYS
from axolotl_tspin.strategies.chat_encoding import ChatEncoder
from axolotl_tspin.strategies.columns import (
    generated_columns,
    read_response,
    settings,
    text_dataset,
    value_or_error,
)
from axolotl_tspin.strategies.encoding import RowText
from axolotl_tspin.strategies.rows import SYSTEM_COLUMN, THINKING, RowReader
from axolotl_tspin.strategies.tokenize import TripletDataset
from axolotl_tspin.strategies.turn_end import model_end_ids

Turns = Literal["last", "first", "each"]
TURNS: tuple[Turns, ...] = ("last", "first", "each")
"""Values of `turns`: the assistant turns of a conversation that are annotated responses."""

IMAGES = "images"
"""Axolotl reads a row's images here, whatever the YAML says."""


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> TripletDataset:
    """Make the strategy; Axolotl calls this for each data set of this type.

    The column `field_messages` (default "messages") holds messages in OpenAI's or ShareGPT's
    shape. The assistant turn that `turns` names (default: the last) is the annotated response,
    everything before it the prompt. With `turns: each`, every assistant turn makes a row.

    Raises:
        TSpinError: `turns` has another value, or is `each` where the data has its own responses.
    """
    reader, encoder = chat_reader(ds_cfg), chat_encoder(tokenizer, cfg, ds_cfg)
    messages_column = ds_cfg.get("field_messages") or "messages"
    tools_column = ds_cfg.get("field_tools") or "tools"
    generated = generated_columns(settings(cfg))
    turns = _turns(ds_cfg, generated)

    def text(row: dict[str, Any], index: int) -> RowText | list[RowText | BadRow]:
        if row.get(IMAGES):
            raise reader.error(
                index,
                IMAGES,
                "the row has images, and T-SPIN trains on text alone; drop the row, or remove the "
                "column if the text stands without them",
                "images",
            )
        messages, system = row[messages_column], row.get(SYSTEM_COLUMN)
        tools = reader.tools(index, tools_column, row.get(tools_column))
        where = f"{reader.source}: row {index}"
        if turns == "each":
            found = reader.conversations(index, messages_column, messages, system)
            return [
                conversation
                if isinstance(conversation, BadRow)
                else value_or_error(
                    encoder.text,
                    conversation.prompt,
                    [(conversation.response, True)],
                    tools,
                    where=f"{where}, turn {number}",
                )
                for number, conversation in enumerate(found, 1)
            ]
        conversation = reader.conversation(index, messages_column, messages, system, turn=turns)
        responses = [(conversation.response, True)]
        responses += [
            read_response(reader, row, index, column, conversation.prompt) for column in generated
        ]
        return encoder.text(conversation.prompt, responses, tools, where=where)

    return text_dataset(text, encoder, cfg, reader.source, [messages_column, *generated])


def _turns(ds_cfg: Any, generated: list[str]) -> Turns:
    named = ds_cfg.get(DATASET_KEYS["turns"]) or "last"
    turns = next((known for known in TURNS if known == named), None)
    if turns is None:
        raise TSpinError(
            f"{ds_cfg.get('path')}: `turns: {named}`: expected {', '.join(TURNS[:-1])} or "
            f"{TURNS[-1]}"
        )
    if turns == "each" and generated:
        raise TSpinError(
            f"{ds_cfg.get('path')}: `turns: each` makes several rows of a conversation, and the "
            f"columns {' and '.join(map(repr, generated))} have one response each; take "
            "`turns: last` or `turns: first`, or remove the columns to have responses sampled"
        )
    return turns


def chat_reader(ds_cfg: Any) -> RowReader:
    """Make a reader from Axolotl's keys for conversations."""
    mappings = dict(ds_cfg.get("message_property_mappings") or {})
    for key, name in (("role", "message_field_role"), ("content", "message_field_content")):
        if ds_cfg.get(name):
            mappings.setdefault(key, ds_cfg.get(name))
    thinking = ds_cfg.get("template_thinking_key") or THINKING
    mappings.setdefault(thinking, ds_cfg.get("field_thinking") or THINKING)
    return RowReader(
        ds_cfg.get("path"),
        message_keys=mappings,
        roles=ds_cfg.get("roles"),
        drop_system_message=bool(ds_cfg.get("drop_system_message")),
        thinking=thinking,
        split_thinking=bool(ds_cfg.get("split_thinking")),
        field_training=ds_cfg.get("message_field_training"),
        field_training_detail=ds_cfg.get("message_field_training_detail"),
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
        model_ends=model_end_ids(cfg.base_model, cfg.revision_of_model),
        reasoning_key=ds_cfg.get("template_thinking_key") or THINKING,
        source=ds_cfg.get("path"),
    )
