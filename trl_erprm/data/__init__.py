"""Row types, and readers that turn public data into them.

**Prompt row**, the input of rollouts and of RL: `prompt` (str or messages), `answer` (str, the reference for
[`verify_answer`]) and, where the data holds a worked solution, `solution` (str) and `completions` (list[str], its
steps as `split_steps(solution)` gives them).

**Stepwise row**, TRL's stepwise-supervision type extended: `prompt` (str or messages), `completions` (list[str], the
steps), `labels` (list of bool or float in [0, 1]; None or NaN = no label for that step). Rows labelled by rollouts
further hold `num_correct` and `num_rollouts` (list[int]), `answer`, `outcome` and `eta` (float), which their labels
were made with.

The readers recognize a layout by its columns ([`PROMPT_LAYOUTS`], [`STEPWISE_LAYOUTS`]), keep the columns that they do
not read, and never lose a row in silence: a row that cannot be read is an error with its number or, on request,
counted and logged. Rows are numbered from 0, as in `dataset[17]`.
"""

from .loading import load_rows
from .prompt_rows import PROMPT_LAYOUTS, strip_calculator_marks, to_prompt_rows
from .stepwise_rows import STEPWISE_LAYOUTS, to_stepwise_rows
from .validation import check_eta_of_labels, eta_of_labels, validate_stepwise_rows

__all__ = [
    "PROMPT_LAYOUTS",
    "STEPWISE_LAYOUTS",
    "check_eta_of_labels",
    "eta_of_labels",
    "load_rows",
    "strip_calculator_marks",
    "to_prompt_rows",
    "to_stepwise_rows",
    "validate_stepwise_rows",
]
