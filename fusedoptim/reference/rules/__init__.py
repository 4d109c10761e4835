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

import importlib
import pkgutil

from fusedoptim.reference.rule import Rule

# By name, which is that of the module and of the compiled rule.
RULES: dict[str, Rule] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").RULE for module in pkgutil.iter_modules(__path__)
}
