"""The checks of bits by name, the most important first: the time may not last for all."""

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.gpu import bits, clipping, features, runtime

Check = Callable[[bits.Settings], Iterator[bits.Outcome]]
CHECKS: dict[str, Check] = {
    **{f"rules {str(d).removeprefix('torch.')}": partial(bits.check_rules, d) for d in bits.cases.DTYPES},
    "flags": features.check_flags,
    "loss scale": features.check_loss_scale,
    "graphs": runtime.check_graphs,
    "nothing waits": runtime.check_nothing_waits,
    "clipping": clipping.check_clipping,
    "clipping waits": clipping.check_clipping_waits,
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
SHORT_CHECKS: dict[str, Check] = {
    "briefly": features.check_briefly,
    "layouts": bits.check_layouts,
    "zero_grad": features.check_zero_grad,
}
