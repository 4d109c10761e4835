"""What the checks ask of a device: a GPU, or the CPU in its place, where a rehearsal needs nothing of CUDA."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

Call = Callable[[], object]
Enter = Callable[[], AbstractContextManager[object]]
SLEEP_CYCLES = 200_000_000  # about a tenth of a second: longer than any call of the host that does not wait


class Device:
    """A device on which steps are taken.

    On the CPU a step is done when the call returns: there a graph is the call itself, every stream is the only one,
    and nothing can be waited for.
    """

    def __init__(self, name: str) -> None:
        self.torch = torch.device(name)
        self.is_cuda = self.torch.type == "cuda"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def capture(self, call: Call) -> Call:
        """Captures `call`, which must have run before, as a CUDA graph; what is returned replays it."""
        if not self.is_cuda:
            return call
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        replay: Call = graph.replay
        return replay

    def streams(self, count: int) -> list[Enter]:
        """New streams that wait for the work so far, each as a function whose context makes it the current one."""
        if not self.is_cuda:
            return [nullcontext] * count

        def entering(stream: torch.cuda.Stream) -> Enter:
            return lambda: torch.cuda.stream(stream)

        made = [torch.cuda.Stream(self.torch) for _ in range(count)]  # type: ignore[no-untyped-call]
        for stream in made:
            stream.wait_stream(torch.cuda.current_stream(self.torch))
        return [entering(stream) for stream in made]

    @contextmanager
    def busy(self) -> Iterator[Callable[[], bool]]:
        """The device works on something long; what is yielded says whether the host has run ahead of it.

        Meanwhile torch raises an error wherever it would wait for the device itself.
        """
        if not self.is_cuda:
            yield lambda: True
            return
        torch.cuda.synchronize(self.torch)
        torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield lambda: not done.query()  # type: ignore[no-untyped-call]
        finally:
            torch.cuda.set_sync_debug_mode(before)
            torch.cuda.synchronize(self.torch)

    def others(self) -> list[str]:
        return [f"cuda:{i}" for i in range(1, torch.cuda.device_count())] if self.is_cuda else []

    def free_bytes(self) -> int:
        """Memory that is free on a GPU; 0 on the CPU, whose memory we leave to others."""
        return torch.cuda.mem_get_info(self.torch)[0] if self.is_cuda else 0
