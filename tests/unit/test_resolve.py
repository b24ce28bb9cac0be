"""From the user's YAML to the one that Axolotl runs, through the plugin as Axolotl calls it."""

import os

import pytest
import torch
import yaml
from axolotl.integrations.base import PluginManager
from axolotl.utils.config import prepare_plugins, validate_config
from axolotl.utils.dict import DictDefault
from support.data import ROOT, WORD_PROBLEMS, conversations, write_jsonl
from support.runs import pretend_trained

from axolotl_tspin import TSpinPlugin
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.generation.step import generate
from axolotl_tspin.plugin.plugin import _settings
from axolotl_tspin.resolve.refusals import SMALLEST_BFLOAT16_RATE, loses_small_steps
from axolotl_tspin.resolve.steps import prepare_generation
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.strategies import CHAT_KEYS, STRATEGY_KEYS

LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}


def read(path) -> DictDefault:
    return DictDefault(yaml.safe_load(path.read_text()))


def register(path) -> DictDefault:
    cfg = read(path)
    TSpinPlugin().register(cfg)
    return cfg


@pytest.fixture
def direct_data(tmp_path):
    rows = [row | {"synthetic": "1", "proto_synthetic": "2"} for row in conversations(6)]
    return write_jsonl(tmp_path / "direct.jsonl", rows)


def test_a_run_without_rl_t_spin_is_untouched_even_with_the_plugin_listed(make_yaml):
    keys = {"datasets": [{"path": "d", "type": "alpaca", "unknown": 1}], "sample_packing": True}
    for rl in (None, "dpo"):
        path = make_yaml(rl=rl, t_spin=None, **keys)
        assert register(path) == read(path)
    plugin, cfg = TSpinPlugin(), register(make_yaml(rl=None))
    assert cfg == read(make_yaml(rl=None))
    assert plugin.get_trainer_cls(cfg) is None
    assert plugin.get_collator_cls_and_kwargs(cfg) is None
    assert plugin.get_training_args(cfg) is None
    assert plugin.add_callbacks_post_trainer(cfg, None) == []
    plugin.post_trainer_create(cfg, None)
    plugin.post_train(cfg, None)


def test_before_generation_there_is_nothing_to_train_on(make_yaml):
    with pytest.raises(TSpinError, match=r"nothing to train on yet.*axolotl t-spin generate"):
        register(make_yaml())


def test_a_data_set_with_all_responses_trains_directly(make_yaml, direct_data, tmp_path):
    path = make_yaml(datasets=[{"path": str(direct_data), "type": "t_spin.chat_template"}])
    cfg = register(path)
    assert cfg.rl is None
    assert cfg.base_model == read(path).base_model
    assert cfg.output_dir == str(tmp_path / "out")
    assert cfg.datasets[0].type == "axolotl_tspin.strategies.chat_template"
    assert cfg.t_spin.resolved.direct and cfg.t_spin.resolved.beta == 0.1
    assert not (tmp_path / "out").exists()
    with pytest.raises(TSpinError, match="nothing to generate"):
        prepare_generation(read(path))


def test_prepared_data_follows_the_files_and_our_keys(make_yaml, direct_data):
    def folder(**keys):
        data = {"path": str(direct_data), "type": "t_spin.chat_template"}
        return register(make_yaml(datasets=[data], **keys)).dataset_prepared_path

    first = folder()
    assert first == folder()
    assert first != folder(excess_length_strategy="drop")
    assert first != folder(t_spin={"field_proto_synthetic": "synthetic"})
    tests = write_jsonl(direct_data.with_name("tests.jsonl"), conversations(2))
    with_tests = {"test_datasets": [{"path": str(tests), "type": "t_spin.chat_template"}]}
    before = folder(**with_tests)
    os.utime(tests, ns=(1, 1))
    assert before != folder(**with_tests)
    os.utime(direct_data, ns=(1, 1))
    assert first != folder()


def test_training_points_at_the_due_iterations_triplets_policy_and_folder(make_yaml, tmp_path):
    path = make_yaml(rows=4)
    generate(path)
    raw, run = read(path), RunDirectory(tmp_path / "out")
    cfg = register(path)
    assert cfg.base_model == raw.base_model
    assert cfg.datasets[0].path == str(run.iteration(0).triplets("train"))
    assert cfg.output_dir == str(run.iteration(0).model)
    assert cfg.t_spin.resolved.iteration == 0
    assert cfg.t_spin.resolved.beta == 0.0, "the paper's iteration 0 has no historical term"
    forced = make_yaml(rows=4, t_spin=raw.t_spin.to_dict() | {"historical_at_iteration_0": True})
    assert register(forced).t_spin.resolved.beta == 0.1

    path = make_yaml(rows=4)
    pretend_trained(run, 0)
    with pytest.raises(TSpinError, match=r"iteration 1 in .* has no triplets yet"):
        register(path)
    plan = prepare_generation(read(path))
    assert plan.due.iteration == 1
    assert plan.policy.base_model == str(run.iteration(0).model)

    triplets = run.iteration(1).triplets("train")
    triplets.parent.mkdir(parents=True)
    triplets.write_bytes(run.iteration(0).triplets("train").read_bytes())
    with pytest.raises(TSpinError, match=r"synthetic responses .* were sampled by the policy"):
        register(path)
    triplets.unlink()
    generate(path)
    cfg = register(path)
    assert cfg.base_model == str(run.iteration(0).model)
    assert cfg.tokenizer_config == raw.base_model, "the tokenizer is the initial policy's"
    assert cfg.output_dir == str(run.iteration(1).model)
    assert cfg.t_spin.resolved.beta == 0.1

    adapter = read(make_yaml(name="lora.yml", rows=4, **LORA))
    with pytest.raises(TSpinError, match="adapter: the run has None, the YAML 'lora'"):
        TSpinPlugin().register(adapter)

    pretend_trained(run, 1)
    cfg = register(path)
    assert cfg.t_spin.resolved.already_trained
    assert cfg.base_model == str(run.iteration(1).model), "evaluation takes the last policy"
    assert prepare_generation(read(path)).due.step == "done"

    again = dict(cfg.to_dict())
    TSpinPlugin().register(DictDefault(again))
    assert again == cfg.to_dict(), "a second pass changes nothing"


