"""Adagrad."""

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, decayed, load, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma, sqrt
from fusedoptim.reference.rule import Rule, State


def adagrad(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    lr_decay: float,
    weight_decay: float,
    eps: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adagrad.

    .. math::
        g &\leftarrow g + \lambda p \\
        s &\leftarrow s + g^2 \\
        p &\leftarrow p - \frac{\gamma}{1 + (t - 1) \eta} \, g \Big/ \left( \sqrt{s} + \epsilon \right)

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``sum``, s, the shape of ``param``; zeros if missing.
        step: t, 1 in the first update.
        lr: The learning rate, gamma.
        lr_decay: eta.
        weight_decay: lambda, added to the gradient.
        eps: epsilon.

    Returns:
        The new parameter, and ``sum``. Each has the dtype and the layout of the tensor it replaces.

    References:
        Duchi, Hazan & Singer 2011, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization".
    """
    old_sum = or_zeros(state.get("sum"), param)
    p, g, s = load(arithmetic_dtype(param), param, grad, old_sum)
    g = decayed(g, p, weight_decay)
    s = fma(g, g, s)
    step_size = lr / (1 + (step - 1) * lr_decay)
    p = p + (as_scalar(-step_size, p) * g) / (sqrt(s) + as_scalar(eps, p))
    return store(p, param), {"sum": store(s, old_sum)}


RULE = Rule(
    adagrad,
    lambda group: ("step", "sum"),
    non_negative=frozenset({"sum"}),
    initial={"sum": "initial_accumulator_value"},
)
