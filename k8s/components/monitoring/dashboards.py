"""The Grafana dashboards, written out: ``python k8s/components/monitoring/dashboards.py`` after a change here.

A panel is a title and its queries; its description is the help text of the first metric it shows (lodestar.metrics),
so what to do about a bad number is written once. Grafana's generated SDK would need ten lines for what is one here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import prometheus_client

from lodestar import metrics as _metrics  # noqa: F401  fills the registry that HELP reads

FOLDER = Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
HEIGHT = 8
HELP = {family.name: family.documentation for family in prometheus_client.REGISTRY.collect()}

NOT_SHOWN = {
    "lodestar_rollout_calls",
    "lodestar_rollout_tokens",
    "lodestar_tokens_trained",
    "lodestar_certificate_expires_timestamp_seconds",
    "lodestar_training_models",
    "lodestar_training_queued_calls",
    "lodestar_training_steps",
    "lodestar_training_tokens",
    "lodestar_silent_seconds",
    "lodestar_hangs",
}
"""Metrics that are on no dashboard on purpose: the first three are for the live view on one machine, whose rates other
panels show from the other side; an expiry is nothing to watch, and has an alert; no component brings a training server
to a cluster; silence and hangs are what one machine's launcher sees, for which a cluster has probes."""


@dataclass(frozen=True)
class Panel:
    """``queries`` maps a legend, which may name labels as ``{{pod}}``, to PromQL; ``SEL`` in it selects the run."""

    title: str
    queries: dict[str, str]
    unit: str = "short"
    width: int = 8
    kind: Literal["timeseries", "stat"] = "timeseries"
    limit: float | None = None
    """Drawn as a line: where the alert of the same figure fires."""


def learner(metric: str, title: str, unit: str = "short", limit: float | None = None) -> Panel:
    """A figure of the learner; the other processes export the same gauge and leave it at zero."""
    return Panel(title, {"{{run}}": f'lodestar_ppo_{metric}{{role="learner",SEL}}'}, unit, limit=limit)


def quantiles(metric: str, by: str, selector: str = "SEL") -> dict[str, str]:
    """Median and 99th percentile of a histogram."""
    rate = f"sum by (le, {by}) (rate({metric}_bucket{{{selector}}}[5m]))"
    return {f"p{int(q * 100)} {{{{{by}}}}}": f"histogram_quantile({q}, {rate})" for q in (0.5, 0.99)}


def rate(metric: str, by: str, selector: str = "SEL") -> dict[str, str]:
    """Events per second."""
    return {f"{{{{{by}}}}}": f"sum by ({by}) (rate({metric}_total{{{selector}}}[5m]))"}


def latest(metric: str, by: str = "pod", selector: str = "SEL") -> dict[str, str]:
    """A gauge, the largest of each group."""
    return {f"{{{{{by}}}}}": f"max by ({by}) ({metric}{{{selector}}})"}


LEARNER = 'role="learner",SEL'
POLICY = 'role="policy",SEL'
REWARD = 'role="reward",SEL'
SCORERS = 'role=~"reward|reference",SEL'

CONDUCTOR = 'role="conductor",SEL'

OVERVIEW = [
    Panel("Stages", latest("lodestar_run_stage_progress", "stage", CONDUCTOR), "percentunit", width=12),
    Panel("Stage that runs", {"{{stage}}": f"lodestar_run_stage_running{{{CONDUCTOR}}} == 1"}, width=6, kind="stat"),
    Panel("Stages that failed", latest("lodestar_run_stage_failed", "stage", CONDUCTOR), width=6, kind="stat"),
    Panel("Time of stages", latest("lodestar_run_stage_duration_seconds", "stage", CONDUCTOR), "s", width=12),
    Panel("Replicas that the stage wants", latest("lodestar_fleet_wanted", "fleet", CONDUCTOR), width=12),
    Panel("State", {"{{state}}": f"lodestar_run_state{{{LEARNER}}} == 1"}, width=6, kind="stat"),
    Panel("PPO steps", latest("lodestar_step", "run", LEARNER), width=6, kind="stat"),
    Panel("Replicas that take calls", {"{{role}}": "sum by (role) (lodestar_ready{SEL})"}, width=6, kind="stat"),
    Panel(
        "Models",
        {"{{role}}: {{model}}": "count by (role, model) (lodestar_model_info{SEL})"},
        width=6,
        kind="stat",
    ),
    learner("score", "Score"),
    learner("kl_sequence", "KL to the reference, per sequence", limit=12),
    learner("tokens_per_second", "Response tokens per second"),
    Panel("Calls", rate("lodestar_rpcs", "role"), "reqps"),
    Panel(
        "Errors",
        {"{{role}} {{code}}": 'sum by (role, code) (rate(lodestar_rpcs_total{code!="OK",SEL}[5m]))'},
        "reqps",
    ),
    Panel("Tickets waiting for a worker", latest("lodestar_queue_waiting", "run")),
]