def test_an_adapter_is_continued_on_the_unchanged_base_model(make_yaml, tmp_path):
    path = make_yaml(rows=4, **LORA)
    generate(path)
    run = RunDirectory(tmp_path / "out")
    assert register(path).lora_model_dir is None
    pretend_trained(run, 0, base_model=read(path).base_model)
    plan = prepare_generation(raw := read(path))
    assert plan.policy == (read(path).base_model, str(run.iteration(0).model))
    assert raw.lora_model_dir == str(run.iteration(0).model)


def test_a_stopped_training_resumes_from_its_last_complete_checkpoint(make_yaml, tmp_path):
    path = make_yaml(rows=4)
    generate(path)
    model = RunDirectory(tmp_path / "out").iteration(0).model
    for step, state in ((2, "{}"), (4, '{"hal')):
        (model / f"checkpoint-{step}").mkdir(parents=True)
        (model / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert register(path).resume_from_checkpoint == str(model / "checkpoint-2")
    off = make_yaml(rows=4, auto_resume_from_checkpoints=False)
    assert register(off).resume_from_checkpoint is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sample_packing": True}, "`sample_packing` does not go with `rl: t_spin`"),
        ({"reward_model": True}, "`reward_model`"),
        ({"streaming": True}, "`streaming`"),
        ({"pretraining_dataset": "d"}, "`pretraining_dataset`"),
        ({"train_on_inputs": True}, "`train_on_inputs`"),
        ({"context_parallel_size": 2}, "`context_parallel_size`"),
        ({"sequence_parallel_degree": 2}, "`sequence_parallel_degree`"),
        ({"tensor_parallel_size": 2}, "`tensor_parallel_size`.*ZeRO-3"),
        ({"rl_beta": 0.1}, "`rl_beta` is read by other values of `rl`"),
        ({"dpo_label_smoothing": 0.1}, "`dpo_label_smoothing` is read by other"),
        ({"relora": True}, "`relora`.*unchanged base model"),
        ({"peft_init_lora_weights": "pissa_niter_4"}, "`peft_init_lora_weights: pissa_niter_4`"),
        ({"peft": {"loftq_config": {"loftq_bits": 4}}}, "`peft.loftq_config`"),
        ({"neftune_noise_alpha": 5}, "`neftune_noise_alpha`"),
        ({"noisy_embedding_alpha": 5}, "`noisy_embedding_alpha`"),
        ({"qat": {"weight_dtype": "int8"}}, "`qat`.*start from that model"),
        ({"accelerator_config": {"dispatch_batches": True}}, "`accelerator_config.dispatch"),
        ({"output_dir": None}, "`output_dir` is missing"),
        (
            {"datasets": [{"path": "d", "type": "alpaca"}]},
            r"datasets\[0\]\.type: alpaca.*one of",
        ),
        (
            {"datasets": [{"path": "d", "type": "t_spin.instruction", "field_promt": "q"}]},
            r"'field_promt' is not a key of `datasets\[0\]`; did you mean 'field_prompt'",
        ),
        (
            {"datasets": [{"path": "d", "type": "t_spin.spin", "chat_templat": "chatml"}]},
            r"'chat_templat' is not a key of `datasets\[0\]`; did you mean 'chat_template'",
        ),
        ({"t_spin": {"betta": 1}}, "did you mean 'beta'"),
        (
            {"t_spin": {"gradient_norms": 5}, "deepspeed": "zero2.json"},
            "`t_spin.gradient_norms` does not go with `deepspeed`",
        ),
    ],
)
def test_contradictions_and_unknown_keys_are_refused(make_yaml, keys, message):
    path = make_yaml(**keys)
    for use in (register, lambda p: prepare_generation(read(p))):
        with pytest.raises(TSpinError, match=message):
            use(path)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (
            "chat_template",
            "train_on_eos train_on_eot roles_to_train prompt_template field_prompt field_human "
            "input_transform conversation field temperature logprobs_field",
        ),
        ("spin", "field_messages field_tools field_response turns"),
        ("instruction", "chat_template roles field_messages field_thinking field_human turns"),
    ],
)
@pytest.mark.parametrize("entries", ["datasets", "test_datasets"])
def test_keys_of_data_sets_that_have_no_effect_are_refused(make_yaml, kind, keys, entries):
    for key in keys.split():
        entry = {"path": "d", "type": f"t_spin.{kind}", key: "llama3"}
        with pytest.raises(TSpinError) as refusal:
            register(make_yaml(**{entries: [entry]}))
        start = f"`{entries}[0].{key}` has no effect with `type: t_spin.{kind}`; remove it (keys "
        assert str(refusal.value).startswith(start)
        assert "split" in str(refusal.value), "and the keys that have one are named"


