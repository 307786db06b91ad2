"""[`StepGRPOTrainer`]: GRPO with an advantage for each step instead of one for the whole completion.

Four methods of [`~trl.GRPOTrainer`] are overridden, and all call their parent: `_calculate_rewards`, to see the
completions as text, `_generate_and_score_completions`, to put advantages of shape (B, T) in the place of those of
shape (B,), which the loss takes alike, `_get_train_sampler`, so that a resumed run meets the prompts in its order, and
`_load_from_checkpoint`, so that it goes on with the trained adapter. Sampling, vLLM, rewards, reference model and loss
are the parent's. `tests/test_trl_seams.py` holds each against the installed TRL.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer
from trl.trainer.utils import get_config_model_id

from ..steps import Step
from ..trained_weights import warn_of_lost_updates
from .advantages import (
    advantages_per_token,
    clip_step_rewards,
    delta_step_rewards,
    min_form_advantages,
    reward_to_go_advantages,
    soft_advantages,
)
from .process_reward import Judgement, ProcessReward, completion_text
from .prompt_order import EpochSampler
from .step_grpo_config import StepGRPOConfig
from .step_tokens import completion_step_indices
from .trained_weights import restore_adapter, start_policy

logger = get_logger(__name__)


class StepGRPOTrainer(GRPOTrainer):
    """
    GRPO that learns from the steps of a completion: which of them were good, not only whether the whole was.

    It takes what [`~trl.GRPOTrainer`] takes. One of the reward functions is a [`ProcessReward`]; the scores of its
    steps become an advantage for each token, by the estimator that the configuration names. The rewards of all
    functions are used as ever, too: `outcome_weight` says how much.

    Example:

    ```python
    from trl_erprm import ProcessReward, StepGRPOConfig, StepGRPOTrainer

    trainer = StepGRPOTrainer(
        model="outputs/policy",
        reward_funcs=ProcessReward("outputs/prm", reward_if_malformed=0.0),  # not to answer is no way out
        args=StepGRPOConfig("outputs/step-grpo", advantage_estimator="reward_to_go"),
        train_dataset=prompts,  # column `prompt`
    )
    trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy. Of a directory that holds an adapter, the adapter is trained on, without a `peft_config`.
        reward_funcs (`Callable` or `list[Callable]`):
            Reward functions in TRL's protocol, exactly one of them a [`ProcessReward`].
        args ([`StepGRPOConfig`], *optional*):
            Configuration.
        **kwargs:
            As in [`~trl.GRPOTrainer`].

    A completion that the process reward cannot judge, and one whose tokens do not say the text that was judged, gets
    no advantages for its steps, and counts in no statistic of its group.

    The table of completions (`log_completions`) shows GRPOTrainer's own advantages, one a completion.

    Logged metrics, beside those of [`~trl.GRPOTrainer`] and [`ProcessReward`]:

    - `step_advantages/mean`, `step_advantages/std`: over the steps of all completions that were sampled at once,
      before `step_weight`. A mean far from 0 says that the estimator pushes the policy as a whole.
    - `step_advantages/unmapped_share`: share of the judged completions whose text is not what their tokens say
      (lower is better; above 0, look at the chat template and at `response_schema`).
    """

    _tag_names = ["trl", "trl-erprm", "step-grpo"]
    _name = "StepGRPO"

    def __init__(self, model, reward_funcs, args: StepGRPOConfig | None = None, **kwargs):
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = StepGRPOConfig(f"{model_name.split('/')[-1]}-StepGRPO")
        functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        process_rewards = [function for function in functions if isinstance(function, ProcessReward)]
        if len(process_rewards) != 1:
            raise ValueError(
                f"`reward_funcs` must hold exactly one ProcessReward, whose step scores become advantages; it holds "
                f"{len(process_rewards)} among {len(functions)}. For outcome rewards alone, use trl.GRPOTrainer."
            )
        self.process_reward = process_rewards[0]
        self.outcome_weight = args.outcome_weight
        if self.outcome_weight is None:
            self.outcome_weight = 1.0 if len(functions) > 1 else 0.0
        self._judged: tuple | None = None
        self.eta: float | None = None
        if args.advantage_estimator == "soft_advantage":
            self.eta = _eta_of(args.eta, getattr(self.process_reward.prm, "eta", None))
        adapters = kwargs.get("peft_config"), kwargs.get("quantization_config")
        model, kwargs["processing_class"] = start_policy(model, kwargs.get("processing_class"), args, *adapters)
        super().__init__(model, functions, args=args, **kwargs)
        warn_of_lost_updates(self.model, self.accelerator)
        if self.eta is not None and not _goes_with(args.beta, self.eta):
            logger.warning(
                f"'soft_advantage' is the best policy's log-ratio where `beta` is 1 / eta = {_inverse(self.eta):g}; "
                f"here `beta` is {args.beta:g}, so the policy is pulled {_direction(args.beta, self.eta)}."
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if not self.is_fsdp_enabled:  # whose weights are in parts by now, and loaded from a file of their own
            restore_adapter(self.model, resume_from_checkpoint)

    def _get_train_sampler(self, dataset=None):
        return EpochSampler(super()._get_train_sampler(dataset), lambda: self.state.epoch)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.args.advantage_estimator != "outcome":
            # The process reward has just judged these completions, and remembers it.
            self._judged = completions, self.process_reward.judge(prompts, completions), completion_ids_list
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self._judged is None:
            return output
        scores, step_index = self._scores_and_tokens(output["completion_ids"])
        self._judged = None
        step_advantages = self._step_advantages(scores)
        own = advantages_per_token(step_advantages, step_index)
        weighted = self.outcome_weight * output["advantages"].unsqueeze(1) + self.args.step_weight * own
        return {**output, "advantages": weighted}

    def _scores_and_tokens(self, completion_ids: torch.Tensor) -> tuple[list[list[float]], torch.Tensor]:
        """Scores of the steps of each completion, none where it was not judged; and the step of each token, (B, T)."""
        completions, judgements, ids = self._judged
        texts = [completion_text(completion) for completion in completions]
        judged = [self._scored_steps(j, text) for j, text in zip(judgements, texts, strict=True)]
        found = completion_step_indices(self._tokenizer, ids, texts, [steps for steps, _ in judged])
        scores, rows, num_unmapped = [], [], 0
        for (_, own), indices in zip(judged, found, strict=True):
            if own and indices is None:
                own, num_unmapped = [], num_unmapped + 1
            scores.append(own)
            rows.append(torch.tensor([-1 if k is None else k for k in (indices if own else [])], dtype=torch.long))
        padded = pad_sequence(rows, batch_first=True, padding_value=-1)
        step_index = completion_ids.new_full(completion_ids.shape, -1)
        step_index[:, : padded.size(1)] = padded.to(completion_ids.device)
        self._log_share("step_advantages/unmapped_share", num_unmapped, sum(map(bool, scores)) + num_unmapped)
        return scores, step_index

    def _scored_steps(self, judgement: Judgement, text: str) -> tuple[list[Step], list[float]]:
        """Steps with their scores. A malformed completion is one bad step where there is a reward for such."""
        if judgement.malformed and self.process_reward.reward_if_malformed is not None:
            return [Step(text, 0, len(text))], [self.process_reward.reward_if_malformed]
        return judgement.steps, judgement.step_scores or []

    def _step_advantages(self, step_scores: list[list[float]]) -> torch.Tensor:
        """Advantages of the steps of this process's completions, (B, S), from the groups of all processes."""
        mode = "train" if self.model.training else "eval"
        num_generations = self.num_generations if mode == "train" else self.num_generations_eval
        everywhere = [torch.tensor(own, dtype=torch.float32) for own in gather_object(step_scores)]
        scores = pad_sequence(everywhere, batch_first=True, padding_value=torch.nan).to(self.accelerator.device)
        if scores.size(1) == 0:  # not one completion could be judged
            return scores[: len(step_scores)]
        advantages = self._estimate(scores, num_generations)
        values = advantages[~advantages.isnan()]
        self._metrics[mode]["step_advantages/mean"].append(values.mean().item())
        self._metrics[mode]["step_advantages/std"].append(values.std(correction=0).item())
        first = self.accelerator.process_index * len(step_scores)
        return advantages[first : first + len(step_scores)]

    def _estimate(self, scores: torch.Tensor, num_generations: int) -> torch.Tensor:
        args = self.args
        if args.advantage_estimator == "min_form":
            return min_form_advantages(scores, num_generations, args.min_form_temperature)
        if args.advantage_estimator == "soft_advantage":
            return soft_advantages(scores, num_generations, self.eta)
        rewards = scores
        for shaping in args.step_reward_shaping:
            rewards = (
                clip_step_rewards(rewards, args.clip_threshold) if shaping == "clip" else delta_step_rewards(rewards)
            )
        return reward_to_go_advantages(rewards, num_generations, self.scale_rewards)

    def _log_share(self, name: str, count: int, total: int) -> None:
        counts = self.accelerator.gather(torch.tensor([[count, total]], device=self.accelerator.device)).sum(0)
        if counts[1] > 0:
            mode = "train" if self.model.training else "eval"
            self._metrics[mode][name].append((counts[0] / counts[1]).item())


def _eta_of(given: float | None, saved: float | None) -> float:
    """The entropy parameter of the scores: as configured, or as the process reward model was saved with."""
    if given is None and saved is None:
        raise ValueError(
            "`eta` must be given for 'soft_advantage' with this process reward model, which was saved without one (it "
            "was trained on labels as they were). Set `eta` to the value that made its labels."
        )
    if given is not None and saved is not None and given != saved and not math.isclose(given, saved, rel_tol=1e-6):
        raise ValueError(
            f"`eta` is {given:g}, but the process reward model was trained with eta = {saved:g}, which its scores are "
            "values of. Leave `eta` out."
        )
    return saved if given is None else given


def _inverse(eta: float) -> float:
    return math.inf if eta == 0 else 1 / eta


def _goes_with(beta: float, eta: float) -> bool:
    return math.isclose(beta, _inverse(eta), rel_tol=1e-3, abs_tol=1e-9)


def _direction(beta: float, eta: float) -> str:
    if beta < _inverse(eta):
        return "past the optimum, towards the single best step"
    return "back to the reference more than the scores say"
