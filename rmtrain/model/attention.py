"""Attention within segments, and the last layer computed only where rewards are read: the only module that knows kernels.

A token of an encoder sees its own sequence. In a causal model, a token of a prefix sees the prefix up to itself, and a token of
response k sees the whole prefix and response k up to itself, and nothing else. So each response is a small causal problem of its own,
with its queries against the keys of prefix + response, aligned at the end; the prefix is computed together with the first response.

Transformers calls `attend` by the name `ATTENTION` of its AttentionInterface, without a mask; the segments are a forward argument.

Tensor legend: one row, T tokens, N tokens that are read, H heads or hidden size, Q queries, K keys, D head size.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from rmtrain.batching.layout import Segments

ATTENTION = "rmtrain_segments"
VARLEN_TYPES = (torch.float16, torch.bfloat16)
VARLEN_CAPABILITY = (8, 0)
"""The oldest GPUs with the flash kernel behind `varlen_attn`: neither T4 (7.5) nor V100 (7.0) has it."""
VARLEN_HEAD_SIZE, VARLEN_HEAD_STEP = 256, 8
"""The largest head size that kernel takes, and what every one is a multiple of."""


class SegmentsNotSeen(Exception):
    """The model does not pass its forward arguments to its attention."""


class KeysWanted:
    """Passed in place of segments: raise the keys and values as KeysFound, and compute nothing more."""


class KeysFound(Exception):
    """Keys and values of all tokens. An exception, because it ends the layer's forward early without model-specific code."""

    def __init__(self, key_1HTD: Tensor, value_1HTD: Tensor) -> None:
        super().__init__()
        self.key, self.value = key_1HTD, value_1HTD


@dataclass(frozen=True, slots=True, eq=False)
class ReadTokens:
    """Passed in place of segments: the queries are those of `read_at_N`, the last token of each sequence or, in an encoder, the first.

    Keys and values are those of all `tokens`.
    """

    segments: Segments
    read_at_N: Tensor
    key_1HTD: Tensor
    value_1HTD: Tensor
    tokens: int


