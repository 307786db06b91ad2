"""`trl_erprm.prm.scorer`: order, batches, loading, errors."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.rollout.test_transformers_engine import VOCABULARY, make_model, make_tokenizer
from tests.tiny import CAUSAL, HEADS, prm_config, prm_trainer, randomize_head, save_base
from trl_erprm import ProcessRewardModel
from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm.formats import TRL_TOKEN_CLASSIFICATION

ROWS = [{"prompt": "3+4*2\n", "completions": ["3+4=2", "2*2=4", "#4"], "labels": [0.9, 0.3, 1.0]}]
# Of one to eight steps, in no order; some equal.
PROMPTS = [f"{i}+{i}\n" for i in range(1, 8)] + ["1+1\n"]
STEPS = [["1+1=2"] * k for k in (3, 1, 8, 2, 5)] + [["2*2=4", "#4"], ["9-9=0"], ["1+1=2"] * 3]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def checkpoints(base, tmp_path_factory):
    """A saved PRM for each head."""
    paths = {}
    for name, head in HEADS.items():
        paths[name] = tmp_path_factory.mktemp(name)
        trainer = prm_trainer(base, paths[name], ROWS, **head)
        randomize_head(trainer.model)
        trainer.save_model()
    return paths


@pytest.fixture(params=list(HEADS))
def prm(request, checkpoints):
    return ProcessRewardModel.from_pretrained(checkpoints[request.param])


class TestScore:
    def test_as_many_scores_as_steps_in_the_order_given(self, prm):
        scores = prm.score(PROMPTS, STEPS, batch_size=3)
        assert [len(s) for s in scores] == [len(s) for s in STEPS]
        assert all(0 <= value <= 1 for s in scores for value in s)
        order = [4, 2, 7, 0, 6, 1, 3, 5]
        shuffled = prm.score([PROMPTS[i] for i in order], [STEPS[i] for i in order], batch_size=3)
        for i, of_solution in zip(order, shuffled, strict=True):
            assert of_solution == pytest.approx(scores[i], abs=1e-5)
        assert scores[0] == pytest.approx(scores[7], abs=1e-5)  # equal solutions
        assert len({round(s[0], 4) for s in scores}) > 3  # else an exchange would not show

    @pytest.mark.parametrize("batch_size", [1, 2, 8, 100])
    def test_scores_do_not_depend_on_the_batch(self, prm, batch_size):
        together = prm.score(PROMPTS, STEPS, batch_size=batch_size)
        for prompt, steps, scores in zip(PROMPTS, STEPS, together, strict=True):
            [alone] = prm.score([prompt], [steps])
            assert scores == pytest.approx(alone, abs=1e-5)

    def test_a_score_depends_on_what_stands_before_it_only(self, prm):
        [whole] = prm.score(["3+4*2\n"], [["3+4=2", "2*2=4", "#4"]])
        for k in (1, 2):
            [part] = prm.score(["3+4*2\n"], [["3+4=2", "2*2=4", "#4"][:k]])
            assert part == pytest.approx(whole[:k], abs=1e-5)

    def test_nothing_to_score(self, prm):
        assert prm.score([], []) == []
        assert prm.score(["1+1\n"], [[]]) == [[]]
        scores = prm.score(["1+1\n", "2+2\n", "1+1\n"], [[], ["2+2=4"], []])
        assert [len(s) for s in scores] == [0, 1, 0]

    def test_batches_are_formed_by_length(self, prm, monkeypatch):
        shapes = []
        forward = prm.model.forward

        def recording(input_ids, **kwargs):
            shapes.append(tuple(input_ids.shape))
            return forward(input_ids=input_ids, **kwargs)

        monkeypatch.setattr(prm.model, "forward", recording)
        prm.score(PROMPTS, STEPS, batch_size=3)
        assert [rows for rows, _ in shapes] == [3, 3, 2]
        lengths = [len(prm.format.encode(prm.tokenizer, *one).input_ids) for one in zip(PROMPTS, STEPS, strict=True)]
        assert [width for _, width in shapes] == sorted(lengths, reverse=True)[::3]

    def test_no_gradients_and_evaluation_mode(self, prm):
        assert not prm.model.training
        prm.score(["1+1\n"], [["1+1=2"]])
        assert all(p.grad is None for p in prm.model.parameters())

    def test_progress(self, prm, capsys):
        prm.score(["1+1\n"], [["1+1=2"]])
        assert "Scoring" not in capsys.readouterr().err
        prm.score(["1+1\n"], [["1+1=2"]], show_progress=True)
        assert "Scoring: 100%" in capsys.readouterr().err

    def test_score_text(self, prm):
        scores = prm.score_text(["3+4*2\n", "1+1\n"], ["3+4=2\n2*2=4\n#4\n", "\n"], batch_size=1)
        assert scores == prm.score(["3+4*2\n", "1+1\n"], [["3+4=2", "2*2=4", "#4"], []])
        [[_, _]] = prm.score_text(["1+1\n"], ["1+1=2\n1+1=2\n\n#2"], split_how="blank_line")


class TestErrors:
    @pytest.fixture(scope="class")
    @classmethod
    def prm(cls, checkpoints):
        return ProcessRewardModel.from_pretrained(checkpoints["one_label"], max_length=20)

    def test_unequal_numbers(self, prm):
        with pytest.raises(ValueError, match="Got 1 prompts, but 2 solutions. Give one prompt a solution."):
            prm.score(["1+1\n"], [["1+1=2"], ["1+1=2"]])

    def test_too_long_gets_none_if_asked(self, prm, caplog):
        long, short = ["1+1=2"] * 200, ["1+1=2"]
        first, second, third = prm.score(["1+1\n"] * 3, [short, long, short], none_if_too_long=True)
        [alone] = prm.score(["1+1\n"], [short])
        assert second is None and first == pytest.approx(alone, abs=1e-5) and third == pytest.approx(alone, abs=1e-5)
        assert "1 of 3 solutions are longer than" in caplog.text

    def test_too_long(self, prm):
        steps = ["1+1=2"] * 5  # 2 + 1 + 5 * 4 tokens
        with pytest.raises(ValueError, match="Solution 1 has 23 tokens in 5 steps, but the model reads at most 20."):
            prm.score(["1+1\n"] * 2, [["1+1=2"], steps])
        assert len(prm.score(["1+1\n"], [steps[:4]])[0]) == 4

    def test_the_context_window_is_a_limit_too(self, checkpoints):
        prm = ProcessRewardModel.from_pretrained(checkpoints["one_label"])
        assert prm.max_length == 256
        with pytest.raises(ValueError, match="the model reads at most 256"):
            prm.score(["1+1\n"], [["1+1=2"] * 64])
        assert ProcessRewardModel.from_pretrained(checkpoints["one_label"], max_length=1000).max_length == 256

    @pytest.mark.parametrize("step", ["", " ", "\n"])
    def test_an_empty_step(self, prm, step):
        with pytest.raises(ValueError, match=r"Solution 1: Step 0 of 2 is empty"):
            prm.score(["1+1\n"] * 2, [["1+1=2"], [step, "#2"]])

    def test_an_empty_prompt(self, prm):
        with pytest.raises(ValueError, match="Solution 0: The prompt is empty."):
            prm.score([""], [["1+1=2"]])


class TestLoading:
    def test_what_a_checkpoint_remembers(self, base, tmp_path):
        rows = Dataset.from_list(
            [{"prompt": "1+1\n", "completions": ["1+1=2"], "num_correct": [1], "num_rollouts": [2]}]
        )
        trainer = prm_trainer(base, tmp_path, rows, eta=2.0, step_tag="\n#")
        trainer.save_model()
        prm = ProcessRewardModel.from_pretrained(tmp_path)
        assert prm.eta == 2.0 and prm.format.step_tag == "\n#"
        assert prm.device.type in ("cpu", "cuda", "mps")

    def test_no_prm(self, base, tmp_path):
        with pytest.raises(ValueError, match="is not a process reward model of trl-erprm: it has no prm_format.json "):
            ProcessRewardModel.from_pretrained(base)
        with pytest.raises(
            ValueError, match=r"it holds chat_template.jinja, config.json|it holds config.json, .*model"
        ):
            ProcessRewardModel.from_pretrained(base)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"\(it holds nothing\). Give the directory that `ERPRMTrainer` saved"):
            ProcessRewardModel.from_pretrained(tmp_path / "empty")

    def test_a_model_from_elsewhere_needs_its_format(self, base):
        model = AutoModelForCausalLM.from_pretrained(base)
        with pytest.raises(ValueError, match="must be one of 'trl', 'er-prm', got 'unknown'"):
            ProcessRewardModel.from_pretrained(base, format="unknown")
        format = prm_config_format()
        prm = ProcessRewardModel.from_pretrained(base, format=format)
        direct = ProcessRewardModel(model, build_tokenizer(), format)
        assert prm.score(["1+1\n"], [["1+1=2"]]) == [pytest.approx(direct.score(["1+1\n"], [["1+1=2"]])[0], abs=1e-6)]

    def test_a_tokenizer_that_cannot_carry_the_format(self, base):
        with pytest.raises(ValueError, match="The step tag '@' is not in the tokenizer's vocabulary"):
            ProcessRewardModel.from_pretrained(base, format=prm_config_format(step_tag="@"))

    def test_a_format_of_another_version(self, checkpoints, tmp_path):
        content = json.loads((checkpoints["one_label"] / "prm_format.json").read_text())
        (tmp_path / "prm_format.json").write_text(json.dumps({**content, "format_version": 9}))
        with pytest.raises(ValueError, match="This version reads format version 1, got 9"):
            ProcessRewardModel.from_pretrained(tmp_path)

    def test_dtype(self, checkpoints):
        prm = ProcessRewardModel.from_pretrained(checkpoints["two_labels"], dtype=torch.bfloat16)
        assert prm.model.dtype == torch.bfloat16
        assert 0 <= prm.score(["1+1\n"], [["1+1=2"]])[0][0] <= 1

    @pytest.mark.parametrize("head", list(HEADS))
    def test_adapter(self, base, tmp_path, head):
        """A PEFT checkpoint is loaded on top of its base model, the head included."""
        trainer = prm_trainer(
            base, tmp_path, ROWS, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
            max_steps=5, learning_rate=1e-1, **HEADS[head],
        )  # fmt: skip
        trainer.train()
        trainer.save_model()
        prm = ProcessRewardModel.from_pretrained(tmp_path)
        in_memory = ProcessRewardModel(trainer.model, build_tokenizer(), trainer.format)
        expected = in_memory.score(PROMPTS, STEPS)
        for scores, others in zip(prm.score(PROMPTS, STEPS), expected, strict=True):
            assert scores == pytest.approx(others, abs=1e-5)
        assert prm.format.head == HEADS[head].get("head", "token_classification")

    def test_the_tokenizer_is_the_one_trained_with(self, tmp_path):
        """transformers loads a general tokenizer beside a Qwen2 model as Qwen2's, which cuts text otherwise."""
        make_model().save_pretrained(tmp_path / "base")
        make_tokenizer().save_pretrained(tmp_path / "base")
        row = {"prompt": "what is 1+1\n", "completions": ["it is 2", "ok"], "labels": [1.0, 0.0]}
        trainer = prm_trainer(str(tmp_path / "base"), tmp_path / "prm", [row])
        trainer.save_model()
        expected = [VOCABULARY[c] for c in "what is 1+1\nit is 2\nok\n"]
        assert trainer.train_dataset[0]["input_ids"] == expected
        prm = ProcessRewardModel.from_pretrained(tmp_path / "prm")
        assert prm.format.encode(prm.tokenizer, row["prompt"], row["completions"]).input_ids == expected

    def test_the_format_may_be_a_name(self, base, checkpoints):
        prm = ProcessRewardModel.from_pretrained(checkpoints["one_label"], format="trl")
        assert prm.format is TRL_TOKEN_CLASSIFICATION


def prm_config_format(**changes):
    """The causal format that the tiny tokenizer can carry."""
    return prm_config("unused", **{**CAUSAL, **changes}).build_format()
