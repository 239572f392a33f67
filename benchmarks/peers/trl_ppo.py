"""TRL's PPOTrainer on a folder with a policy and a reward model; run by benchmarks/ppo_iteration.py in its environment.

Prints one JSON line: seconds of every iteration after the first, and the peak memory of the process in bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import itertools

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path, help="holds policy/, reward/ and prompts.json")
    options.add_argument("--iterations", type=int, required=True)
    options.add_argument("--batch", type=int, required=True)
    options.add_argument("--tokens", type=int, required=True)
    options.add_argument("--learning-rate", type=float, required=True)
    options.add_argument("--stop-at-eos", action="store_true")
    arguments = options.parse_args()
    folder, batch = arguments.folder, arguments.batch

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder / "policy") for _ in range(2))
    reward, critic = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1) for _ in range(2)
    )
    prompts = json.loads((folder / "prompts.json").read_text())
    rows = [{"input_ids": prompts[i % len(prompts)]} for i in range(batch * (arguments.iterations + 2))]
    data = Dataset.from_list(rows)
    ended: list[float] = []

    class Timed(PPOTrainer):
        def log(self, *_: object, **__: object) -> None:
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as output:
        config = PPOConfig(
            output_dir=output,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1,  # else accelerate takes fewer optimizer steps
            num_mini_batches=4,
            num_ppo_epochs=4,
            total_episodes=batch * (arguments.iterations + 1),
            response_length=arguments.tokens,
            local_rollout_forward_batch_size=batch,
            num_sample_generations=0,
            stop_token="eos" if arguments.stop_at_eos else None,
            learning_rate=arguments.learning_rate,
            temperature=1.0,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
        )
        Timed(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=critic,
            train_dataset=data,
            eval_dataset=data.select(range(batch)),
        ).train()
    seconds = [later - earlier for earlier, later in itertools.pairwise(ended)]
    print(json.dumps({"seconds": seconds, "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
