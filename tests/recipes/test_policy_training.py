"""What `rft.py`, `grpo.py` and `ppo.py` share: where prompts, policy and PRM come from, and the reward."""

import re
import sys

import pytest

from tests.recipes.commands import CPU, write_jsonl
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
    script_args = module.RewardArguments(prm_path="org/prm")
    for path, eval_path in ((worked, plain), (plain, worked), (plain, None)):
        data_args = DataArguments(dataset_path=path, eval_dataset_path=eval_path)
        task = module.load_task("grpo", script_args, None, None, data_args)
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
    for module in ("policy_training", "rft"):
        monkeypatch.setattr(recipes[module], "ProcessReward", reward)
    return found


REWARD_OPTIONS = ["--aggregation", "mean", "--split_how", "blank_line", "--answer_how", "gsm8k"]
REWARD_OPTIONS += ["--scoring_batch_size", "7"]
# What the rewards of reinforcement learning have beside: without it, policies are paid for malformed completions.
GUARDED = {"guards": StepGuards(max_steps=3), "reward_if_malformed": 0.0}


@pytest.mark.parametrize("name", POLICY_RECIPES)
@pytest.mark.parametrize("is_embedded", [True, False], ids=["embedded", "own"])
def test_options_reach_the_reward_and_the_trainer(
    recipes, stages_asked_for, handed_over, tiny_policy, prm_path, tmp_path, name, is_embedded
):
    """All that the reward is built with: the options, the check of the embedded task, and what punishes."""
    task, policy = tiny_policy
    problems = write_jsonl(tmp_path / "problems.jsonl", [{"prompt": "1+1", "answer": "2"}])
    arguments = ["--task", "arithmetic", "--num_rows", "3", "--eval_split", "validation", "--num_eval_rows", "2"]
    if not is_embedded:
        arguments = ["--model_name_or_path", policy, "--prm_path", str(prm_path), "--dataset_path", problems]
    arguments += ["--output_dir", str(tmp_path / "out" / name), *CPU, *REWARD_OPTIONS]
    if name != "rft":
        arguments += ["--guards", '{"max_steps": 3}']
    with pytest.raises(InterruptedError):
        recipes[name].main([*arguments, "--use_peft", "true", "--lora_r", "3"])

    assert handed_over["prm"] == str(prm_path)
    assert handed_over["reward"] == {
        "aggregation": "mean",
        "split_how": "blank_line",
        "answer_how": "gsm8k",
        "is_well_formed": task.is_well_formed if is_embedded else None,
        "batch_size": 7,
        **(GUARDED if name != "rft" else {}),  # rejection sampling never selects what has no score
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
        assert given["train_dataset"].to_list() == [{"prompt": "1+1\n", "answer": "2"}]
        assert given["eval_dataset"] is None


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_there_are_no_guards_unless_given(recipes, stages_asked_for, handed_over, tmp_path, name):
    with pytest.raises(InterruptedError):
        recipes[name].main(["--task", "arithmetic", "--output_dir", str(tmp_path / "out" / name), *CPU])
    assert handed_over["reward"]["guards"] is None
    assert handed_over["reward"]["reward_if_malformed"] == 0.0


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
        (("grpo", "ppo"), ["--guards", "{bad"], "`guards` must be JSON such as .* got '{bad'"),
        (("grpo", "ppo"), ["--guards", '{"max_step": 3}'], "`guards` must be one of .*Did you mean 'max_steps'"),
        (("grpo", "ppo"), ["--guards", '{"max_steps": 0}'], "`max_steps` must be at least 1"),
        (("grpo", "ppo"), ["--answer_how", "gsm8"], "`answer_how` must be one of .* Did you mean 'gsm8k'"),
        (("ppo",), ["--critic", "prmm"], r"`critic` must be 'policy', 'prm', .*\(org/name\), got 'prmm'"),
        (("ppo",), ["--critic", "./no/critic"], "`critic` must be an existing directory .*got './no/critic'"),
        (("rft",), ["--share_base", "true"], "`share_base` puts two adapters on one base model, got no `use_peft`"),
        (("rft",), ["--share_base", "true", "--use_peft", "true"], "`share_base` needs a PRM that is an adapter"),
        (POLICY_RECIPES, ["--scoring_batch_size", "0"], "`scoring_batch_size` must be at least 1, got 0"),
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
