"""The recipes, in this process and on tiny settings: each run and run again; every config parses."""

import json
import math
import re
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from tests.recipes.commands import FAST, NAMES, RECIPES, read_jsonl, write_jsonl
from tests.rollout.servers import StubServer
from tests.tiny import CAUSAL, prm_trainer
from trl_erprm import ProcessRewardModel
from trl_erprm.arguments import StrictParser
from trl_erprm.rollout import arguments as engine_arguments
from trl_erprm.rollout.transformers_engine import TransformersEngine

CONFIGS = sorted(RECIPES.glob("configs/*/*.yaml"))
GSM8K_ROWS = [
    {
        "question": "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many in all?",
        "answer": "In May she sold 48/2 = <<48/2=24>>24 clips.\nIn all she sold 48+24 = <<48+24=72>>72.\n#### 72",
    },
    {"question": "Weng earns $12 an hour. She worked 50 minutes. How much?", "answer": "12/60*50 = 10.\n#### 10"},
    {"question": "A robe takes 2 bolts of blue and half that of white. How many?", "answer": "2/2=1\n2+1=3\n#### 3"},
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    """A causal language model of random weights that can read any text: a token for each byte."""
    path = tmp_path_factory.mktemp("policy")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token="<pad>", eos_token="<eos>").save_pretrained(path)
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(path)
    return str(path)


def label_arguments(policy, data, output_dir, *more):
    return [
        "--model_name_or_path", policy, "--dataset_name", "json", "--dataset_path", data, "--output_dir",
        str(output_dir), "--num_rollouts", "2", "--max_new_tokens", "8", "--eta", "0", *more,
    ]  # fmt: skip


@pytest.fixture
def no_sampling(monkeypatch):
    def refuse():
        def generate(*args, **kwargs):
            raise AssertionError("sampled again")

        monkeypatch.setattr(TransformersEngine, "generate", generate)

    return refuse


@pytest.fixture(scope="module")
def labels(recipes, policy, tmp_path_factory):
    """What `label.py` makes of three problems in GSM8K's layout."""
    directory = tmp_path_factory.mktemp("label")
    data = write_jsonl(directory / "problems.jsonl", GSM8K_ROWS)
    recipes["label"].main(label_arguments(policy, data, directory / "labels"))
    return directory / "labels"


class TestLabel:
    def test_worked_solutions_are_split_and_labelled(self, labels):
        rows = read_jsonl(labels / "labels.jsonl")
        assert [row["answer"] for row in rows] == ["72", "10", "3"]
        assert rows[0]["completions"] == [
            "In May she sold 48/2 = 24 clips.", "In all she sold 48+24 = 72.", "#### 72"
        ]  # fmt: skip
        for row in rows:
            n = len(row["completions"])
            assert len(row["labels"]) == len(row["num_correct"]) == len(row["num_rollouts"]) == n
            assert row["num_rollouts"] == [2] * (n - 1) + [1]
            assert row["num_correct"][-1] == 1 and row["outcome"] == 1.0  # the given solution is right
            assert all(0 <= label <= 1 for label in row["labels"])

    def test_a_second_run_samples_nothing(self, recipes, policy, labels, no_sampling, capsys):
        before = (labels / "labels.jsonl").read_text()
        no_sampling()
        data = str(labels.parent / "problems.jsonl")
        recipes["label"].main(label_arguments(policy, data, labels))
        assert (labels / "labels.jsonl").read_text() == before
        output = capsys.readouterr().out
        assert "Labels at eta = 0" in output and "First row" in output
        # another eta needs no rollout
        recipes["label"].main(label_arguments(policy, data, labels, "--eta", "inf"))
        assert all(set(row["labels"]) <= {0.0, 1.0} for row in read_jsonl(labels / "labels.jsonl"))

    def test_another_run_is_refused(self, recipes, policy, labels):
        data = str(labels.parent / "problems.jsonl")
        with pytest.raises(ValueError, match="holds another run: `num_rollouts` is 2 there and 3 now"):
            recipes["label"].main(label_arguments(policy, data, labels, "--num_rollouts", "3"))

    def test_solutions_are_sampled_where_wanted(self, recipes, policy, labels, tmp_path):
        data = str(labels.parent / "problems.jsonl")
        more = ["--label_worked_solutions", "false", "--solutions_per_prompt", "2", "--generation_batch_size", "5"]
        recipes["label"].main(label_arguments(policy, data, tmp_path / "out", *more))
        rows = read_jsonl(tmp_path / "out" / "labels.jsonl")
        assert 3 <= len(rows) <= 6
        assert not any("sold 48/2" in step for row in rows for step in row["completions"])

    def test_twenty_problems_of_gsm8k(self, recipes, policy, shared_data, tmp_path):
        data = shared_data / "gsm8k" / "train.jsonl"
        if not data.exists():
            pytest.skip(f"no {data}")
        recipes["label"].main(label_arguments(policy, str(data), tmp_path / "out", "--num_rows", "20"))
        rows = read_jsonl(tmp_path / "out" / "labels.jsonl")
        assert len(rows) == 20
        for row in rows:
            assert len(row["labels"]) == len(row["num_rollouts"]) == len(row["completions"]) > 1
            assert all(0 <= label <= 1 for label in row["labels"])
            assert row["outcome"] == 1.0 and row["completions"][-1] == f"#### {row['answer']}"
            assert not any("<<" in step for step in row["completions"])


