"""Runs the test tiers one after another and prints what each took: ``python tests/tiers.py [--slow] [tier …]``."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BUDGET_MINUTES = {"unit": 4, "kernels": 2, "services": 8, "e2e": 9, "k8s": 2}
NO_TESTS = 5
"""pytest's exit status when a tier holds no test that is selected."""


def main(arguments: list[str]) -> int:
    """Returns the first failing tier's pytest status, or 0."""
    slow = "--slow" in arguments
    chosen = [argument for argument in arguments if argument != "--slow"] or list(BUDGET_MINUTES)
    unknown = set(chosen) - set(BUDGET_MINUTES)
    if unknown:
        print(f"no tier {', '.join(sorted(unknown))}; there are {', '.join(BUDGET_MINUTES)}", file=sys.stderr)
        return 2
    lines, failed = [], 0
    for tier in chosen:
        started = time.monotonic()
        status = _run(tier, slow)
        seconds = time.monotonic() - started
        outcome = {0: "passed", NO_TESTS: "no tests"}.get(status, f"failed ({status})")
        budget = "" if slow else f"  of {60 * BUDGET_MINUTES[tier]:4d} s"
        lines.append(f"  {tier:<9}{seconds:7.1f} s{budget}  {outcome}")
        if status not in (0, NO_TESTS):
            failed = failed or status
    print("\nTime per tier\n" + "\n".join(lines), flush=True)
    return failed


def _run(tier: str, slow: bool) -> int:
    folder = Path(__file__).parent / tier
    if not any(folder.glob("**/test_*.py")):
        return NO_TESTS
    print(f"== {tier}", flush=True)
    selection = ["-m", "slow and not gpu"] if slow else []
    command = [sys.executable, "-m", "pytest", *selection, "--durations=5", str(folder)]
    return subprocess.run(command, cwd=folder.parent.parent, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
