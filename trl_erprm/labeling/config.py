"""Settings of the Monte-Carlo labeler."""

from dataclasses import dataclass, field
from typing import Any

from trl_erprm.choices import check_choice
from trl_erprm.rollout.engine import SamplingOptions
from trl_erprm.steps import check_split_mode
from trl_erprm.verify import check_answer_convention

from .estimators import check_eta
from .eta_choice import CRITERIA
from .intervals import check_level
from .search import LABEL_STEPS

__all__ = ["LabelingConfig"]

LABELS_FORMATS = ("jsonl", "parquet")


@dataclass
class LabelingConfig:
    r"""Settings of [`~labeling.monte_carlo.MonteCarloLabeler`]; plain values, so that `TrlParser` can read them.

    Args:
        num_rollouts (`int`, *optional*, defaults to `16`):
            Rollouts of each prefix; with `label_tolerance` the most. Default: the paper (arXiv 2412.11006).
        eta (`float` or `"auto"`, *optional*, defaults to `1.0`):
            Turns the counts of a prefix into its label; see
            [`~labeling.estimators.entropy_regularized_value_from_counts`]. 0 is the soft label, `inf` the hard label.
            It needs no rollout: [`~labeling.monte_carlo.relabel`] changes it afterwards. `"auto"` chooses it on a part
            of the prompts, by `eta_criterion`. Default: the reference code (`calculate_score.py --coefficient`,
            default 1); we found no value in the paper.
        eta_criterion (`str`, *optional*, defaults to `"reliability"`):
            By what `eta="auto"` chooses: `"reliability"` or `"ranking"`, see [`~labeling.eta_choice.choose_eta`].
            Default: our own choice, the one that needs one solution a prompt only.
        eta_validation_share (`float`, *optional*, defaults to `0.2`):
            Share of the prompts on which `eta="auto"` chooses, in (0, 1]. Default: our own choice.
        label_tolerance (`float`, *optional*):
            Adaptive rollouts: a prefix gets no further round once the interval of its label at `eta` is at most this
            wide. Off by default: in `benchmarks/labels.py` it takes about two thirds of the tokens of fixed rollouts
            of equal error at `eta=5` and half at 10, but saves next to nothing at 0 to 2. It makes `eta` a part of the
            run's identity.
        rollouts_per_round (`int`, *optional*, defaults to `4`):
            Rollouts of a prefix between two looks at its interval. Default: our own choice: in simulations on the
            embedded task smaller rounds saved no further tokens.
        interval_level (`float`, *optional*, defaults to `0.95`):
            Level of the intervals `label_low`, `label_high`, and of those that `label_tolerance` looks at. Default:
            convention.
        label_steps (`str`, *optional*, defaults to `"all"`):
            Steps to label: `"all"`, `"until_hopeless"` (none behind the first prefix without a right rollout) or
            `"first_error"` (binary search of OmegaPRM). The last two bias the labels: see [`~labeling.search`].
            Default: the paper.
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
        merge_equal_solutions (`bool`, *optional*, defaults to `False`):
            Write equal sampled solutions of a row once, with their number in the column `num_duplicates`. Their
            rollouts are shared in either case. Off by default: a solution then weighs in training as often as the
            policy writes it, as in the reference code.
        keep_rollouts (`bool`, *optional*, defaults to `False`):
            Write the texts of the rollouts, too: a list a step in the column `rollouts`. Default: off, as they are
            many times larger than all else.
        skip_long_prefixes (`bool`, *optional*, defaults to `True`):
            A prefix that leaves no room for `max_new_tokens` in the context window gets no label and is counted;
            `False` makes it an error. Default: our own choice: one long solution shall not end a long run.
        labels_format (`str`, *optional*, defaults to `"jsonl"`):
            `"jsonl"`, or `"parquet"` for `labels.parquet` besides `labels.jsonl`. Default: our own choice.
        prefixes_per_chunk (`int`, *optional*, defaults to `64`):
            Prefixes that are handed to the engine and recorded together: what a crash loses at most. Results do not
            depend on it. Default: our own choice; with 16 rollouts 1,024 sequences, several batches of the engine.
        seed (`int`, *optional*, defaults to `0`):
            Seed of all sampling.

    Raises:
        ValueError: if a value lies outside its range or names no known mode.
    """

    num_rollouts: int = field(default=16, metadata={"help": "Rollouts of each prefix (16: the paper)."})
    eta: float | str = field(
        default=1.0,
        metadata={
            "help": "Turns counts into labels: 0 is the mean (soft label), inf the best rollout (hard label), a "
            "negative value a soft minimum, auto chooses. Can be changed afterwards without a rollout."
        },
    )
    eta_criterion: str = field(
        default="reliability", metadata={"help": "By what `eta: auto` chooses: reliability or ranking."}
    )
    eta_validation_share: float = field(
        default=0.2, metadata={"help": "Share of the prompts on which `eta: auto` chooses."}
    )
    label_tolerance: float | None = field(
        default=None,
        metadata={
            "help": "Adaptive rollouts: a prefix is done once the interval of its label at `eta` is at most this "
            "wide, or at `num_rollouts`. Pays from about eta = 5 on."
        },
    )
    rollouts_per_round: int = field(default=4, metadata={"help": "Rollouts of a prefix in each adaptive round."})
    interval_level: float = field(default=0.95, metadata={"help": "Level of the intervals of the labels."})
    label_steps: str = field(
        default="all",
        metadata={
            "help": "Steps to label: all, until_hopeless (none behind the first prefix without a right rollout) or "
            "first_error (binary search of OmegaPRM). The last two bias the labels."
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
    merge_equal_solutions: bool = field(
        default=False, metadata={"help": "Write equal sampled solutions once, with their number."}
    )
    keep_rollouts: bool = field(default=False, metadata={"help": "Write the texts of the rollouts, too."})
    skip_long_prefixes: bool = field(
        default=True,
        metadata={"help": "A prefix too long for the context window gets no label and is counted, or is an error."},
    )
    labels_format: str = field(
        default="jsonl", metadata={"help": "jsonl, or parquet: then labels.parquet is written besides labels.jsonl."}
    )
    prefixes_per_chunk: int = field(
        default=64, metadata={"help": "Prefixes recorded together: what a crash loses at most. No effect on results."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of all sampling."})

    def __post_init__(self) -> None:
        for name, remedy in (
            ("num_rollouts", "A label needs at least one rollout; the paper takes 16."),
            ("rollouts_per_round", "The interval of a label is looked at after every round."),
            ("solutions_per_prompt", "Pass rows with `completions` to label given solutions instead."),
            ("prefixes_per_chunk", "It is the number of prefixes handed to the engine at once."),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number from 1 up, got {value!r}. {remedy}")
        if self.eta != "auto":
            if isinstance(self.eta, str):
                raise ValueError(f"`eta` must be a number or 'auto', got {self.eta!r}. Pass a number, inf or auto.")
            self.eta = check_eta(self.eta)
        check_choice("eta_criterion", self.eta_criterion, CRITERIA)
        check_choice("label_steps", self.label_steps, LABEL_STEPS)
        check_choice("labels_format", self.labels_format, LABELS_FORMATS)
        check_level(self.interval_level)
        if isinstance(self.eta_validation_share, bool) or not 0 < self.eta_validation_share <= 1:
            raise ValueError(
                f"`eta_validation_share` must lie in (0, 1], got {self.eta_validation_share!r}. It is a share of the "
                "prompts, such as 0.2."
            )
        if self.label_tolerance is not None:
            if isinstance(self.label_tolerance, bool) or not 0 < self.label_tolerance < 1:
                raise ValueError(
                    f"`label_tolerance` must lie between 0 and 1, got {self.label_tolerance!r}. It is the width of an "
                    "interval of labels, such as 0.4; leave it out for a fixed number of rollouts."
                )
            if self.eta == "auto":
                raise ValueError(
                    "`eta` must be a number with `label_tolerance`, got 'auto'. Adaptive rollouts stop by the label "
                    "at this eta: choose one first, on a run with a fixed number of rollouts."
                )
        check_split_mode(self.split_how, "split_how")
        check_answer_convention(self.verify_how, "verify_how")
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

        `eta` is among them only where it decides when to stop (`label_tolerance`): else it is applied to the stored
        counts, and free. Options that are off are left out, so that directories of earlier versions stay valid.
        """
        always = (
            "num_rollouts", "temperature", "top_p", "top_k", "max_new_tokens", "stop", "split_how", "step_separator",
            "verify_how", "solutions_per_prompt", "solution_temperature", "seed",
        )  # fmt: skip
        identity = {name: getattr(self, name) for name in always}
        if self.label_tolerance is not None:
            for name in ("label_tolerance", "rollouts_per_round", "interval_level", "eta"):
                identity[name] = getattr(self, name)
        if self.label_steps != "all":
            identity["label_steps"] = self.label_steps
        if self.keep_rollouts:
            identity["keep_rollouts"] = True
        return identity