def attend(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    segments: Segments | KeysWanted | ReadTokens | None = None,
    as_on_gpu: bool = False,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of one row by segments, with the signature that transformers calls; they replace `attention_mask`.

    Args:
        scaling: factor of the dot products; None: 1/sqrt(D).
        sliding_window: number of keys that a query sees, itself included, and in encoders as many after it; None: all.
        softcap: bound of the scores, `softcap * tanh(score / softcap)` (gemma 2).
        s_aux: a logit per head that takes its share of the softmax and no value (attention sinks of gpt-oss).
        as_on_gpu: choose the kernel that a GPU would get, for fake tensors that stand for its own.

    Returns:
        [1, T, H, D], and None in place of the weights.

    Raises:
        SegmentsNotSeen: the model does not pass the segments on.
        KeysFound: `segments` is KeysWanted.
    """
    if segments is None:
        raise SegmentsNotSeen
    if isinstance(segments, KeysWanted):
        raise KeysFound(key_1HTD, value_1HTD)
    read_only = isinstance(segments, ReadTokens)
    if isinstance(segments, ReadTokens):
        key_1HTD, value_1HTD, segments = segments.key_1HTD, segments.value_1HTD, segments.segments
    # No fused kernel has soft caps or sinks, and the varlen kernel has no dropout.
    plain, drop, pieces = softcap is None and s_aux is None, dropout if module.training else 0.0, []
    dtype = _computing_type(query_1HTD)
    # Its windows are aligned at the end, while an encoder is read at the first token.
    plain_window = sliding_window is None or segments.causal or not read_only
    if (
        plain
        and not drop
        and plain_window
        and dtype in VARLEN_TYPES
        and _has_varlen(query_1HTD, value_1HTD, sliding_window, as_on_gpu)
    ):
        query_1HTD, key_1HTD, value_1HTD = (tensor.to(dtype) for tensor in (query_1HTD, key_1HTD, value_1HTD))
        return _varlen(query_1HTD, key_1HTD, value_1HTD, scaling, sliding_window, segments, read_only), None
    for query, key, value in _pieces(query_1HTD, key_1HTD, value_1HTD, segments, read_only):
        mask = _visible(segments, query.shape[2], key.shape[2], sliding_window, query.device, not plain)
        if mask is not None and not plain:
            pieces.append(_explicit(query, key, value, mask, scaling, drop, softcap, s_aux))
        else:
            causal = segments.causal and mask is None and query.shape[2] > 1
            grouped = query.shape[1] != key.shape[1]
            pieces.append(
                F.scaled_dot_product_attention(query, key, value, mask, drop, causal, scale=scaling, enable_gqa=grouped)
            )
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)


def _pieces(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, read_only: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield queries, keys and values of each response, of the first together with its prefix; with `read_only`, one query each."""
    # The row is split once: slicing it per response would allocate full-size zeros in backward for every slice.
    sizes = [
        size
        for prefix, lengths in zip(segments.prefixes, segments.responses, strict=True)
        for size in (prefix + lengths[0], *lengths[1:])
    ]
    queries = torch.split(query, 1 if read_only else sizes, dim=2)
    parts = zip(queries, torch.split(key, sizes, dim=2), torch.split(value, sizes, dim=2), strict=True)
    for prefix, lengths in zip(segments.prefixes, segments.responses, strict=True):
        first_query, first_key, first_value = next(parts)
        yield first_query, first_key, first_value
        shared_key, shared_value = first_key[:, :, :prefix], first_value[:, :, :prefix]
        for _ in lengths[1:]:
            own_query, own_key, own_value = next(parts)
            if prefix:
                own_key, own_value = torch.cat((shared_key, own_key), 2), torch.cat((shared_value, own_value), 2)
            yield own_query, own_key, own_value


def _visible(
    segments: Segments, queries: int, keys: int, window: int | None, device: torch.device, always: bool
) -> Tensor | None:
    """Return [Q, K] bool, True where a query sees a key; None where `is_causal` or no mask says the same.

    Fewer queries than keys are the last ones of a causal model, and the first one of an encoder.
    """
    reach = keys if window is None else min(window, keys)
    if queries in (1, keys) and keys == reach and not always:
        return None
    name = (queries, keys, reach, device)
    if name not in segments.memo:
        first = keys - queries if segments.causal else 0
        distance_QK = torch.arange(first, first + queries, device=device)[:, None] - torch.arange(keys, device=device)
        least = 0 if segments.causal else 1 - reach
        segments.memo[name] = (distance_QK >= least) & (distance_QK < reach)
    mask: Tensor = segments.memo[name]
    return mask


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Compute the written-out formula, for scores that no fused kernel supports."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = (query @ key.transpose(2, 3)).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks_H is not None:
        sinks = sinks_H.float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        weights = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return F.dropout(weights, dropout).to(value.dtype) @ value


def _computing_type(query: Tensor) -> torch.dtype:
    """Return the type in which attention computes: SDPA casts to that of autocast by itself, while the varlen kernel takes what it gets.

    Rotary embeddings leave queries and keys in float32 next to values in half precision.
    """
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def _has_varlen(query: Tensor, value: Tensor, window: int | None, as_on_gpu: bool) -> bool:
    """Return whether the varlen kernel supports this device, these heads and, in this release of torch, windows."""
    if not as_on_gpu and not (query.is_cuda and torch.cuda.get_device_capability(query.device) >= VARLEN_CAPABILITY):
        return False
    size = query.shape[-1]
    if size > VARLEN_HEAD_SIZE or size % VARLEN_HEAD_STEP or value.shape[-1] != size:
        return False
    # torch 2.10 has no windows: its layers with a window are computed response by response.
    return window is None or "window_size" in _options(varlen_attn)


@cache
def _options(kernel: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the kernel's arguments: torch 2.10 lacks `window_size` and `scale`, and 2.11 still lacks `enable_gqa`."""
    return frozenset(inspect.signature(kernel).parameters)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, segments: Segments, read_only: bool
) -> Tensor:
    """Compute the whole row in one kernel call: the queries of each response against the gathered keys of its prefix and itself."""
    index_K, queries, keys, most_queries, most_keys = _gathering(segments, query.device)
    if read_only:
        queries, most_queries = torch.arange(len(queries), dtype=torch.int32, device=query.device), 1
    options, named, group = _options(varlen_attn), dict[str, Any](), query.shape[1] // key.shape[1]
    if "scale" in options:
        named["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * math.sqrt(query.shape[-1]))
    if "window_size" in options:
        reach = -1 if window is None else window - 1
        named["window_size"] = (reach, 0 if segments.causal else reach)
    else:
        named["is_causal"] = segments.causal
    if "enable_gqa" in options:
        named["enable_gqa"] = group > 1
    elif group > 1:
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    out_THD = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[index_K],
        value[0].transpose(0, 1)[index_K],
        queries,
        keys,
        most_queries,
        most_keys,
        **named,
    )
    assert isinstance(out_THD, Tensor)
    return out_THD[None]


def _gathering(segments: Segments, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Return the keys that the problems gather, int64 [K of all], int32 cumulative queries and keys, and their largest counts."""
    name = ("varlen", device)
    if name not in segments.memo:
        index, queries, keys, start = [], [0], [0], 0
        for prefix, lengths in zip(segments.prefixes, segments.responses, strict=True):
            own = start
            for number, length in enumerate(lengths):
                begin, size = (start, prefix + length) if number == 0 else (own, length)
                if number:
                    index.append(torch.arange(start, start + prefix))
                index.append(torch.arange(begin, begin + size))
                queries.append(size)
                keys.append(prefix + length)
                own = begin + size
            start = own
        cumulative = [torch.tensor(sizes, dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device) for sizes in (queries, keys)]
        segments.memo[name] = (torch.cat(index).to(device), *cumulative, max(queries), max(keys))
    gathering: tuple[Tensor, Tensor, Tensor, int, int] = segments.memo[name]
    return gathering


def restrict_last_layer(backbone: Any) -> bool:
    """Compute the last layer only where rewards are read, if the segments name these tokens; False if the model has no list of layers.

    The head reads one token of each sequence, the last one, or in most encoders the first one, and nothing else reads the output of the
    last layer. So every token gives it keys and values, but only the tokens that are read need its queries, output projection and MLP.
    This saves about four fifths of one layer, with the same rewards and gradients. Its output for all other tokens is zero.

    This works without model-specific code: hooks run the layer on all tokens until its attention has their keys and values, and then
    again on the tokens that are read, against these. The layout probe detects layers for which that is wrong, and heads that read more.
    """
    layers = layers_of(backbone)
    if not layers:
        return False
    layers[-1].register_forward_pre_hook(_select_tokens, with_kwargs=True)
    layers[-1].register_forward_hook(_restore_shape, with_kwargs=True)
    return True


def unpack_last_layer(backbone: Any) -> bool:
    """Return the output of the last layer as padded rows, if the segments have `rows_SL`; False if the model has no list of layers.

    So the rest of an encoder, its pooling and its head, sees what it would see without packing.
    """
    layers = layers_of(backbone)
    if not layers:
        return False
    layers[-1].register_forward_hook(_unpack, with_kwargs=True)
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
        last = ReadTokens(segments, segments.read_at_N, found.key, found.value, hidden_1TH.shape[1])
    selected = {name: _select(value, last) for name, value in kwargs.items()}
    return _select(args, last), {**selected, "segments": last}


def _select(value: Any, last: ReadTokens) -> Any:
    """Reduce every tensor that has one entry per token, such as positions and rotary angles, to the tokens that are read."""
    if isinstance(value, tuple):
        return tuple(_select(one, last) for one in value)
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == last.tokens:
        return value.index_select(1, last.read_at_N)
    return value


def _restore_shape(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    last = kwargs.get("segments")
    if not isinstance(last, ReadTokens):
        return None
    hidden_1NH = output[0] if isinstance(output, tuple) else output
    zeros_1TH = hidden_1NH.new_zeros(1, last.tokens, hidden_1NH.shape[-1])
    hidden_1TH = zeros_1TH.index_copy(1, last.read_at_N, hidden_1NH)
    return (hidden_1TH, *output[1:]) if isinstance(output, tuple) else hidden_1TH


def _unpack(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    given = kwargs.get("segments")
    segments = given.segments if isinstance(given, ReadTokens) else given
    if not isinstance(segments, Segments) or segments.rows_SL is None:
        return None
    hidden_1TH = output[0] if isinstance(output, tuple) else output
    hidden_SLH = hidden_1TH[0][segments.rows_SL]
    return (hidden_SLH, *output[1:]) if isinstance(output, tuple) else hidden_SLH
