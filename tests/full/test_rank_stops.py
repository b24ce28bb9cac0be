"""Ranks end a training together at what is not finite; two engines are in tests/integration."""

from support.rank_checks import assert_ranks_stop


def test_ranks_stop_together_whatever_the_engine(tmp_path):
    assert_ranks_stop(tmp_path, ["zero2", "zero3", "zero3-offload", "fsdp2-lora"])
