"""Where a run keeps its files: one place for every path below ``runs/NAME``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``RunFolder(Path("runs/demo")).metrics`` is ``runs/demo/metrics.jsonl``."""

    root: Path

    @property
    def config(self) -> Path:
        """The configuration as it ran, every option written out."""
        return self.root / "config.yaml"

    @property
    def data(self) -> Path:
        """The data stage's output (see lodestar.data.files)."""
        return self.root / "data"

    @property
    def tokenizer(self) -> Path:
        """Tokenizer made for the run, when model.path is unset."""
        return self.root / "models" / "tokenizer"

    @property
    def pretrained(self) -> Path:
        """Language model before SFT."""
        return self.root / "models" / "pretrained"

    @property
    def sft(self) -> Path:
        """Start model of PPO and reference model."""
        return self.root / "models" / "sft"

    @property
    def reward_model(self) -> Path:
        """The reward model, with its card.json."""
        return self.root / "models" / "reward"

    @property
    def policy(self) -> Path:
        """What PPO made."""
        return self.root / "models" / "policy"

    @property
    def checkpoints(self) -> Path:
        """Learner checkpoints, one folder per step."""
        return self.root / "checkpoints"

    @property
    def weights(self) -> Path:
        """Published weight versions."""
        return self.root / "weights"

    @property
    def served(self) -> Path:
        """The last verified weights of each policy server, one folder per replica."""
        return self.root / "policy"

    @property
    def metrics(self) -> Path:
        """One JSON object per PPO step."""
        return self.root / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """One JSON object per settled ticket."""
        return self.root / "ledger.jsonl"

    @property
    def samples(self) -> Path:
        """Prompts with responses before and after."""
        return self.root / "samples.jsonl"

    @property
    def report(self) -> Path:
        """The report, one HTML file that needs no network."""
        return self.root / "report.html"

    @property
    def summary(self) -> Path:
        """The run's figures."""
        return self.root / "summary.json"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.root / "logs"

    @property
    def services(self) -> Path:
        """One JSON file per running service process: its pid and ports (see lodestar.rpc.state)."""
        return self.root / "services"

    @property
    def state(self) -> Path:
        """Which stages are done, and the launcher's processes while they live."""
        return self.root / "state.json"