class TestLabelEngines:
    """Where rollouts come from, by the command line."""

    def arguments(self, labels, output_dir, *more):
        data = str(labels.parent / "problems.jsonl")
        return label_arguments("", data, output_dir, *more)[2:]  # without --model_name_or_path

    @pytest.fixture
    def given(self, recipes, monkeypatch):
        """Arguments of `load_engine`, which then gives up."""
        found = {}

        def load_engine(name, **arguments):
            found.update(arguments, name=name)
            raise KeyboardInterrupt

        monkeypatch.setattr(engine_arguments, "load_engine", load_engine)
        return found

    def test_servers(self, recipes, labels, tmp_path, monkeypatch):
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(engine_arguments, "load_policy", None)  # no model in this process
        with StubServer() as a, StubServer() as b:
            endpoint = ["--engine", "endpoint", "--endpoint_model", "served", "--endpoint_url", a.url, b.url]
            arguments = self.arguments(labels, tmp_path / "out", *endpoint)
            recipes["label"].main(arguments)
            rows = read_jsonl(tmp_path / "out" / "labels.jsonl")
            assert [row["num_rollouts"] for row in rows] == [[2, 2, 1], [2, 1], [2, 2, 1]]
            assert len(a.bodies) == len(b.bodies) == 5  # five prefixes, two rollouts each
            assert a.bodies[0]["model"] == "served" and a.bodies[0]["max_tokens"] == 8
            recipes["label"].main(arguments)
            assert len(a.bodies) + len(b.bodies) == 10
            config = json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]
            assert config["policy_name"] == "endpoint served"
            with pytest.raises(ValueError, match="`policy_name` is 'endpoint served' there and 'endpoint other' now"):
                recipes["label"].main([*arguments, "--endpoint_model", "other"])

    def test_further_arguments_and_a_tokenizer(self, recipes, policy, labels, tmp_path, given):
        more = ["--engine", "endpoint", "--endpoint_model", "served", "--endpoint_url", "http://a/v1"]
        more += ["--engine_kwargs", '{"max_concurrency": 8}', "--model_name_or_path", policy]
        with pytest.raises(KeyboardInterrupt):
            recipes["label"].main(self.arguments(labels, tmp_path / "out", *more))
        assert given.pop("tokenizer")("a")["input_ids"]
        assert given == {"name": "endpoint", "base_url": ["http://a/v1"], "model": "served", "max_concurrency": 8}

    def test_vllm(self, recipes, policy, labels, tmp_path, given):
        more = ["--engine", "vllm", "--model_name_or_path", policy, "--dtype", "float32"]
        more += ["--engine_kwargs", '{"max_model_len": 99}']
        with pytest.raises(KeyboardInterrupt):
            recipes["label"].main(self.arguments(labels, tmp_path / "out", *more))
        assert given.pop("tokenizer")("a")["input_ids"]
        expected = {"name": "vllm", "model": policy, "dtype": "float32", "revision": "main", "max_model_len": 99}
        assert given == expected

    def test_further_arguments_of_transformers(self, recipes, policy, labels, tmp_path, given):
        more = [
            "--model_name_or_path",
            policy,
            "--generation_batch_size",
            "7",
            "--engine_kwargs",
            '{"progress": null}',
        ]
        with pytest.raises(KeyboardInterrupt):
            recipes["label"].main(self.arguments(labels, tmp_path / "out", *more))
        assert given["batch_size"] == 7 and given["name"] == "transformers" and given["progress"] is None

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (
                ["--engine", "endpoint", "--endpoint_model", "m"],
                "`endpoint_url` goes with `engine: endpoint`, got None",
            ),
            (
                ["--engine", "endpoint", "--endpoint_url", "http://a/v1"],
                "`endpoint_model` goes with .* Name the servers",
            ),
            (["--endpoint_url", "http://a/v1"], "`endpoint_url` goes with .* with 'transformers'. Set `engine: endp"),
            (["--engine", "vlm"], r"`engine` must be .* got 'vlm' \(did you mean 'vllm'\?\)"),
            (["--engine", "vllm"], "`model_name_or_path` must name a model, got None"),
        ],
    )
    def test_mistakes(self, recipes, labels, tmp_path, more, message):
        with pytest.raises(ValueError, match=message):
            recipes["label"].main(self.arguments(labels, tmp_path / "out", *more))


