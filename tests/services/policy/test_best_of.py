"""Best of n behind Generate: what a caller gets, is distributed like, is told and pays."""

from __future__ import annotations

import math
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lodestar_services.policy.best_of import BestOf

from lodestar.cli.serve import serve
from lodestar.client import PolicyClient, RewardClient
from lodestar.data.rows import encode_prompts
from lodestar.engine.limits import Limits
from lodestar.errors import ConfigError, InvalidArgument, Unavailable
from lodestar.evaluation import best_of_n_kl
from lodestar.model.loading import load_tokenizer
from lodestar.records import FinishReason, SamplingParams, Scored, ScoreItem

PROMPT = (1, 5, 8, 9)
N = 4
JUDGE = """
def letters(prompts, completions):
    return [float(sum(map(ord, completion)) % 97) for completion in completions]
"""


@pytest.fixture(scope="module")
def judge(start_service: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A reward server of one function, which reads text."""
    path = tmp_path_factory.mktemp("judge") / "judge.py"
    path.write_text(JUDGE)
    return start_service(
        "reward", section={"sources": [{"name": "letters", "kind": "function", "function": f"{path}:letters"}]}
    )


def letters(text: str) -> float:
    return float(sum(map(ord, text)) % 97)


@pytest.fixture(scope="module")
def service(start_service: Any, tiny_models: Any, judge: Any) -> Any:
    return start_service(
        "policy", model=str(tiny_models.sft), section={"best_of": N}, endpoints={"reward": [judge.address]}
    )


@pytest.fixture(scope="module")
def client(service: Any) -> Iterator[PolicyClient]:
    with PolicyClient(service.address) as client:
        yield client


@pytest.fixture(scope="module")
def plain(start_service: Any, tiny_models: Any) -> Iterator[PolicyClient]:
    """The same model, served as it is."""
    with PolicyClient(start_service("policy", model=str(tiny_models.sft)).address) as client:
        yield client


def counted(service: Any) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{service.state.metrics_port}/metrics", timeout=5).read().decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("lodestar_best_of_")]
    return {name.removeprefix("lodestar_best_of_"): float(value) for name, _, value in lines}


def test_it_is_distributed_as_order_statistics_say(client: PolicyClient, plain: PolicyClient, tiny_models: Any) -> None:
    """P(score of the best of n ≤ s) = F(s)ⁿ, F from the model's exact probabilities of a reply of one token."""
    words = load_tokenizer(tiny_models.sft)
    vocabulary = plain.describe().vocab_size
    exact = plain.logprobs([Scored((*PROMPT, token), len(PROMPT)) for token in range(vocabulary)]).sequences
    chance: dict[float, float] = defaultdict(float)
    for token, (logprob,) in enumerate(one.logprobs for one in exact):
        text = words.decode([token], skip_special_tokens=True)
        says = bool(text) or token == words.eos_token_id
        chance[letters(text) if says else -1.0] += math.exp(logprob)
    assert math.fsum(chance.values()) == pytest.approx(1, abs=1e-4)
    below, wanted = 0.0, {}
    for score in sorted(chance):
        wanted[score] = (below + chance[score]) ** N - below**N
        below += chance[score]
    found: dict[float, int] = defaultdict(int)
    drawn = 0
    for seed in range(6):
        for one in client.generate(PROMPT, n=200, max_tokens=1, seed=seed).completions:
            says = bool(one.text) or one.finish_reason is FinishReason.EOS
            found[letters(one.text) if says else -1.0] += 1
            drawn += 1
    for score, share in wanted.items():
        assert found[score] / drawn == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / drawn) + 0.003)
    mean = math.fsum(score * share for score, share in chance.items())
    best = math.fsum(score * share for score, share in wanted.items())
    seen = math.fsum(score * count for score, count in found.items()) / drawn
    assert best > mean + 5
    assert seen == pytest.approx(best, abs=4 * 30 / math.sqrt(drawn))
    kl = math.fsum(share * math.log(share / chance[score]) for score, share in wanted.items() if share)
    assert 0 < kl <= best_of_n_kl(N)


def test_each_of_k_samples_is_the_best_of_its_own_n_and_comes_whole(
    client: PolicyClient, plain: PolicyClient, service: Any
) -> None:
    before = counted(service)
    chunks = list(client.stream(PROMPT, n=3, max_tokens=12, seed=7, logprobs=True))
    assert sorted(chunk.sample_index for chunk in chunks) == [0, 1, 2]
    assert all(chunk.finish_reason is not None for chunk in chunks), "streaming waits for the choice"
    drawn = plain.generate(PROMPT, n=3 * N, max_tokens=12, seed=7, logprobs=True).completions
    for chunk in chunks:
        group = drawn[chunk.sample_index * N : (chunk.sample_index + 1) * N]
        says = [one for one in group if one.text or one.finish_reason is FinishReason.EOS]
        best = max(says, key=lambda one: letters(one.text))
        assert (chunk.token_ids, chunk.text) == (best.token_ids, best.text)
        assert chunk.logprobs == pytest.approx(best.logprobs, abs=1e-4), "of the model, not of the choice"
        assert chunk.prompt_tokens == len(PROMPT)
    after = counted(service)
    spent = {name: after[name] - before[name] for name in after if name.startswith(("samples_total", "tokens_total"))}
    given = sum(len(chunk.token_ids) for chunk in chunks)
    assert spent == {
        'samples_total{outcome="chosen"}': 3,
        'samples_total{outcome="passed"}': 3 * (N - 1),
        'tokens_total{outcome="chosen"}': given,
        'tokens_total{outcome="passed"}': sum(len(one.token_ids) for one in drawn) - given,
    }


