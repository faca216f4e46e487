"""FSDP2 and DeepSpeed on CPUs, so that a recipe for eight GPUs can be tried on a laptop and in CI.

accelerate knows them on GPUs alone and runs DDP in their place without a word. Both work on CPUs over gloo once its state says that
they are in force, which is all that is done here.
"""

from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin


def put_in_force(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | DeepSpeedPlugin) -> None:
    """Make the accelerator, which was made for CPU processes, one of the plugin's strategy."""
    of_fsdp = isinstance(plugin, FullyShardedDataParallelPlugin)
    kind = DistributedType.FSDP if of_fsdp else DistributedType.DEEPSPEED
    PartialState._shared_state["distributed_type"] = kind
    AcceleratorState._shared_state["distributed_type"] = kind
    if of_fsdp:
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        return
    AcceleratorState._shared_state["deepspeed_plugins"] = {"default": plugin}
    plugin.select(_from_accelerator_state=True)
