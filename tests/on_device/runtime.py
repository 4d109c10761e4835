"""How a step on a device lives with CUDA: graphs, streams, several devices, checkpoints, a host that never waits."""

import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

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
from on_device.features import FLAGS, flags_of

HUGE = 2**31 + 4097  # elements: more than 32 bits count


def check_graphs(settings: Settings) -> Iterator[Outcome]:
    """Replays of a captured step equal eager steps, with new gradients and a learning rate that changes there."""
    for case, dtype, mode in product(cases.one_per_class(), cases.DTYPES, (None, "to_zero")):
        label = f"{named(case, dtype)}, graph, {mode}"
        lr = torch.tensor(0.25, device=settings.device.torch)
        make = partial(case.make, **case.flag("capturable", "fused"))
        pair = Pair(make, values_of(SHORT_SIZES, dtype), settings.device)
        pair.device.param_groups[0]["lr"], pair.host.param_groups[0]["lr"] = lr, 0.25
        yield from pair.follow(f"{label}, before", 2)
        pair.set_grads(2)
        settings.device.synchronize()
        replay = settings.device.capture(partial(pair.device.step, zero_grad=mode))
        yield pair.compare(f"{label}, captured and not yet replayed")
        for seed in (3, 4, 5):
            pair.set_grads(seed, in_place=True)
            replay()
            pair.host.step(zero_grad=mode)
            yield pair.compare(f"{label}, replay {seed - 2}")
            pair.host.param_groups[0]["lr"] = lr.mul_(0.5).item()
        yield from pair.follow(f"{label}, eager again", 1, 6)


def check_streams(settings: Settings) -> Iterator[Outcome]:
    """Two optimizers on two streams at once; then one that moves from stream to stream."""
    for case in cases.one_per_class():
        pairs = [Pair(case.make, values_of(settings.sizes, dtype), settings.device) for dtype in cases.DTYPES[:2]]
        first, second = settings.device.streams(2)
        for seed in range(4):
            for stream, pair in zip((first, second), pairs, strict=True):
                with stream():
                    pair.set_grads(seed)
                    pair.step()
        settings.device.synchronize()
        yield from (pair.compare(f"{case.id}, on its own stream") for pair in pairs)
        for seed, stream in enumerate(settings.device.streams(2) * 2, 4):
            with stream():
                pairs[0].set_grads(seed)
                pairs[0].step()
            settings.device.synchronize()
            yield pairs[0].compare(f"{case.id}, on changing streams")


def check_nothing_waits(settings: Settings) -> Iterator[Outcome]:
    """While the device is busy, a step and `zero_grad` return, and torch sees no wait, whatever lies on the device."""
    where = settings.device.torch
    for case, flags, scaled in product(cases.one_per_class(), FLAGS, (False, True)):
        label = f"{case.id} {dict(flags)}{', scaled on the device' * scaled}"
        pair = Pair(partial(case.make, **flags_of(case, flags)), values_of(SHORT_SIZES, torch.float32), settings.device)
        if flags.get("capturable"):
            pair.device.param_groups[0]["lr"] = torch.tensor(0.25, device=where)
            pair.host.param_groups[0]["lr"] = 0.25
        if scaled:
            pair.device.found_inf, pair.device.grad_scale = torch.zeros(1, device=where), torch.ones(1, device=where)
        yield from pair.follow(f"{label}, before", 3)
        for is_judged in (False, True):  # the first time it may allocate memory, and so wait
            late = run_ahead(pair)
            if is_judged:
                yield Outcome(label, [f"{label}: {call} waited for the device" for call in late])


def run_ahead(pair: Pair) -> list[str]:
    """Steps and `zero_grad` while the device is busy, with gradients at new addresses; the calls that waited."""
    fresh = [[pair.move(steps.numbers(p.shape, p.dtype, 9 * k)) for p in params_of(pair.host)] for k in range(2)]
    late = []
    with pair.where.busy() as has_run_ahead:
        for grads in fresh:
            for p, grad in zip(params_of(pair.device), grads, strict=True):
                p.grad = grad
            pair.device.step()
            late += [] if has_run_ahead() else ["step"]
        pair.device.zero_grad(set_to_none=False)
        late += [] if has_run_ahead() else ["zero_grad"]
    return late


