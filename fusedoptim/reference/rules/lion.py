"""Lion."""

from torch import Tensor

from fusedoptim.reference.arithmetic import arithmetic_dtype, load, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma
from fusedoptim.reference.rule import Rule, State


def lion(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    decay_lr: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Lion.

    .. math::
        p &\leftarrow p (1 - \gamma \lambda / \gamma_0) \\
        p &\leftarrow p - \gamma \operatorname{sign}(\beta_1 m + (1 - \beta_1) g) \\
        m &\leftarrow \beta_2 m + (1 - \beta_2) g

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``exp_avg``, m, the shape of ``param``; zeros if missing.
        step: Not used.
        lr: The learning rate, gamma.
        betas: beta1 and beta2.
        weight_decay: lambda.
        decay_lr: gamma_0, by which the decay is divided: 1, or the learning rate at the beginning.

    Returns:
        The new parameter, and ``exp_avg``. Each has the dtype and the layout of the tensor it replaces.

    References:
        Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", program 1.
    """
    beta1, beta2 = betas
    old_avg = or_zeros(state.get("exp_avg"), param)
    p, g, m = load(arithmetic_dtype(param), param, grad, old_avg)
    p = p * as_scalar(1 - lr * (weight_decay / decay_lr), p)
    p = fma(fma(g, 1 - beta1, m * as_scalar(beta1, p)).sign(), -lr, p)
    m = fma(g, 1 - beta2, m * as_scalar(beta2, p))
    return store(p, param), {"exp_avg": store(m, old_avg)}


RULE = Rule(lion, lambda group: ("exp_avg",), filled_in=frozenset({"decay_lr"}))
