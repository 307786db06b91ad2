"""`trl_erprm.prm.scorer`: order, batches, loading, errors."""

import json
import random
import shutil
from contextlib import contextmanager

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForTokenClassification,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)

from tests.rollout.test_transformers_engine import VOCABULARY, make_model, make_tokenizer
from tests.tiny import CAUSAL, HEADS, prm_config, prm_trainer, randomize_head, save_base
from trl_erprm import ProcessRewardModel
from trl_erprm.arithmetic import build_model, build_tokenizer
from trl_erprm.prm import formats, scorer
from trl_erprm.prm.formats import TRL_TOKEN_CLASSIFICATION, PRMFormat

ROWS = [{"prompt": "3+4*2\n", "completions": ["3+4=2", "2*2=4", "#4"], "labels": [0.9, 0.3, 1.0]}]
# Of one to eight steps, in no order; some equal.
PROMPTS = [f"{i}+{i}\n" for i in range(1, 8)] + ["1+1\n"]
STEPS = [["1+1=2"] * k for k in (3, 1, 8, 2, 5)] + [["2*2=4", "#4"], ["9-9=0"], ["1+1=2"] * 3]


@contextmanager
def recorded_passes(prm):
    """Collects what the model is called with, and the shape of its logits."""
    calls = []

    def record(module, args, kwargs, output):
        calls.append({**kwargs, "logits": output.logits})

    handle = prm.model.register_forward_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def lengths_of(prm, prompts, steps):
    return [len(one.input_ids) for one in prm.format.encode_batch(prm.tokenizer, prompts, steps)]


