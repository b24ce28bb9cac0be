"""The generation step's shards as real Ray tasks."""

import pytest

ray = pytest.importorskip("ray")

from axolotl_tspin.generation.step import generate  # noqa: E402
from axolotl_tspin.run_directory import RunDirectory  # noqa: E402
from axolotl_tspin.tables import read_table  # noqa: E402

pytestmark = pytest.mark.e2e


def test_two_tasks_give_what_one_process_gives(make_yaml, tmp_path):
    keys = {"rows": 70, "t_spin": {"generation": {"max_new_tokens": 6, "batch_size": 8}}}
    one = make_yaml(name="one.yml", output_dir=str(tmp_path / "one"), **keys)
    workers = {"use_ray": True, "ray_num_workers": 2, "resources_per_worker": {"CPU": 1, "GPU": 0}}
    two = make_yaml(name="two.yml", **workers, **keys)
    generate(one)
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        outcome = generate(two)
    finally:
        ray.shutdown()
    assert (outcome.due, outcome.generated) == ("train", 70)
    tables = [
        read_table(RunDirectory(tmp_path / name).iteration(0).triplets("train"))[0]
        for name in ("one", "out")
    ]
    assert tables[0] == tables[1]
