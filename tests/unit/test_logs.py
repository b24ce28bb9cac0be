"""Messages: which of them a user sees, on which rank, and through `run`'s marks."""

import io
import logging
import os
import threading

import pytest
from rich.console import Console

from axolotl_tspin.commands.step_process import relay
from axolotl_tspin.logs import BEGIN, END, get_logger, shown_on


def shown(name: str, level: int, message: str) -> str:
    stream = io.StringIO()
    with shown_on(Console(file=stream)):
        logging.getLogger(name).log(level, message)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "level", "seen"),
    [
        ("axolotl_tspin.generation.step", logging.INFO, True),
        ("axolotl_tspin.training.trainer", logging.WARNING, True),
        ("axolotl_tspin.training.layout_check", logging.DEBUG, False),
        ("axolotl.utils.schemas", logging.WARNING, True),
        ("axolotl.cli.config", logging.INFO, False),
        ("transformers.trainer", logging.WARNING, False),
        ("py.warnings", logging.WARNING, False),
    ],
)
def test_messages_for_the_user(name, level, seen):
    logging.getLogger("axolotl").setLevel(logging.INFO)
    get_logger("axolotl_tspin.training.trainer")
    assert ("T-SPIN" in shown(name, level, "T-SPIN of it")) == seen


def test_a_message_has_its_time_and_its_kind():
    text = shown("axolotl_tspin.x", logging.WARNING, "T-SPIN: look [here]")
    assert text[8:] == " Warning: look [here]\n" and text[2] == text[5] == ":"


def test_a_warning_nobody_can_act_on_is_not_shown():
    said = "Processing datasets during training can lead to VRAM instability."
    assert shown("axolotl.utils.data.sft", logging.WARNING, said) == ""


@pytest.mark.parametrize(("rank", "seen"), [("0", True), ("3", False)])
def test_only_the_first_rank_speaks(monkeypatch, rank, seen):
    monkeypatch.setenv("RANK", rank)
    stream = io.StringIO()
    with shown_on(Console(file=stream)):
        get_logger("axolotl_tspin.x").warning("T-SPIN: it is %s", "said")
    assert ("it is said" in stream.getvalue()) == seen


def relayed(*chunks: bytes, is_terminal: bool = False) -> tuple[str, str]:
    """What `run` writes into the log, and onto the terminal, of a step's output."""
    reading, writing = os.pipe()
    log, terminal = io.BytesIO(), io.StringIO()
    with open(reading, "rb", buffering=0) as output:
        arguments = (output, log, terminal.write, is_terminal)
        thread = threading.Thread(target=relay, args=arguments)
        thread.start()
        for chunk in chunks:
            os.write(writing, chunk)
        os.close(writing)
        thread.join()
    return log.getvalue().decode(), terminal.getvalue()


def test_marked_text_goes_to_the_terminal_and_the_rest_into_the_log():
    log, terminal = relayed(f"noise\nmore {BEGIN}for π{END}noise\nend".encode())
    assert log == "noise\nmore noise\nend\n"
    assert terminal == "for π"


def test_marked_text_in_any_pieces():
    said = f"a{BEGIN}π → y′{END}b\n".encode()
    log, terminal = relayed(*(said[i : i + 1] for i in range(len(said))))
    assert (log, terminal) == ("ab\n", "π → y′")


BARS = (
    b"\rTokenizing:  50%|##   | 5/10 [00:01<00:01]\n",
    b"\r 33%|###  | 1/3 [00:00<00:01]",
    b"\r 66%|###  | 2/3 [00:00<00:01]",
)


def test_of_all_bars_the_trainers_is_shown_on_a_terminal():
    log, terminal = relayed(*BARS, is_terminal=True)
    assert "2/3" in terminal and "Tokenizing" not in terminal
    assert log.splitlines()[0].startswith("Tokenizing") and "1/3" not in log


def test_no_bar_is_shown_in_a_file():
    log, terminal = relayed(*BARS)
    assert terminal == "" and " 66%" in log
