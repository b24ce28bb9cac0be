"""Real Ray: the generation step's shards as tasks, a training on two workers."""

import os

import pytest

ray = pytest.importorskip("ray")

from axolotl.cli.args import TrainerCliArgs  # noqa: E402
from axolotl.cli.config import load_cfg  # noqa: E402
from axolotl.cli.train import ray_train_func  # noqa: E402
from ray.train import RunConfig, ScalingConfig  # noqa: E402
from ray.train.torch import TorchTrainer  # noqa: E402
from support.ranks import TESTS  # noqa: E402

from axolotl_tspin.generation.step import generate  # noqa: E402
from axolotl_tspin.run.directory import RunDirectory  # noqa: E402
from axolotl_tspin.run.tables import read_table  # noqa: E402


def test_two_tasks_give_what_one_process_gives(make_yaml, tmp_path):
    keys = {"rows": 140, "t_spin": {"generation": {"max_new_tokens": 4, "batch_size": 8}}}
    one = make_yaml(name="one.yml", output_dir=str(tmp_path / "one"), **keys)
    workers = {"use_ray": True, "ray_num_workers": 2, "resources_per_worker": {"CPU": 1, "GPU": 0}}
    two = make_yaml(name="two.yml", **workers, **keys)
    generate(one)
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        outcome = generate(two)
    finally:
        ray.shutdown()
    assert (outcome.due, outcome.generated) == ("train", 140)
    tables = [
        read_table(RunDirectory(tmp_path / name).iteration(0).triplets("train"))[0]
        for name in ("one", "out")
    ]
    assert tables[0] == tables[1]


def test_axolotls_workers_train_the_due_iteration(make_yaml, tmp_path):
    """Axolotl's own worker function on two CPU workers.

    `axolotl train` with `use_ray: true` asks Ray for GPUs whatever the YAML says; the call below is
    its own but for that.
    """
    generate(make_yaml())
    path = make_yaml(
        name="ray.yml",
        use_ray=True,
        ray_num_workers=2,
        resources_per_worker={"CPU": 1, "GPU": 0},
        plugins=["axolotl_tspin.TSpinPlugin", "support.plugin_for_cpu_ranks.CPURanksPlugin"],
    )
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment})
    try:
        cfg = load_cfg(str(path))
        trainer = TorchTrainer(
            ray_train_func,
            train_loop_config={"cfg": cfg.to_dict(), "cli_args": TrainerCliArgs()},
            scaling_config=ScalingConfig(
                num_workers=cfg.ray_num_workers, resources_per_worker={"CPU": 1}, use_gpu=False
            ),
            run_config=RunConfig(name="t", storage_path=str(tmp_path / "ray")),
        )
        trainer.fit()
    finally:
        ray.shutdown()
    run = RunDirectory(tmp_path / "out")
    assert run.due(2) == (1, "generate")
    record = run.iteration(0).training_record()
    first = next(entry for entry in record["log_history"] if "loss" in entry)
    # 12 rows are 3 micro-batches a worker, of which the first step takes 2.
    assert record["iteration"] == 0 and first["epoch"] == pytest.approx(2 / 3, abs=0.01)