TRAINING = [
    learner("reward", "Reward, KL penalty included"),
    learner("score", "Score"),
    learner("score_std", "Score: standard deviation of a batch"),
    learner("score_disagreement", "Disagreement of the reward ensemble"),
    Panel(
        "Held-out judge",
        {name: f"lodestar_ppo_{metric}{{{LEARNER}}}" for name, metric in (("mean", "gold"), ("spread", "gold_std"))},
    ),
    learner("over_optimised", "Over-optimisation alarm", limit=1),
    learner("kl_root", "√KL to the reference, per sequence"),
    learner("kl_sequence", "KL to the reference, per sequence", limit=12),
    learner("kl_after", "KL to the reference after the update, per sequence"),
    learner("kl_k1", "KL to the reference, per token: k1"),
    learner("kl_k3", "KL to the reference, per token: k3"),
    learner("kl_coefficient", "KL coefficient β"),
    learner("kl_behaviour", "KL of sampler to learner", limit=0.01),
    learner("entropy", "Entropy per token"),
    learner("eos_rate", "Responses that end by themselves", "percentunit"),
    learner("response_length", "Response length, tokens"),
    learner("clip_fraction", "Tokens with a clipped ratio", "percentunit", limit=0.3),
    learner("value_clip_fraction", "Tokens with a clipped value", "percentunit"),
    learner("explained_variance", "Explained variance", limit=0),
    Panel(
        "Ratio extremes",
        {name: f"lodestar_ppo_ratio_{name}{{{LEARNER}}}" for name in ("max", "min")},
    ),
    Panel(
        "Losses",
        {name: f"lodestar_ppo_{name}_loss{{{LEARNER}}}" for name in ("policy", "value")},
    ),
    Panel(
        "Gradient norms",
        {name: f"lodestar_ppo_{name}_grad_norm{{{LEARNER}}}" for name in ("policy", "critic")},
    ),
    learner("learning_rate", "Learning rate"),
    learner("nothing_to_learn", "Batches whose advantages are all equal", limit=1),
    learner("staleness", "Staleness, steps"),
    learner("tokens_per_second", "Response tokens per second"),
    Panel("Steps and checkpoints", {
        "step": f"lodestar_step{{{LEARNER}}}",
        "checkpoint": f"lodestar_checkpoint_step{{{LEARNER}}}",
    }),
    Panel("Checkpoints written", {"{{run}}": f"lodestar_checkpoints_total{{{LEARNER}}}"}),
    Panel(
        "Time per stage",
        {"{{stage}}": f"sum by (stage) (rate(lodestar_stage_seconds_sum{{{LEARNER}}}[5m]))"
         f" / sum by (stage) (rate(lodestar_stage_seconds_count{{{LEARNER}}}[5m]))"},
        "s",
    ),
]  # fmt: skip

