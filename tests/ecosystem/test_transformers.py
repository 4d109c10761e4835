"""The Trainer of Hugging Face transformers drives our optimizers as it drives torch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from training import ADAMW, Pair, assert_equal_bits, assert_learns, copies, of_pairs, text
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, get_linear_schedule_with_warmup

import fusedoptim

STEPS = 10


class Passages(Dataset[dict[str, Tensor]]):
    """Passages of 32 bytes."""

    def __init__(self) -> None:
        self.rows = text(64 * 32).view(64, 32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def gpt2() -> GPT2LMHeadModel:
    """With dropout, whose random numbers a resumed run has to meet again."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=32, n_embd=64, n_layer=1, n_head=4, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    return GPT2LMHeadModel(config)


def trainer(directory: Path, model: GPT2LMHeadModel, *, save_steps: int = 0, given: Any = None, **options: Any) -> Any:
    args = TrainingArguments(
        output_dir=str(directory),
        use_cpu=True,
        per_device_train_batch_size=8,
        max_steps=STEPS,
        warmup_steps=2,
        learning_rate=2e-3,
        weight_decay=0.05,
        logging_steps=1,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=7,
        **options,
    )
    return Trainer(model=model, args=args, train_dataset=Passages(), **(given or {}))


def losses_of(trained: Any) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def with_instance(make: Callable[[Any], Any], directory: Path, **options: Any) -> Any:
    """Train with an optimizer and a schedule made before."""
    model = gpt2()
    optimizer = make(model.parameters())
    schedule = get_linear_schedule_with_warmup(optimizer, 2, STEPS)
    trained = trainer(directory, model, given={"optimizers": (optimizer, schedule)}, **options)
    trained.train()
    return trained


def with_class(cls: type, directory: Path, resume: str | None = None, **options: Any) -> Any:
    """Train with a class that the Trainer makes the optimizer of, two groups and a schedule included."""
    fused = {} if cls.__module__.startswith("fusedoptim") else {"fused": True}
    given = {"optimizer_cls_and_kwargs": (cls, {"lr": 2e-3, "betas": (0.9, 0.98), **fused})}
    trained = trainer(directory, gpt2(), given=given, **options)
    trained.args.learning_rate = 0.5  # only the keywords count
    trained.train(resume_from_checkpoint=resume)
    return trained


def assert_same_training(ours: Any, theirs: Any) -> None:
    assert losses_of(ours) == losses_of(theirs)
    assert_equal_bits(copies(ours.model), copies(theirs.model))
    assert_learns(losses_of(ours), 0.99)


@of_pairs
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": 0.1},
        {"max_grad_norm": 0.0},
        {"gradient_accumulation_steps": 3},
        {"bf16": True, "max_grad_norm": 0.1, "gradient_accumulation_steps": 2},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()) or "default",
)
def test_optimizer_made_by_the_user(
    pair: Pair, options: dict[str, Any], tmp_path: Path, steps_of_kernels: list[int]
) -> None:
    ours, theirs = (with_instance(make, tmp_path, **options) for make in (pair.ours, pair.theirs))
    assert_same_training(ours, theirs)
    assert len(steps_of_kernels) == STEPS


@pytest.mark.parametrize("options", [{}, {"bf16": True, "max_grad_norm": 0.1, "gradient_accumulation_steps": 2}])
def test_class_for_the_trainer_to_make(options: dict[str, Any], tmp_path: Path) -> None:
    """Weight decay for all but biases and norms, as the Trainer groups the parameters."""
    ours, theirs = (with_class(module.AdamW, tmp_path, **options) for module in (fusedoptim, torch.optim))
    assert_same_training(ours, theirs)
    assert {group["initial_lr"] for group in ours.optimizer.param_groups} == {2e-3}
    assert [group["weight_decay"] for group in ours.optimizer.param_groups] == [0.05, 0.0]
    assert type(ours.optimizer.optimizer) is fusedoptim.AdamW


@pytest.mark.parametrize("start", [fusedoptim.AdamW, torch.optim.AdamW], ids=["ours", "theirs"])
def test_resumed_run_equals_the_uninterrupted_one(start: type, tmp_path: Path) -> None:
    """Also where torch's optimizer wrote the checkpoint."""
    whole = with_class(start, tmp_path, save_steps=5)
    resumed = with_class(fusedoptim.AdamW, tmp_path, resume=str(tmp_path / "checkpoint-5"))
    assert_same_training(resumed, whole)


def test_torch_resumes_from_our_checkpoint(tmp_path: Path, steps_of_kernels: list[int]) -> None:
    """Torch takes ``fused`` from the file: it is not set there, so its for-loop goes on, which rounds elsewhere."""
    whole = with_class(fusedoptim.AdamW, tmp_path, save_steps=5)
    resumed = with_class(torch.optim.AdamW, tmp_path, resume=str(tmp_path / "checkpoint-5"))
    assert len(steps_of_kernels) == STEPS
    torch.testing.assert_close(losses_of(resumed), losses_of(whole), rtol=1e-4, atol=0)


def test_default_of_the_trainer_is_close(tmp_path: Path) -> None:
    """``optim="adamw_torch_fused"`` with the betas of the Trainer."""
    default = trainer(tmp_path, gpt2())
    default.train()
    assert type(default.optimizer.optimizer) is torch.optim.AdamW
    assert default.optimizer.param_groups[0]["fused"]
    ours = trainer(
        tmp_path,
        gpt2(),
        given={"optimizer_cls_and_kwargs": (fusedoptim.AdamW, {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8})},
    )
    ours.train()
    assert_same_training(ours, default)


def test_fused_is_taken_too(tmp_path: Path) -> None:
    """With ``fused=True`` and a clipped norm: without a scaler nothing is in its way."""
    fused = with_instance(lambda params: ADAMW.ours(params, fused=True), tmp_path, bf16=True, max_grad_norm=0.1)
    assert_same_training(fused, with_instance(ADAMW.ours, tmp_path, bf16=True, max_grad_norm=0.1))
