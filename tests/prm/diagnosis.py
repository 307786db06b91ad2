"""A row for the doctor to look at, and what it says of it."""

from trl_erprm.arithmetic import build_tokenizer
from trl_erprm.prm import doctor
from trl_erprm.prm.formats import TRL_TOKEN_CLASSIFICATION

STEPS = ["3+4=2", "2*2=4", "#4"]  # 4 + 4 + 3 tokens with their newlines, behind 4 of the prompt


def row(labels=(0.9, 0.1, 0.75), steps=STEPS, prompt="3+4*2\n", **columns):
    return {"prompt": prompt, "completions": list(steps), "labels": list(labels), **columns}


def diagnose(*rows, format=TRL_TOKEN_CLASSIFICATION, tokenizer=None, **options):
    return doctor.diagnose(format, tokenizer or build_tokenizer(), list(rows), **options)


def found(diagnosis):
    """(severity, row, message) of all findings."""
    return [(f.severity, f.row, f.message) for check in diagnosis.checks for f in check.findings]
