"""Clipping and skipping on a device, in graphs as well; and all checks of bits by name."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch

import fusedoptim
from on_device import bits, features, runtime
from on_device.bits import SHORT_SIZES, Outcome, Pair, Settings, cases, params_of, values_of
from on_device.runtime import run_ahead

DTYPES = tuple(dtype for dtype in cases.DTYPES if dtype != torch.float64)  # whose norm the host finds
SKIPPING: dict[str, Any] = {"max_grad_norm": 0.5, "skip_nonfinite": True}


def compare_norms(label: str, device: torch.Tensor, host: torch.Tensor) -> Outcome:
    """Equal bits, or NaN both."""
    is_same = torch.equal(device.cpu(), host) or bool(device.isnan() & host.isnan())
    return Outcome(label, [f"{label}: the norm is {device.item()!r} and not {host.item()!r}"] * (not is_same))


def spoil(pair: Pair, value: float) -> None:
    """Make the last element of the last gradient infinite or NaN."""
    for optimizer in (pair.device, pair.host):
        params_of(optimizer)[-1].grad[-1] = value


def check_clipping(settings: Settings) -> Iterator[Outcome]:
    """Steps that clip and are skipped, the clip before a step, clipping at once, and replays of a graph."""
    mixed = [x for dtype in DTYPES for x in values_of(settings.sizes, dtype)]
    for values, limit in product((*(values_of(settings.sizes, dtype) for dtype in DTYPES), mixed), (0.5, 1e6)):
        label = f"{values[0].dtype if values is not mixed else 'mixed'}, limit {limit}"
        options: dict[str, Any] = {**SKIPPING, "max_grad_norm": limit}
        pair = Pair(partial(fusedoptim.AdamW, fused=True, **options), values, settings.device)
        for seed, odd in enumerate((None, float("nan"), None, float("inf"), None)):
            pair.set_grads(seed)
            if odd is not None:
                spoil(pair, odd)
            pair.step()
            yield pair.compare(f"{label}, step {seed + 1}")
            yield compare_norms(label, pair.device.grad_norm, pair.host.grad_norm)
        counts = pair.device.skipped_steps, pair.host.skipped_steps
        yield Outcome(label, [f"{label}: skipped {counts[0]} and not {counts[1]}"] * (counts[0] != counts[1]))
        pair.set_grads(9)
        norms = [optimizer.clip_grad_norm_(limit) for optimizer in (pair.device, pair.host)]
        yield compare_norms(f"{label}, before a step", *norms)
        pair.step()
        yield pair.compare(f"{label}, clipped before")
        pair.set_grads(10)
        norms = [fusedoptim.clip_grad_norm_(params_of(optimizer), limit) for optimizer in (pair.device, pair.host)]
        yield compare_norms(f"{label}, at once", *norms)
        yield pair.compare(f"{label}, clipped at once")
    yield from replays(Pair(partial(fusedoptim.Adam, capturable=True, **SKIPPING), mixed, settings.device))


def replays(pair: Pair) -> Iterator[Outcome]:
    """A graph of a step, replayed with other gradients."""
    yield from pair.follow("clipping, before a graph", 2)
    pair.set_grads(2)
    pair.where.synchronize()
    replay = pair.where.capture(pair.device.step)
    for seed in (3, 4, 5):
        pair.set_grads(seed, in_place=True)
        if seed == 4:
            spoil(pair, float("nan"))
        replay()
        pair.host.step()
        yield pair.compare(f"clipping, replay {seed - 2}")
        yield compare_norms(f"clipping, replay {seed - 2}", pair.device.grad_norm, pair.host.grad_norm)


def check_clipping_waits(settings: Settings) -> Iterator[Outcome]:
    """While the device is busy, steps that clip and may be skipped return."""
    pair = Pair(
        partial(fusedoptim.AdamW, fused=True, **SKIPPING), values_of(SHORT_SIZES, torch.float32), settings.device
    )
    yield from pair.follow("clipping while the device is busy, before", 3)
    for is_judged in (False, True):  # the first time it may allocate memory, and so wait
        late = run_ahead(pair)
        if is_judged:
            yield Outcome("clipping", [f"clipping: {call} waited for the device" for call in late])


CHECKS: dict[str, Callable[[Settings], Iterator[Outcome]]] = {  # the most important first: the time may not last
    **{f"rules {str(d).removeprefix('torch.')}": partial(bits.check_rules, d) for d in cases.DTYPES},
    "flags": features.check_flags,
    "loss scale": features.check_loss_scale,
    "graphs": runtime.check_graphs,
    "nothing waits": runtime.check_nothing_waits,
    "clipping": check_clipping,
    "clipping waits": check_clipping_waits,
    "layouts": bits.check_layouts,
    "misaligned": bits.check_misaligned,
    "special values": bits.check_special_values,
    "lr on the device": features.check_lr_on_device,
    "zero_grad": features.check_zero_grad,
    "first step skipped": features.check_first_step_skipped,
    "GradScaler": features.check_grad_scaler,
    "streams": runtime.check_streams,
    "checkpoints": runtime.check_checkpoints,
    "places": runtime.check_places,
    "huge parameter": runtime.check_huge,
}
# For the sanitizers, which are slow.
SHORT_CHECKS = {"briefly": features.check_briefly, **{name: CHECKS[name] for name in ("layouts", "zero_grad")}}
