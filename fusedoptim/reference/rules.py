"""The optimizers as the papers write them: one pure function per rule, in plain torch.

This is the specification: the compiled kernels must return the same bits. Every function has the form::

    new_param, new_state = update(param, grad, state, step, **options)

for one parameter. The inputs are never modified. ``state`` maps the names that ``torch.optim`` uses to
tensors; an entry that is missing or None has not been created yet. ``step`` counts the updates of this
parameter, this one included. The options are those of the parameter group, as Python numbers
(see ``Rule.options``).

Arithmetic is in float64 if the parameter is float64, else in float32, and each operation rounds to nearest
even; ``fma(a, b, c)`` is a * b + c rounded once. Constants are computed in double and rounded once to the
arithmetic type. bfloat16 and float16 are widened when read and rounded once when stored.
"""

import functools
import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusedoptim.reference import storage
from fusedoptim.reference.arithmetic import arithmetic_dtype, lerp, load, maximum, or_zeros, store
from fusedoptim.reference.ieee import as_scalar, fma, power, sqrt
from fusedoptim.reference.storage import Storage

State = Mapping[str, Tensor | None]


def sgd(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Stochastic gradient descent with momentum and weight decay.

    .. math::
        g &\leftarrow g + \lambda p \\
        b &\leftarrow \mu b + (1 - \tau) g \qquad (b = g \text{ on the first step}) \\
        g &\leftarrow g + \mu b \text{ if nesterov, else } b \\
        p &\leftarrow p - \gamma g

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``momentum_buffer``, b, the shape of ``param``; read if ``momentum`` is not 0.
        step: Not used.
        lr: The learning rate, gamma.
        momentum: mu.
        dampening: tau; not applied on the first step.
        weight_decay: lambda, added to the gradient.
        nesterov: Look ahead along the momentum.

    Returns:
        The new parameter, and ``momentum_buffer`` if ``momentum`` is not 0. Each has the dtype and the layout
        of the tensor it replaces; a new ``momentum_buffer`` those of ``param``.

    References:
        Sutskever, Martens, Dahl & Hinton 2013, "On the importance of initialization and momentum in deep
        learning"; but here the learning rate multiplies the velocity, there the gradient.
    """
    new_state = {}
    dtype = arithmetic_dtype(param)
    p, g = load(dtype, param, grad)
    if weight_decay != 0:
        g = fma(p, weight_decay, g)
    if momentum != 0:
        change_weight, keep = as_scalar(1 - dampening, p), as_scalar(momentum, p)
        old_buffer = state.get("momentum_buffer")
        if old_buffer is None:
            buffer = g
        else:
            (b,) = load(dtype, old_buffer)
            buffer = fma(g, change_weight, b * keep)
        g = fma(buffer, keep, g) if nesterov else buffer
        new_state["momentum_buffer"] = store(buffer, param if old_buffer is None else old_buffer)
    p = fma(g, -lr, p)
    return store(p, param), new_state


def adam(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    decoupled_weight_decay: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Adam; with ``decoupled_weight_decay`` AdamW; with ``amsgrad`` AMSGrad.

    .. math::
        p &\leftarrow p (1 - \gamma \lambda) \text{ if decoupled, else } g \leftarrow g + \lambda p \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g \\
        v &\leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        v &\leftarrow \hat v \leftarrow \max(\hat v, v) \text{ if amsgrad} \\
        p &\leftarrow p - \frac{\gamma}{1 - \beta_1^t} \, m \Big/
            \left( \sqrt{v} \big/ \sqrt{1 - \beta_2^t} + \epsilon \right)

    Args:
        param: p, any shape; bfloat16, float16, float32 or float64.
        grad: g, the shape of ``param``.
        state: ``exp_avg``, m; ``exp_avg_sq``, v; ``max_exp_avg_sq``, read if ``amsgrad``. The shape of
            ``param``; zeros if missing.
        step: t, 1 in the first update.
        lr: The learning rate, gamma.
        betas: beta1 and beta2.
        eps: epsilon.
        weight_decay: lambda.
        amsgrad: Divide by the largest v so far in place of v.
        decoupled_weight_decay: Shrink the parameter itself; otherwise it enters the gradient.

    Returns:
        The new parameter, and ``exp_avg``, ``exp_avg_sq`` and, if ``amsgrad``, ``max_exp_avg_sq``. Each has
        the dtype and the layout of the tensor it replaces; new state those of ``param``.

    References:
        Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1.
        Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
        Reddi, Kale & Kumar 2018, "On the Convergence of Adam and Beyond", algorithm 2.
    """
    beta1, beta2 = betas
    bias_correction1 = 1 - power(beta1, step)
    bias_correction2 = 1 - power(beta2, step)
    step_size = lr / bias_correction1

    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if amsgrad else 2]
    old_state = {name: or_zeros(state.get(name), param) for name in names}
    p, g, m, v, *v_max = load(arithmetic_dtype(param), param, grad, *old_state.values())

    if weight_decay != 0 and decoupled_weight_decay:
        p = p * as_scalar(1 - lr * weight_decay, p)
    elif weight_decay != 0:
        g = fma(p, weight_decay, g)
    m = lerp(m, g, 1 - beta1)
    v = fma(as_scalar(1 - beta2, p) * g, g, v * as_scalar(beta2, p))
    new_moments = [m, v]
    if amsgrad:
        v = maximum(v_max[0], v)
        new_moments.append(v)
    denominator = sqrt(v) / as_scalar(math.sqrt(bias_correction2), p) + as_scalar(eps, p)
    p = p + (as_scalar(-step_size, p) * m) / denominator

    new_state = {name: store(x, old_state[name]) for name, x in zip(names, new_moments, strict=True)}
    return store(p, param), new_state


