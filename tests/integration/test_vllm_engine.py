"""The pipe between us and vLLM's workers when one of both is killed, and what vLLM is started with.

The engine itself is in test_engines.py.
"""

import io
import json
import queue
import sys
import threading

import pytest

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.engines import vllm_worker
from axolotl_tspin.generation.engines.engine import Request
from axolotl_tspin.generation.engines.vllm_engine import VllmEngine, max_lora_rank

KILLED_IN_AN_ANSWER = """#!{python}
import os, sys
sys.stdin.readline()
print('{{"ready": "vllm 0"}}', flush=True)
sys.stdin.readline()
os.write(1, b'{{"row": 0, "ids": [5, 6')
os._exit(137)
"""


def within_a_minute(work):
    """What `work` returns or raises; fails where it hangs."""
    outcome = queue.SimpleQueue()

    def keep():
        try:
            outcome.put((work(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=keep, daemon=True).start()
    value, error = outcome.get(timeout=60)
    if error:
        raise error
    return value


def test_a_worker_killed_in_the_middle_of_an_answer_is_told_with_its_status(tmp_path):
    interpreter = tmp_path / "python"
    interpreter.write_text(KILLED_IN_AN_ANSWER.format(python=sys.executable))
    interpreter.chmod(0o755)
    engine = VllmEngine({}, python=str(interpreter), gpus=[None])
    groups = [[Request(0, [1, 2], 5, 7, (2,))]]
    with pytest.raises(TSpinError, match="worker 0 ended with status 137"):
        within_a_minute(lambda: list(engine.sample(groups)))
    engine.close()


@pytest.mark.parametrize("torn", ["", '{"row": 4, "prompt_ids": [1,'])
def test_a_worker_ends_where_whoever_asked_was_killed_in_the_middle_of_a_request(monkeypatch, torn):
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"row": 3}\n' + torn))
    requests = queue.SimpleQueue()
    threading.Thread(target=vllm_worker._read, args=(requests,), daemon=True).start()
    assert [requests.get(timeout=60) for _ in range(2)] == [{"row": 3}, None]


@pytest.mark.parametrize(
    "rank, known", [(1, 8), (8, 8), (12, 16), (48, 64), (257, 320), (512, 512)]
)
def test_vllm_is_given_a_lora_rank_that_it_knows(tmp_path, rank, known):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
    assert max_lora_rank(tmp_path) == known


def test_a_lora_rank_beyond_vllms_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 1024}')
    with pytest.raises(TSpinError, match=r"r = 1024, and vLLM takes .* up to rank 512"):
        max_lora_rank(tmp_path)
