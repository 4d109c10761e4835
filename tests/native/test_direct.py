"""Steps that read torch's tensor objects directly, as all do unless ``FUSEDOPTIM_DIRECT=0`` turns that off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import count_calls, make_params, need_kernels, params_of, run_python, set_grads

import fusedoptim
from fusedoptim.step import FusedStep

pytestmark = need_kernels
TESTS = Path(__file__).parents[1]

# What the other tests find of this path must hold for the other: where a step looks, what users change, what is shared.
FILES = [
    *("dropin/test_user_changes.py", "dropin/test_zero_grad.py", "layouts/test_shared_memory.py"),
    *("checkpoints/test_state.py", "native/test_threads.py"),
]

# A parameter's first step is never direct, so each trial takes one, and then lets the other path raise.
PRELUDE = """
import torch
import fusedoptim as optim
from fusedoptim.step import FusedStep
from torch.nn import Parameter
assert optim.build_info()["direct_error"] is None, optim.build_info()["direct_error"]

on_general_path = FusedStep._general_step
def refuse(*_):
    raise RuntimeError("not direct")

def steps(make, name, options, backend, zero_grad=None, prepare=lambda optimizer: None):
    with optim.set_backend(backend):
        FusedStep._general_step = on_general_path
        params = make()
        optimizer = getattr(optim, name)(params, **options)
        for i in range(3):
            for k, p in enumerate(params):
                generator = torch.Generator().manual_seed(100 * i + k)
                values = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.grad = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype).copy_(values)
            versions = [p._version for p in params]
            optimizer.step(zero_grad=zero_grad)
            assert all(p._version > v for p, v in zip(params, versions, strict=True)), "versions"
            if i == 0:
                prepare(optimizer)
                if backend == "native":
                    FusedStep._general_step = refuse
        FusedStep._general_step = on_general_path
        grads = [p.grad for p in params]
        state = [value for p in params for value in optimizer.state.get(p, {}).values() if value is not None]
        return [x for x in [*params, *grads, *state] if x is not None]

def compare(*args, **kwargs):
    ours, wanted = steps(*args, "native", **kwargs), steps(*args, "reference", **kwargs)
    assert len(ours) == len(wanted)
    for a, b in zip(ours, wanted, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), (a, b)

def make(dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(4, 33), (), (7,), (0,), (2, 3, 4, 5), (70000,)]
    return [Parameter(torch.randn(s).to(dtype)) for s in shapes] + [Parameter(torch.randn(5, 6).to(dtype).t())]
"""


def run(code: str, **environment: str) -> str:
    return run_python(PRELUDE + code + "\nprint('done')", **environment)


def test_it_can_be_turned_off() -> None:
    code = "import fusedoptim; print(fusedoptim.build_info()['direct_error'])"
    assert run_python(code) == "None\n"
    assert run_python(code, FUSEDOPTIM_DIRECT="0") == "turned off by FUSEDOPTIM_DIRECT=0\n"


def test_a_release_of_torch_on_which_it_was_not_tested() -> None:
    shows = "import fusedoptim; print(fusedoptim.build_info()['direct_error'])"
    code = "import torch; torch.__version__ = '1.2.3+cpu'; " + shows
    assert run_python(code).startswith("torch 1.2.3 is none of those that it was tested on")
    assert run_python(code, FUSEDOPTIM_DIRECT="1") == "None\n"


def test_ordinary_steps_are_direct_and_have_the_bits_of_the_reference() -> None:
    code = """
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    for zero_grad in (None, "to_zero", "to_none"):
        compare(lambda: make(dtype), "SGD", dict(lr=0.1), zero_grad=zero_grad)
        compare(lambda: make(dtype), "SGD", dict(lr=0.1, momentum=0.9, maximize=True), zero_grad=zero_grad)
        compare(lambda: make(dtype), "Adam", dict(weight_decay=0.1), zero_grad=zero_grad)
        compare(lambda: make(dtype), "AdamW", dict(amsgrad=True, lr=torch.tensor(0.01)), zero_grad=zero_grad)
"""
    assert run(code) == "done\n"


def test_loss_scales_are_divided_out_directly() -> None:
    assert run("compare(make, 'Adam', {}, prepare=lambda o: setattr(o, 'grad_scale', torch.tensor(8.0)))") == "done\n"


def test_state_in_another_order_and_under_names_from_a_file_is_direct() -> None:
    code = """
def turn(optimizer):
    rows = [(p, {"".join(list(name)): value for name, value in own.items()}) for p, own in optimizer.state.items()]
    optimizer.state.clear()
    optimizer.state.update(reversed(rows))
