"""``lodestar generate`` and ``lodestar chat`` over a small model on this machine."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from lodestar.cli.app import app
from lodestar.local.tiny import llama
from lodestar.model.weights import save_model

TEMPLATE = "{% for turn in messages %}{{ 't' ~ (loop.index + 10) }} {{ turn.content }} {% endfor %}{{ 't9' }}"


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Words t3 … after three special tokens, none of which begins a word."""
    names = ["<pad>", "<eos>", "<unk>", *(f"t{i}" for i in range(3, vocab))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "chatty"
    words = tokenizer(64)
    words.chat_template = TEMPLATE
    policy = llama(hidden=32, layers=1, vocab=64, eos_bias=0.0)
    with torch.no_grad():
        policy.model.embed_tokens.weight[:, 0] = 0
        for parameter in policy.parameters():
            parameter.mul_(20.0 if parameter.ndim > 1 else 1.0)  # what was said before must matter
    save_model(policy, words, path)
    return path


def said(*arguments: str, typed: str | None = None) -> list[str]:
    result = CliRunner().invoke(app, [*arguments], input=typed, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_generate_prints_one_sample_as_text_and_several_by_number(model: Path) -> None:
    one = said("generate", str(model), "t5 t6", "--seed", "1", "--max-tokens", "6")
    assert 1 < len(one[0].split()) <= 6
    assert said("generate", str(model), "-", "--seed", "1", "--max-tokens", "6", typed="t5 t6") == one
    several = said("generate", str(model), "t5 t6", "-n", "3", "--seed", "1", "--max-tokens", "6")
    assert [line[:4] for line in several] == ["[0] ", "[1] ", "[2] "]
    assert several[0][4:] == one[0]
    assert len({line[4:] for line in several}) == 3


def test_a_chat_goes_through_the_template_remembers_and_starts_over(model: Path) -> None:
    typed = "t20 t21\nt20 t21\n/new\nt20 t21\n/quit\n"
    lines = said("chat", str(model), "--seed", "3", "--max-tokens", "8", "--temperature", "1", typed=typed)
    first, second, again = (line.replace("› ", "") for line in lines[1:4])
    assert first == again
    assert second != first
    plain = said("generate", str(model), f"t11 t20 t21 t12 {first} t13 t20 t21 t9", "--seed", "3", "--max-tokens", "8")
    assert plain[0] == second


def test_a_chat_that_became_too_long_says_so_and_goes_on(model: Path) -> None:
    typed = "t20 " * 600 + "\nt20\n/quit\n"
    lines = said("chat", str(model), "--seed", "3", "--max-tokens", "8", typed=typed)
    assert "exceed the context of 512 tokens" in " ".join(lines)
    assert any(line.replace("› ", "").startswith("t") for line in lines[2:])


@pytest.fixture(scope="module")
def narrow(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a context of 24 tokens: less than any default asks for."""
    path = tmp_path_factory.mktemp("models") / "narrow"
    shutil.copytree(model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 24}))
    return path


def test_defaults_fit_what_is_left_of_the_context(narrow: Path) -> None:
    one = said("generate", str(narrow), "t5 t6", "--seed", "1", "--temperature", "1")
    assert 0 < len(one[0].split()) <= 22
    lines = said("chat", str(narrow), "--seed", "3", typed="t20\n" + "t21 " * 30 + "\n/new\nt20\n")
    assert lines[1].replace("› ", "").startswith("t")
    assert "exceed the context of 24 tokens" in " ".join(lines), "a prompt that leaves no room is still told so"
    assert lines[-2].replace("› ", "") == lines[1].replace("› ", ""), "and the end of input ends the chat"


@pytest.mark.timeout(90)
def test_ctrl_c_at_the_prompt_ends_a_chat(narrow: Path) -> None:
    ours, theirs = pty.openpty()
    command = [Path(sys.executable).with_name("lodestar"), "chat", narrow]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # who runs tests in the background ignores it
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=heard
    ) as chat:
        os.close(theirs)
        told = b""
        while "›".encode() not in told:
            told += os.read(ours, 4096)
        time.sleep(0.2)
        for _ in range(4):  # one that comes just before the terminal is read is not seen before the next
            chat.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                chat.wait(10)
                break
        assert chat.returncode == 0, told.decode()
    os.close(ours)
