"""Every implementation of the optimizers that is compared on a CPU: torch's, ours, and those of other packages."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from benchmarks.shared.variants import OURS, RULES, VARIANTS

ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}  # torch's defaults; optimi's are others
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "sgd": RULES["sgd"].options,
    "adam": ADAM,
    "adamw": {**ADAM, "weight_decay": 0.01},
}
NO_RULE = "the package has no such optimizer for this"
SAME_GRAPH = "left out for time: what is compiled is Adam's with one multiplication more"


@dataclass(frozen=True)
class Peer:
    name: str  # as in tables and on the command line
    package: str  # what `pip install` calls it
    module: str  # where its classes live
    classes: Mapping[str, str]  # the class for each rule that it has
    arguments: Mapping[str, Mapping[str, Any]]  # what its constructor is given for each rule, beside `lr`
    variant: str | None = None  # the key of `VARIANTS` whose optimizer this is, if it is one of those
    names: Mapping[str, str] = field(default_factory=dict)  # what its state calls torch's tensors, where otherwise
    also: Mapping[str, Any] = field(default_factory=dict)  # what else a parameter's state holds before the first step
    owns_state: bool = False  # its state is not torch's tensors, and is left to it
    bits: int = 32  # of an element of its state
    compiled: bool = False  # its whole step is given to torch.compile
    left_out: Mapping[str, str] = field(default_factory=dict)  # rules that it has and are not measured, and why

    @property
    def compiles(self) -> bool:
        """Whether torch.compile has a part in its step."""
        return self.compiled or self.package == "torchao"

    def why_not(self, rule: str) -> str | None:
        """Why a rule is not measured with it, if so."""
        return self.left_out.get(rule) if rule in self.classes else NO_RULE

    def build(self, rule: str, params: Sequence[Tensor], lr: float) -> Any:
        kind = getattr(importlib.import_module(self.module), self.classes[rule])
        return kind(params, lr=lr, **self.arguments[rule])


ALL = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def of_variant(name: str, /, **changes: Any) -> Peer:
    """A variant of the other benchmarks as a peer."""
    variant = VARIANTS[name]
    module = variant.module.__name__
    arguments = {rule: {**kind.options, **variant.flags} for rule, kind in RULES.items()}
    return replace(Peer(name, module.partition(".")[0], module, ALL, arguments, variant=name), **changes)


def optimi(name: str, **flags: bool) -> Peer:
    names, also = {"momentum_buffer": "exp_avg"}, {"kahan_comp": None}
    arguments = {rule: {**given, **flags} for rule, given in ARGUMENTS.items()}
    return Peer(name, "torch-optimi", "optimi", ALL, arguments, names=names, also=also)


def torchao(suffix: str, bits: int) -> Peer:
    """One of torchao's optimizers, which compile the update of each shape; small tensors keep fp32 here too."""
    classes = {"adam": f"Adam{suffix}", "adamw": f"AdamW{suffix}"}
    peer = Peer(f"torchao-{suffix.lower()}", "torchao", "torchao.optim", classes, ARGUMENTS, owns_state=True, bits=bits)
    return replace(peer, left_out={"adamw": SAME_GRAPH})


EIGHT_BITS = of_variant(OURS, name=f"{OURS}-8bit", variant=None, owns_state=True, bits=8)  # small tensors keep fp32
EIGHT_BITS = replace(EIGHT_BITS, arguments={r: {**a, "state_dtype": "8bit"} for r, a in EIGHT_BITS.arguments.items()})
DEEPSPEED = Peer(  # which is compiled for the machine at its first use
    "deepspeed", "deepspeed", "deepspeed.ops.adam", dict.fromkeys(("adam", "adamw"), "DeepSpeedCPUAdam"),
    {rule: {**ARGUMENTS[rule], "adamw_mode": rule == "adamw"} for rule in ("adam", "adamw")}, also={"step": 0},
)  # fmt: skip
BITSANDBYTES = Peer(
    "bitsandbytes", "bitsandbytes", "bitsandbytes.optim", ALL, ARGUMENTS, also={"step": 0},
    names={"exp_avg": "state1", "exp_avg_sq": "state2", "momentum_buffer": "state1"},
)  # fmt: skip
PEERS = {
    peer.name: peer
    for peer in (
        of_variant(OURS),
        EIGHT_BITS,
        *map(of_variant, ("torch-default", "torch-foreach", "torch-fused")),
        # Compiled from its for-loop, Adam takes a hundred times as long on tensors as large as the tutorial's.
        of_variant("torch-foreach", name="torch-compile", compiled=True, left_out={"adamw": SAME_GRAPH}),
        DEEPSPEED,
        optimi("optimi", triton=False, foreach=False),
        optimi("optimi-foreach", triton=False, foreach=True),
        BITSANDBYTES,
        replace(  # tensors of fewer than 4,096 elements keep fp32
            BITSANDBYTES, name="bitsandbytes-8bit", owns_state=True, bits=8,
            classes={rule: f"{name}8bit" for rule, name in ALL.items()},
        ),
        torchao("8bit", 8),
        torchao("4bit", 4),
        torchao("Fp8", 8),
    )
}  # fmt: skip
PACKAGES = tuple(dict.fromkeys(peer.package for peer in PEERS.values()))
