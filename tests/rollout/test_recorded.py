"""`trl_erprm.rollout.recorded`: who samples what, what is recorded of it, and what a second start samples.

The labeler's tests (`tests/labeling/test_runs.py`, `test_killed.py`) and those of the evaluation rest on it, too.
"""

from types import SimpleNamespace

import pytest

from trl_erprm.manifest import content_hash
from trl_erprm.rollout import Completion, PrefixTooLongError, SamplingOptions, recorded
from trl_erprm.rollout.recorded import RecordedSampler, SharedRecords, read_when

OPTIONS = SamplingOptions(8)
PROMPTS = ["a", "b", "c", "a", [{"role": "user", "content": "d"}]]


def process(index=0, number=1):
    return SimpleNamespace(process_index=index, num_processes=number, is_main_process=index == 0)


class Engine:
    """Completion k of a prompt has k tokens and is cut off from the second on; `too_long` ones are refused."""

    def __init__(self, too_long=()):
        self.calls, self.too_long = [], too_long

    def generate(self, prefixes, num_samples, options, first_sample=0):
        indices = [i for i, prefix in enumerate(prefixes) if prefix.prompt in self.too_long]
        if indices:
            raise PrefixTooLongError("too long", indices)
        self.calls.append([prefix.prompt for prefix in prefixes])
        how = ["stop", *["length"] * num_samples]
        return [[Completion(f"{p.prompt}{k}", k, how[k]) for k in range(num_samples)] for p in prefixes]


def test_what_is_recorded(tmp_path):
    engine = Engine()
    found = RecordedSampler(engine, tmp_path, process(), prefixes_per_chunk=3).sample(PROMPTS, 3, OPTIONS, "things")
    assert engine.calls == [["a", "b", "c"], [PROMPTS[4]]]  # equal prompts once
    assert [record["texts"][1] for record in found] == ["a1", "b1", "c1", "a1", f"{PROMPTS[4]}1"]
    assert (found[0]["num_tokens"], found[0]["num_tokens_each"]) == (3, [0, 1, 2])
    assert found[0]["truncated"] == [False, True, True]
    records = list(SharedRecords(tmp_path, process()).read("things"))
    assert [record["prompt"] for record in records] == [content_hash(p) for p in ("a", "b", "c", PROMPTS[4])]
    assert [i for i, record in enumerate(records) if "seconds" in record] == [0, 3]  # one a chunk
    assert RecordedSampler(Engine(too_long=PROMPTS), tmp_path, process()).sample(PROMPTS, 3, OPTIONS, "things") == [
        {**record} for record in (records[0], records[1], records[2], records[0], records[3])
    ]


def test_nothing_is_stored_without_a_directory():
    engine = Engine()
    sampler = RecordedSampler(engine, None, process())
    assert sampler.sample(["a"], 1, OPTIONS) and sampler.sample(["a"], 1, OPTIONS)
    assert engine.calls == [["a"], ["a"]]


def test_long_prompts_are_errors_or_skipped(tmp_path):
    with pytest.raises(PrefixTooLongError, match="too long") as caught:
        RecordedSampler(Engine(too_long=["b"]), tmp_path, process()).sample(PROMPTS, 2, OPTIONS)
    assert "come from the rows [0, 1, 2, 4]" in caught.value.__notes__[0]
    sampler = RecordedSampler(Engine(too_long=["b"]), tmp_path, process(), skip_long_prefixes=True)
    found = sampler.sample(PROMPTS, 2, OPTIONS)
    assert [record.get("is_skipped", False) for record in found] == [False, True, False, False, False]
    assert found[1]["texts"] == [] and found[2]["texts"] == ["c0", "c1"]
    # with a longer window it is sampled, as it was not skipped for good
    assert RecordedSampler(Engine(), tmp_path, process()).sample(PROMPTS, 2, OPTIONS)[1]["texts"] == ["b0", "b1"]


def test_each_key_is_one_process_s():
    keys = [content_hash(i) for i in range(200)]
    shares = [[SharedRecords(None, process(i, 3)).is_own(key) for key in keys] for i in range(3)]
    assert [sum(of_key) for of_key in zip(*shares, strict=True)] == [1] * 200 and min(map(sum, shares)) > 40


def test_it_waits_for_the_others(monkeypatch):
    waits = []
    monkeypatch.setattr(recorded, "sleep", waits.append)
    assert read_when(lambda found: found == 12, lambda: len(waits)) == 12
    assert waits[:3] == [0.05, 0.1, 0.2] and waits[-1] == 10.0  # seconds
