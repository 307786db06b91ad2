"""`trl_erprm.prm.heads`: log-odds against plain forward passes, that only step ends are projected, and loading."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    BertModel,
)

from tests.tiny import randomize_head, save_base
from trl_erprm.prm.formats import MATH_SHEPHERD, QWEN_MATH_PRM, SKYWORK_O1, TRL_TOKEN_CLASSIFICATION
from trl_erprm.prm.heads import load_prm, new_head_is_expected, project_only, step_log_odds

INPUT_IDS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 0, 0, 0]])
INPUTS = {"input_ids": INPUT_IDS, "attention_mask": (INPUT_IDS != 0).long()}
IS_STEP_END = torch.tensor([[0, 0, 1, 0, 0, 1], [0, 1, 1, 0, 0, 0]]).bool()
POSITIVE, NEGATIVE = 13, 14


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def causal(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


@pytest.mark.parametrize("num_labels", [1, 2])
def test_token_classification_by_hand(base, num_labels):
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=num_labels).eval()
    logits = model(**INPUTS).logits
    rows = torch.stack([logits[0, 2], logits[0, 5], logits[1, 1], logits[1, 2]])  # row-major order
    expected = rows[:, 0] if num_labels == 1 else rows[:, 1] - rows[:, 0]
    log_odds = step_log_odds(model, INPUTS, IS_STEP_END)
    torch.testing.assert_close(log_odds, expected)
    assert log_odds.shape == (4,) and expected.unique().numel() == 4
    if num_labels == 2:
        torch.testing.assert_close(log_odds.sigmoid(), rows.softmax(-1)[:, 1])


def test_causal_by_hand(causal):
    logits = causal(**INPUTS).logits
    rows = torch.stack([logits[0, 2], logits[0, 5], logits[1, 1], logits[1, 2]])
    log_odds = step_log_odds(causal, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE))
    torch.testing.assert_close(log_odds, rows[:, POSITIVE] - rows[:, NEGATIVE])
    torch.testing.assert_close(log_odds.sigmoid(), rows[:, [NEGATIVE, POSITIVE]].softmax(-1)[:, 1])
    assert log_odds.unique().numel() == 4


def test_project_only_gives_the_full_logits_at_the_step_ends(causal):
    full = causal(**INPUTS).logits
    with project_only(causal.get_output_embeddings(), IS_STEP_END):
        selected = causal(**INPUTS).logits
    assert selected.shape == (4, full.shape[-1])
    torch.testing.assert_close(selected, full[IS_STEP_END])


def test_the_vocabulary_meets_step_ends_only(causal):
    """The memory that the hook saves: rows that reach the `lm_head`, 4 instead of 12."""
    rows = []
    causal.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    step_log_odds(causal, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE))
    assert rows == [4]
    causal(**INPUTS)
    assert rows == [4, 12]


def test_gradients_are_those_of_the_full_logits(causal):
    full = causal(**INPUTS).logits[IS_STEP_END]
    (full[:, POSITIVE] - full[:, NEGATIVE]).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in causal.named_parameters() if p.grad is not None}
    causal.zero_grad()
    step_log_odds(causal, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE)).square().sum().backward()
    for name, p in causal.named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-5)


def test_the_hook_is_removed_also_after_an_error(causal):
    before = causal(**INPUTS).logits
    with pytest.raises(RuntimeError, match="out of memory"):
        with project_only(causal.get_output_embeddings(), IS_STEP_END):
            raise RuntimeError("out of memory")
    assert not causal.lm_head._forward_pre_hooks
    torch.testing.assert_close(causal(**INPUTS).logits, before)
    wrong_shape = IS_STEP_END[:, :3]
    with pytest.raises(IndexError):
        step_log_odds(causal, INPUTS, wrong_shape, (POSITIVE, NEGATIVE))
    assert not causal.lm_head._forward_pre_hooks


@pytest.mark.parametrize("label_token_ids", [None, (POSITIVE, NEGATIVE)])
def test_no_step_end(base, label_token_ids):
    architecture = AutoModelForCausalLM if label_token_ids else AutoModelForTokenClassification
    model = architecture.from_pretrained(base).eval()
    log_odds = step_log_odds(model, INPUTS, torch.zeros_like(IS_STEP_END), label_token_ids)
    assert log_odds.shape == (0,)
    log_odds.sum().backward()  # a process without a step end must still take part in the backward pass


def test_half_precision_ends_in_float32(base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    assert step_log_odds(model, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE)).dtype == torch.float32


def test_a_wrapped_model_is_entered_through_its_wrapper(causal):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **inputs):
            self.calls += 1
            return self.module(**inputs)

    wrapper = Wrapper(causal)
    log_odds = step_log_odds(wrapper, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE), causal)
    assert wrapper.calls == 1
    torch.testing.assert_close(log_odds, step_log_odds(causal, INPUTS, IS_STEP_END, (POSITIVE, NEGATIVE)))


def test_a_new_head_is_not_reported(base, monkeypatch, caplog):
    from transformers.modeling_layers import GenericForTokenClassification

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)

    def is_reported(load):
        caplog.clear()
        load()
        return "score.weight" in caplog.text and "MISSING" in caplog.text

    def load(**options):
        with new_head_is_expected(**options):
            _, info = AutoModelForTokenClassification.from_pretrained(base, output_loading_info=True)
        return info["missing_keys"]

    before = vars(GenericForTokenClassification).copy()
    assert is_reported(lambda: AutoModelForTokenClassification.from_pretrained(base))
    assert not is_reported(load) and load() == set()
    assert load(may_be_missing=False) == {"score.weight", "score.bias"}
    assert not is_reported(lambda: load_prm(base, TRL_TOKEN_CLASSIFICATION))
    for name in ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected"):
        assert getattr(GenericForTokenClassification, name, None) == before.get(name)
    assert AutoTokenizer.from_pretrained(base).vocab_size > POSITIVE


MLP_SHAPES = {"score.0.weight": (32, 32), "score.0.bias": (32,), "score.2.weight": (2, 32), "score.2.bias": (2,)}


@pytest.fixture(scope="module")
def checkpoints(base, tmp_path_factory):
    """`linear1` and `linear2`: token classification with that many labels."""
    directory = tmp_path_factory.mktemp("linear")
    for num_labels in (1, 2):
        model = AutoModelForTokenClassification.from_pretrained(base, num_labels=num_labels)
        randomize_head(model, seed=num_labels)
        torch.nn.init.constant_(model.score.bias, 0.25)
        model.save_pretrained(directory / f"linear{num_labels}")
    return directory


@pytest.fixture(scope="module")
def published_mlp(base, tmp_path_factory):
    """As Qwen2.5-Math-PRM is published: code of its own beside it, that we neither need nor run."""
    directory = tmp_path_factory.mktemp("mlp")
    weights = AutoModel.from_pretrained(base).state_dict()
    weights = {f"model.{name}": weight.clone() for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(0)
    for name, shape in MLP_SHAPES.items():
        weights[name] = torch.randn(shape, generator=generator) / 10
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((Path(base) / "config.json").read_text())
    config["architectures"] = ["Qwen2ForProcessRewardModel"]
    config["auto_map"] = {
        "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
        "AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel",
    }
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("configuration_qwen2_rm", "modeling_qwen2_rm"):
        (directory / f"{name}.py").write_text("raise RuntimeError('remote code was run')\n")
    return directory


class TestLoading:
    """A checkpoint's head is read as it is, or it is an error; what is saved has our names."""

    @pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}])
    def test_a_published_mlp_head(self, base, published_mlp, options):
        model = load_prm(published_mlp, QWEN_MATH_PRM, head_must_be_trained=True, **options).eval()
        held = load_file(published_mlp / "model.safetensors")
        assert_same_weights(model.state_dict(), held)
        with torch.no_grad():
            hidden = AutoModel.from_pretrained(base).eval()(**INPUTS).last_hidden_state[IS_STEP_END]
            between = (hidden @ held["score.0.weight"].T + held["score.0.bias"]).clamp(min=0)
            expected = (between @ held["score.2.weight"].T + held["score.2.bias"]).softmax(-1)[:, 1]
            scores = step_log_odds(model, INPUTS, IS_STEP_END).sigmoid()
        torch.testing.assert_close(scores, expected)
        assert expected.unique().numel() == 4

    def test_an_mlp_head_is_saved_and_loaded(self, published_mlp, tmp_path):
        model = load_prm(published_mlp, QWEN_MATH_PRM)
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Qwen2ForTokenClassification"]
        loaded = load_prm(tmp_path, QWEN_MATH_PRM, head_must_be_trained=True)
        assert_same_weights(loaded.state_dict(), model.state_dict())
        assert_same_scores(loaded, model)

    def test_a_new_mlp_head_has_weights_as_other_new_layers(self, base):
        model = load_prm(base, QWEN_MATH_PRM)
        assert {name: tuple(p.shape) for name, p in model.named_parameters() if "score" in name} == MLP_SHAPES
        scale = model.config.initializer_range
        assert model.score[0].weight.std().item() == pytest.approx(scale, rel=0.1)
        assert model.score[2].weight.std().item() == pytest.approx(scale, rel=0.4)
        assert not model.score[0].bias.any() and not model.score[2].bias.any()

    @pytest.mark.parametrize("prefix", ["", "pretrained_model."])
    def test_other_names_for_the_weights(self, checkpoints, prefix, tmp_path):
        """As Skywork-o1-Open-PRM has them: a value head beside a language model with its `lm_head`."""
        ours = AutoModelForTokenClassification.from_pretrained(checkpoints / "linear1")
        weights = {}
        for name, weight in ours.state_dict().items():
            is_head = name.startswith("score.")
            weights[name.replace("score.", "v_head.summary.") if is_head else prefix + name] = weight.clone()
        weights[f"{prefix}lm_head.weight"] = weights[f"{prefix}model.embed_tokens.weight"].clone()
        published, saved = tmp_path / "published", tmp_path / "saved"
        shutil.copytree(checkpoints / "linear1", published)
        save_file(weights, published / "model.safetensors", metadata={"format": "pt"})

        model = load_prm(published, SKYWORK_O1, head_must_be_trained=True)
        assert_same_weights(model.state_dict(), ours.state_dict())
        assert_same_scores(model, ours)
        model.save_pretrained(saved)
        # A trainer that resumes looks for the names that the model has, without any mapping.
        assert_same_weights(load_file(saved / "model.safetensors"), ours.state_dict())
        for again in (
            load_prm(saved, SKYWORK_O1, head_must_be_trained=True),
            AutoModelForTokenClassification.from_pretrained(saved),
        ):
            assert_same_weights(again.state_dict(), ours.state_dict())
            assert_same_scores(again, ours)

    def test_number_of_labels(self, base, checkpoints):
        """The argument's, else the format's, else the checkpoint's."""
        assert load_prm(checkpoints / "linear1", TRL_TOKEN_CLASSIFICATION).score.out_features == 1
        assert load_prm(checkpoints / "linear2", TRL_TOKEN_CLASSIFICATION).score.out_features == 2
        assert load_prm(base, SKYWORK_O1).score.out_features == 1
        assert load_prm(base, SKYWORK_O1, num_labels=2).score.out_features == 2
        assert load_prm(base, QWEN_MATH_PRM, num_labels=1).score[2].out_features == 1

    @pytest.mark.parametrize(
        "format, names",
        [
            (TRL_TOKEN_CLASSIFICATION, "score.bias, score.weight"),
            (SKYWORK_O1, "score.bias, score.weight"),
            (QWEN_MATH_PRM, "score.0.bias, score.0.weight, score.2.bias, score.2.weight"),
        ],
    )
    def test_a_language_model_has_no_head(self, base, format, names):
        message = (
            rf"The format '{format.name}' reads a token_classification head .* has no weights for it \({names}\)[.]"
        )
        with pytest.raises(ValueError, match=message):
            load_prm(base, format, head_must_be_trained=True)
        load_prm(base, format)  # it is given one

    def test_a_head_of_another_name(self, tmp_path):
        """Not every architecture calls it `score`."""
        config = BertConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"has no weights for it \(classifier.bias, classifier.weight\)[.]"):
            load_prm(tmp_path, TRL_TOKEN_CLASSIFICATION, head_must_be_trained=True)
        BertForTokenClassification(config).save_pretrained(tmp_path)
        load_prm(tmp_path, TRL_TOKEN_CLASSIFICATION, head_must_be_trained=True)

    def test_a_model_without_a_vocabulary_head(self, base, tmp_path):
        config = AutoConfig.from_pretrained(base, tie_word_embeddings=False)
        AutoModel.from_config(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"reads a causal_lm head .* has no weights for it \(lm_head.weight\)[.]"):
            load_prm(tmp_path, MATH_SHEPHERD, head_must_be_trained=True)
        load_prm(base, MATH_SHEPHERD, head_must_be_trained=True)

    def test_another_head(self, checkpoints, published_mlp):
        linear, mlp = "score.bias, score.weight", "score.0.bias, score.0.weight, score.2.bias, score.2.weight"
        cases = [
            (checkpoints / "linear2", MATH_SHEPHERD, rf"causal_lm .* holds another head; it holds {linear}[.] Name"),
            (published_mlp, MATH_SHEPHERD, rf"causal_lm .* holds another head; it holds {mlp}[.] Name"),
            (published_mlp, TRL_TOKEN_CLASSIFICATION, rf"\(linear\), .* for it \({linear}\); it holds {mlp}[.] Name"),
            (checkpoints / "linear2", QWEN_MATH_PRM, rf"\(mlp\), .* for it \({mlp}\); it holds {linear}[.] Name"),
        ]
        for path, format, message in cases:
            with pytest.raises(ValueError, match=f"The format '{format.name}' reads a .*{message} the format"):
                load_prm(path, format, head_must_be_trained=True)

    def test_a_value_head_read_under_other_names(self, checkpoints, tmp_path):
        weights = load_file(checkpoints / "linear1" / "model.safetensors")
        weights = {name.replace("score.", "v_head.summary."): weight for name, weight in weights.items()}
        shutil.copytree(checkpoints / "linear1", tmp_path, dirs_exist_ok=True)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="it holds v_head.summary.bias, v_head.summary.weight"):
            load_prm(tmp_path, TRL_TOKEN_CLASSIFICATION, head_must_be_trained=True)

    @pytest.mark.parametrize("head_must_be_trained", [True, False])
    def test_a_head_of_another_size(self, checkpoints, head_must_be_trained):
        """Else it would be a new one, at random, and nothing but a line in a log would say so."""
        message = (
            r"The format 'trl' reads weights of other sizes than '.*linear1' holds \(score.bias of \(1,\) for \(2,\), "
            r"score.weight of \(1, 32\) for \(2, 32\)\). Name the format and the `num_labels` that"
        )
        with pytest.raises(ValueError, match=message):
            load_prm(
                checkpoints / "linear1",
                TRL_TOKEN_CLASSIFICATION,
                num_labels=2,
                head_must_be_trained=head_must_be_trained,
            )
        with pytest.raises(ValueError, match=r"The format 'skywork-o1' .* \(score.bias of \(2,\) for \(1,\)"):
            load_prm(checkpoints / "linear2", SKYWORK_O1, head_must_be_trained=head_must_be_trained)

    def test_a_head_of_another_size_that_is_asked_for(self, checkpoints):
        options = {"num_labels": 2, "ignore_mismatched_sizes": True}
        model = load_prm(checkpoints / "linear1", TRL_TOKEN_CLASSIFICATION, **options)
        assert model.score.weight.shape == (2, 32)
        with pytest.raises(ValueError, match="reads weights of other sizes"):
            load_prm(checkpoints / "linear1", TRL_TOKEN_CLASSIFICATION, head_must_be_trained=True, **options)


def assert_same_weights(actual, expected):
    assert set(actual) == set(expected)
    assert all(torch.equal(weight, expected[name]) for name, weight in actual.items())


def assert_same_scores(actual, expected):
    with torch.no_grad():
        scores, expected_scores = (step_log_odds(m.eval(), dict(INPUTS), IS_STEP_END) for m in (actual, expected))
    assert torch.equal(scores, expected_scores) and scores.unique().numel() == 4