compare(make, "Adam", {}, prepare=turn)
"""
    assert run(code) == "done\n"


# Each changes the optimizer of the first of two parameters so that a step cannot be direct.
OUT_OF_THE_ORDINARY = {
    "memory to be copied when written": "own['exp_avg'] = torch._lazy_clone(keep.setdefault(0, own['exp_avg']))",
    "other strides": "own['exp_avg'] = own['exp_avg'].t().contiguous().t()",
    "a subclass": "own['exp_avg'] = own['exp_avg'].as_subclass(Sub)",
    "a gradient of a subclass": "p.grad = torch.ones_like(p).as_subclass(Sub)",
    "a negated gradient": "p.grad = torch._neg_view(torch.ones_like(p))",
    "a gradient that autograd follows": "p.grad = torch.ones_like(p).requires_grad_()",
    "state that is shared": "o.state[q]['exp_avg'] = own['exp_avg']",
    "six dimensions": "o.add_param_group({'params': [long]}); long.grad = torch.ones_like(long)",
    "a first step": "o.add_param_group({'params': [extra]}); extra.grad = torch.ones_like(extra)",
    "a group for torch": "o.param_groups[0]['foreach'] = True",
}


def test_what_is_out_of_the_ordinary_is_not() -> None:
    code = f"""
class Sub(torch.Tensor):
    pass

def trial(change):
    keep = {{}}
    p, q = Parameter(torch.ones(3, 4)), Parameter(torch.ones(3, 4))
    extra, long = Parameter(torch.ones(3)), Parameter(torch.ones(1, 1, 1, 1, 1, 2))
    o = optim.Adam([p, q])
    for _ in range(2):
        p.grad, q.grad = torch.ones(3, 4), torch.ones(3, 4)
        o.step()
    own = o.state[p]
    exec(change)
    before = keep[0].clone() if keep else None
    zero_grad = "to_zero" if p.grad.requires_grad else None
    FusedStep._general_step = refuse
    try:
        o.step(zero_grad=zero_grad)
        return "was direct"
    except RuntimeError as error:
        assert str(error) == "not direct", error
    finally:
        FusedStep._general_step = on_general_path
    if own["step"] != 2 or p.detach()[0, 0] != q.detach()[0, 0]:
        return "was written to"
    o.step(zero_grad=zero_grad)
    if before is not None and not torch.equal(keep[0], before):
        return "wrote to what was only to be copied"
    return "on the general path"

print({{name: trial(change) for name, change in {OUT_OF_THE_ORDINARY}.items()}})
"""
    assert run(code) == f"{dict.fromkeys(OUT_OF_THE_ORDINARY, 'on the general path')}\ndone\n"


def test_defaults_of_the_user_do_not_mislead_it() -> None:
    code = """
import torch
torch.set_default_device("meta")
torch.set_default_dtype(torch.float64)
"""
    shown = run_python(code + PRELUDE + "torch.set_default_device('cpu'); compare(make, 'Adam', {}); print('done')")
    assert shown == "done\n"


# Where a program may import this package first. The tensors by which torch's objects are learned are to be usual ones.
IMPORTED_WITHIN = {
    "inference mode": "with torch.inference_mode():\n    import fusedoptim",
    "fake tensors": "with torch._subclasses.FakeTensorMode():\n    import fusedoptim",
    "torch.func": "def f(x):\n    import fusedoptim\n    return x\ntorch.func.grad(f)(torch.tensor(1.0))",
}


@pytest.mark.parametrize("within", IMPORTED_WITHIN)
def test_an_import_within_a_mode_of_torch_does_not_mislead_it(within: str) -> None:
    code = f"import sys, torch\n{IMPORTED_WITHIN[within]}\nassert 'fusedoptim' in sys.modules\n{PRELUDE}"
    assert run_python(code + "compare(make, 'Adam', {}); print('done')") == "done\n"


def test_tests_of_the_other_path() -> None:
    files = [str(TESTS / name) for name in FILES]
    ours = ["-k", "not reference or no_references"]  # the reference has no other path
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *ours, *files]
    environment = {**os.environ, "FUSEDOPTIM_DIRECT": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_a_step_is_direct_again_once_no_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = fusedoptim.Adam(make_params([(4,), (4,)]))
    first, second = params_of(optimizer)
    set_grads(optimizer, 1)
    optimizer.step()
    own, general = optimizer.state[second], count_calls(monkeypatch, FusedStep, "_general_step")
    kept, own["exp_avg"] = own["exp_avg"], optimizer.state[first]["exp_avg"]
    optimizer.step()
    assert len(general) == 1
    own["exp_avg"] = kept
    optimizer.step()
    assert len(general) == 1


@pytest.mark.parametrize("shared", ["gradient", "count of steps"])
def test_what_is_shared_is_updated_in_turn(shared: str) -> None:
    """Also where the step before it, from the same memory, could be direct."""
    counts, results = [], []
    for backend in ("native", "reference"):
        with fusedoptim.set_backend(backend):
            optimizer = fusedoptim.Adam(make_params([(4,), (4,)]))
            first, second = params_of(optimizer)
            set_grads(optimizer, 1)
            optimizer.step()
            if shared == "gradient":
                second.grad = first.grad
            else:
                optimizer.state[second]["step"] = optimizer.state[first]["step"]
            optimizer.step()
            optimizer.step(zero_grad="to_zero")
            results.append([*first.tolist(), *second.tolist()])
            counts.append([float(own["step"]) for own in optimizer.state.values()])
    assert results[0] == results[1]
    assert counts[0] == counts[1]
