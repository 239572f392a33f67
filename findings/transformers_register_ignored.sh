#!/usr/bin/env bash
# transformers 5.23.0: AutoModelForSequenceClassification.register(ConfigOfTransformers, Model) does nothing and says nothing.
#
# A configuration of transformers that has no class for a task is the very case in which one registers a class for it.
# Without exist_ok=True the call returns as if it had worked, and the next from_config says that the
# configuration is not recognised. With exist_ok=True, although nothing exists yet, it works.
# A configuration class of one's own registers without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 torch==2.13.0
"$folder/venv/bin/python" - <<'PY'
import transformers
from transformers import AutoModelForSequenceClassification as Auto
from transformers import CohereConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as MAPPING

assert transformers.__version__ == "5.23.0"
assert CohereConfig not in MAPPING, "transformers has a class for it now"


class Classifier(PreTrainedModel):
    config_class = CohereConfig


class OwnConfig(PretrainedConfig):
    model_type = "own"


class OwnClassifier(PreTrainedModel):
    config_class = OwnConfig


Auto.register(OwnConfig, OwnClassifier)
print("own configuration, registered:", OwnConfig in MAPPING)
Auto.register(CohereConfig, Classifier)
ignored = CohereConfig not in MAPPING
print("transformers' configuration, registered:", not ignored)
Auto.register(CohereConfig, Classifier, exist_ok=True)
print("the same with exist_ok=True:", CohereConfig in MAPPING)
assert OwnConfig in MAPPING and ignored and CohereConfig in MAPPING
PY
