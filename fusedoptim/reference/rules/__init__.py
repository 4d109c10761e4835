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

from fusedoptim.reference.rule import Rule
from fusedoptim.reference.rules import adadelta, adagrad, adam, adamax, radam, rmsprop, rprop, sgd

RULES: dict[str, Rule] = {
    module.__name__.rpartition(".")[2]: module.RULE
    for module in (sgd, adam, adadelta, adagrad, adamax, radam, rmsprop, rprop)
}
