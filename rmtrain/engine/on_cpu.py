"""FSDP2 and DeepSpeed on CPUs, so that a recipe for eight GPUs can be tried on a laptop and in CI.

accelerate knows them on GPUs alone and runs DDP in their place without a word. Both work on CPUs over gloo once its state says that
they are in force, which is all that is done here.
"""

from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin


def kind_of(plugin: FullyShardedDataParallelPlugin | DeepSpeedPlugin) -> DistributedType:
    """What accelerate calls the strategy of a plugin."""
    return DistributedType.FSDP if isinstance(plugin, FullyShardedDataParallelPlugin) else DistributedType.DEEPSPEED


def put_in_force(plugin: FullyShardedDataParallelPlugin | DeepSpeedPlugin) -> None:
    """Make the accelerator that there is, which was made for CPU processes, one of the plugin's strategy."""
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = kind_of(plugin)
    if isinstance(plugin, FullyShardedDataParallelPlugin):
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
        return
    AcceleratorState._shared_state["deepspeed_plugins"] = {"default": plugin}
    plugin.select(_from_accelerator_state=True)
