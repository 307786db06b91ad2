"""Step labels: rollouts of every prefix, their counts, and the entropy-regularized values made from them.

The names are imported when first used, so that the pure functions of `estimators` load neither torch nor datasets.
"""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC_NAMES = {
    "config": ["LabelingConfig"],
    "estimators": [
        "entropy_regularized_value",
        "entropy_regularized_value_from_counts",
        "entropy_regularized_value_from_probability",
        "success_probability",
    ],
    "eta_choice": ["choose_eta"],
    "intervals": ["label_interval"],
    "monte_carlo": ["MonteCarloLabeler", "relabel"],
    "report": ["quality_report", "relabel_run", "write_report"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC_NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:
    from .config import LabelingConfig as LabelingConfig
    from .estimators import entropy_regularized_value as entropy_regularized_value
    from .estimators import entropy_regularized_value_from_counts as entropy_regularized_value_from_counts
    from .estimators import entropy_regularized_value_from_probability as entropy_regularized_value_from_probability
    from .estimators import success_probability as success_probability
    from .eta_choice import choose_eta as choose_eta
    from .intervals import label_interval as label_interval
    from .monte_carlo import MonteCarloLabeler as MonteCarloLabeler
    from .monte_carlo import relabel as relabel
    from .report import quality_report as quality_report
    from .report import relabel_run as relabel_run
    from .report import write_report as write_report


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
