"""What the tests of the recipes give on their command lines."""

import gzip
import json
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SHARED = ("stages", "policy_training")
NAMES = sorted(path.stem for path in RECIPES.glob("*.py") if path.stem not in SHARED)
CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]
FAST = [*CPU, "--activation_checkpointing", "false"]


def write_jsonl(path, rows):
    """Rows as `.jsonl` or `.jsonl.gz`; returns the path as text."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_jsonl(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
