"""What `rft.py`, `grpo.py` and `ppo.py` share: where prompts, policy and PRM come from, and the reward."""

import re
import sys

import pytest

from tests.recipes.commands import CPU, write_jsonl
from tests.tiny import QUIET
from trl_erprm import AnswerReward, StepGRPOConfig
from trl_erprm.arguments import DataArguments
from trl_erprm.policy.guards import StepGuards

POLICY_RECIPES = ("rft", "grpo", "ppo")


@pytest.mark.parametrize("name", POLICY_RECIPES)
class TestSources:
    def test_without_arguments(self, recipes, name, tmp_path, monkeypatch):
        """No arguments are the config of the embedded task; its outputs go under the current directory."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{name}.py"])

        def prepare(root, seed, recipe):
            raise InterruptedError(f"{root} {seed} {recipe}")

        monkeypatch.setattr(recipes["stages"], "prepare", prepare)
        with pytest.raises(InterruptedError, match=f"^outputs/arithmetic 0 {name}$"):
            recipes[name].main()

    def test_without_a_prm(self, recipes, name, tmp_path):
        wanted = "`prm_path` is missing: the directory that `recipes/prm.py` wrote, or the id of a published model. "
        wanted += f".*configs/arithmetic/{name}.yaml"
        with pytest.raises(ValueError, match=wanted):
            recipes[name].main(["--output_dir", str(tmp_path), "--model_name_or_path", "policy", *CPU])

    def test_a_prm_that_does_not_exist(self, recipes, name, tmp_path):
        """Said before anything is loaded."""
        arguments = ["--output_dir", str(tmp_path), "--model_name_or_path", "policy", "--prm_path", "./no/prm", *CPU]
        with pytest.raises(FileNotFoundError, match=r"`prm_path` must be an existing directory.*got './no/prm'"):
            recipes[name].main(arguments)


def test_steps_of_worked_solutions_are_left_out(recipes, tmp_path):
    """They would be in a column that TRL has another use for, in the rows to train on and in those held out."""
    module = recipes["policy_training"]
    worked = write_jsonl(tmp_path / "worked.jsonl", [{"question": "1+1", "answer": "1+1=2\n#### 2"}])
    plain = write_jsonl(tmp_path / "plain.jsonl", [{"prompt": "1+1", "answer": "2"}])
    script_args = module.ReinforcementArguments(prm_path="org/prm")
    training_args = StepGRPOConfig(str(tmp_path), **QUIET)
    for path, eval_path in ((worked, plain), (plain, worked), (plain, None)):
        data_args = DataArguments(dataset_path=path, eval_dataset_path=eval_path)
        task = module.load_task("grpo", script_args, training_args, None, data_args)
        assert "completions" not in task.prompts.column_names and task.prompts[0]["answer"] == "2"
        assert task.is_well_formed is None
        if eval_path is None:
            assert task.held_out is None
        else:
            assert "completions" not in task.held_out.column_names and task.held_out[0]["prompt"] == "1+1\n"


def test_guards(recipes):
    read_guards = recipes["policy_training"].read_guards
    assert read_guards('{"max_steps": 3}') == read_guards({"max_steps": 3}) == StepGuards(max_steps=3)
    assert read_guards(None) is None
    for text in ('{"max_steps": 3', "3", '{"max_steps": "3"}'):
        with pytest.raises(ValueError, match=f"`guards` must be JSON such as .* got '{re.escape(text)}'"):
            read_guards(text)


@pytest.fixture
def handed_over(recipes, monkeypatch):
    """What a recipe hands to its reward and its trainer; it ends there."""
    found = {}

    def reward(prm, **options):
        found["prm"], found["reward"] = prm, options
        return "the process reward"

    def trainer(**options):
        found["trainer"] = options
        raise InterruptedError

    for module, name in (("grpo", "StepGRPOTrainer"), ("ppo", "ProcessPPOTrainer"), ("rft", "RFTTrainer")):
        monkeypatch.setattr(recipes[module], name, trainer)
    monkeypatch.setattr(recipes["policy_training"], "ProcessReward", reward)
    return found


REWARD_OPTIONS = ["--aggregation", "mean", "--split_how", "blank_line", "--answer_how", "gsm8k"]
REWARD_OPTIONS += ["--require_answer", "false"]
REWARD_OPTIONS += ["--scoring_batch_size", "7", "--max_tokens_per_batch", "512", "--guards", '{"max_steps": 3}']
REWARD_OPTIONS += ["--prm_format", "math-shepherd", "--prm_dtype", "bfloat16", "--prompt_as", "problem"]
REWARD_OPTIONS += ["--combine", "weighted_sum", "--answer_weight", "0.25", "--answer_column", "value"]


@pytest.mark.parametrize("name", POLICY_RECIPES)
@pytest.mark.parametrize("is_embedded", [True, False], ids=["embedded", "own"])
def test_options_reach_the_reward_and_the_trainer(
    recipes, stages_asked_for, handed_over, tiny_policy, prm_path, tmp_path, name, is_embedded
):
    """All that the reward is built with: the options, the check of the embedded task, and what punishes."""
    task, policy = tiny_policy
    problems = write_jsonl(tmp_path / "problems.jsonl", [{"prompt": "1+1", "answer": "2", "value": "2"}])
    arguments = ["--task", "arithmetic", "--num_rows", "3", "--eval_split", "validation", "--num_eval_rows", "2"]
    if not is_embedded:
        arguments = ["--model_name_or_path", policy, "--prm_path", str(prm_path), "--dataset_path", problems]
    arguments += ["--output_dir", str(tmp_path / "out" / name), *CPU, *REWARD_OPTIONS]
    with pytest.raises(InterruptedError):
        recipes[name].main([*arguments, "--use_peft", "true", "--lora_r", "3"])

    assert handed_over["prm"] == str(prm_path)
    assert handed_over["reward"] == {
        "aggregation": "mean",
        "split_how": "blank_line",
        "answer_how": "gsm8k",
        "require_answer": False,
        "is_well_formed": task.is_well_formed if is_embedded else None,
        "batch_size": 7,
        "max_tokens_per_batch": 512,
        "format": "math-shepherd",
        "dtype": "bfloat16",
        "prompt_as": "problem",
        "combine": "weighted_sum",
        "answer_column": "value",
        "answer_weight": 0.25,
        "guards": StepGuards(max_steps=3),
        # A policy must not be paid for malformed completions; rejection sampling never selects what has no score.
        "reward_if_malformed": None if name == "rft" else 0.0,
    }
    given = handed_over["trainer"]
    rewards = given["reward_funcs"]
    if name == "rft":
        assert rewards == "the process reward"
    else:
        assert rewards[0] == "the process reward" and rewards[1].answer_how == "gsm8k" and len(rewards) == 2
    assert given["args"].output_dir == str(tmp_path / "out" / name)
    assert given["peft_config"].r == 3
    assert given["model"].config._name_or_path == given["processing_class"].name_or_path == policy
    if is_embedded:
        assert given["train_dataset"].to_list() == task.dataset("train", 3).to_list()
        assert given["eval_dataset"].to_list() == task.dataset("validation", 2).to_list()
    else:
        assert given["train_dataset"].to_list() == [{"prompt": "1+1\n", "answer": "2", "value": "2"}]
        assert given["eval_dataset"] is None


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_malformed_completions_without_a_reward(recipes, stages_asked_for, handed_over, tmp_path, name):
    arguments = ["--task", "arithmetic", "--output_dir", str(tmp_path / "out" / name), *CPU]
    with pytest.raises(InterruptedError):
        recipes[name].main([*arguments, "--reward_if_malformed", "null"])
    assert handed_over["reward"]["reward_if_malformed"] is None


@pytest.mark.parametrize("name", POLICY_RECIPES)
def test_a_prm_that_does_not_say_its_layout(recipes, handed_over, tiny_policy, tmp_path, name, monkeypatch):
    """It is known before the policy is loaded, and so is that it is needed."""
    task, policy = tiny_policy
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "1+1", "answer": "2"}])
    arguments = ["--model_name_or_path", policy, "--prm_path", policy, "--dataset_path", rows, *CPU]
    arguments += ["--output_dir", str(tmp_path / name)]
    with monkeypatch.context() as patch:
        patch.setattr(recipes[name], "load_policy", None)
        with pytest.raises((ValueError, FileNotFoundError), match="`--prm_format`"):
            recipes[name].main(arguments)
    with pytest.raises(InterruptedError):
        recipes[name].main([*arguments, "--prm_format", "math-shepherd"])
    assert handed_over["reward"]["format"] == "math-shepherd"


@pytest.mark.parametrize("option", [("--prm_format", "trl"), ("--prm_dtype", "bfloat16")])
def test_a_shared_base_is_loaded_as_the_policy(recipes, tmp_path, option):
    arguments = ["--output_dir", str(tmp_path), "--share_base", "true", "--use_peft", "true", *CPU, *option]
    with pytest.raises(ValueError, match=f"`{option[0][2:]}` is how a PRM of its own is loaded, got '{option[1]}'"):
        recipes["rft"].main(arguments)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_there_are_no_guards_unless_given(recipes, stages_asked_for, handed_over, tmp_path, name):
    with pytest.raises(InterruptedError):
        recipes[name].main(["--task", "arithmetic", "--output_dir", str(tmp_path / "out" / name), *CPU])
    assert handed_over["reward"]["guards"] is None
    assert handed_over["reward"]["reward_if_malformed"] == 0.0


@pytest.fixture
def hand_over(recipes, handed_over, tiny_policy, prm_path, tmp_path):
    """Runs a recipe of reinforcement learning on rows up to its trainer; returns what that is given."""

    def hand_over(name, rows, *more, eval_rows=None):
        arguments = ["--model_name_or_path", tiny_policy[1], "--prm_path", str(prm_path), "--output_dir"]
        arguments += [str(tmp_path / name), "--dataset_path", write_jsonl(tmp_path / "rows.jsonl", rows), *CPU]
        if eval_rows is not None:
            arguments += ["--eval_dataset_path", write_jsonl(tmp_path / "eval_rows.jsonl", eval_rows)]
        with pytest.raises(InterruptedError):
            recipes[name].main([*arguments, *more])
        return handed_over["trainer"]

    return hand_over


ROW = {"prompt": "1+1", "answer": "2"}


@pytest.mark.parametrize("name", ["grpo", "ppo"])
class TestAnswers:
    """What can be compared is known before the policy is loaded."""

    def refused(self, recipes, monkeypatch, hand_over, message, *arguments, **rows):
        monkeypatch.setattr(recipes[arguments[0]], "load_policy", None)
        with pytest.raises(ValueError, match=message):
            hand_over(*arguments, **rows)

    def test_rows_without_answers(self, name, hand_over, caplog):
        """The process reward is enough to train with."""
        for rows in ([{"prompt": "1+1"}], [{"prompt": "1+1", "answer": None}, {"prompt": "1+2", "answer": None}]):
            caplog.clear()
            given = hand_over(name, rows)
            assert given["reward_funcs"] == ["the process reward"]
            assert "The rows have no answers in the column 'answer'" in caplog.text
        given = hand_over(name, [{"prompt": "1+1"}], "--reward_weights", "1.0", "0.0")
        assert given["args"].reward_weights == [1.0]  # the answers were to be watched only

    def test_a_weight_for_what_is_missing(self, name, recipes, hand_over, monkeypatch):
        self.refused(
            recipes, monkeypatch, hand_over, "`reward_weights` gives right answers the weight 1, but the rows have no",
            name, [{"prompt": "1+1"}], "--reward_weights", "0.0", "1.0",
        )  # fmt: skip

    def test_some_that_cannot_be_read(self, name, hand_over, caplog):
        rows = [ROW, {"prompt": "1+2", "answer": "three"}, {"prompt": "1+3", "answer": "four"}, {"prompt": "1+4"}]
        given = hand_over(name, rows, "--answer_how", "gsm8k", eval_rows=[ROW])
        assert isinstance(given["reward_funcs"][1], AnswerReward)
        assert "2 of 3 answers in the column 'answer' of the rows to train on cannot be read" in caplog.text
        assert "`answer_how: gsm8k` (row 1: 'three')" in caplog.text and "held-out" not in caplog.text

    def test_none_that_can_be_read(self, name, recipes, hand_over, monkeypatch):
        message = "2 of 2 answers in the column 'answer' of the rows to train on cannot be read .* Set `answer_how`"
        rows = [{"prompt": "1+1", "answer": "two"}, {"prompt": "1+2", "answer": "three"}]
        self.refused(recipes, monkeypatch, hand_over, message, name, rows, "--answer_how", "gsm8k")

    def test_held_out_rows_without_answers(self, name, recipes, hand_over, monkeypatch):
        message = "The held-out rows have no answers in the column 'answer', which the rows to train on have"
        self.refused(recipes, monkeypatch, hand_over, message, name, [ROW], eval_rows=[{"prompt": "1+2"}])

    def test_another_column(self, name, handed_over, hand_over):
        given = hand_over(name, [{"prompt": "1+1", "value": "2"}], "--answer_column", "value")
        assert given["reward_funcs"][1].answer_column == "value"
        assert handed_over["reward"]["answer_column"] == "value"

    def test_to_combine_with(self, name, recipes, hand_over, monkeypatch):
        message = "`combine` needs reference answers, and the rows to train on have none in the column 'answer'"
        self.refused(recipes, monkeypatch, hand_over, message, name, [{"prompt": "1+1"}], "--combine", "gate")
        rows, message = [ROW, {"prompt": "1+2", "answer": "three"}], "1 of 2 answers .* cannot be read"
        self.refused(
            recipes, monkeypatch, hand_over, message, name, rows, "--combine", "gate", "--answer_how", "gsm8k"
        )


def test_rft_needs_each_answer_that_it_compares(recipes, handed_over, tiny_policy, prm_path, tmp_path, monkeypatch):
    good, bad = ({"prompt": f"1+{answer}", "answer": answer} for answer in ("2", "three"))
    paths = {n: write_jsonl(tmp_path / f"{n}.jsonl", rows) for n, rows in (("good", [good]), ("bad", [good, bad]))}
    arguments = ["--model_name_or_path", tiny_policy[1], "--prm_path", str(prm_path), *CPU, "--answer_how", "gsm8k"]
    arguments += ["--output_dir", str(tmp_path / "rft")]
    with pytest.raises(InterruptedError):  # the answers of rows to train on are not looked at
        recipes["rft"].main([*arguments, "--dataset_path", paths["bad"], "--eval_dataset_path", paths["good"]])
    monkeypatch.setattr(recipes["rft"], "load_policy", None)
    message = "1 of 2 answers in the column 'answer' of the {} cannot be read by `answer_how: gsm8k`"
    with pytest.raises(ValueError, match=message.format("held-out rows")):
        recipes["rft"].main([*arguments, "--dataset_path", paths["good"], "--eval_dataset_path", paths["bad"]])
    with pytest.raises(ValueError, match=message.format("rows to train on")):
        recipes["rft"].main([*arguments, "--dataset_path", paths["bad"], "--selection", "correct"])


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_evaluation_at_the_start(name, hand_over):
    """Where there is something to evaluate with, unless the user says otherwise."""
    assert hand_over(name, [ROW])["args"].eval_on_start is False
    assert hand_over(name, [ROW], eval_rows=[ROW])["args"].eval_on_start is True
    given = hand_over(name, [ROW], "--eval_on_start", "false", eval_rows=[ROW])
    assert given["args"].eval_on_start is False and len(given["eval_dataset"]) == 1
    assert hand_over(name, [ROW], "--eval_on_start", "true")["args"].eval_on_start is True


@pytest.mark.parametrize("name", POLICY_RECIPES)
def test_code_of_a_checkpoint_is_run_where_it_is_trusted(
    recipes, handed_over, stages_asked_for, tmp_path, name, monkeypatch
):
    loaded = []

    def load_policy(model_args, trust_remote_code=False):
        loaded.append(trust_remote_code)
        raise InterruptedError

    monkeypatch.setattr(recipes[name], "load_policy", load_policy)
    for more in ([], ["--trust_remote_code", "true"]):
        with pytest.raises(InterruptedError):
            recipes[name].main(["--task", "arithmetic", "--output_dir", str(tmp_path / name), *CPU, *more])
    assert loaded == [False, True]


@pytest.mark.parametrize("given", ["policy", "prm", "other"])
def test_what_the_critic_begins_as(recipes, stages_asked_for, handed_over, prm_path, tmp_path, given):
    (tmp_path / "other").mkdir()
    other = str(tmp_path / "other")
    critic = other if given == "other" else given
    with pytest.raises(InterruptedError):
        recipes["ppo"].main(["--task", "arithmetic", "--output_dir", str(tmp_path / "ppo"), "--critic", critic, *CPU])
    assert handed_over["trainer"]["critic"] == {"policy": None, "prm": str(prm_path), "other": other}[given]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (POLICY_RECIPES, ["--guards", "{bad"], "`guards` must be JSON such as .* got '{bad'"),
        (POLICY_RECIPES, ["--guards", '{"max_step": 3}'], "`guards` must be one of .*Did you mean 'max_steps'"),
        (POLICY_RECIPES, ["--guards", '{"max_steps": 0}'], "`max_steps` must be at least 1"),
        (("grpo", "ppo"), ["--answer_how", "gsm8"], "`answer_how` must be one of .* Did you mean 'gsm8k'"),
        (("ppo",), ["--critic", "prmm"], r"`critic` must be 'policy', 'prm', .*\(org/name\), got 'prmm'"),
        (("ppo",), ["--critic", "./no/critic"], "`critic` must be an existing directory .*got './no/critic'"),
        (("rft",), ["--share_base", "true"], "`share_base` puts two adapters on one base model, got no `use_peft`"),
        (("rft",), ["--share_base", "true", "--use_peft", "true"], "`share_base` needs a PRM that is an adapter"),
        (POLICY_RECIPES, ["--scoring_batch_size", "0"], "`scoring_batch_size` must be at least 1, got 0"),
        (POLICY_RECIPES, ["--max_tokens_per_batch", "0"], "`max_tokens_per_batch` must be at least 1, got 0"),
        (POLICY_RECIPES, ["--prm_format", "trll"], "`prm_format` must be one of .* Did you mean 'trl'"),
        (POLICY_RECIPES, ["--prm_dtype", "half16"], "`prm_dtype` must be 'auto' or a precision .*got 'half16'"),
        (POLICY_RECIPES, ["--prompt_as", "chats"], "`prompt_as` must be one of .* Did you mean 'chat'"),
        (POLICY_RECIPES, ["--combine", "gated"], "`combine` must be one of .* Did you mean 'gate'"),
        (POLICY_RECIPES, ["--answer_weight", "1.5"], "`answer_weight` must be between 0 and 1, got 1.5"),
        (POLICY_RECIPES, ["--reward_if_malformed", "nan"], "`reward_if_malformed` must be a finite number or null"),
        (POLICY_RECIPES, ["--aggregation", "minn"], "`aggregation` must be one of 'min'"),
    ],
)
def test_bad_options_are_refused_before_the_stages(recipes, stages_asked_for, tmp_path, names, options, message):
    """The stages take minutes."""
    for name in names:
        arguments = ["--task", "arithmetic", "--output_dir", str(tmp_path / "run" / name), *CPU]
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            recipes[name].main([*arguments, *options])
    assert stages_asked_for == [] and not (tmp_path / "run").exists()
