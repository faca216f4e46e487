"""The last layer, computed only where rewards are read.

The head reads one token of each response, and nothing else reads what the last layer puts out. So all tokens give it their keys and
values, and only those that are read need their queries, output projection and MLP: about four fifths of one layer are saved, with the
same rewards and gradients. Elsewhere its output is zero.

No model is named. The layer runs twice: on all tokens until its attention has their keys and values, then on the tokens that are read,
against these keys and values. Where a layer is not made like that, the parity probe says so.

Tensor legend: one row, T tokens, N tokens that are read.
"""

from typing import Any

from torch import Tensor, nn

from rmtrain.batching.layout import Segments
from rmtrain.model.attention import KeysFound, KeysWanted, LastTokens


def narrow_last_layer(core: Any) -> bool:
    """Give the last layer of a transformers model its hooks, which act where segments say which tokens are read.

    Returns:
        False where the model has no list of layers; nothing was done.
    """
    layers = layers_of(core)
    if not layers:
        return False
    layers[-1].register_forward_pre_hook(_find_keys_then_narrow, with_kwargs=True)
    layers[-1].register_forward_hook(_widen, with_kwargs=True)
    return True


def layers_of(core: Any) -> list[nn.Module]:
    """The layers of a transformers model in their order; none where it has no list of as many as its configuration says."""
    count = getattr(core.config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in core.base_model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return list(next(lists, []))


def _find_keys_then_narrow(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    segments = kwargs.get("segments")
    if not isinstance(segments, Segments) or segments.read_at_N is None:
        return None
    hidden_1TH = args[0] if args else kwargs["hidden_states"]
    try:
        layer.forward(*args, **{**kwargs, "segments": KeysWanted()})
    except KeysFound as found:
        last = LastTokens(segments, found.key, found.value, hidden_1TH.shape[1])
    narrowed = {name: _narrow(value, last) for name, value in kwargs.items()}
    return _narrow(args, last), {**narrowed, "segments": last}


def _narrow(value: Any, last: LastTokens) -> Any:
    """Whatever has an entry for each token, for the tokens that are read."""
    if isinstance(value, tuple):
        return tuple(_narrow(one, last) for one in value)
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == last.tokens:
        return value.index_select(1, last.read_at_N)
    return value


def _widen(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    last = kwargs.get("segments")
    if not isinstance(last, LastTokens):
        return None
    if isinstance(output, tuple):
        return (_wide(output[0], last), *output[1:])
    return _wide(output, last)


def _wide(hidden_1NH: Tensor, last: LastTokens) -> Tensor:
    return hidden_1NH.new_zeros(1, last.tokens, hidden_1NH.shape[-1]).index_copy(1, last.read_at_N, hidden_1NH)
