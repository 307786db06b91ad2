"""`trl_erprm.prm.trained_weights`: a stored adapter is trained on, its head is float32, and what is warned of."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tests.prm.by_hand import ROWS
from tests.tiny import CAUSAL, HEADS, prm_config, prm_trainer, save_base
from trl_erprm import ERPRMTrainer, ProcessRewardModel
from trl_erprm.arguments import load_tokenizer

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module", params=HEADS)
def adapter(base, tmp_path_factory, request):
    """A process reward model that is an adapter, far from what a new one begins as."""
    path = tmp_path_factory.mktemp("adapter")
    trainer = prm_trainer(base, path, ROWS, peft_config=LoraConfig(**LORA), **HEADS[request.param])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator)
    trainer.save_model()
    return str(path)


def scores(prm) -> list[list[float]]:
    if isinstance(prm, ERPRMTrainer):
        prm = ProcessRewardModel(prm.model, prm.processing_class, prm.format)
    return prm.score([row["prompt"] for row in ROWS], [row["completions"] for row in ROWS])


def close(expected, abs=1e-5):
    return [pytest.approx(of_row, abs=abs) for of_row in expected]


class TestStoredAdapter:
    def test_is_trained_on(self, base, adapter, tmp_path):
        """From its own scores, adapter and head alike; what is saved is what was trained."""
        stored = scores(ProcessRewardModel.from_pretrained(adapter))
        trainer = prm_trainer(adapter, tmp_path, ROWS, max_steps=2, learning_rate=1e-2)
        assert scores(trainer) == close(stored)
        before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
        trainer.train()
        moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
        assert moved == {name for name in before if "lora_" in name or ".modules_to_save.default" in name}
        trained = scores(trainer)
        assert trained != close(stored, abs=1e-3)
        trainer.save_model()
        prm = ProcessRewardModel.from_pretrained(tmp_path)
        assert scores(prm) == close(trained)
        assert prm.model.peft_config["default"].base_model_name_or_path == base

    def test_a_new_one_beside_it(self, adapter, tmp_path, monkeypatch):
        """Is refused; the lines that merge make a model from which a new one begins with the same scores."""
        with pytest.raises(ValueError, match="holds a trained adapter, but `peft_config` asks for a new one") as error:
            prm_trainer(adapter, tmp_path / "prm", ROWS, peft_config=LoraConfig(**LORA))
        monkeypatch.chdir(tmp_path)
        lines = str(error.value).partition("\n\n")[2]
        exec("\n".join(line.removeprefix("    ") for line in lines.splitlines()), {})
        prm = ProcessRewardModel.from_pretrained(adapter)
        stored = scores(prm)
        assert scores(ProcessRewardModel.from_pretrained("merged")) == close(stored)
        options = {"num_labels": prm.model.config.num_labels} if prm.format.head == "token_classification" else {}
        trainer = prm_trainer("merged", tmp_path / "prm", ROWS, peft_config=LoraConfig(**LORA), **options)
        assert scores(trainer) == close(stored)

    def test_a_new_one_on_a_loaded_model(self, base, adapter, tmp_path):
        prm = ProcessRewardModel.from_pretrained(adapter)
        args = prm_config(tmp_path, **(CAUSAL if prm.format.head == "causal_lm" else {}))
        for peft_config, message in ((LoraConfig(**LORA), "has an adapter already"), (None, "is frozen")):
            with pytest.raises(ValueError, match=message):
                ERPRMTrainer(
                    prm.model,
                    args=args,
                    train_dataset=Dataset.from_list(ROWS),
                    processing_class=prm.tokenizer,
                    peft_config=peft_config,
                )

    @pytest.mark.parametrize("modules_to_save", [None, ["score"]])
    def test_added_by_transformers(self, base, tmp_path, caplog, modules_to_save):
        """It is trained; a head that it leaves as it is would not be saved, which is said."""
        model = AutoModelForTokenClassification.from_pretrained(base, num_labels=1)
        model.add_adapter(LoraConfig(**LORA, modules_to_save=modules_to_save))
        trainer = ERPRMTrainer(
            model,
            args=prm_config(tmp_path, max_steps=2, learning_rate=1e-2),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=load_tokenizer(base),
        )
        assert ("The head is not trained beside the adapter" in caplog.text) is (modules_to_save is None)
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        trainer.train()
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert moved == {name for name in before if "lora_" in name or ".modules_to_save.default" in name}
        trained = scores(trainer)
        trainer.save_model()
        if modules_to_save is None:
            with pytest.raises(ValueError, match="brings no trained head"):
                ProcessRewardModel.from_pretrained(tmp_path)
        else:
            assert scores(ProcessRewardModel.from_pretrained(tmp_path)) == close(trained)

    def test_another_number_of_labels(self, adapter, tmp_path):
        prm = ProcessRewardModel.from_pretrained(adapter)
        if prm.format.head == "causal_lm":
            pytest.skip("has no labels of its own")
        held = prm.model.config.num_labels
        with pytest.raises(ValueError, match=f"brings a head with {held} labels, but `num_labels` is {3 - held}"):
            prm_trainer(adapter, tmp_path, ROWS, num_labels=3 - held)

    def test_of_a_language_model(self, base, tmp_path):
        """It goes on as a causal process reward model; there is nothing in it that classifies tokens."""
        policy = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base),
            LoraConfig(**LORA, task_type="CAUSAL_LM", init_lora_weights=False),
        )
        policy.save_pretrained(tmp_path / "policy")
        load_tokenizer(base).save_pretrained(tmp_path / "policy")
        with pytest.raises(
            ValueError, match="holds the adapter of a language model .* Train it with `head='causal_lm'`"
        ):
            prm_trainer(str(tmp_path / "policy"), tmp_path / "prm", ROWS)
        trainer = prm_trainer(str(tmp_path / "policy"), tmp_path / "prm", ROWS, **CAUSAL)
        ids = torch.arange(3, 12)[None]
        torch.testing.assert_close(trainer.model.eval()(input_ids=ids).logits, policy.eval()(input_ids=ids).logits)


class TestPrecision:
    BFLOAT16 = {"model_init_kwargs": {"dtype": "bfloat16"}, "max_steps": 3, "lr_scheduler_type": "constant"}

    @pytest.mark.parametrize("head", [HEADS["one_label"], HEADS["two_labels"]], ids=["one_label", "two_labels"])
    @pytest.mark.parametrize("autocast", [True, False])
    def test_small_updates_of_the_head(self, base, tmp_path, head, autocast):
        """At 1e-5, each weight of the head moves, though the body is bfloat16, and scoring needs no autocast."""
        trainer = prm_trainer(
            base, tmp_path, ROWS, peft_config=LoraConfig(**LORA), learning_rate=1e-5, **self.BFLOAT16,
            **{**head, "bf16": autocast},
        )  # fmt: skip
        assert trainer.model.base_model.model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        weight = "base_model.model.score.modules_to_save.default.weight"
        after = dict(trainer.model.named_parameters())
        assert {after[name].dtype for name in before} == {torch.float32}
        assert (after[weight] != before[weight]).all()
        trained = scores(trainer)
        trainer.save_model()
        assert scores(ProcessRewardModel.from_pretrained(tmp_path)) == close(trained, abs=1e-2)

    def test_a_stored_head_is_not_rounded(self, base, adapter, tmp_path):
        """A head that was trained in float32 goes on as it is stored, beside a bfloat16 body."""
        stored = ProcessRewardModel.from_pretrained(adapter, dtype="float32").model
        trainer = prm_trainer(adapter, tmp_path, ROWS, model_init_kwargs={"dtype": "bfloat16"})
        assert isinstance(trainer.model, PeftModel)
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                assert torch.equal(parameter, dict(stored.named_parameters())[name]), name

    def test_the_inputs_of_a_stored_head_are_cast_once(self, adapter, tmp_path):
        heads = [
            head
            for module in prm_trainer(adapter, tmp_path, ROWS).model.modules()
            if isinstance(module, ModulesToSaveWrapper)
            for head in module.modules_to_save.values()
        ]
        assert [len(head._forward_pre_hooks) for head in heads] == [1] * len(heads)
        assert bool(heads) is (ProcessRewardModel.from_pretrained(adapter).format.head == "token_classification")

    @pytest.mark.parametrize(
        "dtype, peft, is_said", [("bfloat16", 0, True), ("float32", 0, False), ("bfloat16", 1, False)]
    )
    def test_a_model_trained_in_bfloat16(self, base, tmp_path, caplog, dtype, peft, is_said):
        peft_config = LoraConfig(**LORA) if peft else None
        prm_trainer(base, tmp_path, ROWS, peft_config=peft_config, model_init_kwargs={"dtype": dtype})
        assert ("weights are trained in bfloat16" in caplog.text) is is_said


@pytest.mark.parametrize(
    "learning_rate, peft, is_said",
    [(1e-6, True, True), (9.9e-6, True, True), (1e-5, True, False), (1e-6, False, False)],
)
def test_a_learning_rate_too_small_for_a_new_adapter(base, tmp_path, caplog, learning_rate, peft, is_said):
    peft_config = LoraConfig(**LORA) if peft else None
    prm_trainer(base, tmp_path, ROWS, peft_config=peft_config, learning_rate=learning_rate)
    assert (f"`learning_rate` is {learning_rate:g}, and a new adapter is trained" in caplog.text) is is_said
