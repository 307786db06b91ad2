"""`trl_erprm.policy.process_reward`: the model behind it, how it is loaded and what it reads of prompts."""

import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import prm_trainer, save_base
from tests.tokenizers import LLAMA_TEMPLATE, byte_level_tokenizer
from trl_erprm import ProcessReward, ProcessRewardModel


class TestFormatAndPrompts:
    """A tag that merges with a step is that completion's; a format that does not fit the prompts is an error."""

    @pytest.fixture(scope="class")
    @classmethod
    def prm(cls):
        tokenizer = byte_level_tokenizer(template=LLAMA_TEMPLATE)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=64,
        )  # fmt: skip
        return ProcessRewardModel(LlamaForCausalLM(config), tokenizer, "er-prm")

    # The tag's last letter and the accent behind it are composed into one letter.
    MERGES = "x + y = 4\n\u0306 so 4"

    def test_the_rest_of_the_batch_is_scored(self, prm):
        function = ProcessReward(prm, require_answer=False, reward_if_malformed=0.0)
        completions = ["x + y = 4\nso 4", self.MERGES, "", "x = 3", "3 " * 100]
        values = function(["What?"] * 5, completions)
        assert values[1] is None and values[2] == 0.0 and values[4] is None
        alone = prm.score(["What?"] * 2, [["x + y = 4", "so 4"], ["x = 3"]])
        assert [values[0], values[3]] == pytest.approx([min(scores) for scores in alone], abs=1e-6)
        judgements = function.judge(["What?"] * 5, completions)
        assert [j.unscored for j in judgements] == [None, "not_encodable", None, None, "too_long"]

    def test_all_of_a_batch_that_fits_otherwise(self, prm):
        assert ProcessReward(prm, require_answer=False)(["What?"], [self.MERGES]) == [None]

    def test_prompts_of_messages_for_a_model_without_template(self, prm):
        """It was trained on none; where it is to read some all the same, that is an error before any sampling."""
        without = ProcessRewardModel(prm.model, byte_level_tokenizer(template=None), "er-prm")
        function = ProcessReward(without, require_answer=False)
        prompt, completion = [{"role": "user", "content": "What?"}], [{"role": "assistant", "content": "x = 3"}]
        assert function([prompt], [completion]) == [min(prm.score(["What?"], [["x = 3"]])[0])]
        with pytest.raises(ValueError, match="`prompt_as='chat'` was given.*has no chat template. Put the `chat_temp"):
            ProcessReward(without, prompt_as="chat")
        of_chats = ProcessRewardModel(prm.model, without.tokenizer, "er-prm", prompt_kind="chat")
        with pytest.raises(ValueError, match="it was trained on chat messages.*has no chat template"):
            ProcessReward(of_chats)
        assert ProcessReward(of_chats, require_answer=False, prompt_as="problem")([prompt], [completion]) == function(
            [prompt], [completion]
        )

    def test_what_is_read_of_prompts(self, prm):
        prompts = [[{"role": "system", "content": "Be a pirate."}, {"role": "user", "content": "What?"}]]
        completions = [[{"role": "assistant", "content": "x = 3"}]]
        expected = {
            "chat": prm.score(prompts, [["x = 3"]], prompt_as="chat")[0],
            "problem": prm.score(["What?"], [["x = 3"]])[0],
        }
        assert expected["chat"] != pytest.approx(expected["problem"], abs=1e-4)
        for kind, auto in (("text", "problem"), ("chat", "chat"), (None, "chat")):
            of_kind = ProcessRewardModel(prm.model, prm.tokenizer, "er-prm", prompt_kind=kind)
            assert ProcessReward(of_kind, require_answer=False)(prompts, completions) == expected[auto]
        for prompt_as in ("chat", "problem"):
            function = ProcessReward(prm, require_answer=False, prompt_as=prompt_as)
            assert function(prompts, completions) == expected[prompt_as]
            judgements = function.judge(prompts * 2, ["x = 3", self.MERGES])  # one by one, since the second is no text
            assert judgements[0].step_scores == pytest.approx(expected[prompt_as], abs=1e-6)
            assert judgements[1].unscored == "not_encodable"
        with pytest.raises(ValueError, match="`prompt_as` must be one of 'auto', 'chat', 'problem', got 'prompt'"):
            ProcessReward(prm, prompt_as="prompt")

    def test_a_chat_without_a_problem(self, prm):
        function = ProcessReward(prm, require_answer=False, prompt_as="problem")
        prompts = [[{"role": "system", "content": "What?"}], [{"role": "user", "content": "What?"}]]
        with pytest.raises(ValueError, match="does not fit the prompt .*'system'.* none is the user's"):
            function(prompts, ["x = 3", "x = 3"])

    def test_most_tokens_in_a_pass(self, prm):
        shapes = []
        handle = prm.model.register_forward_hook(
            lambda module, args, kwargs, output: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
        )
        prompts, completions = [f"What is {i} + {i}?" for i in range(6)], ["x = 3"] * 6
        rewards = [ProcessReward(prm, require_answer=False)(prompts, completions)]
        num_passes = len(shapes)
        rewards.append(ProcessReward(prm, require_answer=False, max_tokens_per_batch=64)(prompts, completions))
        handle.remove()
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)
        assert max(rows * length for rows, length in shapes[num_passes:]) <= 64 < 6 * shapes[-1][1]
        with pytest.raises(ValueError, match="`max_tokens_per_batch` must be at least 1, got 0. Leave it out"):
            ProcessReward(prm, max_tokens_per_batch=0)

    def test_a_chat_format_that_wants_another_last_message(self, prm):
        function = ProcessReward(ProcessRewardModel(prm.model, prm.tokenizer, "rlhflow"), require_answer=False)
        prompt = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Well,"}]
        with pytest.raises(ValueError, match="The format 'rlhflow' .* does not fit .*ends with one of 'assistant'"):
            function([prompt], [[{"role": "assistant", "content": "x = 3"}]])

    def test_another_error_is_not_swallowed(self, prm, monkeypatch):
        def broken(*args, **kwargs):
            raise ValueError("out of weights")

        monkeypatch.setattr(prm.model, "forward", broken)
        with pytest.raises(ValueError, match="out of weights"):
            ProcessReward(prm, require_answer=False)(["What?"], ["x = 3"])

    def test_completion_of_zero_tokens(self, prm):
        assert ProcessReward(prm)(["What?"], [""]) == [None]
        assert ProcessReward(prm, reward_if_malformed=0.0)(["What?"], [""]) == [0.0]