class TestPRM:
    def arguments(self, policy, labels, output_dir, *more):
        return [
            "--model_name_or_path", policy, "--dataset_path", str(labels / "labels.jsonl"), "--output_dir",
            str(output_dir), "--eta", "2", "--max_steps", "2", "--learning_rate", "1e-3", "--max_length", "512",
            *FAST, *more,
        ]  # fmt: skip

    def test_trained_saved_and_not_trained_again(self, recipes, policy, labels, tmp_path, monkeypatch, capsys):
        arguments = self.arguments(policy, labels, tmp_path / "prm")
        evaluation = ["--eval_dataset_path", str(labels / "labels.jsonl"), "--eval_split", "train"]
        recipes["prm"].main([*arguments, *evaluation])
        metrics = json.loads((tmp_path / "prm" / "metrics.json").read_text())
        assert math.isfinite(metrics["train_loss"]) and 0 <= metrics["eval_step_accuracy"] <= 1
        assert 0 < metrics["mean_score"] < 1 and 0 <= metrics["brier_score"] <= 1  # of the last steps trained on
        assert "Process reward model in" in capsys.readouterr().out
        prm = ProcessRewardModel.from_pretrained(tmp_path / "prm")
        assert prm.eta == 2.0
        [scores] = prm.score([GSM8K_ROWS[2]["question"]], [["2/2=1", "2+1=3", "#### 3"]])
        assert len(scores) == 3 and all(0 < score < 1 for score in scores)

        monkeypatch.setattr(recipes["prm"].ERPRMTrainer, "train", None)
        recipes["prm"].main([*arguments, *evaluation])
        assert "holds this model already" in " ".join(capsys.readouterr().out.split())
        with pytest.raises(ValueError, match="holds another run: `(arguments.)?eta` is 2.0 there and 3.0 now"):
            recipes["prm"].main([*arguments, *evaluation, "--eta", "3"])
        with pytest.raises(ValueError, match="holds another run: `eval_rows` is '.*' there and None now"):
            recipes["prm"].main(arguments)

    def test_another_base_model_at_the_same_path_is_noticed(self, recipes, policy, labels, tmp_path):
        base = tmp_path / "base"
        shutil.copytree(policy, base)
        arguments = self.arguments(str(base), labels, tmp_path / "prm", "--head", "causal_lm", "--step_tag", "\n")
        recipes["prm"].main(arguments)
        model = AutoModelForCausalLM.from_pretrained(base)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.5)
        model.save_pretrained(base)
        with pytest.raises(ValueError, match="holds another run: `model` is"):
            recipes["prm"].main(arguments)

    @pytest.mark.parametrize("head", ["token_classification", "causal_lm"])
    def test_lora_from_the_command_line(self, recipes, policy, labels, tmp_path, head):
        lora = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj", "--head", head, "--step_tag", "\n"]
        recipes["prm"].main(self.arguments(policy, labels, tmp_path / "prm", *lora))
        assert (tmp_path / "prm" / "adapter_config.json").exists()
        prm = ProcessRewardModel.from_pretrained(tmp_path / "prm")
        [scores] = prm.score(["1+1?\n"], [["1+1=2", "#### 2"]])
        assert len(scores) == 2 and all(0 < score < 1 for score in scores)

    def test_a_model_is_needed(self, recipes, labels, tmp_path):
        arguments = ["--dataset_path", str(labels / "labels.jsonl"), "--output_dir", str(tmp_path / "prm"), *FAST]
        with pytest.raises(ValueError, match="`model_name_or_path` must name a model, got None"):
            recipes["prm"].main(arguments)
        with pytest.raises(FileNotFoundError, match="must be an existing directory or a model on the Hub, got '/no/"):
            recipes["prm"].main([*arguments, "--model_name_or_path", "/no/such/model"])
        assert not (tmp_path / "prm").exists()  # a start that failed claims no directory

    def test_an_interrupted_training_continues(self, recipes, policy, labels, tmp_path, monkeypatch):
        arguments = self.arguments(policy, labels, tmp_path / "prm", "--save_strategy", "steps", "--save_steps", "1")
        save_model = recipes["prm"].ERPRMTrainer.save_model
        with monkeypatch.context() as patch:

            def failing(self, output_dir=None, *args, **kwargs):
                if output_dir is None:  # at the end: the checkpoint of step 2 is written
                    raise KeyboardInterrupt
                return save_model(self, output_dir, *args, **kwargs)

            patch.setattr(recipes["prm"].ERPRMTrainer, "save_model", failing)
            with pytest.raises(KeyboardInterrupt):
                recipes["prm"].main(arguments)
        assert not (tmp_path / "prm" / "metrics.json").exists()
        steps = []
        training_step = recipes["prm"].ERPRMTrainer.training_step
        monkeypatch.setattr(
            recipes["prm"].ERPRMTrainer, "training_step", lambda *a, **k: steps.append(1) or training_step(*a, **k)
        )
        recipes["prm"].main(arguments)
        assert steps == [] and (tmp_path / "prm" / "metrics.json").exists()

    def test_an_interrupted_training_continues_with_less_memory(self, recipes, policy, labels, tmp_path, monkeypatch):
        """What an out-of-memory error makes one change is no other run; the weights are those of a run at one go."""
        more = ["--save_strategy", "steps", "--save_steps", "1", "--eval_dataset_path", str(labels / "labels.jsonl")]
        more += ["--eval_split", "train", "--eval_strategy", "steps"]
        large = ["--per_device_train_batch_size", "2", "--eval_steps", "1"]
        small = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "2", "--eval_steps", "2"]
        small += ["--per_device_eval_batch_size", "1", "--activation_checkpointing", "true", "--padding_free", "false"]
        recipes["prm"].main(self.arguments(policy, labels, tmp_path / "whole", *more, *large))
        training_step, steps = recipes["prm"].ERPRMTrainer.training_step, []

        def killed(self, *args, **kwargs):
            if steps:
                raise KeyboardInterrupt
            steps.append(1)
            return training_step(self, *args, **kwargs)

        arguments = self.arguments(policy, labels, tmp_path / "prm", *more)
        with monkeypatch.context() as patch:
            patch.setattr(recipes["prm"].ERPRMTrainer, "training_step", killed)
            with pytest.raises(KeyboardInterrupt):
                recipes["prm"].main([*arguments, *large])
        with pytest.raises(ValueError, match="holds another run: `arguments.train_batch_size` is 2 there and 1 now"):
            recipes["prm"].main([*arguments, *small, "--gradient_accumulation_steps", "1"])
        recipes["prm"].main([*arguments, *small])
        state = json.loads((tmp_path / "prm" / "checkpoint-2" / "trainer_state.json").read_text())
        assert [entry["step"] for entry in state["log_history"] if "eval_loss" in entry] == [1, 2]
        whole, prm = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "prm"))
        for name, weight in whole.items():
            torch.testing.assert_close(prm[name], weight, rtol=0, atol=1e-5, msg=name)

    def test_another_label_token_is_another_run(self, recipes, policy, labels, tmp_path):
        """transformers hides every argument whose name ends in `_token`."""
        head = ["--head", "causal_lm", "--step_tag", "\n"]
        recipes["prm"].main(self.arguments(policy, labels, tmp_path / "prm", *head, "--positive_token", "1"))
        with pytest.raises(ValueError, match="another run: `arguments.positive_token` is '1' there and '2' now"):
            recipes["prm"].main(self.arguments(policy, labels, tmp_path / "prm", *head, "--positive_token", "2"))

    def test_labels_as_they_are_keep_their_eta(self, recipes, policy, labels, tmp_path, capsys):
        """Scores are turned into probabilities with it; only the file of the labels was copied here."""
        shutil.copytree(labels, tmp_path / "run")
        recipes["label"].main(["--output_dir", str(tmp_path / "run"), "--relabel", "true", "--eta", "10"])
        (tmp_path / "copy").mkdir()
        shutil.copy(tmp_path / "run" / "labels.jsonl", tmp_path / "copy")
        arguments = self.arguments(policy, tmp_path / "copy", tmp_path / "prm")
        at = arguments.index("--eta")
        recipes["prm"].main(arguments[:at] + arguments[at + 2 :])
        assert ProcessRewardModel.from_pretrained(tmp_path / "prm").eta == 10.0
        assert "labels at eta = 10" in " ".join(capsys.readouterr().out.split())

    def test_counts_without_labels(self, recipes, policy, labels, tmp_path):
        rows = [{n: row[n] for n in row if n not in ("labels", "eta")} for row in read_jsonl(labels / "labels.jsonl")]
        (tmp_path / "counts").mkdir()
        write_jsonl(tmp_path / "counts" / "labels.jsonl", rows)
        arguments = self.arguments(policy, tmp_path / "counts", tmp_path / "prm")
        at = arguments.index("--eta")
        with pytest.raises(ValueError, match="The rows have rollout counts and no `labels` .* `eta`, .* is not given"):
            recipes["prm"].main(arguments[:at] + arguments[at + 2 :])
        recipes["prm"].main(arguments)
        assert ProcessRewardModel.from_pretrained(tmp_path / "prm").eta == 2.0


