"""The display of sampling on a terminal, and in a log."""

import io
import logging
import re

from rich.console import Console

from axolotl_tspin.generation import progress
from axolotl_tspin.generation.progress import Progress
from axolotl_tspin.logs import shown_on


def test_tokens_are_counted_before_a_batch_is_finished():
    screen = io.StringIO()

    def shown(bar: Progress) -> str:
        bar._bar.refresh()
        return " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).split())

    console = Console(file=screen, force_terminal=True, width=100)
    with shown_on(console), Progress(total=8) as bar:
        bar.decoded(1500)
        bar.decoded(500)
        assert "0/8 rows 2,000 tokens" in shown(bar)
        bar.advance(4, 1900)
        assert "4/8 rows 1,900 tokens" in shown(bar)


def test_a_log_gets_a_line_before_the_first_batch_is_finished(caplog, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOGS", 0.0)
    with caplog.at_level(logging.INFO), Progress(total=8, done=2) as bar:
        bar.decoded(100)
        bar.advance(3, 90)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("T-SPIN: 2 of 8 rows sampled, 100 tokens, ")
    assert "left" not in lines[0], "nothing tells how long it will take"
    assert lines[-1].startswith("T-SPIN: 5 of 8 rows sampled, 90 tokens, ")
    assert lines[-1].endswith("s left")
