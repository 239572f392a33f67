"""TRL's DPOTrainer on a folder with a policy and rows; run by benchmarks/dpo.py in its environment.

Prints one JSON line: wall and processor seconds of every step after the first, rows of a step, and the process's peak
memory in bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import itertools

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Timed(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []
        self.worked: list[float] = []

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ended.append(time.perf_counter())
        self.worked.append(time.process_time())


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path, help="holds policy/ and rows.json")
    options.add_argument("--steps", type=int, required=True)
    options.add_argument("--rows", type=int, required=True, help="of a step")
    options.add_argument("--threads", type=int, required=True)
    options.add_argument("--beta", type=float, required=True)
    options.add_argument("--learning-rate", type=float, required=True)
    options.add_argument("--checkpointing", action="store_true")
    options.add_argument("--precompute", action="store_true")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder / "policy")
    model, reference = (AutoModelForCausalLM.from_pretrained(arguments.folder / "policy") for _ in range(2))
    rows = json.loads((arguments.folder / "rows.json").read_text())
    timed = Timed()
    with tempfile.TemporaryDirectory() as output:
        config = DPOConfig(
            output_dir=output,
            per_device_train_batch_size=arguments.rows,
            gradient_accumulation_steps=1,
            max_steps=arguments.steps + 1,
            beta=arguments.beta,
            learning_rate=arguments.learning_rate,
            max_length=None,
            gradient_checkpointing=arguments.checkpointing,
            precompute_ref_log_probs=arguments.precompute,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(
            model=model,
            ref_model=None if arguments.precompute else reference,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[timed],
        )
        del reference
        trainer.train()
    seconds, cpu = ([b - a for a, b in itertools.pairwise(one)] for one in (timed.ended, timed.worked))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "rows": arguments.rows, "bytes": peak}))


if __name__ == "__main__":
    main()