class TestRFT:
    def test_the_embedded_task(self, recipes, tiny_policy, stages_asked_for, tmp_path, capsys):
        """`rft.py` with its own config, from stages that were made before."""
        task, _ = tiny_policy
        config = recipes["stages"].CONFIGS / "rft.yaml"
        arguments = ["--config", str(config), "--output_dir", str(tmp_path / "run" / "rft")]
        arguments += ["--num_rows", "32", "--num_eval_rows", "10", "--num_iterations", "1", "--use_cpu", "true"]
        recipes["rft"].main([*arguments, "--disable_tqdm", "true"])
        output = capsys.readouterr().out
        assert stages_asked_for == [(tmp_path / "run", 0, "rft")]
        assert "Policy: " in output and "greedy" in output.lower() and "majority" in output.lower()
        assert (tmp_path / "run" / "rft" / "iterations.png").read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / "run" / "rft" / "model.safetensors").exists()
        record = json.loads((tmp_path / "run" / "rft" / "iteration-1" / "metrics.json").read_text())
        samples = pq.read_table(tmp_path / "run" / "rft" / "iteration-1" / "samples.parquet").to_pylist()
        assert len(samples) == 32 * 8 and record["num_selected"] + record["num_without_candidate"] == 32
        for sample in samples:  # malformed solutions do not compete
            prompt = task.problems("train")[sample["index"]]
            assert sample["score"] is None or task.is_well_formed(prompt, sample["completion"].splitlines())

    def test_own_prompts(self, recipes, tiny_policy, prm_path, tmp_path):
        task, policy = tiny_policy
        prompts = write_jsonl(tmp_path / "prompts.jsonl", task.dataset("train", 6).to_list())
        recipes["rft"].main(
            ["--model_name_or_path", policy, "--prm_path", str(prm_path), "--dataset_path", prompts, "--output_dir",
             str(tmp_path / "rft"), "--num_iterations", "1", "--num_samples", "4", "--max_completion_length", "20",
             "--answer_how", "arithmetic", *FAST]
        )  # fmt: skip
        assert (tmp_path / "rft" / "iteration-1" / "model" / "model.safetensors").exists()
        assert not (tmp_path / "rft" / "iterations.png").exists()  # nothing was held out, so there is nothing to plot

    def test_problems_with_worked_solutions(self, recipes, policy, labels, tmp_path):
        """GSM8K's rows bring `completions` of their own, a name that reward functions know for what was sampled."""
        recipes["prm"].main(TestPRM().arguments(policy, labels, tmp_path / "prm"))
        problems = write_jsonl(tmp_path / "problems.jsonl", GSM8K_ROWS)
        recipes["rft"].main(
            ["--model_name_or_path", policy, "--prm_path", str(tmp_path / "prm"), "--dataset_path", problems,
             "--output_dir", str(tmp_path / "rft"), "--num_iterations", "1", "--num_samples", "8",
             "--max_completion_length", "200", "--max_length", "512", "--num_train_epochs", "1",
             "--require_answer", "false", *FAST]  # of a policy that has learnt nothing
        )  # fmt: skip
        samples = pq.read_table(tmp_path / "rft" / "iteration-1" / "samples.parquet").to_pylist()
        assert [sample["index"] for sample in samples] == [i for i in range(len(GSM8K_ROWS)) for _ in range(8)]

    @pytest.mark.parametrize("options", [[], ["--load_in_4bit", "true", "--dtype", "float32"]], ids=["lora", "qlora"])
    def test_one_base_for_policy_and_prm(self, recipes, tiny_policy, tmp_path, options):
        """`share_base`: both are adapters; the policy's alone is saved."""
        if options:
            pytest.importorskip("bitsandbytes")
        task, policy = tiny_policy
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        row = {"prompt": "1+1\n", "completions": ["1+1=2"], "labels": [1.0]}
        prm_trainer(policy, tmp_path / "prm", [row], peft_config=lora, **CAUSAL).save_model()
        prompts = write_jsonl(tmp_path / "prompts.jsonl", task.dataset("train", 6).to_list())
        arguments = [
            "--model_name_or_path", policy, "--prm_path", str(tmp_path / "prm"), "--dataset_path", prompts,
            "--output_dir", str(tmp_path / "rft"), "--num_iterations", "1", "--num_samples", "4", "--share_base",
            "true", "--max_completion_length", "20", "--answer_how", "arithmetic", *FAST, *options,
        ]  # fmt: skip
        with pytest.raises(ValueError, match="`share_base` puts two adapters on one base model, got no `use_peft`"):
            recipes["rft"].main(arguments)
        recipes["rft"].main([*arguments, "--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj"])
        saved = {path.name for path in (tmp_path / "rft").iterdir()}
        assert "adapter_model.safetensors" in saved and not {"model.safetensors", "process_reward_model"} & saved


