"""Small tokenizers of the kinds that public process reward models have, built in the test; nothing is downloaded."""

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""As Llama 3's: header tokens, the content trimmed, `<|eot_id|>` behind each message."""

CHATML_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen's."""

SPECIAL = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
CORPUS = [
    "Janet has 3 apples and 4 + 5 pears. How many pieces of fruit?",
    "Step 1: She has 3 + 9 = 12 pieces of fruit.",
    "Step 2: So 12 - 2 = 10 are left, and the answer is 10.",
    "Then x + y - z = 3, so $x$ is 7. The answer is: 7 + - + -",
] * 4
TAGGED = CORPUS + ["So the answer is 3. ки", "x + y = 4 ки", "12 ки"] * 8


@cache
def _byte_level(knows_tag: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    before = [pre_tokenizers.Digits(individual_digits=True)] if knows_tag else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TAGGED if knows_tag else CORPUS, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    first = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), first])
    return tokenizer.to_str()


def byte_level_tokenizer(knows_tag: bool = True, bos: bool = True, template: str | None = LLAMA_TEMPLATE):
    """
    Byte-level BPE, as Llama 3's and Qwen's.

    Args:
        knows_tag (`bool`, *optional*, defaults to `True`):
            Whether " ки" is one token and each digit its own, as in Qwen's; else each letter of the tag is two bytes.
        bos (`bool`, *optional*, defaults to `True`):
            Whether there is a beginning-of-sequence token, and `tokenizer(text)` begins with it.
        template (`str`, *optional*):
            Chat template.
    """
    tokenizer = Tokenizer.from_str(_byte_level(knows_tag))
    if not bos:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|eot_id|>", **({"bos_token": "<s>"} if bos else {})
    )
    fast.chat_template = template
    return fast


@cache
def _sentencepiece() -> str:
    # Trained on words, so that no token but the last of one begins with the mark; then used on the whole text.
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>"], show_progress=False)
    trained.train_from_iterator(TAGGED, trainer)
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [tuple(pair) for pair in model["merges"]]
    merges.insert(0, ("▁", "▁"))  # the first that Llama 2 and Mistral have
    tokens += ["▁▁", *(token for token in model["vocab"] if token not in tokens)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", *SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece BPE with byte fallback, as Llama 2's and Mistral's: "▁" before a text, and for each space."""
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_sentencepiece()), **special)
    tokenizer.chat_template = LLAMA_TEMPLATE
    return tokenizer


def merging_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Characters, and pairs that merge across what a format puts together: ". ки" is one token."""
    tokens = ["<pad>", "<s>", "<unk>", *"abc.+-\n кикn", ". ", ". ки", "\n\n", "ab"]
    vocabulary = {}
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    # longest match first, over the whole text given
    pieces = sorted((t for t in vocabulary if not t.startswith("<")), key=len, reverse=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in pieces if len(t) > 1])
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **({"bos_token": "<s>"} if bos else {}))
