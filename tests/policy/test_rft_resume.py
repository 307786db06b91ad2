"""`RFTTrainer`: interrupted anywhere, a run goes on and ends with the numbers of one that was not."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.policy.rft_runs import Interruption, is_right, rft_config
from trl_erprm import RFTTrainer
from trl_erprm.policy import rft_trainer
from trl_erprm.rollout.transformers_engine import TransformersEngine


class TestResuming:
    @pytest.fixture(scope="class")
    @classmethod
    def uninterrupted(cls, tiny_policy, tmp_path_factory):
        task, policy = tiny_policy
        return RFTTrainer(
            policy,
            reward_funcs=is_right,
            args=rft_config(tmp_path_factory.mktemp("whole") / "run"),
            train_dataset=task.dataset("train", 24),
            eval_dataset=task.dataset("test", 8),
        ).train()

    # completions of the uninterrupted run: three evaluations of 8 prompts (1 greedy, 4 sampled), two samplings of 24
    NUM_COMPLETIONS = 3 * 8 * (1 + 4) + 2 * 24 * 4

    def test_a_second_run_reuses_everything(self, make_rft, paid, uninterrupted):
        assert make_rft().train() == uninterrupted
        assert len(paid) == self.NUM_COMPLETIONS
        paid.clear()
        calls = []
        trainer = make_rft(lambda **_: calls.append(1))
        trainer.scorers.functions[0].__name__ = "is_right"
        assert trainer.train() == uninterrupted
        assert paid == [] and calls == []
        assert trainer._weights_of == 2

    def test_the_second_run_holds_the_last_policy(self, make_rft):
        first = make_rft()
        first.train()
        second = make_rft()
        second.train()
        for name, value in first.model.state_dict().items():
            assert torch.equal(value, second.model.state_dict()[name])

    @pytest.mark.parametrize("nth_call", [2, 4])
    def test_interrupted_in_the_reward_function(self, make_rft, paid, uninterrupted, nth_call):
        """Call 1 evaluates the start, 2-3 score samples, 4 evaluates, 5-6 score samples."""
        calls = []

        def failing(**kwargs):
            calls.append(len(kwargs["completions"]))
            if len(calls) == nth_call:
                raise Interruption
            return is_right(**kwargs)

        failing.__name__ = "is_right"
        with pytest.raises(Interruption):
            make_rft(failing).train()
        assert make_rft().train() == uninterrupted
        # what was sampled was stored before it was scored
        assert len(paid) == self.NUM_COMPLETIONS

    @pytest.mark.parametrize("nth_call", [4])
    def test_interrupted_in_the_engine(self, make_rft, paid, uninterrupted, monkeypatch, nth_call):
        generate, calls = TransformersEngine.generate, []

        def failing(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == nth_call:
                raise Interruption
            return generate(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(TransformersEngine, "generate", failing)
            with pytest.raises(Interruption):
                make_rft().train()
        assert make_rft().train() == uninterrupted
        assert len(paid) == self.NUM_COMPLETIONS

    @pytest.mark.parametrize(("place", "nth_call"), [("training_step", 5), ("save_model", 3)])
    def test_interrupted_in_fine_tuning(self, make_rft, paid, uninterrupted, monkeypatch, place, nth_call):
        """In the second iteration: at its second batch of three, and when the policy was trained but not yet saved."""
        method, calls = getattr(RFTTrainer, place), []

        def failing(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == nth_call:
                raise Interruption
            return method(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(RFTTrainer, place, failing)
            with pytest.raises(Interruption):
                make_rft().train()
        assert make_rft().train() == uninterrupted
        assert len(paid) == self.NUM_COMPLETIONS

    @pytest.mark.parametrize("changes", [{}, {"measure_drift": False}])
    def test_the_same_trainer_called_again(self, make_rft, uninterrupted, monkeypatch, changes):
        """Half-trained weights are never sampled from: saved ones are loaded, those of the start if they are there."""
        training_step, calls = RFTTrainer.training_step, []

        def failing(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise Interruption
            return training_step(self, *args, **kwargs)

        trainer = make_rft(**changes)
        monkeypatch.setattr(RFTTrainer, "training_step", failing)
        with pytest.raises(Interruption):
            trainer.train()
        if changes:
            with pytest.raises(RuntimeError, match="Build the trainer anew and call `train` again"):
                trainer.train()
        else:
            assert trainer.train() == uninterrupted

    def test_random_numbers_of_fine_tuning(self, make_rft, tiny_policy, tmp_path, monkeypatch):
        """With dropout, an interrupted run draws what an uninterrupted one draws."""
        policy = tmp_path / "policy"
        shutil.copytree(tiny_policy[1], policy)
        config = json.loads((policy / "config.json").read_text())
        (policy / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.3}))
        expected = make_rft(model=str(policy), held_out=0, output_dir=tmp_path / "whole").train()
        fine_tune, calls = RFTTrainer._fine_tune, []

        def failing(self, *args):
            calls.append(1)
            if len(calls) == 2:
                raise Interruption
            return fine_tune(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(RFTTrainer, "_fine_tune", failing)
            with pytest.raises(Interruption):
                make_rft(model=str(policy), held_out=0).train()
        trainer = make_rft(model=str(policy), held_out=0)
        torch.rand(7)
        assert trainer.train() == expected

    def test_interrupted_in_evaluation(self, make_rft, paid, uninterrupted, monkeypatch):
        """After the samples of the evaluation, before its numbers are written."""

        def failing(*args, **kwargs):
            raise Interruption

        with monkeypatch.context() as patch:
            patch.setattr(rft_trainer, "held_out_metrics", failing)
            with pytest.raises(Interruption):
                make_rft().train()
        assert make_rft().train() == uninterrupted
        assert len(paid) == self.NUM_COMPLETIONS

    def test_batch_sizes_of_sampling_change_nothing(self, make_rft, uninterrupted):
        """Neither for a whole run nor between an interrupted run and its continuation."""
        assert make_rft(generation_batch_size=7).train() == uninterrupted

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"num_samples": 5}, "holds another run: `arguments.num_samples` is 4 there and 5 now"),
            ({"learning_rate": 1e-4}, "`arguments.learning_rate` is 0.001 there and 0.0001 now"),
            ({"seed": 1}, "`arguments.seed` is 42 there and 1 now"),
            ({"prompts": 23}, "holds another run: `prompts` is "),
            ({"held_out": 7}, "holds another run: `held_out_prompts` is "),
            ({"reward": lambda **_: []}, r"`reward_funcs` is \['is_right'\] there and \['<lambda>'\] now"),
        ],
    )
    def test_another_run_is_refused(self, make_rft, paid, changes, message):
        trainer = make_rft(prompts=24, held_out=8)
        rft_trainer.open_run(trainer.args.output_dir, trainer._identity(), kind="rft")
        with pytest.raises(ValueError, match=message):
            make_rft(**changes).train()
        assert paid == []

    def test_other_weights_at_the_same_path_are_refused(self, make_rft, tiny_policy, tmp_path, paid):
        policy = str(tmp_path / "policy")
        shutil.copytree(tiny_policy[1], policy)
        trainer = make_rft(model=policy)
        rft_trainer.open_run(trainer.args.output_dir, trainer._identity(), kind="rft")
        model = AutoModelForCausalLM.from_pretrained(policy)
        model.model.norm.weight.data[0] += 1e-3
        model.save_pretrained(policy)
        with pytest.raises(ValueError, match="holds another run: `model` is "):
            make_rft(model=policy).train()
        assert paid == []

    def test_what_does_not_change_the_numbers_is_no_other_run(self, make_rft):
        trainer = make_rft()
        rft_trainer.open_run(trainer.args.output_dir, trainer._identity(), kind="rft")
        other = make_rft(generation_batch_size=7, logging_steps=5, disable_tqdm=True, dataloader_num_workers=0)
        assert rft_trainer.open_run(other.args.output_dir, other._identity(), kind="rft")

    def test_a_fine_tuning_goes_on_at_its_checkpoint(self, make_rft, uninterrupted, monkeypatch, tmp_path):
        """The steps before the checkpoint are not done again, and the numbers are those of a run without one."""
        training_step, steps = RFTTrainer.training_step, []

        def failing(self, *args, **kwargs):
            steps.append(self.state.global_step)
            if len(steps) == 6:  # the last of the second iteration
                raise Interruption
            return training_step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(RFTTrainer, "training_step", failing)
            with pytest.raises(Interruption):
                make_rft(save_strategy="steps", save_steps=1).train()
            assert (tmp_path / "run/iteration-2/checkpoints/checkpoint-2").exists()
            assert make_rft(save_strategy="steps", save_steps=1).train() == uninterrupted
        assert steps == [0, 1, 2, 0, 1, 2, 2]
        assert not list((tmp_path / "run").glob("*/checkpoints"))

    def test_an_iteration_of_another_run(self, make_rft, tmp_path, paid):
        """A directory that was copied from elsewhere, with another policy's samples."""
        make_rft(num_iterations=1, held_out=0, num_samples=2, output_dir=tmp_path / "other").train()
        make_rft(num_iterations=1, held_out=0).train()
        shutil.rmtree(tmp_path / "run/iteration-1")
        shutil.copytree(tmp_path / "other/iteration-1", tmp_path / "run/iteration-1")
        paid.clear()
        with pytest.raises(ValueError, match="iteration-1' holds another run: `run` is '.*' there and '.*' now"):
            make_rft(num_iterations=1, held_out=0).train()
        assert paid == []

    def test_other_batches_of_the_same_size_are_no_other_run(self, make_rft, uninterrupted):
        """What counts is the whole batch of a step, not how processes and accumulation share it."""
        make_rft().train()
        again = make_rft(per_device_train_batch_size=4, gradient_accumulation_steps=2)
        assert again.train() == uninterrupted
        with pytest.raises(ValueError, match="`arguments.train_batch_size` is 8 there and 4 now"):
            make_rft(per_device_train_batch_size=4).train()