class TestLoading:
    @pytest.fixture(scope="class")
    @classmethod
    def path(cls, tmp_path_factory):
        rows = [{"prompt": "1+1\n", "completions": ["1+1=2", "#2"], "labels": [1.0, 1.0]}]
        folder = tmp_path_factory.mktemp("prm")
        prm_trainer(save_base(tmp_path_factory.mktemp("base")), folder, rows).save_model()
        return str(folder)

    def test_device_and_dtype(self, path):
        function = ProcessReward(path, device="cpu", dtype="bfloat16", answer_how="arithmetic")
        assert (function.prm.device.type, function.prm.model.dtype) == ("cpu", torch.bfloat16)
        [value] = function(["1+1\n"], ["1+1=2\n#2"])
        assert value == pytest.approx(
            ProcessReward(path, answer_how="arithmetic")(["1+1\n"], ["1+1=2\n#2"])[0], abs=0.02
        )
        assert ProcessReward(path, device="meta").prm.device.type == "meta"

    def test_of_a_loaded_model_they_are_an_error(self, path):
        prm = ProcessRewardModel.from_pretrained(path)
        for name, value in (("dtype", "float32"), ("format", "trl"), ("device", "cpu")):
            with pytest.raises(ValueError, match=f"`{name}` says how a model is loaded, but `prm` is loaded already"):
                ProcessReward(prm, **{name: value})
        assert ProcessReward(prm, dtype="auto").prm is ProcessReward(prm, dtype=None).prm is prm

    def test_a_model_from_elsewhere_with_its_format(self, path, tmp_path):
        """Its directory has no format file, and its name says nothing."""
        shutil.copytree(path, tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "prm_format.json").unlink()
        with pytest.raises(ValueError, match="for a model from elsewhere, its `format` .*'qwen2.5-math-prm'"):
            ProcessReward(tmp_path / "elsewhere")
        function = ProcessReward(tmp_path / "elsewhere", answer_how="arithmetic", format="trl")
        assert function(["1+1\n"], ["1+1=2\n#2"]) == ProcessReward(path, answer_how="arithmetic")(
            ["1+1\n"], ["1+1=2\n#2"]
        )
