"""The embedded task: chained modular arithmetic with known truth ([`~arithmetic.task`]), and models that learn it
([`~arithmetic.models`]). It serves the quickstart, the tests of the labels and controlled studies; nothing has to be
downloaded for it."""

from .models import STEP_TAG, build_model, build_tokenizer, train_policy
from .task import SPLITS, VALUES, ArithmeticTask

__all__ = ["SPLITS", "STEP_TAG", "VALUES", "ArithmeticTask", "build_model", "build_tokenizer", "train_policy"]