class Parsed(Exception):
    """Carries what a recipe's parser gave, and ends the recipe there."""


@pytest.fixture
def parse(recipes, monkeypatch, tmp_path):
    """What the parser of a recipe, with the dataclasses of that recipe, makes of arguments."""

    class Probe(StrictParser):
        def parse_args_and_config(self, args=None):
            own = [("output_dir", str(tmp_path / "out")), ("use_cpu", "true")]
            args = [*args, *(text for name, value in own if name in self._fields for text in (f"--{name}", value))]
            raise Parsed(super().parse_args_and_config(args))

    def parse(recipe, *arguments):
        monkeypatch.setattr(recipes[recipe], "StrictParser", Probe)
        with pytest.raises(Parsed) as caught:
            recipes[recipe].main(list(arguments))
        return {name: v for part in caught.value.args[0] for name, v in vars(part).items()}

    return parse


class TestConfigs:
    def test_there_are_some(self):
        assert {path.stem for path in CONFIGS} >= {"label", "prm", "rft"} <= set(NAMES)
        files = {f"{path.parent.name}/{path.name}" for path in CONFIGS}
        assert files >= {"gsm8k/rft-qwen2.5-1.5b-lora.yaml", "metamath/rft-mistral-7b-zero3.yaml"}

    @pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
    def test_each_parses_with_its_recipe(self, parse, path, recipes):
        values = parse(re.split("[-_]", path.stem)[0], "--config", str(path))
        for name, value in yaml.safe_load(path.read_text("utf-8")).items():
            assert name in values, name
            if isinstance(value, bool | int | float) and name != "output_dir":
                assert values[name] == value, name

    def test_answers_are_read_as_the_system_prompt_demands_them(self, parse):
        found = []
        for path in CONFIGS:
            values = yaml.safe_load(path.read_text("utf-8"))
            if "\\boxed{}" in values.get("system_prompt", ""):
                values = parse(re.split("[-_]", path.stem)[0], "--config", str(path))
                found.append(values.get("answer_how", values.get("verify_how")))
        assert found == ["boxed"] * 7

    @pytest.mark.parametrize(
        "recipe, key, nearest",
        [("label", "num_rollout", "num_rollouts"), ("prm", "etaa", "eta"), ("rft", "num_iteration", "num_iterations")],
    )
    def test_an_unknown_key_names_the_nearest(self, recipes, tmp_path, recipe, key, nearest):
        config = tmp_path / "run.yaml"
        config.write_text(f"{key}: 3\noutput_dir: {tmp_path / 'out'}\n")
        with pytest.raises(ValueError, match=rf"`{key}`.* Did you mean .*`{nearest}`"):
            recipes[recipe].main(["--config", str(config)])
        with pytest.raises(ValueError, match=rf"Unknown argument `{key}` on the command line. .*`{nearest}`"):
            recipes[recipe].main([f"--{key}", "3", "--output_dir", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()


class TestStages:
    def test_prepare(self, recipes, tmp_path, monkeypatch):
        """The stages call the recipes with their configs, and keep what is there."""
        stages, calls = recipes["stages"], []
        monkeypatch.setattr(stages, "train_policy", lambda task, path, seed: calls.append(("policy", path, seed)))
        monkeypatch.setattr(stages.label, "main", lambda argv: calls.append(("label", argv)))
        monkeypatch.setattr(stages.prm, "main", lambda argv: calls.append(("prm", argv)))
        prepared = stages.prepare(tmp_path, seed=3)
        assert [call[0] for call in calls] == ["policy", "label", "prm"]
        assert calls[0][1:] == (tmp_path / "policy", 3)
        assert (prepared.policy_dir, prepared.prm_dir) == (tmp_path / "policy", tmp_path / "prm")
        prompts = Dataset.from_json(str(tmp_path / "prompts.jsonl"), cache_dir=str(tmp_path / "cache"))
        assert prompts.column_names == ["prompt", "answer"] and len(prompts) == len(prepared.task.problems("train"))
        assert (tmp_path / "base" / "config.json").exists()
        written = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json*") if "cache" not in p.parts}
        stages.prepare(tmp_path, seed=3)
        assert {p: p.stat().st_mtime_ns for p in written} == written

    def test_the_arguments_of_the_stages_parse(self, recipes, parse, tmp_path, monkeypatch):
        stages, calls = recipes["stages"], {}
        monkeypatch.setattr(stages, "train_policy", lambda task, path, seed: None)
        for name in ("label", "prm"):
            with monkeypatch.context() as patch:
                patch.setattr(stages.label, "main", lambda argv: calls.update(label=argv))
                patch.setattr(stages.prm, "main", lambda argv: calls.update(prm=argv))
                stages.prepare(tmp_path, seed=3)
            values = parse(name, *calls[name])
            assert values["seed"] == 3
            assert values["model_name_or_path"] == str(tmp_path / ("policy" if name == "label" else "base"))
