"""torch.compile, once used, replaces methods of torch's optimizer classes for the whole process."""

from __future__ import annotations

from helpers import run_python

CODE = """
import torch, fusedoptim
from fusedoptim.step import FusedStep

def refuse(optimizer, *_):
    raise AssertionError("not on the fast path")

FusedStep._torch_step = refuse
older = torch.nn.Parameter(torch.ones(4))
older.grad = torch.ones(4)
optimizer = fusedoptim.Adam([older])
optimizer.step()
before = torch.optim.Adam._init_group
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
assert torch.optim.Adam._init_group is not before, "nothing was replaced: this test tests nothing"
for cls in (fusedoptim.SGD, fusedoptim.Adam, fusedoptim.AdamW):
    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.ones(4)
    cls([p], lr=0.5).step()
optimizer.step()  # sees what was replaced
if fusedoptim.build_info()["direct_error"] is None:
    FusedStep._general_step = refuse
optimizer.step()
print("taken")
"""


def test_kernels_take_the_step_after_a_compilation() -> None:
    """Of anything, by anyone in the process; and one step later on the fast path, as before it."""
    assert run_python(CODE) == "taken\n"
