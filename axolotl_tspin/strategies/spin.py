"""`type: t_spin.spin`: SPIN's public format, as in the data set UCLA-AGI/SPIN_iter0."""

from typing import Any

from axolotl_tspin.strategies.chat_template import chat_encoder, chat_reader
from axolotl_tspin.strategies.columns import (
    generated_columns,
    read_response,
    settings,
    text_dataset,
)
from axolotl_tspin.strategies.encoding import RowText
from axolotl_tspin.strategies.tokenize import TripletDataset

REAL, GENERATED = "real", "generated"


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> TripletDataset:
    """Make the strategy; Axolotl calls this for each data set of this type.

    The column `real` holds messages that end with the annotated response, `generated` messages
    that end with a sampled one. `generated` replaces a synthetic or proto-synthetic column that
    the data set does not have. With neither, both are the same response, as at iteration 0.
    """
    reader, encoder = chat_reader(ds_cfg), chat_encoder(tokenizer, cfg, ds_cfg)
    generated = generated_columns(settings(cfg))

    def text(row: dict[str, Any], index: int) -> RowText:
        conversation = reader.conversation(index, REAL, row[REAL])
        responses = [(conversation.response, True)]
        for column in generated:
            present = column if column in row else GENERATED
            responses.append(read_response(reader, row, index, present, conversation.prompt))
        where = f"{reader.source}: row {index}"
        return encoder.text(conversation.prompt, responses, where=where)

    return text_dataset(text, encoder, cfg, reader.source, [REAL])