def check_checkpoints(settings: Settings) -> Iterator[Outcome]:
    """State saved on the device, loaded by torch's own optimizer on the CPU and from there by ours; and back."""

    def reloaded(state_dict: Any) -> Any:
        file = io.BytesIO()
        torch.save(state_dict, file)
        file.seek(0)
        return torch.load(file, map_location="cpu")

    def onto(make: Callable[..., Any], optimizer: Any, place: torch.device) -> Any:
        new = make([Parameter(p.detach().to(place, copy=True)) for p in params_of(optimizer)])
        new.load_state_dict(reloaded(optimizer.state_dict()))
        return new

    cpu, where = torch.device("cpu"), settings.device.torch
    for case, flags in product(cases.one_per_class(), FLAGS):
        label = f"{case.id} {dict(flags)}, checkpoint"
        options = flags_of(case, flags)
        pair = Pair(partial(case.make, **options), values_of(SHORT_SIZES, torch.float32), settings.device)
        yield from pair.follow(label, 2)
        there = onto(case.make_torch, pair.device, cpu)
        yield Outcome(label, steps.differences(on_host(there), list(map(without_grad, on_host(pair.host)))))
        pair.device, back = onto(partial(case.make, **options), onto(case.make_torch, there, where), where), pair.host
        pair.host = onto(partial(case.make, **options), there, cpu)
        yield from pair.follow(f"{label} and on", 2, 2)
        pair.host, pair.device = back, onto(case.make, back, where)
        yield from pair.follow(f"{label}, from the CPU to the device", 2, 2)


def without_grad(entry: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An entry of a snapshot as it is after loading."""
    return {name: x for name, x in entry.items() if name != "grad"}


def check_places(settings: Settings) -> Iterator[Outcome]:
    """Parameters on the CPU and on one or more devices in one optimizer."""
    places = [torch.device("cpu"), settings.device.torch, *map(torch.device, settings.device.others())]
    for case, flags in product(cases.one_per_class(), FLAGS):
        pair = Pair(
            partial(case.make, **flags_of(case, flags)), values_of(settings.sizes, torch.float32), settings.device
        )
        for i, p in enumerate(params_of(pair.device)):
            p.data = p.data.to(places[i % len(places)])
        for seed in range(3):
            for i, (p, q) in enumerate(zip(params_of(pair.device), params_of(pair.host), strict=True)):
                q.grad = steps.numbers(q.shape, q.dtype, seed * 1009 + i)
                p.grad = one_element_in(q.grad.to(p.device, copy=True))
            pair.step()
            yield pair.compare(f"{case.id} {dict(flags)}, on {', '.join(map(str, places))}, step {seed + 1}")


def check_huge(settings: Settings) -> Iterator[Outcome]:
    """A parameter of more elements than 32 bits count: its ends and what lies about element 2**31."""
    device, block = settings.device, 8192
    count = HUGE if device.free_bytes() > 12 * HUGE else 5 * block + 4097
    print(f"huge parameter: {count:,} elements, with {device.free_bytes() / 1e9:.0f} GB free")
    values, grad = (steps.numbers(block, torch.bfloat16, seed) for seed in (1, 2))
    repeats = -(-count // block)
    p, q = (
        Parameter(values.to(place).repeat(n)[:m])
        for place, n, m in ((device.torch, repeats, count), (torch.device("cpu"), 1, block))
    )
    p.grad, q.grad = grad.to(device.torch).repeat(repeats)[:count], grad.clone()
    for param in (p, q):
        fusedoptim.SGD([param], lr=0.37).step()
    whole = count // block * block
    odd = (p.detach()[:whole].view(-1, block) != q.detach().to(device.torch)).any(dim=1).nonzero().flatten()
    rest = steps.difference(p.detach()[whole:].cpu(), q.detach()[: count - whole])
    lines = [f"huge parameter: {len(odd)} blocks of {block} elements differ, first {odd[:3].tolist()}"] * bool(len(odd))
    yield Outcome("huge", [*lines, *([f"huge parameter: its end: {rest}"] if rest else [])])
