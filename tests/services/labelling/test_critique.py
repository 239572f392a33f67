"""Critique and revision: what the critic is asked, round by round, and what becomes a demonstration."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from lodestar.asking import prompt_seed
from lodestar.client import PolicyClient
from lodestar.constitution import drawn, principles
from lodestar.critique import Critic, Revised
from lodestar.errors import Unavailable
from lodestar.records import Prompt
from lodestar.stages.critique import Critique
from tests.services.labelling.endpoint import endpoint, said

PROMPTS = [Prompt(f"p{i}", text) for i, text in enumerate(["what color is", "the sky is", "is it", "the grass"])]
LAW = principles(None, "helpful", "x")


@pytest.fixture(scope="module")
def policy(start_service: Any, tiny_models: Any) -> str:
    return str(start_service("policy", model=str(tiny_models.sft)).address)


def revise(folder: Path, policy: str, url: str, **more: Any) -> tuple[list[Revised], Critic]:
    critic = {"url": url, "name": "m", "retries": 0, "in_flight": 1}
    options = Critique.model_validate({"critic": critic, "aspect": "helpful", "max_tokens": 6, "rounds": 3, **more})
    made = Critic(options, [policy], folder, 11, None)
    return asyncio.run(made.revise(PROMPTS, lambda _: None)), made


def editor(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Criticises by counting, and revises by adding a word."""
    turns = body["messages"]
    if len(turns) == 3:
        return said(f"critique of <{turns[1]['content']}>")
    return said(f"{turns[1]['content']} more", usage=True)


def test_each_round_criticises_the_revision_before_by_a_principle_of_its_own(policy: str, tmp_path: Path) -> None:
    with endpoint(editor) as there:
        revised, critic = revise(tmp_path, policy, there.url)
    asked = defaultdict(list)
    for body in there.asked:
        turns = [(turn["role"], turn["content"]) for turn in body["messages"]]
        asked[turns[0]].append(turns)
    for prompt, one in zip(PROMPTS, revised, strict=True):
        assert one.revision == one.reply + " more" * 3
        assert one.why == ""
        law = [drawn(LAW, 11, f"{prompt.id}/{number}") for number in range(3)]
        assert [turn.principle for turn in one.rounds] == [principle.name for principle in law]
        now, exact = one.reply, []
        for principle in law:
            begun = [("user", prompt.text), ("assistant", now), ("user", principle.critique)]
            exact += [begun, [*begun, ("assistant", f"critique of <{now}>"), ("user", principle.revision)]]
            now += " more"
        assert asked["user", prompt.text] == exact
    assert critic.costs["answers"] == 2 * 3 * len(PROMPTS)
    assert critic.costs["prompt_tokens"] == 100 * 2 * 3 * len(PROMPTS)


def test_a_killed_stage_asks_for_the_rest_and_finds_the_same_replies(policy: str, tmp_path: Path) -> None:
    with endpoint(editor) as there:
        whole, _ = revise(tmp_path / "undisturbed", policy, there.url)
        there.asked.clear()
        there.script = lambda body: (500, {}) if len(there.asked) > 7 else editor(body)
        with pytest.raises(Unavailable, match=r"critique\.critic: .*--resume goes on"):
            revise(tmp_path / "killed", policy, there.url)
        there.script = editor
        there.asked.clear()
        again, critic = revise(tmp_path / "killed", policy, there.url)
        assert again == whole
        assert len(there.asked) == 24 - critic.costs["kept"] == 24 - 7


def test_a_revision_that_was_cut_off_blank_or_cannot_be_asked_is_told_and_shows_nobody_how(
    policy: str, tmp_path: Path
) -> None:
    def clumsy(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        prompt, last = body["messages"][0]["content"], len(body["messages"]) == 5
        if prompt == "the sky is" and last:
            return said("half a", finish="length")
        if prompt == "is it" and last:
            return said(" \n")
        if prompt == "the grass":
            return 400, {"error": {"message": "too long", "code": "context_length_exceeded", "type": "x"}}
        return editor(body)

    with endpoint(clumsy) as there:
        revised, _ = revise(tmp_path, policy, there.url, rounds=1)
    assert [one.why for one in revised[:3]] == [
        "", "the last revision was cut off at 6 tokens", "the last revision is blank",
    ]  # fmt: skip
    assert revised[3].why.startswith("round 1 cannot be asked: ")
    assert "too long" in revised[3].why


def test_without_a_critic_the_policy_is_its_own(policy: str, tmp_path: Path) -> None:
    law = tmp_path / "law.yaml"
    law.write_text("helpful: [{name: red, critique: is it red, revision: it is not red}]")
    told = {"aspect": "helpful", "constitution": str(law), "max_tokens": 6, "form": "text", "rounds": 1}
    options = Critique.model_validate(told)
    revised = asyncio.run(Critic(options, [policy], tmp_path, 11, None).revise(PROMPTS, lambda _: None))
    with PolicyClient(policy) as client:
        for prompt, one in zip(PROMPTS, revised, strict=True):
            (turn,) = one.rounds
            assert (turn.reply, turn.revision) == (one.reply, one.revision)
            text = f"{prompt.text} {one.reply}\n\nis it red\n\n{turn.critique}\n\nit is not red\n\n"
            seed = prompt_seed(11, "r0", prompt.id)
            assert client.generate(text, max_tokens=6, seed=seed).completions[0].text == one.revision
