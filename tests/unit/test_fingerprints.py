"""Fingerprints are of the weights: not of the folder, the files' split, or anything beside them."""

import os
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from support.policies import tiny_llama

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.directory import Policy
from axolotl_tspin.run.fingerprints import policy_fingerprint, weights_size


@pytest.fixture
def model(tmp_path):
    tiny_llama(600).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def fingerprint(tmp_path):
    def of(folder, adapter=None) -> str:
        policy = Policy(str(folder), adapter and str(adapter))
        return policy_fingerprint(policy, tmp_path / "fingerprints.json")

    return of


def test_the_same_weights_elsewhere_and_in_more_files_are_the_same(model, tmp_path, fingerprint):
    whole = fingerprint(model)
    shutil.copytree(model, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == whole
    tiny_llama(600).save_pretrained(tmp_path / "split", max_shard_size="50KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path / "split") == whole


def test_one_changed_weight_another_type_and_an_adapter_are_another_policy(
    model, tmp_path, fingerprint
):
    whole = fingerprint(model)
    changed = tiny_llama(600)
    with torch.no_grad():
        changed.lm_head.weight[5, 3] += 1e-6
    changed.save_pretrained(tmp_path / "changed")
    tiny_llama(600).bfloat16().save_pretrained(tmp_path / "half")
    (tmp_path / "adapter").mkdir()
    shutil.copy(model / "model.safetensors", tmp_path / "adapter" / "adapter_model.safetensors")
    others = {
        fingerprint(tmp_path / "changed"),
        fingerprint(tmp_path / "half"),
        fingerprint(model, tmp_path / "adapter"),
    }
    assert len(others | {whole}) == 4


def test_weights_that_change_in_place_are_read_again(model, fingerprint):
    before = fingerprint(model)
    file = model / "model.safetensors"
    stat = file.stat()
    tiny_llama(600, seed=1).save_pretrained(model)
    # The same size; only the time tells.
    assert file.stat().st_size == stat.st_size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert fingerprint(model) != before


def test_no_weights_is_an_error_that_names_the_folder(tmp_path, fingerprint):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TSpinError, match="empty holds no weights"):
        fingerprint(tmp_path / "empty")
    with pytest.raises(TSpinError, match="neither a folder nor a model"):
        fingerprint("nobody/no-such-model")


def test_the_size_is_that_of_the_files(model):
    files = model.glob("*.safetensors")
    assert weights_size(Policy(str(model))) == sum(f.stat().st_size for f in files)
    assert weights_size(Policy("nobody/no-such-model")) is None


@pytest.mark.parametrize(
    "names, downloaded",
    [
        (
            ["model-1.safetensors", "pytorch_model.bin", "model.gguf", "onnx/model.safetensors"],
            [["model-1.safetensors"]],
        ),
        (
            ["pytorch_model.bin", "training_args.bin", "model.gguf", "original/params.bin"],
            [[], ["pytorch_model.bin"]],
        ),
        (["model.gguf", "optimizer.bin"], [[], [], ["model.gguf"]]),
    ],
)
def test_of_a_hubs_model_the_first_kind_of_weights_that_it_has_is_fetched(
    tmp_path, monkeypatch, names, downloaded
):
    """The hub's own filter, on the names of its files."""
    fetched = []

    def snapshot_download(name, *, revision, local_files_only, **patterns):
        wanted = list(filter_repo_objects(names, **patterns))
        fetched.append(wanted)
        for file in wanted:
            (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert weights_size(Policy("somebody/model")) == 0
    assert fetched == downloaded


def test_a_hubs_model_that_is_on_disk_already_needs_no_hub(tmp_path, monkeypatch):
    """In the hub's cache with the second kind of weights alone."""
    snapshot = tmp_path / "models--somebody--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").write_bytes(b"weights")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert weights_size(Policy("somebody/model")) == len(b"weights")
    assert policy_fingerprint(Policy("somebody/model"), tmp_path / "fingerprints.json")
