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
    """One implementation.

    Attributes:
        name: As in tables and on the command line.
        package: What `pip install` calls it.
        module: Where its classes live.
        classes: The class for each rule that it has.
        arguments: What its constructor is given for each rule, beside `lr`.
        variant: The key of `VARIANTS` whose optimizer this is, if it is one of those.
        names: What its state calls the tensors of torch's, where it calls them otherwise.
        also: What else the state of a parameter holds before the first step.
        owns_state: Its state is not torch's tensors, and is left to it.
        bits: Of an element of its state.
        compiled: Its whole step is given to torch.compile.
        left_out: Rules that it has and that are not measured, with the reason.
    """

    name: str
    package: str
    module: str
    classes: Mapping[str, str]
    arguments: Mapping[str, Mapping[str, Any]]
    variant: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    also: Mapping[str, Any] = field(default_factory=dict)
    owns_state: bool = False
    bits: int = 32
    compiled: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def compiles(self) -> bool:
        """Whether torch.compile has a part in its step."""
        return self.compiled or self.package == "torchao"

    def why_not(self, rule: str) -> str | None:
        """Why a rule is not measured with it, if so."""
        return self.left_out.get(rule) if rule in self.classes else NO_RULE

    def build(self, rule: str, params: Sequence[Tensor], lr: float) -> Any:
        """Constructs the optimizer `rule` over `params`, importing its package if need be."""
        kind = getattr(importlib.import_module(self.module), self.classes[rule])
        return kind(params, lr=lr, **self.arguments[rule])


def plus(**flags: Any) -> dict[str, Mapping[str, Any]]:
    """The arguments for each rule, with some for all of them."""
    return {rule: {**given, **flags} for rule, given in ARGUMENTS.items()}


def of_variant(name: str) -> Peer:
    """A variant of the other benchmarks as a peer."""
    variant = VARIANTS[name]
    module = variant.module.__name__
    classes = {rule: kind.class_name for rule, kind in RULES.items()}
    arguments = {rule: {**kind.options, **variant.flags} for rule, kind in RULES.items()}
    return Peer(name, module.partition(".")[0], module, classes, arguments, variant=name)


def deepspeed() -> Peer:
    """DeepSpeed's Adam for the CPU, which is compiled for the machine at its first use."""
    arguments = {rule: {**ARGUMENTS[rule], "adamw_mode": rule == "adamw"} for rule in ("adam", "adamw")}
    classes = dict.fromkeys(arguments, "DeepSpeedCPUAdam")
    return Peer("deepspeed", "deepspeed", "deepspeed.ops.adam", classes, arguments, also={"step": 0})


def optimi(name: str, **flags: bool) -> Peer:
    """One of the ways of optimi."""
    classes = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
    names, also = {"momentum_buffer": "exp_avg"}, {"kahan_comp": None}
    return Peer(name, "torch-optimi", "optimi", classes, plus(**flags), names=names, also=also)


def bitsandbytes() -> Peer:
    """The optimizers of bitsandbytes that keep fp32 state."""
    classes = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
    names = {"exp_avg": "state1", "exp_avg_sq": "state2", "momentum_buffer": "state1"}
    return Peer("bitsandbytes", "bitsandbytes", "bitsandbytes.optim", classes, ARGUMENTS, names=names, also={"step": 0})


def bitsandbytes_8bit() -> Peer:
    """Those that keep 8 bits; tensors of fewer than 4,096 elements keep fp32."""
    classes = {"sgd": "SGD8bit", "adam": "Adam8bit", "adamw": "AdamW8bit"}
    return replace(bitsandbytes(), name="bitsandbytes-8bit", classes=classes, owns_state=True, bits=8)


def torchao(suffix: str, bits: int) -> Peer:
    """One of torchao's optimizers, which compile the update of each shape; small tensors keep fp32 here too."""
    classes = {"adam": f"Adam{suffix}", "adamw": f"AdamW{suffix}"}
    return Peer(
        f"torchao-{suffix.lower()}",
        "torchao",
        "torchao.optim",
        classes,
        ARGUMENTS,
        owns_state=True,
        bits=bits,
        left_out={"adamw": SAME_GRAPH},
    )


def torchao_offload() -> Peer:
    """The optimizer of torchao for parameters on a GPU whose state is on the CPU."""
    arguments = {"adamw": ARGUMENTS["adamw"]}
    classes = {"adamw": "CPUOffloadOptimizer"}
    return Peer("torchao-offload", "torchao", "torchao.optim", classes, arguments, owns_state=True)


PEERS = {
    peer.name: peer
    for peer in (
        of_variant(OURS),
        *map(of_variant, ("torch-default", "torch-foreach", "torch-fused")),
        # Compiled from its for-loop, Adam takes a hundred times as long on tensors as large as the tutorial's.
        replace(
            of_variant("torch-foreach"),
            name="torch-compile",
            compiled=True,
            left_out={"adamw": SAME_GRAPH},
        ),
        deepspeed(),
        optimi("optimi", triton=False, foreach=False),
        optimi("optimi-foreach", triton=False, foreach=True),
        optimi("optimi-triton", triton=True),
        bitsandbytes(),
        bitsandbytes_8bit(),
        torchao("8bit", 8),
        torchao("4bit", 4),
        torchao("Fp8", 8),
        torchao_offload(),
    )
}
PACKAGES = tuple(dict.fromkeys(peer.package for peer in PEERS.values()))
