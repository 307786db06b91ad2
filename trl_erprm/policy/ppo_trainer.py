"""[`ProcessPPOTrainer`]: PPO with step rewards, on the rollouts of [`~trl.GRPOTrainer`].

Prompts, chat templates, reward functions, vLLM, tools, evaluation and the clipped policy loss are the parent's. What
is added: a critic ([`PolicyAndCritic`]), rewards at the ends of steps, and generalized advantage estimation over
tokens, whose result of shape (B, T) takes the place of the group's advantages. `tests/test_trl_seams.py` holds each
overridden method against the installed TRL.

How the critic is trained: `_prepare_for_training` hands policy and critic as one module to the optimizer and to
accelerate, so that they share a loop, a wrapper (DDP, ZeRO) and a checkpoint of the optimizer. Everywhere else
`self.model` is the policy alone, so saving it, sending it to vLLM and generating from it need no exception.

Departures from arXiv 2410.15115, whose shaping is used: without an outcome reward the last step keeps its own score,
as the outcome's estimate; and the last step is paid at the end-of-text token, not at its own last token.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object, is_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from trl import GRPOTrainer
from trl.trainer.utils import disable_dropout_in_model, get_config_model_id

from ..trained_weights import warn_of_lost_updates
from .advantages import clip_step_rewards, delta_step_rewards
from .critic import (
    CRITIC_FOLDER,
    PolicyAndCritic,
    is_process_reward_model,
    load_critic,
    restore_critic,
    save_critic,
)
from .generalized_advantages import (
    clipped_value_loss,
    explained_variance,
    generalized_advantages,
    masked_moments,
    place_rewards,
    whiten,
)
from .ppo_config import ProcessPPOConfig
from .process_reward import ProcessReward, completion_text
from .prompt_order import EpochSampler
from .step_tokens import completion_step_ends
from .trained_weights import restore_adapter, start_policy

logger = get_logger(__name__)


class ProcessPPOTrainer(GRPOTrainer):
    """
    PPO that is rewarded at each step of a completion, with a critic that says what to expect.

    It takes what [`~trl.GRPOTrainer`] takes. One of the reward functions may be a [`ProcessReward`]: the scores of its
    steps, shaped, are rewards at the last token of each step, that of the last step at the end of the completion. What
    the reward functions return is the outcome reward, at the last token of the completion.

    Example:

    ```python
    from trl_erprm import ProcessPPOConfig, ProcessPPOTrainer, ProcessReward

    trainer = ProcessPPOTrainer(
        model="outputs/policy",
        reward_funcs=ProcessReward("outputs/prm", reward_if_malformed=0.0),  # not to answer is no way out
        critic="outputs/prm",  # its scores are values already
        args=ProcessPPOConfig("outputs/ppo"),
        train_dataset=prompts,  # column `prompt`
    )
    trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy. Of a directory that holds an adapter, the adapter is trained on, without a `peft_config`.
        reward_funcs (`Callable` or `list[Callable]`):
            Reward functions in TRL's protocol, at most one of them a [`ProcessReward`].
        args ([`ProcessPPOConfig`], *optional*):
            Configuration.
        critic (`str` or [`~transformers.PreTrainedModel`], *optional*):
            Where the critic comes from ([`load_critic`]): the directory of a process reward model or of a critic that
            was saved beside a policy, or a loaded token classifier with one label. `None`: the policy, with a new
            head. It reads the policy's token ids, so its vocabulary must be the policy's.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapters of the policy, and of the critic (`critic_use_peft`).
        **kwargs:
            As in [`~trl.GRPOTrainer`].

    A completion without any reward (the process reward cannot judge it, and every reward function returned `None`) is
    left out of both losses. One that is cut off at the greatest length ends there, its last value is not carried on
    (`mask_truncated_completions` leaves it out). A malformed completion is one bad step where the process reward has a
    price for it.

    Saved beside the policy: `critic/` in every checkpoint, and in the directory of `save_model`. Training resumes with
    both.

    Logged metrics, beside those of [`~trl.GRPOTrainer`] and [`ProcessReward`]; of completions as they were sampled,
    over the tokens of all processes that count:

    - `values/mean`: the critic's values, and `returns/mean`, `returns/std`: what they should have been.
    - `explained_variance`: share of the variance of the returns that the values foresee (1 is perfect, 0 is a
      constant, below 0 misleads; higher is better).
    - `advantages/mean`, `advantages/std`: before whitening.
    - `step_rewards/mean`: sum of a completion's step rewards, with `step_weight`, mean over completions.
    - `outcome_rewards/mean`: outcome reward of a completion, with `outcome_weight`, mean over completions.
    - `kl`: log-ratio of policy and reference, mean of a token (lower is closer; can be below 0 for few tokens). With
      `kl_in_reward=False` it is the parent's, which is at least 0.
    - `completions/unrewarded_share`: share of completions without any reward (lower is better).
    - `completions/unmapped_share`: share of the judged completions whose text is not what their tokens say, so that
      their step rewards are lost (lower is better; above 0, look at the chat template and at `response_schema`).

    And at each update:

    - `loss/policy`, `loss/value`: the two losses, before `vf_coef` (0 for the policy during value warm-up).
    - `clip_ratio/value`: share of values whose loss was clipped.
    """

    _tag_names = ["trl", "trl-erprm", "ppo"]
    _name = "PPO"
    _paper = {"title": "Proximal Policy Optimization Algorithms", "id": "1707.06347"}

    def __init__(
        self,
        model,
        reward_funcs,
        args: ProcessPPOConfig | None = None,
        *,
        critic: str | PreTrainedModel | None = None,
        peft_config=None,
        quantization_config=None,
        **kwargs,
    ):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = ProcessPPOConfig(f"{model_name.split('/')[-1]}-PPO")
        functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        self.process_reward = _process_reward_of(functions)
        self.outcome_weight, self.step_weight = _weights(args, functions, self.process_reward)
        _check_critic(critic, args, model, peft_config, self.process_reward)
        self._rewarded: tuple | None = None
        self._value_logits: list[torch.Tensor] | None = None
        self._two_rate_optimizer: torch.optim.Optimizer | None = None
        given = kwargs.pop("processing_class", None)
        model, tokenizer = start_policy(model, given, args, peft_config, quantization_config)
        super().__init__(
            model,
            functions,
            args=args,
            processing_class=tokenizer,
            peft_config=peft_config,
            quantization_config=quantization_config,
            **kwargs,
        )
        if self._is_vlm:
            raise ValueError(
                "The critic reads text only, and the policy is a vision-language model. Train it with "
                "StepGRPOTrainer, which needs no critic."
            )
        if self.is_fsdp_enabled:
            raise ValueError(
                "ProcessPPOTrainer does not save and resume a policy with a critic under FSDP. Launch with ZeRO "
                "(accelerate_configs/zero2.yaml, zero3.yaml) or ddp.yaml."
            )
        self.critic = self._load_critic(critic, peft_config, quantization_config)
        self.policy_and_critic = PolicyAndCritic(self.model, self.critic)
        warn_of_lost_updates(self.policy_and_critic, self.accelerator)

    # The critic beside the policy

    def _load_critic(self, critic, peft_config, quantization_config) -> nn.Module:
        args = self.args
        model_init_kwargs = dict(args.model_init_kwargs or {})
        if quantization_config is not None:
            model_init_kwargs["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
            model_init_kwargs["device_map"] = None
        base = self.model.get_base_model() if is_peft_model(self.model) else self.model
        model_init_kwargs.setdefault("dtype", base.dtype)
        model_init_kwargs.setdefault("attn_implementation", base.config._attn_implementation)
        model_init_kwargs.setdefault("trust_remote_code", args.trust_remote_code)
        loaded = load_critic(
            critic,
            self.model,
            self._tokenizer,
            peft_config if args.critic_use_peft is not False else None,
            **model_init_kwargs,
        )
        loaded.config.get_text_config().pad_token_id = self._tokenizer.pad_token_id
        if args.disable_dropout:
            disable_dropout_in_model(loaded)
        if args.gradient_checkpointing:  # which layers are, and where they wait, is left to the policy
            options = {**(args.gradient_checkpointing_kwargs or {})}
            options = {name: value for name, value in options.items() if name not in ("every_n_layers", "offload")}
            loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options or None)
            if is_peft_model(loaded):
                loaded.enable_input_require_grads()
        if self.place_model_on_device and not getattr(loaded, "is_quantized", False):  # else it is where it was loaded
            self._move_model_to_device(loaded, args.device)
        return loaded

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        policy = self.model
        if self.model_wrapped is self.model:
            self.model_wrapped = self.policy_and_critic
        self.model = self.policy_and_critic
        try:
            # Loading waits until the policy is the model again: it asks whether that has adapters.
            model, train_dataloader = super()._prepare_for_training(max_steps, train_dataloader, None)
        finally:
            self.model = policy
        self.callback_handler.model = policy
        if resume_from_checkpoint is not None:
            if self.is_deepspeed_enabled:
                deepspeed_load_checkpoint(
                    self.model_wrapped, resume_from_checkpoint, load_module_strict=not is_peft_model(policy)
                )
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
            self._load_scaler(resume_from_checkpoint)
        return model, train_dataloader

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        is_given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        learning_rate = self.args.critic_learning_rate
        if learning_rate is None or optimizer is self._two_rate_optimizer:  # asked twice with DeepSpeed
            return optimizer
        if is_given:
            raise ValueError(
                "`critic_learning_rate` needs an optimizer that the trainer makes. Leave the optimizer out of the "
                "DeepSpeed configuration and of `optimizers`, or leave `critic_learning_rate` out."
            )
        of_critic = {id(parameter) for parameter in self.critic.parameters()}
        groups = []
        for group in optimizer.param_groups:
            for is_critic in (False, True):
                parameters = [p for p in group["params"] if (id(p) in of_critic) == is_critic]
                rate = learning_rate if is_critic else group["lr"]
                groups.append({**group, "params": parameters, "lr": rate})
        optimizer.param_groups[:] = groups
        self._two_rate_optimizer = optimizer
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        of_critic = None
        if state_dict is not None:  # gathered by DeepSpeed, from the module that it trains
            of_critic = _without_prefix(state_dict, "critic.")
            state_dict = _without_prefix(state_dict, "policy.")
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            directory = Path(output_dir or self.args.output_dir) / CRITIC_FOLDER
            save_critic(self.critic, directory, of_critic)
            self._tokenizer.save_pretrained(directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        restore_adapter(self.model, resume_from_checkpoint)
        self._restore_critic(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if not self.is_deepspeed_enabled:  # whose checkpoint has both
            self._restore_critic(self.state.best_model_checkpoint)

    def _restore_critic(self, checkpoint: str) -> None:
        directory = Path(checkpoint) / CRITIC_FOLDER
        if not directory.is_dir():
            raise ValueError(
                f"{str(checkpoint)!r} has no folder {CRITIC_FOLDER!r}: it is no checkpoint of ProcessPPOTrainer. To "
                "start from its policy, give it as `model`."
            )
        restore_critic(self.critic, directory)

    # Rollouts: rewards, values, advantages

    def _get_train_sampler(self, dataset=None):
        return EpochSampler(super()._get_train_sampler(dataset), lambda: self.state.epoch)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        for name, rewards in zip(self.reward_func_names, rewards_per_func.T, strict=True):
            if rewards.isinf().any():
                raise ValueError(
                    f"The reward function {name!r} returned an infinite reward. Return a finite one, or None for a "
                    "completion that it cannot judge."
                )
        # The process reward has just judged these completions, and remembers it.
        judgements = self.process_reward.judge(prompts, completions) if self.process_reward is not None else None
        first = self.accelerator.process_index * len(prompts)
        own = rewards_per_func[first : first + len(prompts)]
        self._rewarded = completions, judgements, completion_ids_list, own
        return rewards_per_func

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        rewarded, self._rewarded = self._rewarded, None
        if not self.model.training:  # there is no value to learn, and the loss of an evaluation says nothing
            return output
        mask = output["completion_mask"]
        if "tool_mask" in output:
            mask = mask * output["tool_mask"]
        rewards, is_rewarded = self._place_rewards(rewarded, mask)
        mask = mask * is_rewarded[:, None].to(mask.dtype)
        values = self._values_of_rollouts(output)
        if self.beta != 0 and self.args.kl_in_reward:
            if "old_per_token_logps" not in output:
                output["old_per_token_logps"] = self._old_per_token_logps(output)
            log_ratio = output["old_per_token_logps"] - output["ref_per_token_logps"]
            rewards = rewards - self.beta * log_ratio * mask
            self._log_moments("kl", log_ratio, mask)
        advantages, returns = generalized_advantages(rewards, values, mask, self.args.gamma, self.args.lam)
        self._log_moments("values", values, mask, "mean")
        self._log_moments("returns", returns, mask, "mean", "std")
        self._log_moments("advantages", advantages, mask, "mean", "std")
        self._log("explained_variance", explained_variance(returns, values, mask, self._sum_over_processes))
        own = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        self._replace_logged_advantages(own)
        if self.args.whiten_advantages:
            advantages = whiten(advantages, mask, self._sum_over_processes)
        return {**output, "advantages": advantages, "old_values": values, "returns": returns, "value_mask": mask}

    def _place_rewards(self, rewarded: tuple, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rewards of each token, (B, T), and which completions have any, (B,)."""
        completions, judgements, completion_ids, rewards_per_func = rewarded
        weights = self.reward_weights.to(rewards_per_func.device)
        outcomes = (rewards_per_func * weights).nansum(dim=1) * self.outcome_weight
        has_outcome = (~rewards_per_func.isnan() & (weights * self.outcome_weight != 0)).any(dim=1)
        rewards = place_rewards([[outcome] for outcome in outcomes.tolist()], [[-1]] * len(outcomes), mask)
        has_steps = torch.zeros_like(has_outcome)
        if judgements is not None and self.step_weight:
            step_rewards, ends = self._step_rewards(completions, judgements, completion_ids)
            rewards = rewards + place_rewards(step_rewards, ends, mask)
            has_steps = torch.tensor([bool(own) for own in step_rewards], device=mask.device)
            sums = torch.tensor([sum(own) for own in step_rewards], device=mask.device)
            self._log_moments("step_rewards", sums, has_steps, "mean")
        self._log_moments("outcome_rewards", outcomes, has_outcome, "mean")
        is_rewarded = has_outcome | has_steps
        self._log_moments("completions/unrewarded_share", (~is_rewarded).float(), torch.ones_like(is_rewarded))
        return rewards, is_rewarded

    def _step_rewards(self, completions, judgements, completion_ids) -> tuple[list[list[float]], list[list[int]]]:
        """Shaped rewards of each completion's steps, none where it was not judged, and the token that each is for."""
        texts = [completion_text(completion) for completion in completions]
        found = completion_step_ends(self._tokenizer, completion_ids, texts, [j.steps for j in judgements])
        price = self.process_reward.reward_if_malformed
        rewards, ends, is_judged, is_unmapped = [], [], [], []
        for judgement, own_ends in zip(judgements, found, strict=True):
            is_judged.append(bool(judgement.step_scores))
            is_unmapped.append(is_judged[-1] and own_ends is None)
            if judgement.malformed and price is not None:  # as one bad step
                rewards.append(self._shape([price]))
                ends.append([-1])
            elif is_judged[-1] and own_ends is not None:
                rewards.append(self._shape(judgement.step_scores))
                # The last step ends with the completion, end-of-text token included: else going on instead of
                # ending, which loses all of this (malformed), would cost nothing at the token where it is decided.
                ends.append([*own_ends[:-1], -1])
            else:
                rewards.append([])
                ends.append([])
        is_judged, is_unmapped = (torch.tensor(m, device=self.accelerator.device) for m in (is_judged, is_unmapped))
        self._log_moments("completions/unmapped_share", is_unmapped.float(), is_judged)
        return rewards, ends

    def _shape(self, step_scores: list[float]) -> list[float]:
        """Rewards of the steps of one completion."""
        rewards = torch.tensor([step_scores], dtype=torch.float64)
        for shaping in self.args.step_reward_shaping:
            if shaping == "clip":
                rewards = clip_step_rewards(rewards, self.args.clip_threshold)
            elif self.outcome_weight:
                rewards = delta_step_rewards(rewards)
            else:  # "delta" leaves the last step to the outcome reward; without one, it keeps its own
                rewards = delta_step_rewards(nn.functional.pad(rewards, (0, 1)))[:, :-1]
        return (self.step_weight * rewards[0]).tolist()

    def _rollout_batches(self, output: dict[str, Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Token ids and attention masks of prompts with completions, as many at once as are trained on."""
        input_ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        attention_mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        size = self.args.per_device_train_batch_size
        return zip(input_ids.split(size), attention_mask.split(size), strict=True)

    @torch.no_grad()
    def _values_of_rollouts(self, output: dict[str, Any]) -> torch.Tensor:
        num_values = output["completion_ids"].size(1)
        logits = []
        for input_ids, attention_mask in self._rollout_batches(output):
            with self.accelerator.autocast():
                _, of_batch = self.policy_and_critic(
                    input_ids=input_ids, attention_mask=attention_mask, num_values=num_values, with_policy=False
                )
            logits.append(of_batch)
        return self._to_values(torch.cat(logits))

    @torch.no_grad()
    def _old_per_token_logps(self, output: dict[str, Any]) -> torch.Tensor:
        """The parent leaves them out where they would equal those of the first update."""
        num_tokens = output["completion_ids"].size(1)
        return torch.cat(
            [
                self._get_per_token_logps_and_entropies(self.model, input_ids, attention_mask, num_tokens)[0]
                for input_ids, attention_mask in self._rollout_batches(output)
            ]
        )

    def _to_values(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self.args.value_head == "sigmoid" else logits

    # Updates

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        if model is self.model:  # enter where ZeRO-3 expects it
            model = self.policy_and_critic
        called = model
        if self._value_logits is not None:

            def called(**inputs):
                outputs, logits = model(**inputs, num_values=logits_to_keep)
                self._value_logits.append(logits)
                return outputs

        return super()._get_per_token_logps_and_entropies(
            called, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )

    def _compute_loss(self, model, inputs):
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        self._value_logits = []
        with self._without_kl_loss():
            policy_loss = super()._compute_loss(model, inputs)
        values = self._to_values(torch.cat(self._value_logits))
        self._value_logits = None
        mask = inputs["value_mask"]
        per_token_loss, is_clipped = clipped_value_loss(
            values, inputs["old_values"], inputs["returns"], self.args.cliprange_value
        )
        # Mean over the tokens of an accumulation window, on all processes; their number spans what was sampled.
        window = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        window = window * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        value_loss = (per_token_loss * mask).sum() / window
        if self.state.global_step < self.args.num_value_warmup_steps:
            policy_loss = 0.0 * policy_loss  # every parameter still gets a gradient, which DDP waits for
        scale = self.current_gradient_accumulation_steps
        self._log("loss/policy", self.accelerator.gather(policy_loss.detach() * scale).mean())
        self._log("loss/value", self.accelerator.gather(value_loss.detach() * scale).mean())
        self._log_moments("clip_ratio/value", is_clipped.float(), mask)
        return policy_loss + self.args.vf_coef * value_loss

    @contextlib.contextmanager
    def _without_kl_loss(self) -> Iterator[None]:
        """The parent adds the distance to the reference to the loss; not where the reward has it."""
        beta = self.beta
        if self.args.kl_in_reward:
            self.beta = 0.0
        try:
            yield
        finally:
            self.beta = beta

    # Logging

    def _sum_over_processes(self, sums: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(sums, reduction="sum")

    def _log(self, name: str, value: torch.Tensor) -> None:
        self._metrics["train" if self.model.training else "eval"][name].append(value.item())

    def _log_moments(self, name: str, values: torch.Tensor, mask: torch.Tensor, *moments: str) -> None:
        """Logs the mean as `name`, or what `moments` asks for as `name/mean` and `name/std`."""
        mean, variance = masked_moments(values, mask, self._sum_over_processes)
        for moment in moments or ("",):
            self._log(f"{name}/{moment}" if moment else name, variance.sqrt() if moment == "std" else mean)

    def _replace_logged_advantages(self, advantages: torch.Tensor) -> None:
        """The completions table has the parent's, which compare the completions of a prompt with each other."""
        everywhere = gather_object(advantages.tolist())
        logged = self._logs["advantages"]
        for _ in range(min(len(everywhere), len(logged))):
            logged.pop()
        logged.extend(everywhere)


def _process_reward_of(functions: list) -> ProcessReward | None:
    found = [function for function in functions if isinstance(function, ProcessReward)]
    if len(found) > 1:
        raise ValueError(
            f"`reward_funcs` holds {len(found)} ProcessRewards, and the steps of a completion can be rewarded by one. "
            "Keep one of them."
        )
    return found[0] if found else None


def _weights(args: ProcessPPOConfig, functions: list, process_reward: ProcessReward | None) -> tuple[float, float]:
    """Weight of the outcome reward, and of step rewards."""
    if not [function for function in functions if function is not None]:
        raise ValueError(
            "`reward_funcs` is empty: there would be no reward. Give a ProcessReward, whose step scores are rewards, "
            "or another reward function."
        )
    if process_reward is None:
        if args.outcome_weight == 0 or args.step_weight:
            raise ValueError(
                f"`outcome_weight={args.outcome_weight}` and `step_weight={args.step_weight}` want rewards of steps, "
                "but no reward function is a ProcessReward. Add one, or leave both out."
            )
        return 1.0 if args.outcome_weight is None else args.outcome_weight, 0.0
    outcome_weight = args.outcome_weight
    if outcome_weight is None:
        outcome_weight = 0.5 if len(functions) > 1 else 0.0
    step_weight = max(1.0 - outcome_weight, 0.0) if args.step_weight is None else args.step_weight
    if step_weight == outcome_weight == 0:
        raise ValueError(
            "`step_weight` is 0, and the only reward function is a ProcessReward, whose own outcome weighs 0: there "
            "would be no reward. Set `outcome_weight` above 0, or leave `step_weight` out."
        )
    return outcome_weight, step_weight


def _check_critic(critic, args: ProcessPPOConfig, model, peft_config, process_reward: ProcessReward | None) -> None:
    if critic is not None and process_reward is not None and critic is getattr(process_reward.prm, "model", None):
        raise ValueError(
            "`critic` is the very model that the ProcessReward scores with, and would be trained. Give its directory, "
            "which loads a second one."
        )
    if isinstance(critic, str | os.PathLike) and args.value_head == "linear" and is_process_reward_model(critic):
        raise ValueError(
            f"value_head='linear' takes the critic's logits for values, and those of the process reward model "
            f"{str(critic)!r} are log-odds, not values. Set value_head='sigmoid', or leave `critic` out."
        )
    if isinstance(critic, nn.Module) and critic is model:
        raise ValueError("`critic` is the policy. Leave it out: the critic then begins as a copy of the policy.")
    if args.critic_use_peft and peft_config is None:
        raise ValueError(
            "`critic_use_peft=True` gives the critic the policy's kind of adapters, and there is no `peft_config`. "
            "Give one, or leave `critic_use_peft` out."
        )


def _without_prefix(state_dict: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): weight for name, weight in state_dict.items() if name.startswith(prefix)}
