"""`type: t_spin.instruction`: text columns and a response column under a text template."""

from collections.abc import Mapping
from typing import Any

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.strategies import DATASET_KEYS
from axolotl_tspin.strategies.columns import (
    generated_columns,
    read_response,
    settings,
    text_dataset,
)
from axolotl_tspin.strategies.encoding import RowText, TextEncoder
from axolotl_tspin.strategies.rows import RowReader
from axolotl_tspin.strategies.text_template import PAPER_TEMPLATE, fields_of, rendered
from axolotl_tspin.strategies.tokenize import TripletDataset
from axolotl_tspin.strategies.turn_end import model_end_ids

PROMPT = "prompt"
"""The field that stands for the column `field_prompt`."""


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> TripletDataset:
    """Make the strategy; Axolotl calls this for each data set of this type.

    `prompt_template` is the prompt with columns as fields, by default the paper's; its `{prompt}`
    is the column `field_prompt` (default "prompt"). `field_response` (default "response") names the
    annotated response's column.

    Raises:
        TSpinError: the template has no field.
    """
    prompt_column = ds_cfg.get(DATASET_KEYS["field_prompt"]) or PROMPT
    response_column = ds_cfg.get(DATASET_KEYS["field_response"]) or "response"
    template = ds_cfg.get(DATASET_KEYS["prompt_template"]) or PAPER_TEMPLATE
    column_of = {
        field: prompt_column if field == PROMPT else field for field in fields_of(template)
    }
    if not column_of:
        raise TSpinError(
            f"`prompt_template: {template!r}` names no column; write `{{prompt}}` for the column "
            "`field_prompt`, or columns as in `{instruction}`"
        )
    reader = RowReader(ds_cfg.get("path"))
    encoder = TextEncoder(
        tokenizer,
        eot_tokens=cfg.get("eot_tokens"),
        model_ends=model_end_ids(cfg.base_model, cfg.revision_of_model),
    )
    generated = generated_columns(settings(cfg))
    response_columns = [response_column, *generated]

    def text(row: dict[str, Any], index: int) -> RowText:
        texts = _texts_of_fields(reader, row, index, column_of)
        turns = [(reader.response(index, response_column, row[response_column]), True)]
        turns += [read_response(reader, row, index, column) for column in generated]
        responses = [
            (reader.words(index, column, turn), ended)
            for column, (turn, ended) in zip(response_columns, turns, strict=True)
        ]
        return encoder.text(
            rendered(template, texts), responses, where=f"{reader.source}: row {index}"
        )

    needed = [prompt_column] if PROMPT in column_of else []
    return text_dataset(text, encoder, cfg, reader.source, [*needed, *response_columns])


def _texts_of_fields(
    reader: RowReader, row: Mapping[str, Any], index: int, column_of: Mapping[str, str]
) -> dict[str, str]:
    """Read the text of each of a template's fields; "" where the row has none.

    Raises:
        TSpinError: a field is not a column; BadRow: a value is not text, or all are empty.
    """
    for field, column in column_of.items():
        if column not in row:
            raise TSpinError(
                f"{reader.source}: `prompt_template` names {{{field}}}, but the data set has no "
                f"column '{column}'; it has {', '.join(map(repr, row))}. Name one of these. Text "
                f"in braces needs a space within them: {{ {field} }}"
            )
    columns = list(dict.fromkeys(column_of.values()))
    texts = {
        column: ""
        if row[column] is None
        else reader.text(index, column, row[column], may_be_blank=True)
        for column in columns
    }
    if not any(text.strip() for text in texts.values()):
        raise reader.error(
            index,
            "', '".join(columns),
            "the text is empty; fill it in or drop the row",
            "empty text",
        )
    return {field: texts[column] for field, column in column_of.items()}
