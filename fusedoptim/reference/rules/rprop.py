"""Rprop."""

from torch import Tensor, where, zeros_like

from fusedoptim.reference.arithmetic import arithmetic_dtype, load, maximum, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma
from fusedoptim.reference.rule import Rule, State


def rprop(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    etas: tuple[float, float],
    step_sizes: tuple[float, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Rprop, resilient backpropagation.

    .. math::
        \eta &= \eta_+ \text{ where } g \text{ and } g_\text{prev} \text{ have the same sign, }
            \eta_- \text{ where opposite ones, else } 1 \\
        \Delta &\leftarrow \min(\max(\eta \Delta, \Delta_\text{min}), \Delta_\text{max}) \\
        g &\leftarrow 0 \text{ where the signs are opposite} \\
        p &\leftarrow p - \operatorname{sign}(g) \Delta, \qquad g_\text{prev} \leftarrow g

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``prev``, the last gradient, and ``step_size``, Delta, which begins as the learning rate. The shape of
            ``param``; zeros if missing.
        step: Not used.
        etas: eta- and eta+.
        step_sizes: The least and the most that ``step_size`` can be.

    Returns:
        The new parameter, and ``prev`` and ``step_size``. Each has the dtype and the layout of the tensor it replaces;
        new state those of ``param``. torch's own multiplies both gradients for their signs, a product that may
        underflow to 0.

    References:
        Riedmiller & Braun 1993, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm".
    """
    old_prev, old_size = (or_zeros(state.get(name), param) for name in ("prev", "step_size"))
    p, g, prev, size = load(arithmetic_dtype(param), param, grad, old_prev, old_size)
    same = g.sign() * prev.sign()
    eta_minus, eta_plus, least, most, one = (as_scalar(x, p) for x in (*etas, *step_sizes, 1.0))
    size = size * where(same > 0, eta_plus, where(same < 0, eta_minus, one))
    size = maximum(size, least)
    size = where((size > most) | most.isnan(), most, size)
    g = where(same < 0, zeros_like(g), g)
    p = fma(g.sign(), -size, p)
    return store(p, param), {"prev": store(g, old_prev), "step_size": store(size, old_size)}


RULE = Rule(
    rprop,
    lambda group: ("step", "prev", "step_size"),
    non_negative=frozenset({"step_size"}),
    initial={"step_size": "lr"},
    exact=frozenset({"prev", "step_size"}),
)
