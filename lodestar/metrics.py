"""Every Prometheus metric of Lodestar, in one place.

Base units (seconds, bytes, nats), prefix ``lodestar_``, no label that grows with traffic. Help texts say what to do
when the number is bad. A process exports what it touches; the others stay at zero or absent.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds, for calls and waits."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# --- RPC, every server -------------------------------------------------------------------------------------------
RPCS = Counter(
    "lodestar_rpcs",
    "Calls answered, by method and gRPC status code. Errors other than CANCELLED point at the callers or the logs.",
    ["method", "code"],
)
RPC_SECONDS = Histogram(
    "lodestar_rpc_seconds",
    "Time to answer a call (a stream: until its end). When it grows, look at batch sizes and waiting sequences.",
    ["method"],
    buckets=SHORT,
)
RPCS_IN_FLIGHT = Gauge("lodestar_rpcs_in_flight", "Calls being answered now.", ["method"])
MODEL_INFO = Gauge(
    "lodestar_model_info", "1 for the model this process serves.", ["model", "tokenizer_hash", "incarnation"]
)
CERTIFICATE_EXPIRES = Gauge(
    "lodestar_certificate_expires_timestamp_seconds",
    "Unix time at which this process's certificate expires; 0 without TLS. Near: look at what should renew it.",
)
READY = Gauge("lodestar_ready", "1 while the server takes calls; 0 while it loads or drains.")
ASLEEP_SECONDS = Gauge(
    "lodestar_asleep_seconds",
    "Seconds, from 5, that a thread of this process has slept in the middle of its work. After services.hang_seconds "
    "the process ends itself with its stacks in the log, and is started again. 0 where none sleeps.",
)

# --- batching servers (reward, reference) --------------------------------------------------------------------------
BATCH_ITEMS = Histogram(
    "lodestar_batch_items",
    "Sequences per forward pass. Always 1 under load means that batch_wait_ms is too short.",
    buckets=SIZES,
)
BATCH_TOKENS = Histogram(
    "lodestar_batch_tokens",
    "Tokens per forward pass.",
    buckets=(64, 256, 1024, 4096, 16_384, 65_536),
)
BATCH_WAIT_SECONDS = Histogram(
    "lodestar_batch_wait_seconds", "Time a request waited for its batch. Add replicas when it grows.", buckets=SHORT
)
QUEUED_TOKENS = Gauge("lodestar_queued_tokens", "Tokens that wait for a batch.")

# --- reward sources ------------------------------------------------------------------------------------------------
REWARD_SOURCE_SCORES = Histogram(
    "lodestar_reward_source_score",
    "Scores by source, after its offset and before its weight. All in one bucket: the source says nothing.",
    ["source"],
    buckets=(-16, -8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8, 16),
)
REWARD_SOURCE_MEAN = Gauge(
    "lodestar_reward_source_mean", "Mean score of the last call, by source, as in the histogram.", ["source"]
)
REWARD_SOURCE_SECONDS = Histogram(
    "lodestar_reward_source_seconds",
    "Time of a call to a Python source. Long: it holds up every rollout; make it faster or add replicas.",
    ["source"],
    buckets=SHORT,
)
REWARD_SOURCE_FAILURES = Counter(
    "lodestar_reward_source_failures", "Calls to a Python source that failed; the log names the reason.", ["source"]
)

# --- tokens, every model server ------------------------------------------------------------------------------------
TOKENS_IN = Counter("lodestar_tokens_in", "Prompt tokens generated from, or tokens scored.")
TOKENS_OUT = Counter("lodestar_tokens_out", "Tokens generated.")

# --- generation engine ---------------------------------------------------------------------------------------------
SEQUENCES_RUNNING = Gauge("lodestar_sequences_running", "Sequences decoded in each step.")
SEQUENCES_WAITING = Gauge(
    "lodestar_sequences_waiting", "Sequences that wait for room. Growing: add policy replicas or KV cache."
)
KV_TOKENS_USED = Gauge("lodestar_kv_tokens_used", "Tokens whose keys and values are held.")
KV_TOKENS_CAPACITY = Gauge("lodestar_kv_tokens_capacity", "Tokens whose keys and values can be held.")
PREFIX_HIT_TOKENS = Counter("lodestar_prefix_hit_tokens", "Prompt tokens not computed again thanks to a shared prefix.")
PREEMPTIONS = Counter(
    "lodestar_preemptions", "Sequences thrown out to be recomputed. More than a few: the KV cache is too small."
)
FIRST_TOKEN_SECONDS = Histogram(
    "lodestar_first_token_seconds", "Arrival of a request to its first token.", buckets=SHORT
)
BETWEEN_TOKENS_SECONDS = Histogram(
    "lodestar_between_tokens_seconds", "Time between two tokens of a sequence.", buckets=SHORT
)

BEST_OF_SAMPLES = Counter(
    "lodestar_best_of_samples",
    "Samples that a server of best-of-n drew, by what became of them: chosen is what callers got, passed the rest.",
    ["outcome"],
)
BEST_OF_TOKENS = Counter(
    "lodestar_best_of_tokens",
    "Tokens of these samples. Passed is the price of the choice: lower best_of when it is too high.",
    ["outcome"],
)
BEST_OF_SECONDS = Histogram(
    "lodestar_best_of_seconds",
    "Time from the last of n samples to the choice among them. When it grows, add reward replicas.",
    buckets=SHORT,
)

# --- weights -------------------------------------------------------------------------------------------------------
WEIGHT_STEP = Gauge(
    "lodestar_weight_step",
    "PPO step of the weights served or published. A replica that lags behind the learner cannot fetch or refuses.",
)
WEIGHT_SWAP_SECONDS = Histogram(
    "lodestar_weight_swap_seconds", "Pause of decoding while new weights are copied in.", buckets=SHORT
)
WEIGHT_FETCH_SECONDS = Histogram(
    "lodestar_weight_fetch_seconds", "Time to fetch and verify a version, in the background.", buckets=SHORT
)
WEIGHTS_REFUSED = Counter(
    "lodestar_weights_refused",
    "Versions refused, by reason; the log says more. Training stops when all refuse.",
    ["reason"],
)
WEIGHT_BYTES_SENT = Counter("lodestar_weight_bytes_sent", "Bytes of weights sent to policy servers.")

# --- rollout queue -------------------------------------------------------------------------------------------------
QUEUE_WAITING = Gauge("lodestar_queue_waiting", "Tickets no worker has taken. Growing: add rollout workers.")
QUEUE_TAKEN = Gauge("lodestar_queue_taken", "Tickets that workers hold.")
QUEUE_FINISHED = Gauge("lodestar_queue_finished", "Rollouts that wait for the learner.")
QUEUE_OLDEST_SECONDS = Gauge(
    "lodestar_queue_oldest_seconds", "Age of the oldest unfinished ticket. Old: look at the workers' logs."
)
QUEUE_AWAY_SECONDS = Gauge(
    "lodestar_queue_away_seconds",
    "How long this process has waited for Redis; 0 while it serves. The log and the run's status say why.",
)
TICKETS_ISSUED = Counter("lodestar_tickets_issued", "Tickets issued, re-issues included.")
TICKETS_SETTLED = Counter("lodestar_tickets_settled", "Tickets settled, by outcome.", ["outcome"])
DEAD_LETTERS = Counter(
    "lodestar_dead_letters", "Tickets given up after their own errors. The dead-letter stream holds the error."
)
DUPLICATES_REFUSED = Counter("lodestar_duplicates_refused", "Second finishers of a ticket: harmless.")
RECONCILES = Counter(
    "lodestar_reconciles", "Times the learner re-issued what was unsettled. Frequent: Redis restarts or workers hang."
)
ROLLOUT_STALENESS = Histogram(
    "lodestar_rollout_staleness", "Steps a rollout's policy lagged behind the learner.", buckets=(0, 1, 2, 3, 4, 8)
)
ROLLOUT_SECONDS = Histogram(
    "lodestar_rollout_seconds", "A worker's time on one ticket, by stage.", ["stage"], buckets=SHORT
)
ROLLOUTS = Counter("lodestar_rollouts", "Tickets a worker ended, by how.", ["outcome"])
ROLLOUT_CALLS = Counter(
    "lodestar_rollout_calls", "Calls to other services that a worker got an answer to.", ["service"]
)
ROLLOUT_TOKENS = Counter("lodestar_rollout_tokens", "Response tokens of the rollouts that a worker made.")
ROLLOUT_RETRIES = Counter(
    "lodestar_rollout_retries",
    "Calls a worker made again because a service was away, late or full. Steady: look at that service's replicas.",
    ["service"],
)

# --- training for callers' own algorithms --------------------------------------------------------------------------
TRAINING_MODELS = Gauge("lodestar_training_models", "Models in memory. At max_models: callers must delete some.")
TRAINING_QUEUED = Gauge(
    "lodestar_training_queued_calls", "Calls that wait or are computed. Always high: one thread computes, start more."
)
TRAINING_STEPS = Counter("lodestar_training_steps", "Optimizer steps, of all models.")
TRAINING_TOKENS = Counter("lodestar_training_tokens", "Targets of ForwardBackward calls, by loss.", ["loss"])

# --- HTTP gateway --------------------------------------------------------------------------------------------------
GATEWAY_REQUESTS = Counter(
    "lodestar_gateway_requests",
    "HTTP requests answered, by route and status; 499: the caller left. 5xx: see the policy servers, 429: add some.",
    ["route", "status"],
)
GATEWAY_SECONDS = Histogram(
    "lodestar_gateway_request_seconds",
    "Time to answer an HTTP request (a stream: until its end). When it grows, look at the policy servers' waiting.",
    ["route"],
    buckets=SHORT,
)
GATEWAY_IN_FLIGHT = Gauge("lodestar_gateway_requests_in_flight", "HTTP requests being answered now.")
GATEWAY_TOKENS = Counter(
    "lodestar_gateway_tokens", "Tokens of requests answered, by whether they were prompt or completion.", ["kind"]
)

# --- people's feedback ---------------------------------------------------------------------------------------------
FEEDBACK_JUDGEMENTS = Counter(
    "lodestar_feedback_judgements",
    "Answers received, by what became of them. Many late: leases are too short, or a campaign was closed too soon.",
    ["outcome"],
)
FEEDBACK_PAGES = Histogram(
    "lodestar_feedback_page_seconds",
    "Time to answer a page, by page. When it grows, look at the database.",
    ["page"],
    buckets=SHORT,
)
FEEDBACK_REFUSED = Counter(
    "lodestar_feedback_refused",
    "Requests refused, by reason. Many of invitation or rate: somebody guesses links.",
    ["reason"],
)
FEEDBACK_DATABASE_ERRORS = Counter(
    "lodestar_feedback_database_errors",
    "Transactions that the database did not take: away, locked or full. Nothing is lost, and people wait.",
)
FEEDBACK_WANTED = Gauge("lodestar_feedback_wanted", "Judgements asked for.", ["campaign"])
FEEDBACK_DONE = Gauge(
    "lodestar_feedback_done",
    "Judgements that count. Not moving while people are there: look at what their page says.",
    ["campaign"],
)
FEEDBACK_ALPHA = Gauge(
    "lodestar_feedback_alpha",
    "Krippendorff's alpha. Low: look at the disagreements, and at the instructions.",
    ["campaign"],
)

# --- learner: the design's section 5 -------------------------------------------------------------------------------
STEP = Gauge("lodestar_step", "PPO steps done. Not moving: see lodestar_run_state and the queue.")
RUN_STATE = Gauge("lodestar_run_state", "1 for the run's present state.", ["state"])
STAGE_SECONDS = Histogram(
    "lodestar_stage_seconds",
    "Time per stage of a PPO step: collect, prepare, optimise, publish, checkpoint.",
    ["stage"],
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
TOKENS_TRAINED = Counter("lodestar_tokens_trained", "Response tokens that PPO trained on, each batch once.")
CHECKPOINTS = Counter("lodestar_checkpoints", "Checkpoints written.")
CHECKPOINT_STEP = Gauge("lodestar_checkpoint_step", "PPO step of the newest checkpoint: what a crash falls back to.")

# --- conductor: the run's stages, and the fleets that they call ------------------------------------------------------
RUN_STAGE_PROGRESS = Gauge(
    "lodestar_run_stage_progress", "Share of a stage's work that is done. Still for long: look at its log.", ["stage"]
)
RUN_STAGE_RUNNING = Gauge("lodestar_run_stage_running", "1 for the stage that runs.", ["stage"])
RUN_STAGE_FAILED = Gauge("lodestar_run_stage_failed", "1 for a stage that ended the run; its log says why.", ["stage"])
RUN_STAGE_SECONDS = Gauge("lodestar_run_stage_duration_seconds", "Seconds of a stage so far, or in all.", ["stage"])
FLEET_WANTED = Gauge(
    "lodestar_fleet_wanted",
    "Replicas that the present stage wants of a fleet. Fewer are ready: see its pods.",
    ["fleet"],
)
SILENT_SECONDS = Gauge(
    "lodestar_silent_seconds",
    "Seconds, from 5, that a process of this run has given no sign of life and need not have been silent. After "
    "services.hang_seconds it is killed and started again. 0 where it answers.",
    ["process"],
)
HANGS = Counter(
    "lodestar_hangs", "Processes of this run killed since they hung. Again and again: read its log.", ["process"]
)

_TRAINING = {
    "reward": "Mean reward per sequence, KL penalty included.",
    "score": "Mean reward-model score after offset and clip. Up while gold or disagreement says otherwise: hacking.",
    "score_std": "Standard deviation of the scores of a batch. Near zero: nothing left to learn from.",
    "gold": "Mean score of the held-out judge, which PPO never sees. Down while the score goes up: hacking.",
    "gold_std": "Standard deviation of the judge's scores of a batch.",
    "score_disagreement": "Mean standard deviation over the reward ensemble. Growing: the policy left what it knows.",
    "kl_k1": "Mean log π/π_ref per token, the penalised estimate.",
    "kl_k3": "Mean k3 estimate of the KL to the reference per token: never negative.",
    "kl_sequence": "KL to the reference per sequence, nats, of the policy that made the batch. Far above target: raise "
    "the coefficient.",
    "kl_after": "KL to the reference per sequence, nats, of the policy that the step left.",
    "nothing_to_learn": "1 where all advantages of a batch were equal. Stays: larger batches, or other prompts.",
    "kl_root": "Square root of the KL to the reference per sequence: the distance that over-optimisation grows with.",
    "over_optimised": "1 once the score's rise and the judge's fall (or the ensemble's disagreement) were significant.",
    "kl_behaviour": "KL of sampler to learner log-probs. Above 0.01: they disagree about the same weights.",
    "kl_coefficient": "β of the KL penalty.",
    "entropy": "Mean entropy per token, nats. Collapsing to zero: lower the learning rate or add a bonus.",
    "clip_fraction": "Share of tokens whose ratio was clipped. Above 0.3: lower the learning rate.",
    "value_clip_fraction": "Share of tokens whose value was clipped.",
    "explained_variance": "Of returns by values. Below 0 for long: the critic does not learn.",
    "ratio_max": "Largest probability ratio of a batch.",
    "ratio_min": "Smallest probability ratio of a batch.",
    "policy_loss": "Clipped policy loss.",
    "value_loss": "Clipped value loss.",
    "policy_grad_norm": "Before clipping.",
    "critic_grad_norm": "Before clipping.",
    "response_length": "Mean response tokens.",
    "eos_rate": "Share of responses that ended by themselves. Falling: the policy rambles.",
    "staleness": "Mean steps that rollouts lagged behind.",
    "learning_rate": "The policy's.",
    "tokens_per_second": "Response tokens per second of wall time over the last step.",
}
TRAINING: dict[str, Gauge] = {name: Gauge(f"lodestar_ppo_{name}", help_) for name, help_ in _TRAINING.items()}
"""Gauges by the names of metrics.jsonl."""
