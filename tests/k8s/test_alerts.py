"""Every alert fires when it should and is silent just short of that, by promtool's own rule tests."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).parents[2] / "k8s" / "components" / "monitoring" / "rules.yaml"

Series = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """Samples one minute apart, in promtool's notation, and the minute at which the alert is looked at."""

    fires: Series
    silent: Series
    minute: int


def learner(metric: str, extra: str = "") -> str:
    return f'lodestar_{metric}{{role="learner", run="r", pod="learner-0"{extra}}}'


def policy(metric: str, pod: int = 0, extra: str = "") -> str:
    return f'lodestar_{metric}{{role="policy", run="r", pod="policy-{pod}"{extra}}}'


def conductor(metric: str, extra: str) -> str:
    return f'lodestar_{metric}{{role="conductor", run="r", pod="conductor-0"{extra}}}'


def slow_calls(histogram: str, labels: str, le: str, slow_per_minute: int) -> Series:
    """100 calls a minute for two hours, of which so many are slow."""
    return {
        f'{histogram}_count{{{labels}, run="r"}}': "0+100x130",
        f'{histogram}_bucket{{{labels}, run="r", le="{le}"}}': f"0+{100 - slow_per_minute}x130",
    }


def spike(histogram: str, labels: str, le: str) -> Series:
    """Half of the calls slow, in the last minutes of two hours: not worth waking anybody."""
    return {
        f'{histogram}_count{{{labels}, run="r"}}': "0+100x130",
        f'{histogram}_bucket{{{labels}, run="r", le="{le}"}}': "0+100x110 11050+50x19",
    }


def figure(metric: str, bad: float, good: float, minute: int) -> Case:
    """A training figure that is bad, or as bad as it may be, all the time."""
    return Case({learner(metric): f"{bad}x60"}, {learner(metric): f"{good}x60"}, minute)


SHORT = {learner("ppo_response_length"): "20x60"}
WORKING = {learner("run_state", ', state="collecting"'): "1x60"}