def assert_equal_scores(scores, expected, tolerance=1e-5):
    assert len(scores) == len(expected)
    for of_solution, others in zip(scores, expected, strict=True):
        assert of_solution == pytest.approx(others, abs=tolerance)


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

    def test_batches_are_formed_by_length(self, prm):
        with recorded_passes(prm) as passes:
            prm.score(PROMPTS, STEPS, batch_size=3)
        shapes = [tuple(call["input_ids"].shape) for call in passes]
        assert sorted(rows for rows, _ in shapes) == [2, 3, 3]  # never more than three
        lengths = sorted(lengths_of(prm, PROMPTS, STEPS), reverse=True)
        for rows, width in shapes:  # each as wide as its longest, which are the longest that are left
            assert width == lengths[0]
            lengths = lengths[rows:]

    @pytest.mark.parametrize("max_tokens", [1, 20, 40, 1000])
    def test_token_budget(self, prm, max_tokens):
        expected = prm.score(PROMPTS, STEPS)
        with recorded_passes(prm) as passes:
            scores = prm.score(PROMPTS, STEPS, max_tokens_per_batch=max_tokens)
        shapes = [tuple(call["input_ids"].shape) for call in passes]
        # Padding counts; a solution that is longer alone goes alone.
        assert all(rows * width <= max_tokens or rows == 1 for rows, width in shapes)
        assert sum(rows for rows, _ in shapes) == len(PROMPTS)
        assert len(shapes) == 8 if max_tokens == 1 else len(shapes) < 8
        assert_equal_scores(scores, expected)

    @pytest.mark.parametrize("window", [3, 5])
    def test_windows(self, prm, monkeypatch, window):
        """Many solutions are encoded and scored a part at a time, which changes nothing."""
        prompts, steps = [f"{i}+{i}\n" for i in range(24)], STEPS[3:] + STEPS * 2 + STEPS[:3]
        expected = prm.score(prompts, steps, batch_size=2)
        monkeypatch.setattr(scorer, "WINDOW", window)
        sizes = []
        encode_batch = PRMFormat.encode_batch

        def recording(self, tokenizer, prompts, *args, **kwargs):
            sizes.append(len(prompts))
            return encode_batch(self, tokenizer, prompts, *args, **kwargs)

        monkeypatch.setattr(PRMFormat, "encode_batch", recording)
        assert_equal_scores(prm.score(prompts, steps, batch_size=2), expected)
        assert sizes == {3: [2] * 12, 5: [4] * 6}[window]  # whole batches of two

    def test_a_window_keeps_the_candidates_of_a_prompt_together(self, prm, monkeypatch):
        monkeypatch.setattr(scorer, "WINDOW", 4)
        prompts = ["1+1\n"] * 3 + ["2+2\n"] * 4 + ["3+3\n"] * 20
        parts = [list(part) for part in scorer.windows(prompts, range(27), 4)]
        assert [len(part) for part in parts] == [7, 8, 8, 4]  # at most twice the size
        assert sum(parts, []) == list(range(27))

    def test_no_mask_where_none_is_needed(self, prm):
        """Padding stands behind all that counts, so sdpa takes its causal path, without a mask of T x T."""
        with recorded_passes(prm) as passes:
            prm.score(PROMPTS, STEPS)
        assert all(call.get("attention_mask") is None for call in passes)

    def test_a_model_that_is_not_causal_gets_a_mask(self):
        tokenizer = build_tokenizer()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, num_labels=1,
        )  # fmt: skip
        prm = ProcessRewardModel(BertForTokenClassification(config), tokenizer, "trl")
        with recorded_passes(prm) as passes:
            together = prm.score(PROMPTS, STEPS)
        lengths = [length for call in passes for length in call["attention_mask"].sum(1).tolist()]
        assert lengths == sorted(lengths_of(prm, PROMPTS, STEPS), reverse=True)
        assert_equal_scores(together, [prm.score([p], [s])[0] for p, s in zip(PROMPTS, STEPS, strict=True)])
        with pytest.raises(ValueError, match="This model cannot share prompts: its attention is not causal"):
            prm.score(PROMPTS, STEPS, share_prompts=True)

    def test_only_step_ends_reach_the_vocabulary(self, checkpoints):
        prm = ProcessRewardModel.from_pretrained(checkpoints["causal_lm"])
        with recorded_passes(prm) as passes:
            prm.score(PROMPTS, STEPS)
        assert sum(len(call["logits"]) for call in passes) == sum(map(len, STEPS))
        assert all(call["logits"].shape[1:] == (len(prm.tokenizer),) for call in passes)

    @pytest.mark.parametrize("share_prompts", [False, True])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
    @pytest.mark.parametrize("head", ["token_classification", "causal_lm"])
    def test_tolerance_of_batches(self, head, dtype, tolerance, share_prompts):
        """The tolerances that the docstring states, with layers of real width, whose sums round as a real model's."""
        tokenizer, draw = build_tokenizer(), random.Random(0)
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=896, intermediate_size=4864, num_hidden_layers=3,
            num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True, num_labels=1,
        )  # fmt: skip
        if head == "causal_lm":
            model, format = Qwen2ForCausalLM(config), prm_config_format()
            rows = list(format.label_token_ids(tokenizer))
            model.lm_head.weight.data[rows] *= 2.5  # scores from 0.03 to 0.9
        else:
            model, format = Qwen2ForTokenClassification(config), TRL_TOKEN_CLASSIFICATION
            model.score.weight.data.normal_(std=0.07)
        prm = ProcessRewardModel(model.to(dtype), tokenizer, format)

        def text(longest):
            return "".join(draw.choices("0123456789+*-=", k=draw.randint(4, longest)))

        prompts = [prompt for prompt in (text(40) + "\n", text(40) + "\n") for _ in range(6)]
        steps = [[text(16) for _ in range(draw.randint(1, 8))] for _ in prompts]
        alone = prm.score(prompts, steps, batch_size=1, share_prompts=False)
        together = prm.score(prompts, steps, share_prompts=share_prompts)
        assert_equal_scores(together, alone, tolerance)
        assert together == prm.score(prompts, steps, share_prompts=share_prompts)  # the same call, the same bits
        values = torch.tensor(sum(together, []))
        assert values.max() - values.min() > 0.1

    def test_no_gradients_and_evaluation_mode(self, prm):
        assert not prm.model.training
        prm.score(["1+1\n"], [["1+1=2"]])
        assert all(p.grad is None for p in prm.model.parameters())

    def test_progress(self, prm, capsys):
        prm.score(["1+1\n"], [["1+1=2"]])
        assert "Scoring" not in capsys.readouterr().err
        prm.score(PROMPTS + ["1+1\n"], [*STEPS, []], batch_size=3, show_progress=True)
        shown = capsys.readouterr().err
        assert "Scoring: 100%" in shown and "9/9" in shown  # solutions, those without steps among them

    def test_split_between_processes_where_there_is_one(self, prm):
        assert prm.score(PROMPTS, STEPS, split_between_processes=True) == prm.score(PROMPTS, STEPS)
        assert prm.score([], [], split_between_processes=True) == []

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

    def test_a_window_names_the_solution_as_the_caller_counts(self, prm, monkeypatch):
        monkeypatch.setattr(scorer, "WINDOW", 2)
        steps = [["1+1=2"]] * 7
        with pytest.raises(ValueError, match=r"Solution 5: Step 1 of 2 is empty"):
            prm.score(["1+1\n", "2+2\n"] * 3 + ["1+1\n"], [[], *steps[:4], ["1+1=2", " "], []], batch_size=2)
        with pytest.raises(ValueError, match=r"Solution 6 has 23 tokens in 5 steps"):
            prm.score(["1+1\n", "2+2\n"] * 3 + ["1+1\n"], [*steps[:6], ["1+1=2"] * 5], batch_size=2)

    @pytest.mark.parametrize("name", ["batch_size", "max_tokens_per_batch"])
    def test_limits_of_batches(self, prm, name):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0."):
            prm.score(["1+1\n"], [["1+1=2"]], **{name: 0})

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
        with pytest.raises(ValueError, match=r"\(it holds nothing\), .* Give the directory that `ERPRMTrainer` saved"):
            ProcessRewardModel.from_pretrained(tmp_path / "empty")

    def test_a_local_path_that_does_not_exist_is_not_looked_up(self, tmp_path, monkeypatch):
        monkeypatch.setattr("transformers.utils.cached_file", None)  # the Hub
        for path in (tmp_path / "no", "./no", "outputs/er/no"):
            with pytest.raises(FileNotFoundError, match="must be an existing directory or a model on the Hub, got '"):
                ProcessRewardModel.from_pretrained(path)

    def test_a_model_from_elsewhere_needs_its_format(self, base):
        model = AutoModelForCausalLM.from_pretrained(base)
        with pytest.raises(ValueError, match="must be one of 'trl', 'math-shepherd', 'er-prm', .*, got 'unknown'"):
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
        with pytest.raises(ValueError, match="This version reads format versions 1 to 2, got 9"):
            ProcessRewardModel.from_pretrained(tmp_path)

    @pytest.mark.parametrize("name", list(HEADS))
    def test_a_format_file_of_version_1(self, checkpoints, tmp_path, name):
        """As releases before 2 wrote it: without the fields that came later."""
        expected = ProcessRewardModel.from_pretrained(checkpoints[name]).score(PROMPTS, STEPS)
        shutil.copytree(checkpoints[name], tmp_path / "prm")
        file = tmp_path / "prm" / "prm_format.json"
        content = json.loads(file.read_text())
        names = ("name", "head", "step_tag", "step_joiner", "prompt_separator", "positive_token", "negative_token")
        kept = {n: content[n] for n in (*names, "eta", "num_labels") if n in content}
        file.write_text(json.dumps({**kept, "format_version": 1}))
        assert ProcessRewardModel.from_pretrained(tmp_path / "prm").score(PROMPTS, STEPS) == expected

    def test_a_public_model_brings_no_format_file(self, checkpoints, tmp_path, monkeypatch):
        shutil.copytree(checkpoints["two_labels"], tmp_path / "Org" / "A-PRM")
        (tmp_path / "Org" / "A-PRM" / "prm_format.json").unlink()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="'Org/A-PRM' is not a process reward model of trl-erprm"):
            ProcessRewardModel.from_pretrained("Org/A-PRM")
        monkeypatch.setitem(formats.PUBLIC_MODELS, "org/a-prm", "trl")  # the case of ids does not matter
        prm = ProcessRewardModel.from_pretrained("Org/A-PRM")
        assert prm.format is TRL_TOKEN_CLASSIFICATION
        assert prm.score(PROMPTS, STEPS) == ProcessRewardModel.from_pretrained(checkpoints["two_labels"]).score(
            PROMPTS, STEPS
        )
        # What is said outweighs what is saved, and that outweighs the table.
        format = prm_config("unused", step_tag="#").build_format()
        assert ProcessRewardModel.from_pretrained("Org/A-PRM", format=format).format is format
        format.save("Org/A-PRM")
        assert ProcessRewardModel.from_pretrained("Org/A-PRM").format == format

    def test_a_head_of_another_kind(self, base, checkpoints):
        """Weights that would be random are an error, with either head."""
        with pytest.raises(
            ValueError, match=r"reads a token_classification head \(linear\), but .* has no weights for"
        ):
            ProcessRewardModel.from_pretrained(base, format="trl")
        with pytest.raises(ValueError, match=r"reads a causal_lm head .*; it holds score"):
            ProcessRewardModel.from_pretrained(checkpoints["one_label"], format=prm_config_format())

    def test_a_device_is_taken_at_its_word(self, checkpoints):
        prm = ProcessRewardModel.from_pretrained(checkpoints["one_label"], device="meta")
        assert prm.device.type == "meta"

    @pytest.mark.parametrize("name", list(HEADS))
    def test_4_bit(self, tmp_path, name):
        bitsandbytes = pytest.importorskip("bitsandbytes")
        build_model(hidden_size=64).save_pretrained(tmp_path / "base")  # 4-bit blocks are 64 weights long
        build_tokenizer().save_pretrained(tmp_path / "base")
        trainer = prm_trainer(str(tmp_path / "base"), tmp_path / "prm", ROWS, **HEADS[name])
        randomize_head(trainer.model)
        trainer.save_model()
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        prm = ProcessRewardModel.from_pretrained(tmp_path / "prm", quantization_config=quantization)
        kinds = {name.split(".")[-1]: type(module).__name__ for name, module in prm.model.named_modules()}
        assert kinds["q_proj"] == kinds["down_proj"] == "Linear4bit"
        assert kinds.get("score", "Linear") == kinds.get("lm_head", "Linear") == "Linear"
        # The same scores as the quantized weights give as plain ones (read before the first pass, which packs them);
        # the CPU's 4-bit kernel multiplies in bfloat16.
        plain = ProcessRewardModel.from_pretrained(tmp_path / "prm")
        unquantized = plain.score(PROMPTS, STEPS)
        for name, module in prm.model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
                plain.model.get_submodule(name).weight.data.copy_(weight)
        expected = plain.score(PROMPTS, STEPS)
        assert expected != unquantized
        for batch_size in (1, 3):
            assert_equal_scores(prm.score(PROMPTS, STEPS, batch_size), expected, 5e-2)

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
        if head == "one_label":  # a format that leaves the number of labels open does not change it
            named = ProcessRewardModel.from_pretrained(tmp_path, format="trl")
            assert named.format is TRL_TOKEN_CLASSIFICATION and named.score(PROMPTS, STEPS) == prm.score(
                PROMPTS, STEPS
            )

    def test_an_adapter_without_a_head(self, base, checkpoints, tmp_path):
        """Its scores would come from a random head; on a base model that has a trained one, it is fine."""
        trainer = prm_trainer(
            base, tmp_path / "whole", ROWS, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        )  # fmt: skip
        trainer.save_model()
        shutil.copytree(tmp_path / "whole", tmp_path / "headless")
        file = tmp_path / "headless" / "adapter_model.safetensors"
        weights = load_file(file)
        assert "base_model.model.score.weight" in weights
        save_file({name: weight for name, weight in weights.items() if ".score." not in name}, file)
        with pytest.raises(
            ValueError, match=r"headless' brings no trained head \(`score`\), and its base model has none"
        ):
            ProcessRewardModel.from_pretrained(tmp_path / "headless")

        prm = ProcessRewardModel.from_pretrained(checkpoints["one_label"])
        expected = prm.score(PROMPTS, STEPS)
        model = get_peft_model(prm.model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
        model.save_pretrained(tmp_path / "second")
        build_tokenizer().save_pretrained(tmp_path / "second")
        prm.format.save(tmp_path / "second")
        in_memory = ProcessRewardModel(model, build_tokenizer(), prm.format).score(PROMPTS, STEPS)
        assert in_memory != expected
        assert_equal_scores(ProcessRewardModel.from_pretrained(tmp_path / "second").score(PROMPTS, STEPS), in_memory)

    def test_an_adapter_takes_the_precision_asked_for(self, base, tmp_path):
        trainer = prm_trainer(base, tmp_path, ROWS, peft_config=LoraConfig(r=4, target_modules=["q_proj"]))
        trainer.save_model()
        prm = ProcessRewardModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert prm.model.base_model.model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        assert_equal_scores(
            prm.score(PROMPTS, STEPS), ProcessRewardModel.from_pretrained(tmp_path).score(PROMPTS, STEPS), 5e-2
        )

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


class TestTokenizers:
    """What a tokenizer cannot carry is an error when the model is loaded, or names the solution."""

    @pytest.fixture(scope="class")
    @classmethod
    def words(cls):
        """Whole words; `ki` stands alone, or with a bracket before it, as one token."""
        vocabulary = [
            "<pad>",
            "<unk>",
            "ki",
            "so",
            "3",
            ".",
            ")",
            "$",
            "\\]",
            "=",
            "+",
            "-",
            " ",
            "2",
            "(",
            "\\[",
            "x",
        ]
        vocabulary += ["Step", "So", "ки", "1", "?", ">ki", "yes"]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(">?ki|Step|So|so|yes|ки|\\\\[\\]\\[]|."), "isolated")
        return tokenizer

    def prm(self, words, **changes):
        format = {"name": "own", "head": "causal_lm", "tokenization": "joint", "step_tag": "ki"}
        format = PRMFormat(**{**format, "positive_token": "+", "negative_token": "-", **changes})
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
        return ProcessRewardModel(build_model(hidden_size=32, seed=0), tokenizer, format)

    def test_a_tag_that_is_not_in_the_vocabulary(self, words):
        with pytest.raises(
            ValueError, match=r"The step tag '@' is not in the tokenizer's vocabulary \(its ids are \[1\]"
        ):
            self.prm(words, step_tag="@")

    @pytest.mark.parametrize("name", ["positive_token", "negative_token"])
    def test_a_label_token_of_several_tokens(self, words, name):
        with pytest.raises(
            ValueError, match=f"`{name}` '1=' must be exactly one known token, but this tokenizer gives"
        ):
            self.prm(words, **{name: "1="})

    def test_a_tag_that_merges_always(self):
        tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "ki": 1, "+": 2, "-": 3}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        with pytest.raises(ValueError, match=r"steps that end with 'so' .*the tag 'ki' of step 0 merges with its"):
            self.prm(tokenizer)

    def test_a_tag_that_merges_in_one_solution(self, words):
        prm = self.prm(words)
        assert [len(s) for s in prm.score(["1?"], [["1=1", "2=2"]])] == [2]
        with pytest.raises(ValueError, match="Solution 1: the tag 'ki' of step 1 merges with its neighbours"):
            prm.score(["1?"] * 2, [["1=1"], ["1=1", "2>"]])
        [[_, _]] = self.prm(words, tokenization="pieces").score(["1?"], [["1=1", "2>"]])


def prm_config_format(**changes):
    """The causal format that the tiny tokenizer can carry."""
    return prm_config("unused", **{**CAUSAL, **changes}).build_format()