def _sgd_state(group: Mapping[str, Any]) -> tuple[str, ...]:
    return ("momentum_buffer",) if group["momentum"] != 0 else ()


def _adam_state(group: Mapping[str, Any]) -> tuple[str, ...]:
    return ("step", "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))


@dataclass(frozen=True)
class Rule:
    """A rule's function and, for given options, the names of its state."""

    update: Callable[..., tuple[Tensor, dict[str, Tensor]]]
    own_state: Callable[[Mapping[str, Any]], tuple[str, ...]]
    non_negative: frozenset[str] = frozenset()
    """States that are never negative."""

    def state_names(self, group: Mapping[str, Any], param: Tensor | None = None) -> tuple[str, ...]:
        """What a parameter's state holds, but for scales: what the rule keeps, and then what the group asks for."""
        names = self.own_state(group)
        if group.get("ema_decay") is not None:
            names = (*names, "ema")
        if param is None:
            return names
        if (companion := storage.companion_of(group, param)) is not None:
            names = (*names, storage.COMPANION_NAMES[companion])
        counts = group.get("stochastic_rounding") and param.dtype == torch.bfloat16 and "step" not in names
        return (*names, "step") if counts else names

    def tensor_names(self, group: Mapping[str, Any], param: Tensor, entry: Mapping[str, Any]) -> list[str]:
        """Of the tensors of a parameter's state but its step: scales of what is in 8 bits included."""
        names = [name for name in self.state_names(group, param) if name != "step"]
        return names + [f"{name}_scale" for name in names if f"{name}_scale" in entry]

    def storage_of(self, group: Mapping[str, Any], param: Tensor, state: Mapping[str, Any], number: int) -> Storage:
        """How a parameter and its state are stored; ``number``: its own, among those of all groups."""
        names = [name for name in self.own_state(group) if name != "step"]
        dtypes = {name: state[name].dtype for name in names}
        rounds = bool(group.get("stochastic_rounding"))
        companion = storage.companion_of(group, param)
        stochastic = {
            name
            for name in names
            if dtypes[name] == torch.bfloat16
            and name in self.non_negative
            and (storage.dtype_asked(name, group) == torch.bfloat16 or (rounds and param.dtype == torch.bfloat16))
        }
        return Storage(
            companion,
            {name: name not in self.non_negative for name in names if dtypes[name] == torch.uint8},
            frozenset(stochastic | ({""} if rounds and param.dtype == torch.bfloat16 and not companion else set())),
            {name: index + 2 for index, name in enumerate(names)},
            int(group.get("seed") or 0),
            number,
        )

    def options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of a parameter group that are options of this rule, as bools those annotated so.

        Raises:
            KeyError: The group lacks one of them.
        """
        kinds = options_of(self.update).items()
        return {name: bool(group[name]) if kind is bool else group[name] for name, kind in kinds}


RULES: dict[str, Rule] = {
    "sgd": Rule(sgd, _sgd_state),
    "adam": Rule(adam, _adam_state, frozenset({"exp_avg_sq", "max_exp_avg_sq"})),
}


@functools.cache
def options_of(update: Callable[..., Any]) -> dict[str, Any]:
    """The options of a rule, and their types."""
    parameters = inspect.signature(update).parameters.values()
    kinds = typing.get_type_hints(update)
    return {p.name: kinds[p.name] for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