SERVING = [
    Panel("Calls by method", rate("lodestar_rpcs", "method"), "reqps"),
    Panel("Time to answer", quantiles("lodestar_rpc_seconds", "method"), "s"),
    Panel("Calls in flight", {"{{method}}": "sum by (method) (lodestar_rpcs_in_flight{SEL})"}),
    Panel("Work that no thread was run for", latest("lodestar_asleep_seconds"), "s", limit=60),
    Panel("Time to the first token", quantiles("lodestar_first_token_seconds", "role", POLICY), "s", limit=2.5),
    Panel("Time between tokens", quantiles("lodestar_between_tokens_seconds", "role", POLICY), "s"),
    Panel("Tokens", {
        "in {{role}}": "sum by (role) (rate(lodestar_tokens_in_total{SEL}[5m]))",
        "out {{role}}": "sum by (role) (rate(lodestar_tokens_out_total{SEL}[5m]))",
    }),
    Panel("Sequences", {
        "running {{pod}}": f"lodestar_sequences_running{{{POLICY}}}",
        "waiting {{pod}}": f"lodestar_sequences_waiting{{{POLICY}}}",
    }),
    Panel("KV cache", {
        "{{pod}}": f"lodestar_kv_tokens_used{{{POLICY}}} / (lodestar_kv_tokens_capacity{{{POLICY}}} > 0)",
    }, "percentunit", limit=0.95),
    Panel("Prompt tokens served from shared prefixes", rate("lodestar_prefix_hit_tokens", "pod", POLICY)),
    Panel("Preemptions", rate("lodestar_preemptions", "pod", POLICY)),
    Panel("Best of n: samples", rate("lodestar_best_of_samples", "outcome", POLICY)),
    Panel("Best of n: tokens", rate("lodestar_best_of_tokens", "outcome", POLICY)),
    Panel("Best of n: time of the choice", quantiles("lodestar_best_of_seconds", "role", POLICY), "s"),
    Panel("Sequences per batch", quantiles("lodestar_batch_items", "role", SCORERS)),
    Panel("Tokens per batch", quantiles("lodestar_batch_tokens", "role", SCORERS)),
    Panel("Wait for a batch", quantiles("lodestar_batch_wait_seconds", "role", SCORERS), "s"),
    Panel("Scores by reward source", quantiles("lodestar_reward_source_score", "source", REWARD)),
    Panel("Mean score by reward source", latest("lodestar_reward_source_mean", "source", REWARD)),
    Panel("Time of Python rewards", quantiles("lodestar_reward_source_seconds", "source", REWARD), "s"),
    Panel("Failures of Python rewards", rate("lodestar_reward_source_failures", "source", REWARD)),
    Panel("Tokens that wait for a batch", latest("lodestar_queued_tokens", "pod", SCORERS)),
]  # fmt: skip

QUEUE_AND_WEIGHTS = [
    Panel("Tickets", {
        "waiting": "max by (run) (lodestar_queue_waiting{SEL})",
        "taken": "max by (run) (lodestar_queue_taken{SEL})",
        "finished": "max by (run) (lodestar_queue_finished{SEL})",
    }),
    Panel("Age of the oldest ticket", latest("lodestar_queue_oldest_seconds", "run"), "s", limit=300),
    Panel("Waiting for Redis", latest("lodestar_queue_away_seconds", "pod"), "s", limit=60),
    Panel("Issued", rate("lodestar_tickets_issued", "run")),
    Panel("Settled", rate("lodestar_tickets_settled", "outcome")),
    Panel("Ended by workers", rate("lodestar_rollouts", "outcome")),
    Panel("Calls made again", rate("lodestar_rollout_retries", "service")),
    Panel("A worker's time on a ticket", quantiles("lodestar_rollout_seconds", "stage"), "s"),
    Panel("Staleness of rollouts", quantiles("lodestar_rollout_staleness", "run")),
    Panel("Dead letters", {"{{run}}": "sum by (run) (lodestar_dead_letters_total{SEL})"}),
    Panel("Re-issues and second finishers", {
        "reconciles": "sum by (run) (lodestar_reconciles_total{SEL})",
        "duplicates refused": "sum by (run) (lodestar_duplicates_refused_total{SEL})",
    }),
    Panel("Weights served and published", {"{{pod}}": 'lodestar_weight_step{role=~"policy|learner",SEL}'}),
    Panel("Pause for new weights", quantiles("lodestar_weight_swap_seconds", "role", POLICY), "s"),
    Panel("Time to fetch weights", quantiles("lodestar_weight_fetch_seconds", "role", POLICY), "s"),
    Panel("Weights refused", {"{{pod}} {{reason}}": f"lodestar_weights_refused_total{{{POLICY}}}"}),
    Panel("Weights sent", rate("lodestar_weight_bytes_sent", "run"), "Bps"),
]  # fmt: skip

