"""Adadelta."""

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, decayed, load, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma, sqrt
from fusedoptim.reference.rule import Rule, State


def adadelta(
    param: Tensor, grad: Tensor, state: State, step: float, *, lr: float, rho: float, eps: float, weight_decay: float
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adadelta.

    .. math::
        g &\leftarrow g + \lambda p \\
        v &\leftarrow \rho v + (1 - \rho) g^2 \\
        \delta &\leftarrow \sqrt{u + \epsilon} \big/ \sqrt{v + \epsilon} \; g \\
        u &\leftarrow \rho u + (1 - \rho) \delta^2 \\
        p &\leftarrow p - \gamma \delta

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``square_avg``, v; ``acc_delta``, u. The shape of ``param``; zeros if missing.
        step: Not used.
        lr: The learning rate, gamma.
        rho: How much of the averages is kept.
        eps: epsilon, inside both roots.
        weight_decay: lambda, added to the gradient.

    Returns:
        The new parameter, and ``square_avg`` and ``acc_delta``. Each has the dtype and the layout of the tensor it
        replaces; new state those of ``param``.

    References:
        Zeiler 2012, "ADADELTA: An Adaptive Learning Rate Method", algorithm 1; the learning rate is torch's.
    """
    old_square, old_delta = (or_zeros(state.get(name), param) for name in ("square_avg", "acc_delta"))
    p, g, v, u = load(arithmetic_dtype(param), param, grad, old_square, old_delta)
    keep, change_weight, epsilon = (as_scalar(x, p) for x in (rho, 1 - rho, eps))
    g = decayed(g, p, weight_decay)
    v = fma(change_weight * g, g, v * keep)
    delta = sqrt(u + epsilon) / sqrt(v + epsilon) * g
    u = fma(change_weight * delta, delta, u * keep)
    p = fma(delta, -lr, p)
    return store(p, param), {"square_avg": store(v, old_square), "acc_delta": store(u, old_delta)}


RULE = Rule(
    adadelta,
    lambda group: ("step", "square_avg", "acc_delta"),
    non_negative=frozenset({"square_avg", "acc_delta"}),
)
