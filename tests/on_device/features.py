"""What a step on a device does beyond its rule: numbers that lie there, loss scaling, and clearing of gradients."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch

import fusedoptim
from on_device.bits import (
    SHORT_SIZES,
    Outcome,
    Pair,
    Settings,
    cases,
    named,
    on_host,
    one_element_in,
    params_of,
    steps,
    values_of,
)

FLAGS: tuple[Mapping[str, Any], ...] = ({}, {"fused": True}, {"capturable": True})
FOUND = (0.0, 1.0, 2.5, math.nan)


def flags_of(case: Any, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `flags` that the optimizer has: SGD is always capturable, and does not say so."""
    return case.flag(*flags)


def check_flags(settings: Settings) -> Iterator[Outcome]:
    """Counts of steps on the device and on the host, large ones too, and every way to clear the gradients."""
    for case, dtype, flags in product(cases.one_per_class(), cases.DTYPES, FLAGS):
        label = f"{named(case, dtype)} {dict(flags)}"
        make = partial(case.make, **flags_of(case, flags))
        for mode in (None, "to_zero", "to_none"):
            yield from Pair(make, values_of(SHORT_SIZES, dtype), settings.device).follow(
                f"{label}, zero_grad={mode}", 2, zero_grad=mode
            )
        pair = Pair(make, values_of(SHORT_SIZES, dtype), settings.device)
        yield from pair.follow(label, 1)
        for optimizer in (pair.device, pair.host):
            for i, state in enumerate(optimizer.state.values()):
                if "step" in state:
                    state["step"].fill_(999_999 + 7 * i)
        yield from pair.follow(f"{label}, a million steps on", 2, 1)


def check_zero_grad(settings: Settings) -> Iterator[Outcome]:
    """`zero_grad(set_to_none=False)`, also on gradients that begin misaligned: zeros there, and nothing beside them."""
    for dtype in cases.DTYPES:
        values = values_of(settings.sizes, dtype)
        pair = Pair(lambda params: fusedoptim.SGD(params, lr=0.1), values, settings.device)
        for shift in (0, 1):
            pair.set_grads(1 + shift)
            buffers = [torch.full((p.numel() + 2,), 7.0, dtype=dtype, device=settings.device.torch) for p in values]
            for p, buffer in zip(params_of(pair.device), buffers, strict=True):
                p.grad = buffer[shift : shift + len(p)]
            for optimizer in (pair.device, pair.host):
                optimizer.zero_grad(set_to_none=False)
            yield pair.compare(f"zero_grad {dtype}, {shift} elements in")
            for p, buffer in zip(values, buffers, strict=True):
                kept = torch.cat((buffer[:shift], buffer[shift + len(p) :]))
                yield Outcome("beside", [f"zero_grad {dtype} wrote beside a gradient"] * bool((kept != 7).any()))


def check_lr_on_device(settings: Settings) -> Iterator[Outcome]:
    """A learning rate in a tensor on the device is read there in each step, so that a scheduler is followed."""
    for case, dtype, lr_dtype in product(cases.one_per_class(), cases.DTYPES, (torch.float32, torch.float64)):
        lr = torch.tensor(0.0123, dtype=lr_dtype, device=settings.device.torch)
        make = partial(case.make, lr=0.5, **case.flag("capturable"))
        pair = Pair(make, values_of(SHORT_SIZES, dtype), settings.device)
        for seed in range(3):
            pair.device.param_groups[0]["lr"] = lr
            pair.host.param_groups[0]["lr"] = lr.double().item()
            yield from pair.follow(f"{named(case, dtype)}, lr on the device", 1, seed)
            lr.mul_(0.5)


