"""One real run through the commands, each in a separate process."""

from support.commands import axolotl, losses, record

from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import read_table


def test_generate_train_generate(make_yaml, tmp_path):
    path = make_yaml(rows=8)
    run = RunDirectory(tmp_path / "out")
    assert "Iteration 0: 8 responses sampled" in axolotl("t-spin", "generate", path).stdout
    assert (
        "T-SPIN iteration 0 of 0 to 1 (beta 0.0)"
        in axolotl("train", path, "--launcher", "python").stdout
    )
    assert len(losses(run, 0)) == 2
    assert "Iteration 1: 8 responses sampled" in axolotl("t-spin", "generate", path).stdout
    first, second = (read_table(run.iteration(t).triplets("train"))[0] for t in (0, 1))
    assert second["proto_synthetic_ids"] == first["synthetic_ids"]
    trained = record(run, 0)["policy"]
    assert set(second["synthetic_policy"].to_pylist()) == {trained} != {run.initial_policy()}
