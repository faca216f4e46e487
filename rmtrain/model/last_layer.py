"""The last layer, computed only where rewards are read.

The head reads one token of each response, and nothing else reads the output of the last layer. So every token gives it keys and
values, but only the tokens that are read need its queries, output projection and MLP. This saves about four fifths of one layer, with
the same rewards and gradients. Its output for all other tokens is zero.

This works without model-specific code: the layer runs on all tokens until its attention has their keys and values, and then again on
the tokens that are read, against these keys and values. The layout probe detects layers for which that is wrong.

Tensor legend: one row, T tokens, N tokens that are read.
"""

from typing import Any

from torch import Tensor, nn

from rmtrain.batching.layout import Segments
from rmtrain.model.attention import KeysFound, KeysWanted, LastTokens


def restrict_last_layer(backbone: Any) -> bool:
    """Register hooks on the last layer that act when the segments say which tokens are read.

    Returns:
        False if the model has no list of layers; nothing is registered then.
    """
    layers = layers_of(backbone)
    if not layers:
        return False
    layers[-1].register_forward_pre_hook(_select_tokens, with_kwargs=True)
    layers[-1].register_forward_hook(_restore_shape, with_kwargs=True)
    return True


def layers_of(backbone: Any) -> list[nn.Module]:
    """Return the layers of a transformers model in order; an empty list if no module list has the configured number of layers."""
    count = getattr(backbone.config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in backbone.base_model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return list(next(lists, []))


def _select_tokens(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    segments = kwargs.get("segments")
    if not isinstance(segments, Segments) or segments.read_at_N is None:
        return None
    hidden_1TH = args[0] if args else kwargs["hidden_states"]
    # `forward` rather than the module itself, whose hooks would call this function again.
    try:
        layer.forward(*args, **{**kwargs, "segments": KeysWanted()})
    except KeysFound as found:
        last = LastTokens(segments, segments.read_at_N, found.key, found.value, hidden_1TH.shape[1])
    selected = {name: _select(value, last) for name, value in kwargs.items()}
    return _select(args, last), {**selected, "segments": last}


def _select(value: Any, last: LastTokens) -> Any:
    """Reduce every tensor that has one entry per token, such as positions and rotary angles, to the tokens that are read."""
    if isinstance(value, tuple):
        return tuple(_select(one, last) for one in value)
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == last.tokens:
        return value.index_select(1, last.read_at_N)
    return value


def _restore_shape(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    last = kwargs.get("segments")
    if not isinstance(last, LastTokens):
        return None
    hidden_1NH = output[0] if isinstance(output, tuple) else output
    zeros_1TH = hidden_1NH.new_zeros(1, last.tokens, hidden_1NH.shape[-1])
    hidden_1TH = zeros_1TH.index_copy(1, last.read_at_N, hidden_1NH)
    return (hidden_1TH, *output[1:]) if isinstance(output, tuple) else hidden_1TH
