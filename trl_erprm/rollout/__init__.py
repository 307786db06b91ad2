"""Rollout engines: where the reference policy runs. One protocol ([`RolloutEngine`]), one file an engine."""

from .engine import (
    Completion,
    Prefix,
    PrefixTooLongError,
    RolloutEngine,
    SamplingOptions,
    load_engine,
)

__all__ = ["Completion", "Prefix", "PrefixTooLongError", "RolloutEngine", "SamplingOptions", "load_engine"]
