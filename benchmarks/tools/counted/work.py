"""Work of one kernel launch, and the least time that a GPU of given ceilings needs for it."""

import math
from typing import NamedTuple

#: Bytes of a number in half precision.
HALF = 2
#: Schedulers of an SM, each of which issues an instruction a clock.
SCHEDULERS = 4


class Ceilings(NamedTuple):
    """Rates of a GPU, in units a second."""

    sms: int
    tensor: float
    mma_share: float
    l2: float
    sm_from_l2: float
    shared: float  # of one SM
    issue: float  # instructions of one SM
    memory: float
    wait: float  # seconds until a load from memory arrives


class Work(NamedTuple):
    """Work of one launch."""

    kernel: str
    blocks: int
    blocks_per_sm: int
    mma: int = 0  # multiply-adds by mma.sync
    wgmma: int = 0  # and by wgmma
    l2: int = 0
    shared: int = 0
    memory: int = 0
    instructions: int = 0  # of all warps
    waits: int = 0  # of a block, one after the other, before its pipeline is full and after it has run dry

    def seconds(self, gpu: Ceilings) -> dict[str, float]:
        busiest = math.ceil(self.blocks / gpu.sms) / self.blocks  # share of the busiest SM
        rounds = math.ceil(self.blocks / gpu.sms)
        return {
            "tensor": (self.mma / gpu.mma_share + self.wgmma) * 2 * max(1 / gpu.sms, busiest) * gpu.sms / gpu.tensor,
            "L2": max(self.l2 / gpu.l2, self.l2 * busiest / gpu.sm_from_l2),
            "shared": self.shared * busiest / gpu.shared,
            "memory": self.memory / gpu.memory,
            "instructions": self.instructions * busiest / gpu.issue,
            "exposed": self.waits * gpu.wait * (rounds if self.blocks_per_sm == 1 else 1),
        }

    def estimate(self, gpu: Ceilings) -> tuple[float, str]:
        """Return the seconds, and what sets them."""
        seconds = self.seconds(gpu)
        exposed = seconds.pop("exposed")
        limit = max(seconds, key=seconds.get)
        return seconds[limit] + exposed, limit


def ceilings(sms, clock, tensor, mma_share, l2, sm_from_l2, shared, memory, wait) -> Ceilings:
    """Return the ceilings from the units of the command line."""
    per_clock = clock * 1e9
    of_sm = (sm_from_l2 * per_clock, shared * per_clock, SCHEDULERS * per_clock)
    return Ceilings(sms, tensor * 1e12, mma_share, l2 * 1e12, *of_sm, memory * 1e12, wait * 1e-6)


DEFAULTS = {
    "sms": (132, "SMs"),
    "clock": (1.755, "GHz"),
    "tensor": (790.0, "TFLOP/s, dense"),
    "mma-share": (0.62, "of the dense rate, that mma.sync reaches"),
    "l2": (6.0, "TB/s from L2 to all SMs"),
    "sm-from-l2": (64.0, "bytes a clock that one SM takes at most"),
    "shared": (128.0, "bytes a clock of an SM's shared memory"),
    "memory": (4.3, "TB/s of a copy"),
    "wait": (0.6, "microseconds until a load from memory arrives"),
}
H200 = ceilings(*(value for value, _ in DEFAULTS.values()))
