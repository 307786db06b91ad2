"""The formats of public models, against what their own code does."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.prm.format_cases import PROBLEMS, ids, question
from tests.tokenizers import CHATML_TEMPLATE, LLAMA_TEMPLATE, byte_level_tokenizer, sentencepiece_tokenizer
from trl_erprm.prm.formats import (
    ER_PRM,
    FORMATS,
    MATH_SHEPHERD,
    PUBLIC_MODELS,
    QWEN_MATH_PRM,
    RLHFLOW,
    SKYWORK_O1,
    TRL_TOKEN_CLASSIFICATION,
    EncodedSolution,
)
from trl_erprm.prm.heads import step_log_odds


class TestAsPublished:
    """
    Ids and positions against the published way of each model, written here anew; and scores, through random weights.
    """

    @pytest.mark.parametrize("prompt, steps", PROBLEMS)
    @pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
    def test_trl(self, make, prompt, steps):
        tokenizer = make()
        input_ids, positions = [tokenizer.bos_token_id, *ids(tokenizer, prompt)], []
        for step in steps:
            input_ids += ids(tokenizer, step) + tokenizer.encode("\n", add_special_tokens=False)
            positions.append(len(input_ids) - 1)
        assert TRL_TOKEN_CLASSIFICATION.encode(tokenizer, prompt, steps) == EncodedSolution(input_ids, positions)

    @pytest.mark.parametrize("prompt, steps", PROBLEMS)
    @pytest.mark.parametrize("bos", [True, False])
    def test_skywork(self, bos, prompt, steps):
        tokenizer = byte_level_tokenizer(bos=bos)
        input_ids, flags = ids(tokenizer, (tokenizer.bos_token or "") + prompt + "\n"), []
        flags += [0] * len(input_ids)
        for step in steps:
            step_ids = ids(tokenizer, step) + [ids(tokenizer, "\n")[-1]]
            input_ids += step_ids
            flags += [0] * (len(step_ids) - 1) + [1]
        encoded = SKYWORK_O1.encode(tokenizer, prompt, steps)
        assert encoded == EncodedSolution(input_ids, [i for i, flag in enumerate(flags) if flag])

    @pytest.mark.parametrize("prompt, steps", PROBLEMS)
    def test_qwen_math_prm(self, prompt, steps):
        tokenizer = byte_level_tokenizer(bos=False, template=CHATML_TEMPLATE)
        messages = [
            {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
        ]
        input_ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False))
        [tag_id] = tokenizer.encode("<extra_0>")
        positions = [i for i, token in enumerate(input_ids) if token == tag_id]
        encoded = QWEN_MATH_PRM.encode(tokenizer, prompt, steps)
        assert encoded == EncodedSolution(input_ids[: positions[-1] + 1], positions)  # what follows is never read

    @pytest.mark.parametrize("make", [sentencepiece_tokenizer, lambda: byte_level_tokenizer(knows_tag=False)])
    @pytest.mark.parametrize(
        "format, between, labels", [(MATH_SHEPHERD, " ки\n", ("+", "-")), (ER_PRM, " ки", (" +", " -"))]
    )
    def test_math_shepherd_and_er_prm(self, format, between, labels, make):
        tokenizer = make()
        model = llama(tokenizer)
        candidates = [tokenizer.encode(label)[-1] for label in labels]
        tag_id = tokenizer.encode("ки")[-1]
        for prompt, steps in PROBLEMS:
            output = between.join(steps) + " ки"
            input_ids = tokenizer(f"{prompt} {output}")["input_ids"]
            positions = [i for i, token in enumerate(input_ids) if token == tag_id]
            encoded = format.encode(tokenizer, prompt, steps)
            assert encoded == EncodedSolution(input_ids, positions)
            with torch.no_grad():
                logits = model(torch.tensor([input_ids])).logits[0][:, candidates]
            expected = logits.softmax(-1)[positions, 0]
            torch.testing.assert_close(our_scores(model, tokenizer, format, encoded), expected, rtol=0, atol=1e-5)
        assert format.label_token_ids(tokenizer) == tuple(candidates)

    def test_the_label_tokens_of_math_shepherd_are_read_from_one_text(self):
        """Its model card encodes "+ -" and leaves out the beginning of the sequence; in SentencePiece that is both."""
        tokenizer = sentencepiece_tokenizer()
        assert MATH_SHEPHERD.label_token_ids(tokenizer) == tuple(tokenizer.encode("+ -")[1:])

    @pytest.mark.parametrize("make_model", ["llama", "qwen3"])
    @pytest.mark.parametrize("knows_tag", [True, False])
    def test_rlhflow(self, make_model, knows_tag):
        """One forward pass a step there, one for all here."""
        tokenizer = byte_level_tokenizer(knows_tag=knows_tag, template=LLAMA_TEMPLATE)
        model = {"llama": llama, "qwen3": qwen3}[make_model](tokenizer)
        candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]
        for prompt, steps in [*PROBLEMS, ("A + B? ", [" It is + ", "\n+", "+\n\n"])]:
            encoded = RLHFLOW.encode(tokenizer, prompt, steps)
            conversation, expected = [], []
            for k, step in enumerate(steps):
                text = prompt + " " + step if k == 0 else step
                conversation += [{"role": "user", "content": text}, {"role": "assistant", "content": "+"}]
                input_ids = ids(tokenizer, tokenizer.apply_chat_template(conversation, tokenize=False))
                assert tokenizer.convert_ids_to_tokens(input_ids[-2:]) == ["+", "<|eot_id|>"]
                assert encoded.input_ids[: encoded.step_ends[k] + 1] == input_ids[:-2]
                with torch.no_grad():
                    logits = model(torch.tensor([input_ids])).logits[0, -3, candidates]
                expected.append(logits.softmax(-1)[0])
            scores = our_scores(model, tokenizer, RLHFLOW, encoded)
            torch.testing.assert_close(scores, torch.stack(expected), rtol=0, atol=1e-5)
            assert scores.unique().numel() == len(steps)  # else the comparison would show little
            assert RLHFLOW.encode(tokenizer, question(prompt), steps) == encoded

    def test_public_models_name_known_formats(self):
        assert set(PUBLIC_MODELS.values()) <= set(FORMATS)
        assert PUBLIC_MODELS["peiyi9979/math-shepherd-mistral-7b-prm"] == "math-shepherd"


def llama(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(**_sizes(tokenizer))
    return LlamaForCausalLM(config).eval()


def qwen3(tokenizer):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**_sizes(tokenizer), head_dim=8)).eval()


def _sizes(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }


def our_scores(model, tokenizer, format, encoded):
    input_ids = torch.tensor([encoded.input_ids])
    is_step_end = torch.zeros_like(input_ids, dtype=torch.bool)
    is_step_end[0, encoded.step_ends] = True
    with torch.no_grad():
        inputs = {"input_ids": input_ids}
        return step_log_odds(model, inputs, is_step_end, format.label_token_ids(tokenizer)).sigmoid()
