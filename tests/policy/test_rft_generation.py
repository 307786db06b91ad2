"""`trl_erprm.policy.rft_generation`: TRL's class for vLLM is called as it wants to be. vLLM itself is not needed."""

import pytest
import trl.generation.vllm_generation

from tests.policy.rft_runs import read_parquet
from trl_erprm.policy import rft_trainer
from trl_erprm.policy.rft_generation import plan_chunks


class FakeGeneration:
    """Stands in for `VLLMGeneration`: completions "#7", "#7" and an endless one, and a note of each call."""

    calls: list[tuple] = []

    def __init__(self, model, accelerator, processing_class, max_completion_length, **arguments):
        self.tokenizer, self.max_completion_length = processing_class, max_completion_length
        self.calls.append(("new", arguments))

    def sync_weights(self):
        self.calls.append(("sync",))

    def generate(self, prompts, images, num_generations):
        assert images is None and len(prompts) % num_generations == 0
        groups = [prompts[i : i + num_generations] for i in range(0, len(prompts), num_generations)]
        assert all(prompt == group[0] for group in groups for prompt in group)  # as TRL wants them: repeated in place
        texts = [self.tokenizer.decode(group[0]) for group in groups]
        self.calls.append(("generate", texts, num_generations, self.temperature, self.top_p, self.top_k))
        ended = [*self.tokenizer("#7", add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        endless = self.tokenizer("1" * self.max_completion_length, add_special_tokens=False)["input_ids"]
        ids = [endless if i == 2 else ended for _ in groups for i in range(num_generations)]
        return prompts, ids, "no log-probabilities are looked at", None


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(trl.generation.vllm_generation, "VLLMGeneration", FakeGeneration)
    monkeypatch.setattr(FakeGeneration, "calls", [])
    return FakeGeneration.calls


def always(prompts, completions, **kwargs):
    return [1.0] * len(completions)


def test_weights_are_handed_over_once_an_iteration(make_rft, calls, tmp_path):
    trainer = make_rft(
        always, prompts=10, held_out=3, use_vllm=True, vllm_mode="server", vllm_server_port=8123, top_p=0.9, top_k=5,
        vllm_gpu_memory_utilization=0.4, vllm_enable_sleep_mode=True, generation_batch_size=6,
    )  # fmt: skip
    trainer.train()
    new, *others = calls
    assert {"mode": "server", "server_port": 8123, "gpu_memory_utilization": 0.4, "max_num_seqs": 6}.items() <= new[
        1
    ].items()
    assert new[1]["enable_sleep_mode"] is True and new[1]["logprobs"] is None
    # start; then sampling with the same weights, a sync for what each iteration has trained
    kinds = [call[0] for call in others]
    assert kinds.count("sync") == 3 and kinds[0] == "sync"
    requests = [call for call in others if call[0] == "generate"]
    greedy = [call for call in requests if call[3] == 0.0]
    assert len(greedy) == 3 and all(call[2] == 1 and len(call[1]) == 3 for call in greedy)
    sampled = [call for call in requests if call[3] == 1.0]
    assert all(call[2:] == (4, 1.0, 0.9, 5) for call in sampled)
    prompts = [text for call in sampled for text in call[1]]
    training = trainer.prompt_dataset["prompt"][:]
    assert [text for text in prompts if text in training][:10] == training
    first_sync = others.index(("sync",))
    order = [others.index(("sync",), first_sync + 1), len(others)]
    assert all(call[0] == "generate" for call in others[1 : order[0]]) and order[0] > 3
    # what came back: the completion at the limit without an end token is cut off
    rows = read_parquet(tmp_path / "run/iteration-1/samples.parquet")[:4]
    assert [row["completion"] for row in rows] == ["#7", "#7", "1" * 20, "#7"]
    assert [row["is_truncated"] for row in rows] == [False, False, True, False]
    assert [row["num_tokens"] for row in rows] == [3, 3, 20, 3]


def test_the_weights_are_left_to_vllm(make_rft, calls, monkeypatch):
    """TRL's class gathers split weights itself: it is not called where they are gathered already."""

    def whole_weights(*args):
        raise AssertionError("gathered")

    monkeypatch.setattr(rft_trainer, "whole_weights", whole_weights)
    assert make_rft(always, prompts=10, held_out=0, use_vllm=True).train()[-1]["num_selected"] == 10


def test_nothing_is_sampled_twice(make_rft, calls):
    def failing(prompts, completions, **kwargs):
        raise InterruptedError

    failing.__name__ = "always"
    with pytest.raises(InterruptedError):
        make_rft(failing, prompts=10, held_out=0, use_vllm=True).train()
    sampled = sum(len(call[1]) for call in calls if call[0] == "generate")
    history = make_rft(always, prompts=10, held_out=0, use_vllm=True).train()
    assert sampled == 10 and history[-1]["num_selected"] == 10


class TestChunks:
    def test_every_prompt_once(self):
        for num_processes in (1, 2, 3):
            for equal in (True, False):
                plans = [plan_chunks(range(10, 31), 4, p, num_processes, equal) for p in range(num_processes)]
                own = [i for plan in plans for chunk, number in plan for i in chunk[:number]]
                assert sorted(own) == list(range(10, 31))
                if equal:
                    assert len({len(plan) for plan in plans}) == 1
                    assert {len(chunk) for plan in plans for chunk, _ in plan} == {4}

    def test_each_process_gets_some(self):
        """Fewer prompts than fit into a chunk are dealt out nevertheless."""
        assert [plan_chunks(range(5), 64, p, 2, False) for p in (0, 1)] == [[([0, 1, 2], 3)], [([3, 4], 2)]]

    def test_nothing_to_do(self):
        assert plan_chunks([], 4, 1, 2, True) == plan_chunks([], 4, 1, 2, False) == []