def check_loss_scale(settings: Settings) -> Iterator[Outcome]:
    """`grad_scale` and `found_inf` on the device: the step is taken with unscaled gradients, or changes nothing."""
    where = settings.device.torch
    for case, dtype, mode in product(cases.everything(), cases.DTYPES, (None, "to_zero")):
        make = partial(case.make, **case.flag("fused", "capturable"))
        pair = Pair(make, values_of(SHORT_SIZES, dtype), settings.device)
        yield from pair.follow(f"{named(case, dtype)}, before", 1)
        for seed, found in enumerate(FOUND, 1):
            label = f"{named(case, dtype)}, found_inf {found}, {mode}"
            pair.set_grads(seed)
            for optimizer, place in ((pair.device, where), (pair.host, torch.device("cpu"))):
                optimizer.grad_scale = torch.tensor([3.0 * seed], device=place)
                optimizer.found_inf = torch.tensor([found], device=place)
            if found == 0:
                pair.step(zero_grad=mode)
                yield pair.compare(label)
                continue
            before = on_host(pair.device)
            pair.device.step(zero_grad=mode)
            for entry in before if mode else ():
                entry["grad"] = torch.zeros_like(entry["grad"])
            yield Outcome(label, steps.differences(on_host(pair.device), before, f"{label}: "))


def check_first_step_skipped(settings: Settings) -> Iterator[Outcome]:
    """A first step that is skipped does not count as the first one."""
    for case, flags in product(cases.everything(), ({}, {"maximize": True})):
        make = partial(case.make, **case.flag("fused", "capturable"), **flags)
        pair = Pair(make, values_of(SHORT_SIZES, torch.float32), settings.device)
        pair.set_grads(0)
        before = [p.detach().clone() for p in params_of(pair.host)]
        pair.device.grad_scale = pair.device.found_inf = torch.ones(1, device=settings.device.torch)
        pair.device.step()
        changed = any((p.detach().cpu() != q).any() for p, q in zip(params_of(pair.device), before, strict=True))
        yield Outcome(case.id, [f"{case.id}: a skipped first step wrote to parameters"] * changed)
        pair.device.found_inf = torch.zeros(1, device=settings.device.torch)
        yield from pair.follow(f"{case.id}, after a first step that was skipped", 2, 1)


def check_grad_scaler(settings: Settings) -> Iterator[Outcome]:
    """Training with `GradScaler`, with overflows on the way."""

    def train(optimizer: Any, place: torch.device, scaler: Any, seed: int | None) -> None:
        optimizer.zero_grad()
        factors = [steps.numbers(p.shape, p.dtype, 77 * (seed or 0) + i) for i, p in enumerate(params_of(optimizer))]
        pairs = zip(params_of(optimizer), factors, strict=True)
        loss = sum((p * (math.inf if seed is None else x.to(place))).sum() for p, x in pairs)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    for case, names in product(cases.one_per_class(), ((), ("fused", "capturable"))):
        pair = Pair(partial(case.make, **case.flag(*names)), values_of((5, 8193, 40), torch.float32), settings.device)
        sides = [
            (optimizer, place, torch.amp.GradScaler(place.type, init_scale=8.0, growth_interval=2))  # type: ignore[attr-defined]
            for optimizer, place in ((pair.device, settings.device.torch), (pair.host, torch.device("cpu")))
        ]
        for seed in (1, None, 2, 3, None, None, 4):
            for optimizer, place, scaler in sides:
                train(optimizer, place, scaler, seed)
            label = f"{case.id}, GradScaler, {case.flag(*names)}"
            yield pair.compare(label)
            scales = [scaler.get_scale() for _, _, scaler in sides]
            yield Outcome(label, [f"{label}: scales {scales}"] * (scales[0] != scales[1]))


def check_briefly(settings: Settings) -> Iterator[Outcome]:
    """All at once on few elements, for tools under which every call is slow: each dtype, with all numbers there."""
    where = settings.device.torch
    for case, dtype in product(cases.one_per_class(), cases.DTYPES):
        make = partial(case.make, **case.flag("capturable", "fused"))
        pair = Pair(make, values_of((0, 1, 17, 8193), dtype), settings.device, lambda x: one_element_in(x.to(where)))
        pair.device.param_groups[0]["lr"], pair.host.param_groups[0]["lr"] = torch.tensor(0.25, device=where), 0.25
        yield from pair.follow(named(case, dtype), 1)
        for optimizer, place in ((pair.device, where), (pair.host, torch.device("cpu"))):
            optimizer.grad_scale = torch.tensor([3.0], device=place)
            optimizer.found_inf = torch.tensor([0.0], device=place)
        yield from pair.follow(f"{named(case, dtype)}, scaled", 1, 1, zero_grad="to_zero")
