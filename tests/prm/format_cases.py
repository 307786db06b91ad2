"""Formats, tokenizers and problems that the tests of formats share."""

import dataclasses

from tests.tokenizers import byte_level_tokenizer, sentencepiece_tokenizer
from trl_erprm.prm.formats import MATH_SHEPHERD

PIECES = dataclasses.replace(MATH_SHEPHERD, tokenization="pieces")
ARITHMETIC = dataclasses.replace(PIECES, step_tag="ки", prompt_separator="\n")

TOKENIZERS = {
    "byte_level": byte_level_tokenizer,
    "byte_level_split_tag": lambda: byte_level_tokenizer(knows_tag=False),
    "sentencepiece": sentencepiece_tokenizer,
}

PROBLEMS = [
    ("How many apples has Janet?", ["Step 1: She has 3 + 4 = 7 apples.", "Step 2: So 7 - 2 = 5.", "The answer is: 5"]),
    ("Is $x$ 12?", ["x + y = 12", "- so x is 3,\nand y is 9", "(then) no."]),
    ("1+1?", ["2"]),
]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def question(content):
    return [{"role": "user", "content": content}]
