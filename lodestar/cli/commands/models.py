"""Ask a model: chat, generate."""

from __future__ import annotations

from typing import Annotated

import typer

from lodestar.cli.commands.arguments import MODEL, Tls, Token


def chat(
    model: Annotated[str, typer.Argument(help=f"{MODEL}, or HOST:PORT of a policy server.")],
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="New tokens per reply at most; unset: 256, or what the context has room for."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes replies repeatable.")] = None,
    tls: Tls = None,
    token: Token = None,
) -> None:
    """Talk with a model in the terminal."""
    from lodestar.cli.generate import chat, opened

    chat(opened(model, tls=tls, token=token), model, temperature=temperature, max_tokens=max_tokens, seed=seed)


def generate(
    model: Annotated[str, typer.Argument(help=f"{MODEL}, or HOST:PORT of a policy server.")],
    prompt: Annotated[str, typer.Argument(help="Text to go on from; - reads standard input.", show_default=False)],
    n: Annotated[int, typer.Option("-n", help="Samples.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.")] = 1.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="New tokens per sample at most; unset: 128, or what the context has room for."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes samples repeatable.")] = None,
    tls: Tls = None,
    token: Token = None,
) -> None:
    """Complete one prompt."""
    from lodestar.cli.generate import generate, opened

    source = opened(model, tls=tls, token=token)
    generate(source, prompt, n=n, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
