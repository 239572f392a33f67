"""Sequence-classification classes for the architectures that transformers gives none: one linear map over the trunk.

They are made as transformers makes its own (its GenericForSequenceClassification over the architecture's trunk) and put
into AutoModelForSequenceClassification, so that everything here treats all types alike. A program without Lodestar
does not have the class; :data:`NOTE` goes into such a model's folder and says what to do.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification

from lodestar.errors import ModelError

NOTE_FILE = "LOADING.md"
NOTE = """# Loading this model
transformers has no sequence-classification class for `{model_type}`. With Lodestar installed:

```python
from transformers import AutoConfig, AutoModelForSequenceClassification
from lodestar.model.classifiers import ensure_classifier

ensure_classifier(AutoConfig.from_pretrained(folder))
model = AutoModelForSequenceClassification.from_pretrained(folder)
```
Without it, the class is:

```python
from transformers.modeling_layers import GenericForSequenceClassification
from {module} import {parent}

class {name}(GenericForSequenceClassification, {parent}):
    pass

model = {name}.from_pretrained(folder)
```
"""


def ensure_classifier(config: Any) -> type[PreTrainedModel]:
    """The type's sequence-classification class: transformers' own, or one made and registered here.

    Raises:
        ModelError: the type has no causal language model to make it of.
    """
    kind = type(config)
    known: Any = AutoModelForSequenceClassification._model_mapping
    if kind in known:
        found = known[kind]
        return cast(type[PreTrainedModel], found[0] if isinstance(found, tuple) else found)
    language: Any = AutoModelForCausalLM._model_mapping
    if kind not in language:
        raise ModelError(f"{config.model_type} is no type of language model that transformers knows")
    causal = language[kind]
    parent = next(
        base
        for base in causal.__mro__[1:]
        if issubclass(base, PreTrainedModel) and base.__name__.endswith("PreTrainedModel")
    )
    if parent is PreTrainedModel:
        raise ModelError(f"{causal.__name__} has no trunk of its own to put a scalar head on")
    name = causal.__name__.replace("ForCausalLM", "").replace("LMHeadModel", "") + "ForSequenceClassification"
    # transformers reads a class's abilities off the source of its module.
    members = {"config_class": kind, "__module__": causal.__module__, "made_by_lodestar": True}
    made = type(name, (GenericForSequenceClassification, parent), members)
    # Without exist_ok transformers drops registrations for its own configurations in silence.
    AutoModelForSequenceClassification.register(kind, made, exist_ok=True)
    return made


def note_of(model: Any) -> str | None:
    """What to write beside a model whose class is of here; None for transformers' own."""
    kind = type(model)
    if not getattr(kind, "made_by_lodestar", False):
        return None
    parent = kind.__mro__[2]
    return NOTE.format(
        model_type=model.config.model_type, module=parent.__module__, parent=parent.__name__, name=kind.__name__
    )
