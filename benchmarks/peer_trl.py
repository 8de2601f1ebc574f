"""GRPO with TRL's own trainer. Run by benchmarks/peer.py in an environment that has TRL; imports nothing of ours.

    python peer_trl.py JOB.json

The job names the model folder, the rows (chat, answer, token ids of the prompt), the settings and where to write
what was logged after each update: seconds since training began and the mean of each reward.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def correct(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """1 for a right answer."""
    return [float(said(completion) == right.split()) for completion, right in zip(completions, answer)]


def partly_correct(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """The share of words before the first wrong, missing or superfluous one."""
    found = []
    for completion, text in zip(completions, answer):
        words, right = said(completion), text.split()
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(words, right))
        found.append(sum(1 for _ in same) / max(len(words), len(right), 1))
    return found


def said(completion: Any) -> list[str]:
    return str(completion[0]["content"]).split()


class Log(TrainerCallback):
    """Seconds and rewards after each update."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.lines: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "reward" in logs:
            seconds = time.perf_counter() - self.begun
            self.lines.append({"seconds": seconds, "correct": float(logs["rewards/correct/mean"])})


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    wanted = {
        **job["settings"], "output_dir": job["folder"], "use_cpu": True, "bf16": False, "fp16": False,
        "model_init_kwargs": {"dtype": "float32"}, "gradient_checkpointing": False, "beta": 0.0,
        "loss_type": "dapo", "scale_rewards": "group", "lr_scheduler_type": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "shuffle_dataset": False, "remove_unused_columns": False,
    }  # fmt: skip
    known = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert "loss_type" in known and "num_generations" in known, "this is not the GRPOConfig that was meant"
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    rows = []
    for row in job["rows"]:
        rows.append({"prompt": row["chat"], "answer": row["answer"]})
        made = tokenizer.apply_chat_template(row["chat"], add_generation_prompt=True, tokenize=True, return_dict=True)
        assert list(made["input_ids"]) == row["ids"], f"another prompt: {made['input_ids']}, not {row['ids']}"
    log = Log()
    trainer = GRPOTrainer(
        model=job["model"],
        reward_funcs=[correct, partly_correct],
        args=GRPOConfig(**{name: value for name, value in wanted.items() if name in known}),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[log],
    )
    trainer.train()
    facts = {
        "trl": metadata.version("trl"), "transformers": metadata.version("transformers"),
        "torch": torch.__version__, "threads": torch.get_num_threads(), "not taken": sorted(set(wanted) - known),
    }  # fmt: skip
    Path(job["out"]).write_text(json.dumps({"lines": log.lines, "facts": facts}))


if __name__ == "__main__":
    main()
