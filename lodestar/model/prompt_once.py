"""Whether a model may compute a prompt once for several responses: only where tokens meet in our attention alone."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lodestar.model.lora import plain
from lodestar.model.packed import PackedBatch, response_states

log = logging.getLogger(__name__)

TOLERANCE = 0.02
"""Of the largest state: far above rounding, also of bfloat16, and far below what another token in the context does."""

_found: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def shares_prompts(model: Any) -> bool:
    """Whether it may; a model is tried once."""
    found = _found.get(model)
    if found is None:
        found = _found[model] = _try(model)
    return found


@torch.no_grad()
def _try(model: Any) -> bool:
    """Tries two short batches of three responses to one prompt, laid out once and apart; says so where they differ.

    A model may look at the tokens that lie before one by another way than attention (a convolution, a table): it then
    sees the response before in place of its prompt, and its prompts are computed for every response.
    """
    vocabulary = int(plain(model).config.get_text_config().vocab_size)
    ids = [i % vocabulary for i in range(3, 20)]
    sequences = [ids[:4] + ids[4:7], ids[:4] + ids[7:9], ids[:4] + ids[9:13]]
    device = next(model.parameters()).device
    apart, once = (
        response_states(model, PackedBatch.pack(sequences, [4] * 3, device=device, share=share)).float()
        for share in (False, True)
    )
    difference, largest = float((apart - once).abs().max()), float(apart.abs().max())
    if difference <= TOLERANCE * largest:
        return True
    log.warning(
        "%s looks at other tokens than through attention (states differ by %.2g of %.2g): the prompt of several "
        "responses is computed once for each of them",
        type(plain(model)).__name__,
        difference,
        largest,
    )
    return False
