"""Control tokens of a conditioned model: what stands before a prompt and says how good the reply is to be.

Reward conditioning and Quark train log π(reply | control token, prompt); the reply is then asked for under the best
token. A tokenizer says that its model is conditioned: ``control_tokens`` in its tokenizer_config.json names the tokens,
the best first (lodestar.model.control adds them).

    [BOS] <|good|> prompt | completion end-of-turn

Whatever encodes a prompt puts the best token there (lodestar.data.rows), and who sends token ids without one gets it in
the server, so that training, serving and log-probs mean the same sequence. A text that spells a control token is text,
no id of one is ever sampled, and none is counted or shown to a caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lodestar.data.marks import MARK
from lodestar.records import Scored

KEY = "control_tokens"
"""In tokenizer_config.json."""
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """The control tokens of one tokenizer: ``Control(("<|good|>", "<|bad|>"), (900, 901), bos=1)``; none for most."""

    names: tuple[str, ...] = ()
    """The best first."""
    ids: Ids = ()
    bos: int | None = None
    """What may stand before the control token."""

    @classmethod
    def of(cls, tokenizer: Any) -> Control:
        """As the tokenizer says.

        Raises:
            ValueError: it names a control token that it does not have.
        """
        names = tuple(getattr(tokenizer, "init_kwargs", {}).get(KEY) or ())
        if not names:
            return cls()
        ids = tuple(tokenizer.convert_tokens_to_ids(list(names)))
        for name, token in zip(names, ids, strict=True):  # what it does not have is its unknown token
            if token is None or tokenizer.convert_ids_to_tokens(token) != name:
                raise ValueError(f"{KEY} in tokenizer_config.json names {name!r}, which the tokenizer does not have")
        return cls(names, ids, tokenizer.bos_token_id)

    @property
    def tokens(self) -> int:
        """How many stand before a prompt: 1 for a conditioned model, else 0."""
        return int(bool(self.ids))

    def without(self, ids: Sequence[int]) -> Ids:
        """A prompt as its writer knows it: without the control token before it."""
        place = self._place(ids)
        return tuple(ids[:place]) + tuple(ids[place + 1 :]) if self._has(ids, place) else tuple(ids)

    def before(self, ids: Sequence[int], index: int | None = None) -> Ids:
        """The prompt with a control token before it: the one of ``index``, 0 is the best; unset leaves one that is
        there, and puts the best where there is none."""
        place = self._place(ids)
        if not self.ids or (index is None and self._has(ids, place)):
            return tuple(ids)
        bare = self.without(ids)
        return (*bare[:place], self.ids[index or 0], *bare[place:])

    def before_scored(self, scored: Scored, index: int | None = None) -> Scored:
        """A row whose prompt has a control token before it, as :meth:`before`."""
        prompt = self.before(scored.token_ids[: scored.prompt_tokens], index)
        return Scored(prompt + scored.token_ids[scored.prompt_tokens :], len(prompt))

    def without_scored(self, scored: Scored) -> Scored:
        """A row as its writer knows it."""
        prompt = self.without(scored.token_ids[: scored.prompt_tokens])
        return replace(scored, token_ids=prompt + scored.token_ids[scored.prompt_tokens :], prompt_tokens=len(prompt))

    def as_text(self, text: str) -> str:
        """The text with a mark in every control token that it spells (lodestar.data.marks)."""
        for name in self.names:
            if name in text:
                text = text.replace(name, f"{name[:1]}{MARK}{name[1:]}")
        return text

    def _place(self, ids: Sequence[int]) -> int:
        return int(self.bos is not None and len(ids) > 0 and ids[0] == self.bos)

    def _has(self, ids: Sequence[int], place: int) -> bool:
        return len(ids) > place and ids[place] in self.ids
