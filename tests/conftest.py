"""What every tier shares: models of tests are not remembered in the user's cache folder."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("LODESTAR_CACHE", tempfile.mkdtemp(prefix="lodestar-tests-"))