CASES = {
    "LodestarServiceDown": Case(
        fires={
            conductor("fleet_wanted", ', fleet="policy"'): "2x30",
            policy("ready", 0): "0x30",
            policy("ready", 1): "0x30",
        },
        silent={
            conductor("fleet_wanted", ', fleet="policy"'): "2x30",
            policy("ready", 0): "0x30",
            policy("ready", 1): "1x30",
        },
        minute=12,
    ),
    "LodestarTargetDown": Case(
        fires={'up{role="reward", run="r", pod="reward-1"}': "1 0x9"},
        silent={'up{role="reward", run="r", pod="reward-1"}': "0 1 0 1x9"},
        minute=5,
    ),
    "LodestarCertificateExpiring": Case(
        fires={policy("certificate_expires_timestamp_seconds"): "200000x9"},
        silent={
            policy("certificate_expires_timestamp_seconds"): "400000x9",
            policy("certificate_expires_timestamp_seconds", 1): "0x9",
        },
        minute=7,
    ),
    "LodestarErrors": Case(
        fires={
            policy("rpcs_total", 0, ', code="OK"'): "0+97x20",
            policy("rpcs_total", 0, ', code="INTERNAL"'): "0+3x20",
        },
        silent={
            policy("rpcs_total", 0, ', code="OK"'): "0+97x20",
            policy("rpcs_total", 0, ', code="UNAVAILABLE"'): "0+3x20",
        },
        minute=15,
    ),
    "LodestarScoringSlow": Case(
        fires=slow_calls("lodestar_rpc_seconds", 'role="reward"', "1.0", 15),
        silent=spike("lodestar_rpc_seconds", 'role="reward"', "1.0"),
        minute=118,
    ),
    "LodestarFirstTokenSlow": Case(
        fires=slow_calls("lodestar_first_token_seconds", 'role="policy"', "2.5", 15),
        silent=slow_calls("lodestar_first_token_seconds", 'role="policy"', "2.5", 14),
        minute=118,
    ),
    "LodestarKvCacheFull": Case(
        fires={
            policy("kv_tokens_used"): "97x30",
            policy("kv_tokens_capacity"): "100x30",
            policy("sequences_waiting"): "1x30",
        },
        silent={
            policy("kv_tokens_used"): "97x30",
            policy("kv_tokens_capacity"): "100x30",
            policy("sequences_waiting"): "0x30",
        },
        minute=12,
    ),
    "LodestarQueueOld": Case(
        fires={learner("queue_oldest_seconds"): "0+60x30"},
        silent={learner("queue_oldest_seconds"): "300x30"},
        minute=12,
    ),
    "LodestarQueueAway": Case(
        fires={learner("queue_away_seconds"): "0x5 30+60x10"},
        silent={learner("queue_away_seconds"): "0x5 30 60x10"},
        minute=10,
    ),
    "LodestarDeadLetters": Case(
        fires={learner("dead_letters_total"): "0x5 1x10"}, silent={learner("dead_letters_total"): "1x20"}, minute=8
    ),
    "LodestarRolloutsStale": Case(
        fires={
            learner("tickets_settled_total", ', outcome="trained"'): "0+80x60",
            learner("tickets_settled_total", ', outcome="superseded"'): "0+20x60",
        },
        silent={
            learner("tickets_settled_total", ', outcome="trained"'): "0+92x60",
            learner("tickets_settled_total", ', outcome="superseded"'): "0+8x60",
        },
        minute=40,
    ),
    "LodestarWeightsRefused": Case(
        fires={policy("weights_refused_total", 0, ', reason="probe"'): "_x20 1x10"},
        silent={
            policy("weights_refused_total", 0, ', reason="fetch"'): "_x20 1+1x10",
            policy("weights_refused_total", 1, ', reason="probe"'): "1x40",
        },
        minute=22,
    ),
    "LodestarWeightsSkewed": Case(
        fires={policy("weight_step", 0): "0+1x30", policy("weight_step", 1): "0x30"},
        silent={policy("weight_step", 0): "1+1x30", policy("weight_step", 1): "0+1x30"},
        minute=10,
    ),
    "LodestarWeightsBehind": Case(
        fires={learner("weight_step"): "0+1x30", policy("weight_step", 0): "0x30"},
        silent={learner("weight_step"): "2+1x30", policy("weight_step", 0): "0+1x30"},
        minute=10,
    ),
    "LodestarStageFailed": Case(
        fires={conductor("run_stage_failed", ', stage="sft"'): "0x5 1x2 _x20"},
        silent={conductor("run_stage_failed", ', stage="sft"'): "0x30"},
        minute=15,
    ),
    "LodestarStageStalled": Case(
        fires={
            conductor("run_stage_progress", ', stage="sft"'): "0.4x90",
            conductor("run_stage_running", ', stage="sft"'): "1x90",
        },
        silent={
            conductor("run_stage_progress", ', stage="sft"'): "0.4x50 0.5x40",
            conductor("run_stage_running", ', stage="sft"'): "1x90",
            conductor("run_stage_progress", ', stage="data"'): "1x90",
            conductor("run_stage_running", ', stage="data"'): "0x90",
        },
        minute=80,
    ),
    "LodestarRunPaused": Case(
        fires={learner("run_state", ', state="paused"'): "0 1x9"},
        silent={learner("run_state", ', state="finished"'): "0 1x9"},
        minute=4,
    ),
    "LodestarRunStalled": Case(
        fires={learner("step"): "7x60", **WORKING},
        silent={learner("step"): "7x60", learner("run_state", ', state="finished"'): "1x60"},
        minute=45,
    ),
    "LodestarNoCheckpoint": Case(
        fires={learner("checkpoint_step"): "10x180", learner("step"): "10+1x180"},
        silent={learner("checkpoint_step"): "10x100 20x80", learner("step"): "10+1x180"},
        minute=150,
    ),
    "LodestarKlHigh": figure("ppo_kl_sequence", bad=12.1, good=12, minute=12),
    "LodestarRewardHacking": Case(
        fires={learner("ppo_score"): "0+0.1x90", learner("ppo_score_disagreement"): "0.1x30 0.5x60"},
        silent={learner("ppo_score"): "0+0.1x90", learner("ppo_score_disagreement"): "0.4x30 0.5x60"},
        minute=55,
    ),
    "LodestarEntropyCollapse": Case(
        fires={learner("ppo_entropy"): "3x20 0.5x40", **SHORT},
        silent={learner("ppo_entropy"): "3x20 0.7x40", **SHORT},
        minute=35,
    ),
    "LodestarEosCollapse": Case(
        fires={learner("ppo_eos_rate"): "0.9x20 0.4x40", **SHORT},
        silent={learner("ppo_eos_rate"): "0.9x20 0.5x40", **SHORT},
        minute=35,
    ),
    "LodestarSamplerMismatch": figure("ppo_kl_behaviour", bad=0.02, good=0.01, minute=12),
    "LodestarClipping": figure("ppo_clip_fraction", bad=0.31, good=0.3, minute=17),
    "LodestarCriticBlind": figure("ppo_explained_variance", bad=-0.01, good=0, minute=32),
}


@pytest.fixture(scope="module")
def groups() -> list[dict[str, Any]]:
    return list(yaml.safe_load(RULES.read_text())["spec"]["groups"])


