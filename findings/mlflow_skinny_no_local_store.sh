#!/usr/bin/env bash
# mlflow-skinny 3.17.2, which is sold as the tracking client alone, can keep a run on no local path as it is installed:
#
# - a folder (file:///…, for years the default) is refused when a run starts: MlflowException, "maintenance mode", with the
#   advice to take sqlite:///…;
# - sqlite:///… is refused as an unsupported URI, in a message that lists "file" among those that are supported. What is
#   missing is SQLAlchemy, which mlflow-skinny does not bring and the message does not name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check mlflow-skinny==3.17.2
"$folder/venv/bin/python" - "$folder" <<'PY'
import importlib.util
import sys

import mlflow
from mlflow.exceptions import MlflowException

folder = sys.argv[1]
assert mlflow.__version__ == "3.17.2"


def outcome(uri: str) -> str:
    mlflow.set_tracking_uri(uri)
    try:
        with mlflow.start_run():
            mlflow.log_metric("loss", 1.0)
    except (MlflowException, ImportError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "kept"


found = {uri: outcome(uri) for uri in (f"file://{folder}/runs", f"sqlite:///{folder}/runs.db")}
for uri, said in found.items():
    print(uri.partition(":")[0], "→", said[:120])
by_file, by_database = found.values()
assert "maintenance mode" in by_file and "sqlite" in by_file
assert "unsupported URI" in by_database and "'file'" in by_database and "SQLAlchemy" not in by_database
assert importlib.util.find_spec("sqlalchemy") is None
PY
