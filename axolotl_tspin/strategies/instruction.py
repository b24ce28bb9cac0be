"""`type: t_spin.instruction`: a prompt and a response column under a text template."""

from typing import Any

from axolotl_tspin.strategies import DATASET_KEYS
from axolotl_tspin.strategies.columns import (
    generated_columns,
    read_response,
    settings,
    text_dataset,
)
from axolotl_tspin.strategies.encoding import PAPER_TEMPLATE, RowText, TemplateEncoder
from axolotl_tspin.strategies.rows import RowReader
from axolotl_tspin.strategies.tokenize import TripletDataset


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> TripletDataset:
    """Make the strategy; Axolotl calls this for each data set of this type.

    `field_prompt` and `field_response` (default "prompt" and "response") name the columns;
    `prompt_template` is the text around the prompt, by default the paper's.
    """
    prompt_column = ds_cfg.get(DATASET_KEYS["field_prompt"]) or "prompt"
    response_column = ds_cfg.get(DATASET_KEYS["field_response"]) or "response"
    template = ds_cfg.get(DATASET_KEYS["prompt_template"]) or PAPER_TEMPLATE
    reader = RowReader(ds_cfg.get("path"))
    encoder = TemplateEncoder(tokenizer, template, cfg.get("eot_tokens"))
    generated = generated_columns(settings(cfg))
    response_columns = [response_column, *generated]

    def text(row: dict[str, Any], index: int) -> RowText:
        prompt = reader.text(index, prompt_column, row[prompt_column])
        turns = [(reader.response(index, response_column, row[response_column]), True)]
        turns += [read_response(reader, row, index, column) for column in generated]
        responses = [
            (reader.words(index, column, turn), ended)
            for column, (turn, ended) in zip(response_columns, turns, strict=True)
        ]
        return encoder.text(prompt, responses)

    return text_dataset(text, encoder, cfg, reader.source, [prompt_column, *response_columns])