def test_training_and_greedy_get_the_policys_own(client: PolicyClient, plain: PolicyClient, service: Any) -> None:
    before = counted(service)
    for options in ({"purpose": "training", "n": 2}, {"temperature": 0.0}):
        asked = {"max_tokens": 8, "seed": 5, **options}
        assert client.generate(PROMPT, **asked).completions == plain.generate(PROMPT, **asked).completions  # type: ignore[arg-type]
    assert counted(service)['samples_total{outcome="passed"}'] == before['samples_total{outcome="passed"}']


def test_a_reward_model_of_the_same_tokenizer_is_sent_ids_and_its_best_is_chosen(
    start_service: Any, tiny_models: Any, reward_service: Any, plain: PolicyClient
) -> None:
    own = start_service(
        "policy", model=str(tiny_models.sft), section={"best_of": 8}, endpoints={"reward": [reward_service.address]}
    )
    words = load_tokenizer(tiny_models.sft)
    drawn = plain.generate("the sky is", n=8, max_tokens=10, seed=2).completions
    with PolicyClient(own.address) as client, RewardClient(reward_service.address) as reward:
        (best,) = client.generate("the sky is", max_tokens=10, seed=2).completions
        (prompt,), spoken = encode_prompts(words, ["the sky is"]), reward.describe().model.tokenizer_hash
        items = [ScoreItem(prompt, one.token_ids) for one in drawn]
        scores = [score.score for score in reward.score(items, tokenizer_hash=spoken).scores]
    assert best == drawn[scores.index(max(scores))]
    own.child.stop(20)


def test_more_than_the_server_draws_is_a_sentence(client: PolicyClient) -> None:
    with pytest.raises(InvalidArgument, match="1500 samples, each the best of 4, are 6000; this server draws 4096 at"):
        client.generate(PROMPT, n=1500, max_tokens=1)
    limits = Limits(64, context_tokens=512, request_tokens=262_144, samples=4096)
    best_of = BestOf(N, ["127.0.0.1:9"], None, "")
    with pytest.raises(InvalidArgument, match="may have 320000 tokens; this server draws 262144 at most for one"):
        best_of.drawn(SamplingParams(80, n=1000), limits)
    assert best_of.drawn(SamplingParams(8, n=3), limits).n == 12


def test_a_reward_that_is_away_is_unavailable_and_says_what_for(start_service: Any, tiny_models: Any) -> None:
    lonely = start_service(
        "policy", model=str(tiny_models.sft), section={"best_of": 2}, endpoints={"reward": ["127.0.0.1:9"]}
    )
    with PolicyClient(lonely.address) as client:
        with pytest.raises(Unavailable, match="the reward that chooses the best of 2 samples does not answer"):
            client.generate(PROMPT, n=4, max_tokens=12, timeout=60)
        assert client.generate(PROMPT, max_tokens=2, purpose="training").completions
    lonely.child.stop(20)


@pytest.mark.parametrize(
    ("role", "best_of", "rewards", "options", "said"),
    [
        ("policy", 8, (), [], "--best-of: best_of 8 needs reward servers that choose"),
        ("policy", 5000, ("127.0.0.1:9",), [], "--best-of: best_of 5000 is beyond max_waiting 4096"),
        ("policy", None, ("127.0.0.1:9",), [], "--reward: chooses among samples"),
        ("policy", 0, ("127.0.0.1:9",), [], "--reward: chooses among samples"),
        ("reward", 8, (), [], "--best-of: is a policy server's, and this is a reward"),
        ("policy", None, (), ["best_of=3"], "--best-of: best_of 3 needs reward servers"),
    ],
)
def test_the_command_line_says_what_is_missing(
    tiny_models: Any, role: str, best_of: int | None, rewards: tuple[str, ...], options: list[str], said: str
) -> None:
    listening: dict[str, Any] = {"host": "127.0.0.1", "port": 0}
    where = {"listening": listening, "redis": None, "digest": None, "device": "cpu", "dtype": "float32"}
    with pytest.raises(ConfigError) as refusal:
        serve(role, str(Path(tiny_models.sft)), options, **where, best_of=best_of, rewards=rewards)
    assert said in str(refusal.value)