@pytest.fixture(scope="module")
def alerts(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


@pytest.fixture(scope="module")
def firing(
    groups: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Series, int, set[str]], str]:
    """Promtool's complaint when other than the expected alerts fire at the minute; empty when all is as expected."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))

    def run(series: Series, minute: int, expected: set[str]) -> str:
        test = {
            "rule_files": ["rules.yaml"],
            "evaluation_interval": "1m",
            "tests": [
                {
                    "interval": "1m",
                    "input_series": [{"series": name, "values": values} for name, values in series.items()],
                    "promql_expr_test": [
                        {
                            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                            "eval_time": f"{minute}m",
                            "exp_samples": [
                                {"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)
                            ],
                        }
                    ],
                }
            ],
        }
        (folder / "test.yaml").write_text(yaml.safe_dump(test))
        command = [promtool, "test", "rules", str(folder / "test.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stdout + done.stderr

    return run


def test_promtool_accepts_the_rules(groups: list[dict[str, Any]], tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    done = subprocess.run([promtool, "check", "rules", str(tmp_path / "rules.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case(alerts: dict[str, dict[str, Any]]) -> None:
    assert set(CASES) == set(alerts)


@pytest.mark.parametrize("alert", CASES)
def test_the_alert_fires_and_no_other(alert: str, firing: Callable[[Series, int, set[str]], str]) -> None:
    assert firing(CASES[alert].fires, CASES[alert].minute, {alert}) == ""


@pytest.mark.parametrize("alert", CASES)
def test_the_alert_is_silent_short_of_its_threshold(alert: str, firing: Callable[[Series, int, set[str]], str]) -> None:
    assert firing(CASES[alert].silent, CASES[alert].minute, set()) == ""


@pytest.mark.parametrize(
    ("series", "fires"),
    [
        ({}, True),
        ({learner("ready"): "1x20 _x40"}, True),
        ({learner("ready"): "1x20 _x8 1x30"}, False),
    ],
    ids=["it was never there", "its pod is gone", "it came back"],
)
def test_a_fleet_that_the_stage_wants_is_missed(
    series: Series, fires: bool, firing: Callable[[Series, int, set[str]], str]
) -> None:
    wanted = {conductor("fleet_wanted", ', fleet="learner"'): "1x60"}
    assert firing({**wanted, **series}, 40, {"LodestarServiceDown"} if fires else set()) == ""


def test_a_fleet_that_no_stage_wants_any_more_is_not_missed(firing: Callable[[Series, int, set[str]], str]) -> None:
    gone = {conductor("fleet_wanted", ', fleet="reference"'): "1x20 0x40"}
    assert firing({**gone, policy("ready"): "1x60"}, 50, set()) == ""


def test_a_deleted_fleet_is_not_missed(firing: Callable[[Series, int, set[str]], str]) -> None:
    gone = {conductor("fleet_wanted", ', fleet="policy"'): "1x20", policy("ready"): "1x20"}
    assert firing(gone, 60, set()) == ""


RISING = {learner("ppo_score"): "0+0.1x90"}


@pytest.mark.parametrize(
    ("series", "fires"),
    [
        ({learner("ppo_over_optimised"): "0x40 1x50"}, True),
        ({**RISING, learner("ppo_gold"): "2x20 1.7x70", learner("ppo_gold_std"): "1x90"}, True),
        ({**RISING, learner("ppo_gold"): "2x20 1.8x70", learner("ppo_gold_std"): "1x90"}, False),
        ({learner("ppo_score"): "1x90", learner("ppo_gold"): "2x20 1x70", learner("ppo_gold_std"): "1x90"}, False),
        ({**RISING, learner("ppo_score_disagreement"): "0.1x30 0.5x60", learner("ppo_gold_std"): "1x90",
          learner("ppo_gold"): "1x90"}, False),
    ],
    ids=["the learner's alarm", "judge falls", "judge falls a little", "score stands", "judge decides"],
)  # fmt: skip
def test_reward_hacking_is_said_of_a_falling_judge_and_of_the_learners_own_alarm(
    series: Series, fires: bool, firing: Callable[[Series, int, set[str]], str]
) -> None:
    minute = 55 if learner("ppo_gold") not in series else 50
    assert firing(series, minute, {"LodestarRewardHacking"} if fires else set()) == ""


def test_processes_that_only_export_zeros_are_silent(firing: Callable[[Series, int, set[str]], str]) -> None:
    zeros = {
        learner(f"ppo_{name}"): "0x90"
        for name in ("entropy", "eos_rate", "score", "gold", "gold_std", "kl_sequence", "response_length")
    }
    assert firing(zeros, 80, set()) == ""


def test_every_alert_says_what_to_do(alerts: dict[str, dict[str, Any]]) -> None:
    manual = (RULES.parents[3] / "docs" / "operations.md").read_text()
    anchors = {re.sub(r"[^\w-]", "", title.lower()) for title in re.findall(r"^#+ (\w+)$", manual, re.MULTILINE)}
    for name, rule in alerts.items():
        assert rule["annotations"]["summary"], name
        assert rule["annotations"]["description"], name
        assert rule["labels"]["severity"] in {"warning", "critical"}, name
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}", name
        assert name.lower() in anchors, f"{name} has no runbook entry"
