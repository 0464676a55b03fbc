"""Run `pipo` with FSDP2 on a CPU: accelerate shards only where it finds accelerators, so it is told that these are."""

from accelerate import state
from accelerate.utils import DistributedType

from pipo_cli import main

init = state.PartialState.__init__


def as_gpus(self, *args, **kwargs):
    init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


state.PartialState.__init__ = as_gpus
main()