PEOPLE = [
    Panel("Judgements that count", {
        "{{campaign}}": "max by (campaign) (lodestar_feedback_done{SEL})",
        "{{campaign}} wanted": "max by (campaign) (lodestar_feedback_wanted{SEL})",
    }),
    Panel("Agreement: Krippendorff's α", latest("lodestar_feedback_alpha", "campaign")),
    Panel("Answers", rate("lodestar_feedback_judgements", "outcome"), "reqps"),
    Panel("Time to answer a page", quantiles("lodestar_feedback_page_seconds", "page"), "s", limit=0.1),
    Panel("Requests refused", rate("lodestar_feedback_refused", "reason"), "reqps"),
    Panel("Transactions that the database did not take", rate("lodestar_feedback_database_errors", "pod"), "reqps"),
]  # fmt: skip

PROGRAMS = [
    Panel("HTTP requests", rate("lodestar_gateway_requests", "status"), "reqps"),
    Panel("Time to answer", quantiles("lodestar_gateway_request_seconds", "route"), "s"),
    Panel("Requests in flight", {"{{pod}}": "lodestar_gateway_requests_in_flight{SEL}"}),
    Panel("Tokens", rate("lodestar_gateway_tokens", "kind")),
]  # fmt: skip

DASHBOARDS = {
    "overview": ("Lodestar: overview", OVERVIEW),
    "training": ("Lodestar: training", TRAINING),
    "serving": ("Lodestar: serving", SERVING),
    "queue-and-weights": ("Lodestar: queue and weights", QUEUE_AND_WEIGHTS),
    "people": ("Lodestar: people", PEOPLE),
    "programs": ("Lodestar: programs", PROGRAMS),
}


def describe(query: str) -> str:
    """Help text of the first metric in a query."""
    found = re.search(r"lodestar_\w+", query)
    assert found, query
    name = re.sub(r"_(total|bucket|sum|count)$", "", found[0])
    return HELP[name] if name in HELP else HELP[found[0]]


def render_panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """Grafana's JSON of one panel."""
    field: dict[str, Any] = {"unit": panel.unit}
    if panel.limit is not None:
        field["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": "transparent", "value": None}, {"color": "red", "value": panel.limit}],
        }
        field["custom"] = {"thresholdsStyle": {"mode": "line"}}
    options: dict[str, Any] = {"legend": {"displayMode": "list", "placement": "bottom"}}
    if panel.kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name", "colorMode": "none"}
    return {
        "id": number,
        "title": panel.title,
        "description": describe(next(iter(panel.queries.values()))),
        "type": panel.kind,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "fieldConfig": {"defaults": field, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.replace("SEL", 'run=~"$run"'),
                "legendFormat": legend,
            }
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def render(uid: str, title: str, panels: list[Panel]) -> dict[str, Any]:
    """Grafana's JSON of one dashboard, panels flowing from left to right."""
    rendered, x, y = [], 0, 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > COLUMNS:
            x, y = 0, y + HEIGHT
        rendered.append(render_panel(panel, number, x, y))
        x += panel.width
    run = {"name": "run", "type": "query", "datasource": DATASOURCE, "query": "label_values(lodestar_ready, run)"}
    return {
        "uid": f"lodestar-{uid}",
        "title": title,
        "tags": ["lodestar"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {"type": "dashboards", "title": "Lodestar", "tags": ["lodestar"], "keepTime": True, "includeVars": True}
        ],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {**run, "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*"},
            ]
        },
        "panels": rendered,
    }


def main() -> None:
    """Writes every dashboard."""
    FOLDER.mkdir(exist_ok=True)
    for uid, (title, panels) in DASHBOARDS.items():
        text = json.dumps(render(uid, title, panels), indent=1, ensure_ascii=False)
        (FOLDER / f"{uid}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
