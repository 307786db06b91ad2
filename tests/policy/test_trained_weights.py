"""`trl_erprm.policy.trained_weights`: training goes on with a stored adapter, in each trainer of a policy."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, Trainer

from tests.policy.rft_runs import is_right, rft_config
from tests.tiny import QUIET
from trl_erprm import (
    ProcessPPOConfig,
    ProcessPPOTrainer,
    ProcessReward,
    RFTTrainer,
    StepGRPOConfig,
    StepGRPOTrainer,
)
from trl_erprm.arguments import ModelArguments, load_policy, load_tokenizer

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
IDS = torch.arange(3, 15)[None]


class Rules(ProcessReward):
    """Judges as the embedded task does, without a model: 1 for a right step, 0 for a wrong one."""

    def __init__(self, task):
        super().__init__(prm=None, answer_how="arithmetic", reward_if_malformed=0.0)
        self.task = task

    def _scores(self, prompts, steps):
        return [[float(v) for v in self.task.check_steps(p, s)] for p, s in zip(prompts, steps, strict=True)]


@pytest.fixture(scope="module")
def adapter(tiny_policy, tmp_path_factory):
    """Of a policy that is not its base: the path, and the logits of both."""
    path = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_policy[1]).eval()
    of_base = base(IDS).logits.detach()
    model = get_peft_model(base, LoraConfig(**LORA)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    load_tokenizer(tiny_policy[1]).save_pretrained(path)
    of_adapter = model(IDS).logits.detach()
    assert (of_adapter - of_base).abs().max() > 0.1
    return str(path), of_adapter


@pytest.fixture
def build(tiny_policy, tmp_path):
    """One of the three trainers, from a path or a model."""
    task, _ = tiny_policy

    def build(trainer, model, output="run", peft_config=None, processing_class=None, **changes):
        ours = {"model": model, "peft_config": peft_config, "processing_class": processing_class}
        if trainer is RFTTrainer:
            args = rft_config(tmp_path / output, **{"num_iterations": 1, "learning_rate": 1e-2, **changes})
            data = {"train_dataset": task.dataset("train", 16), "eval_dataset": task.dataset("test", 4)}
            return RFTTrainer(reward_funcs=is_right, args=args, **data, **ours)
        config = StepGRPOConfig if trainer is StepGRPOTrainer else ProcessPPOConfig
        options = {
            "max_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 8,
            "max_completion_length": 24, "logging_steps": 1, "save_strategy": "no", "temperature": 1.7, "beta": 0.1,
            "num_iterations": 1, **({"num_generations": 4} if trainer is StepGRPOTrainer else {}),
        }  # fmt: skip
        args = config(str(tmp_path / output), **{**QUIET, **options, **changes})
        return trainer(reward_funcs=Rules(task), args=args, train_dataset=task.dataset("train", 16), **ours)

    return build


TRAINERS = pytest.mark.parametrize("trainer", [StepGRPOTrainer, ProcessPPOTrainer, RFTTrainer])


class TestStoredAdapter:
    @pytest.mark.parametrize(
        "trainer, loaded",
        [(StepGRPOTrainer, True), (StepGRPOTrainer, False), (ProcessPPOTrainer, False), (RFTTrainer, False)],
    )
    def test_is_trained_on(self, adapter, build, tmp_path, trainer, loaded):
        """From the stored policy, which is also the reference; what is saved is what was trained."""
        path, of_adapter = adapter
        policy, tokenizer = load_policy(ModelArguments(model_name_or_path=path)) if loaded else (path, None)
        trainer = build(trainer, policy, processing_class=tokenizer)
        torch.testing.assert_close(trainer.model.eval()(IDS).logits, of_adapter)
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        history = trainer.train()
        moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
        assert moved == {name for name in before if "lora_" in name and name.endswith(".default.weight")}
        if isinstance(trainer, RFTTrainer):
            assert history[0]["kl_to_start"] == 0 and history[1]["kl_to_start"] > 0.01
        else:
            # at the first update policy and reference are one; later they differ
            kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
            assert kl[0] == pytest.approx(0, abs=1e-6) and abs(kl[1]) > 1e-4
        trained = trainer.model.eval()(IDS).logits
        assert (trained - of_adapter).abs().max() > 1e-2
        trainer.save_model(str(tmp_path / "saved"))
        again = load_policy(ModelArguments(model_name_or_path=str(tmp_path / "saved")))[0]
        torch.testing.assert_close(again(IDS).logits, trained)

    @TRAINERS
    def test_a_new_one_beside_it(self, adapter, build, trainer):
        new = LoraConfig(**LORA)
        with pytest.raises(ValueError, match="holds a trained adapter, but `peft_config` asks for a new one"):
            build(trainer, adapter[0], peft_config=new)
        policy, tokenizer = load_policy(ModelArguments(model_name_or_path=adapter[0]))
        with pytest.raises(ValueError, match="has an adapter already, but `peft_config` asks for a new one"):
            build(trainer, policy, peft_config=new, processing_class=tokenizer)

    @TRAINERS
    def test_loaded_to_look_at(self, adapter, build, trainer):
        policy = AutoModelForCausalLM.from_pretrained(adapter[0])
        with pytest.raises(ValueError, match="was loaded together with an adapter, which transformers leaves frozen"):
            build(trainer, policy, processing_class=load_tokenizer(adapter[0]))

    @pytest.mark.parametrize("trainer", [StepGRPOTrainer, ProcessPPOTrainer])
    def test_added_by_transformers(self, tiny_policy, build, tmp_path, trainer):
        """It is trained, alone, and what is saved is what was trained."""
        policy = AutoModelForCausalLM.from_pretrained(tiny_policy[1])
        policy.add_adapter(LoraConfig(**LORA))
        trainer = build(trainer, policy, processing_class=load_tokenizer(tiny_policy[1]))
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
        moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
        assert moved == {name for name in before if "lora_" in name}
        trainer.save_model(str(tmp_path / "saved"))
        again = load_policy(ModelArguments(model_name_or_path=str(tmp_path / "saved")))[0]
        torch.testing.assert_close(again(IDS).logits, trainer.model.eval()(IDS).logits)

    def test_added_by_transformers_for_rft(self, tiny_policy, build):
        """Its iterations load the policy again, which is refused before the first and not after it."""
        policy = AutoModelForCausalLM.from_pretrained(tiny_policy[1])
        policy.add_adapter(LoraConfig(**LORA))
        with pytest.raises(ValueError, match="cannot where the adapter is inside of the model .* `peft_config`, or a"):
            build(RFTTrainer, policy, processing_class=load_tokenizer(tiny_policy[1]))

    @TRAINERS
    def test_of_another_kind_of_model(self, tiny_policy, build, tmp_path, trainer):
        """A process reward model's head would be left out."""
        prm = AutoModelForTokenClassification.from_pretrained(tiny_policy[1], num_labels=1)
        get_peft_model(prm, LoraConfig(**{**LORA, "task_type": "TOKEN_CLS"})).save_pretrained(tmp_path / "prm")
        load_tokenizer(tiny_policy[1]).save_pretrained(tmp_path / "prm")
        with pytest.raises(ValueError, match=r"prm' must hold the adapter of a causal .* \(TOKEN_CLS\), such"):
            build(trainer, str(tmp_path / "prm"))

    @pytest.mark.parametrize("trainer", [StepGRPOTrainer, ProcessPPOTrainer])
    @pytest.mark.parametrize("loaded", ["all", "folders"])
    def test_resumed_beside_the_reference(self, adapter, build, tmp_path, monkeypatch, trainer, loaded):
        """Both adapters are the checkpoint's, also where transformers loads only those that lie in folders."""

        def load_folders_only(self, resume_from_checkpoint, model=None):
            self.model.load_adapter(f"{resume_from_checkpoint}/ref", "ref", is_trainable=False)
            self.model.set_adapter("default")

        whole = build(trainer, adapter[0], max_steps=4, save_strategy="steps", save_steps=2)
        whole.train()
        checkpoint = tmp_path / "run" / "checkpoint-2"
        assert (checkpoint / "ref" / "adapter_model.safetensors").is_file()
        if loaded == "folders":
            monkeypatch.setattr(Trainer, "_load_from_checkpoint", load_folders_only)
        resumed = build(trainer, adapter[0], output="resumed", max_steps=4)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        expected = dict(whole.model.named_parameters())
        for name, parameter in resumed.model.named_parameters():
            assert torch.equal(parameter, expected[name]), name
            assert parameter.requires_grad is expected[name].requires_grad is (".default." in name)

    @TRAINERS
    @pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
    def test_weights_too_coarse_are_told(self, tiny_policy, build, caplog, trainer, dtype):
        options = {} if trainer is RFTTrainer else {"beta": 0.0}
        build(trainer, tiny_policy[1], model_init_kwargs={"dtype": dtype}, **options)
        assert ("weights are trained in bfloat16" in caplog.text) is (dtype == "bfloat16")


def test_a_stored_adapter_also_begins_the_critic(adapter, build):
    """Without a `critic`, its body is that of the policy, adapter included, and is trained in full."""
    trainer = build(ProcessPPOTrainer, adapter[0])
    critic, policy = trainer.critic.eval(), trainer.model.eval()
    body = critic.model(IDS).last_hidden_state
    torch.testing.assert_close(body, policy.base_model.model.model(IDS).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert not hasattr(critic, "peft_config") and all(p.requires_grad for p in critic.parameters())


def test_an_adapter_inside_of_a_model_made_in_memory_begins_no_critic(tiny_policy, build):
    """Whose weights have other names beside an adapter: the critic's would stay random."""
    policy = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_policy[1]))
    policy.config._name_or_path = ""
    policy.add_adapter(LoraConfig(**LORA))
    with pytest.raises(ValueError, match="the policy was made in memory and has adapters already"):
        build(ProcessPPOTrainer, policy, processing_class=load_tokenizer(tiny_policy[1]), beta=0.0)
