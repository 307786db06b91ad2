"""Settings of the Monte-Carlo labeler."""

from dataclasses import dataclass, field
from typing import Any

from trl_erprm.rollout.engine import SamplingOptions
from trl_erprm.steps import check_split_mode
from trl_erprm.verify import check_answer_convention

from .estimators import check_eta

__all__ = ["LabelingConfig"]


@dataclass
class LabelingConfig:
    r"""Settings of [`~labeling.monte_carlo.MonteCarloLabeler`]; plain values, so that `TrlParser` can read them.

    Args:
        num_rollouts (`int`, *optional*, defaults to `16`):
            Rollouts of each prefix. Default: the paper (arXiv 2412.11006).
        eta (`float`, *optional*, defaults to `1.0`):
            Turns the counts of a prefix into its label; see
            [`~labeling.estimators.entropy_regularized_value_from_counts`]. 0 is the soft label, `inf` the hard label.
            It needs no rollout: [`~labeling.monte_carlo.relabel`] changes it afterwards. Default: the reference code
            (`calculate_score.py --coefficient`, default 1); we found no value in the paper.
        temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of the rollouts. Default: the paper.
        top_p (`float`, *optional*, defaults to `1.0`):
            Nucleus of the rollouts, in (0, 1]. Default: off, as in the reference code.
        top_k (`int`, *optional*, defaults to `0`):
            Most probable tokens that rollouts draw from; 0 is off. Default: off, as in the reference code.
        max_new_tokens (`int`, *optional*, defaults to `1024`):
            Most tokens of a rollout or of a sampled solution. Default: the reference code.
        stop (`list[str]`, *optional*, defaults to `[]`):
            Texts before which rollouts and solutions end, for policies that go on after the answer. Default: none, as
            in the reference code.
        split_how (`str`, *optional*, defaults to `"newline"`):
            How a `completion` and a sampled solution are split into steps; see [`~steps.split_steps`]. Default: one
            step a line, as in the data of Math-Shepherd.
        step_separator (`str`, *optional*, defaults to `"\n"`):
            Put behind each step of `completions`, before the policy continues. Not used for text that is split, which
            keeps what stood there. Default: fits `split_how="newline"`.
        verify_how (`str`, *optional*, defaults to `"auto"`):
            Where the final answer stands; see [`~verify.verify_answer`]. Not used with a verifier of your own.
        solutions_per_prompt (`int`, *optional*, defaults to `4`):
            Solutions sampled for a row that has none. Default: our own choice, a compromise between more prompts and
            more solutions of each.
        solution_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of these solutions. Default: our own choice, that of the rollouts.
        prefixes_per_chunk (`int`, *optional*, defaults to `64`):
            Prefixes that are handed to the engine and recorded together: what a crash loses at most. Results do not
            depend on it. Default: our own choice; with 16 rollouts 1,024 sequences, several batches of the engine.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all sampling.

    Raises:
        ValueError: if a value lies outside its range or names no known mode.
    """

    num_rollouts: int = field(default=16, metadata={"help": "Rollouts of each prefix (16: the paper)."})
    eta: float = field(
        default=1.0,
        metadata={
            "help": "Turns counts into labels: 0 is the mean (soft label), inf the best rollout (hard label), a "
            "negative value a soft minimum. Can be changed afterwards without a rollout."
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the rollouts (1: the paper)."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of the rollouts, in (0, 1]; 1 is off."})
    top_k: int = field(default=0, metadata={"help": "Most probable tokens that rollouts draw from; 0 is off."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Most tokens of a rollout or a sampled solution."})
    stop: list[str] = field(
        default_factory=list, metadata={"help": "Texts before which rollouts and sampled solutions end."}
    )
    split_how: str = field(
        default="newline",
        metadata={"help": "How text is split into steps: newline, blank_line, step_marker or sentence."},
    )
    step_separator: str = field(
        default="\n", metadata={"help": "Put behind each step of `completions` before the policy continues."}
    )
    verify_how: str = field(
        default="auto",
        metadata={"help": "Where the final answer stands: auto, gsm8k, boxed, math or arithmetic."},
    )
    solutions_per_prompt: int = field(
        default=4, metadata={"help": "Solutions sampled for a row that has only a prompt and an answer."}
    )
    solution_temperature: float = field(default=1.0, metadata={"help": "Temperature of the sampled solutions."})
    prefixes_per_chunk: int = field(
        default=64, metadata={"help": "Prefixes recorded together: what a crash loses at most. No effect on results."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of all sampling."})

    def __post_init__(self) -> None:
        for name, remedy in (
            ("num_rollouts", "A label needs at least one rollout; the paper takes 16."),
            ("solutions_per_prompt", "Pass rows with `completions` to label given solutions instead."),
            ("prefixes_per_chunk", "It is the number of prefixes handed to the engine at once."),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number from 1 up, got {value!r}. {remedy}")
        self.eta = check_eta(self.eta)
        check_split_mode(self.split_how)
        check_answer_convention(self.verify_how)
        if not isinstance(self.step_separator, str) or not self.step_separator:
            raise ValueError(
                f"`step_separator` must be a text that is not empty, got {self.step_separator!r}. Without one, the "
                'next step would be glued to the last. Pass "\\n" or " ".'
            )
        self.rollout_options()  # the engine's own checks of temperature, top_p, top_k, max_new_tokens, stop and seed
        try:
            self.solution_options()
        except ValueError as error:
            raise ValueError(str(error).replace("`temperature`", "`solution_temperature`")) from None

    def rollout_options(self) -> SamplingOptions:
        """How rollouts are sampled."""
        return SamplingOptions(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            seed=self.seed,
        )

    def solution_options(self) -> SamplingOptions:
        """How solutions are sampled: as rollouts, at a temperature of their own."""
        return SamplingOptions(
            max_new_tokens=self.max_new_tokens,
            temperature=self.solution_temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop,
            seed=self.seed,
        )

    def identity(self) -> dict[str, Any]:
        """The settings that change what is sampled or counted, by which an interrupted run recognizes itself.

        Left out are `eta`, as it is applied to the stored counts, and `prefixes_per_chunk`, on which nothing depends.
        """
        free = ("eta", "prefixes_per_chunk")
        return {name: value for name, value in vars(self).items() if name not in free}