@pytest.mark.parametrize("value", [True, 3, ["first"]])
def test_own_keys_that_are_not_text_are_named_as_they_are_written(make_yaml, value):
    entry = {"path": "d", "type": "t_spin.chat_template", "turns": value}
    with pytest.raises(TSpinError, match=r"`datasets\[0\]\.turns: .*` is not text"):
        register(make_yaml(datasets=[entry]))


@pytest.mark.parametrize("kind", STRATEGY_KEYS)
def test_the_docs_name_the_keys_of_each_type(kind):
    title = {"chat_template": "Conversations", "instruction": "Text columns", "spin": "SPIN's data"}
    page = (ROOT / "docs" / "data.md").read_text()
    section = page.split(f"### {title[kind]}\n")[1].split("\n#")[0]
    for key in STRATEGY_KEYS[kind]:
        assert f"{key}" in section or (kind == "spin" and key in CHAT_KEYS)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, None),
        ({"cut_cross_entropy": True}, "`cut_cross_entropy` has no effect"),
        ({"bf16": True}, "steps of `learning_rate: 5e-07` round away"),
        ({"bf16": True, "deepspeed": "zero2.json"}, None),
        ({"bf16": True, "adapter": "lora"}, None),
        ({"bf16": True, "learning_rate": 1e-4}, None),
    ],
)
def test_settings_that_do_not_do_what_they_seem_to_are_warned_of(
    make_yaml, direct_data, caplog, keys, says
):
    data = {"path": str(direct_data), "type": "t_spin.chat_template"}
    path = make_yaml(datasets=[data], **({"learning_rate": 5e-7} | keys))
    with caplog.at_level("WARNING"):
        register(path)
    warnings = [r.getMessage() for r in caplog.records if r.name == "axolotl_tspin.resolve.steps"]
    assert len(warnings) == (says is not None)
    assert says is None or says in warnings[0]


def test_bf16_is_axolotls_default():
    assert loses_small_steps({"learning_rate": 5e-7})
    assert not loses_small_steps({"learning_rate": 5e-7, "fp16": True})


def test_bfloat16_weights_do_not_take_small_steps():
    """What the warning is about: 0.02 stays where it is."""
    weight = torch.tensor([0.02], dtype=torch.bfloat16, requires_grad=True)
    weight.grad = torch.ones_like(weight)
    before = weight.detach().clone()
    torch.optim.AdamW([weight], lr=SMALLEST_BFLOAT16_RATE * 0.9, weight_decay=0.0).step()
    assert weight.equal(before)
    torch.optim.AdamW([weight], lr=SMALLEST_BFLOAT16_RATE * 1.1, weight_decay=0.0).step()
    assert not weight.equal(before)


def test_the_resolved_configuration_passes_axolotls_validation(make_yaml, direct_data):
    data = {"path": str(direct_data), "type": "t_spin.chat_template"}
    t_spin = {"alpha": 0.5, "beta": 0.2, "loss": "exponential", "max_tokens_per_row": 512}
    cfg = read(make_yaml(datasets=[data], t_spin=t_spin))
    prepare_plugins(cfg)
    cfg = validate_config(cfg)
    config, resolved = _settings(cfg)
    assert (config.alpha, resolved.beta, config.loss) == (0.5, 0.2, "exponential")
    plugin = PluginManager.get_instance().plugins["axolotl_tspin.TSpinPlugin"]
    assert plugin.get_training_args(cfg) == {
        "remove_unused_columns": False,
        "t_spin_alpha": 0.5,
        "t_spin_beta": 0.2,
        "t_spin_loss": "exponential",
        "t_spin_layout": "auto",
        "t_spin_max_tokens_per_row": 512,
        "t_spin_gradient_norms": 0,
    }
    assert plugin.get_trainer_cls(cfg).__name__ == "TSpinTrainer"


def test_data_that_changed_since_the_run_began_is_refused(make_yaml, tmp_path):
    data = write_jsonl(tmp_path / "data.jsonl", conversations(4))
    path = make_yaml(datasets=[{"path": str(data), "type": "t_spin.chat_template"}])
    generate(path)
    assert prepare_generation(read(path)).due.step == "train"
    write_jsonl(data, conversations(5))
    with pytest.raises(TSpinError, match=r"data file .*data\.jsonl: the run has"):
        prepare_generation(read(path))


def test_the_word_problems_are_where_the_examples_say():
    assert WORD_PROBLEMS.exists()
