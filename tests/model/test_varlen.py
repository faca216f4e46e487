"""The kernel of a GPU, on a CPU: what it is given, in each release of torch, against padded attention and the path of a CPU.

A plain loop stands in for `torch.nn.attention.varlen.varlen_attn`, with its arguments and its demands: a CPU has none.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from rmtrain.batching.layout import Segments, lay_out
from rmtrain.model import attention
from rmtrain.model.attention import ATTENTION, ReadTokens, attend
from tests.model.builders import build
from tests.model.test_layouts import PAD, SPECIAL, amplified, assert_layouts_agree, comparisons, special

SEGMENTS = Segments(prefixes=(0, 12, 1, 5), responses=((3,), (1, 9, 2), (4, 1), (7, 6, 5, 4, 3, 2, 1)))
"""One, two, three and seven responses; prefixes of no, one, several, and all but one token."""
Attention = tuple[Tensor, Tensor, Tensor]


def reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """Problem by problem, with the mask aligned at the end, as the flash kernel has it; raises for what that would refuse."""
    for cumulative, tokens, most in ((cu_seq_q, query, max_q), (cu_seq_k, key, max_k)):
        assert (cumulative.dtype, cumulative.device) == (torch.int32, query.device)
        assert cumulative.is_contiguous()
        assert (cumulative[0], cumulative[-1], cumulative.diff().max()) == (0, len(tokens), most)
        assert type(most) is int
    assert query.dtype == key.dtype == value.dtype
    assert key.shape == value.shape
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    group, (left, right) = query.shape[1] // key.shape[1], window_size
    assert enable_gqa or group == 1, "Expect query and key/value to have the same number of heads"
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    outputs = []
    for first_q, last_q, first_k, last_k in zip(cu_seq_q, cu_seq_q[1:], cu_seq_k, cu_seq_k[1:], strict=False):
        own_HQD, keys_HKD, values_HKD = (
            tensor[first:last].transpose(0, 1)
            for tensor, first, last in ((query, first_q, last_q), (key, first_k, last_k), (value, first_k, last_k))
        )
        queries, keys = own_HQD.shape[1], keys_HKD.shape[1]
        place_Q1 = torch.arange(keys - queries, keys)[:, None]
        seen = torch.ones(queries, keys, dtype=torch.bool)
        if left >= 0:
            seen &= torch.arange(keys) >= place_Q1 - left
        if right >= 0:
            seen &= torch.arange(keys) <= place_Q1 + right
        scores = own_HQD @ keys_HKD.transpose(1, 2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        outputs.append((scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values_HKD).transpose(0, 1))
    return torch.cat(outputs)


class Kernel:
    """The three signatures; `windows` has the window of each call."""

    def __init__(self) -> None:
        self.windows: list[int] = []

    def current(
        self, *tensors: Any, scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False
    ) -> Tensor:
        """As in torch 2.12 and later."""
        self.windows.append(window_size[0])
        return reference(*tensors, scale=scale, window_size=window_size, enable_gqa=enable_gqa)

    def without_groups(self, *tensors: Any, scale: float | None = None, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
        """As in torch 2.11."""
        return self.current(*tensors, scale=scale, window_size=window_size)

    def oldest(self, *tensors: Any, is_causal: bool = False) -> Tensor:
        """As in torch 2.10."""
        return self.current(*tensors, window_size=(-1, 0 if is_causal else -1))


SIGNATURES = ("current", "without_groups", "oldest")


@pytest.fixture(params=SIGNATURES)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel in the place of torch's, for float32 as well, since bfloat16 would hide small errors."""
    made = Kernel()
    monkeypatch.setattr(attention, "varlen_attn", getattr(made, request.param))
    monkeypatch.setattr(attention, "VARLEN_TYPES", (torch.float32, torch.bfloat16))
    return made


def has_windows() -> bool:
    return "window_size" in attention._options(attention.varlen_attn)


@pytest.fixture
def on_gpu() -> Iterator[None]:
    """Models attend as on a GPU."""
    AttentionInterface.register(ATTENTION, partial(attend, as_on_gpu=True))
    yield
    AttentionInterface.register(ATTENTION, attend)


def row(heads: int, kv_heads: int, size: int, dtype: torch.dtype = torch.float32, value_size: int | None = None) -> Attention:
    """Queries, keys and values [1, H, T, D] of the tokens of SEGMENTS, as transformers makes them: views of [1, T, H, D]."""
    tokens, generator = sum(SEGMENTS.prefixes) + sum(map(sum, SEGMENTS.responses)), torch.Generator().manual_seed(0)
    shapes = ((heads, size), (kv_heads, size), (kv_heads, value_size or size))
    query, key, value = (
        torch.randn(1, tokens, *shape, generator=generator).to(dtype).requires_grad_().transpose(1, 2) for shape in shapes
    )
    return query, key, value


def attended(inputs: Attention, as_on_gpu: bool, segments: Any = SEGMENTS, **options: Any) -> list[Tensor]:
    """The output of `attend`, and the gradients of its inputs."""
    out = attend(nn.Module().train(), *inputs, None, segments=segments, as_on_gpu=as_on_gpu, **options)[0]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)], ids=["all", "grouped", "one"])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_one_call_equals_a_call_per_response(
    kernel: Kernel, heads: tuple[int, int], window: int | None, scaling: float | None
) -> None:
    """Output and gradients of queries, keys and values; torch 2.10, without windows, leaves layers that have one to SDPA."""
    inputs = row(*heads, size=16)
    options = {"scaling": scaling, "sliding_window": window}
    assert_equal(attended(inputs, as_on_gpu=True, **options), attended(inputs, as_on_gpu=False, **options))
    assert kernel.windows == ([-1 if window is None else window - 1] if window is None or has_windows() else [])
    assert {len(responses) for responses in SEGMENTS.responses} == {1, 2, 3, 7}, "guard"


@pytest.mark.parametrize("window", [None, 3])
def test_last_tokens_alone_equal_the_whole_row(kernel: Kernel, window: int | None) -> None:
    """The queries of the tokens that are read, against all keys, give what they give among all queries."""
    query, key, value = row(4, 2, 16)
    places, end = [], 0
    for prefix, lengths in zip(SEGMENTS.prefixes, SEGMENTS.responses, strict=True):
        end += prefix
        for length in lengths:
            end += length
            places.append(end - 1)
    read_at_N = torch.tensor(places)
    last = ReadTokens(SEGMENTS, read_at_N, key, value, end)
    whole = attend(nn.Module(), query, key, value, None, segments=SEGMENTS, sliding_window=window)[0]
    own = query.index_select(2, read_at_N)
    some = attend(nn.Module(), own, own, own, None, segments=last, sliding_window=window, as_on_gpu=True)[0]
    torch.testing.assert_close(some, whole[:, read_at_N], rtol=1e-4, atol=1e-5)
    one, other = (torch.autograd.grad((out**2).sum(), (key, value)) for out in (some, whole[:, read_at_N]))
    assert_equal(list(one), list(other))
    assert len(kernel.windows) == (window is None or has_windows())


@pytest.mark.parametrize("window", [None, 3])
def test_first_tokens_of_encoders_equal_the_whole_row(kernel: Kernel, window: int | None) -> None:
    """They see what follows them. The kernel has windows aligned at the end, so layers that have one are left to SDPA."""
    query, key, value = row(4, 4, 16)
    lengths = [sum(pair) for pair in zip((11, 4, 9, 20), (8, 3, 9, 14), strict=True)]
    lengths[-1] += query.shape[2] - sum(lengths)
    segments = Segments((0,) * len(lengths), tuple((length,) for length in lengths), causal=False)
    read_at_N = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    read = ReadTokens(segments, read_at_N, key, value, sum(lengths))
    whole = attend(nn.Module(), query, key, value, None, segments=segments, sliding_window=window)[0]
    own = query.index_select(2, read_at_N)
    some = attend(nn.Module(), own, own, own, None, segments=read, sliding_window=window, as_on_gpu=True)[0]
    torch.testing.assert_close(some, whole[:, read_at_N], rtol=1e-4, atol=1e-5)
    one, other = (torch.autograd.grad((out**2).sum(), (key, value)) for out in (some, whole[:, read_at_N]))
    assert_equal(list(one), list(other))
    assert len(kernel.windows) == (window is None)
    assert min(lengths) > 3, "guard: sequences are longer than the window"


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "mistral", "qwen2"])
def test_models_equal_padded_attention(name: str, kernel: Kernel, on_gpu: None, tokenizer: Any) -> None:
    """Rewards, loss and gradients of whole models, with grouped heads and windows, against transformers' own padded attention."""
    model = amplified(special(name) if name in SPECIAL else build(name, tokenizer, hidden_size=64))
    assert_layouts_agree(model, comparisons(), ("shared_prefix", "packed"))
    layers, with_windows = len(attention.layers_of(model.backbone)), {"mistral": 4, "qwen2": 3}.get(name, 0)
    assert len(kernel.windows) == 2 * (layers if has_windows() else layers - with_windows)
    assert sum(window >= 0 for window in kernel.windows) == 2 * with_windows * has_windows(), "guard"


def test_autocast_takes_one_type_and_one_call(
    kernel: Kernel, on_gpu: None, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary embeddings leave queries and keys in float32 next to bfloat16 values: a GPU casts all, and calls its kernel."""
    model, rows = amplified(build("llama", tokenizer, hidden_size=64, key_value_heads=2)).eval(), comparisons(len(tokenizer))
    model.computing, called = "bfloat16", attention._varlen
    seen: list[set[torch.dtype]] = []

    def noting(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        seen.append({query.dtype, key.dtype, value.dtype})
        return called(query, key, value, *rest)

    monkeypatch.setattr(attention, "_varlen", noting)
    rewards = {}
    with torch.no_grad():
        for layout in ("padded", "shared_prefix"):
            model.use_layout(layout)
            rewards[layout] = model(lay_out(rows, PAD, layout))
    assert seen == [{torch.bfloat16}] * len(attention.layers_of(model.backbone))
    torch.testing.assert_close(rewards["shared_prefix"], rewards["padded"], atol=0.05, rtol=0.05)
    assert rewards["padded"].std() > 0.05, "guard"


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_cpu_never_takes_the_kernel(autocast: bool, kernel: Kernel) -> None:
    inputs = row(4, 2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
        attended(inputs, as_on_gpu=False)
        assert kernel.windows == []
        attended(inputs, as_on_gpu=True)
    assert kernel.windows == [-1], "guard"


@pytest.mark.parametrize(("size", "value_size", "fits"), [(256, 256, True), (264, 264, False), (20, 20, False), (24, 16, False)])
def test_heads_that_do_not_fit_go_to_sdpa(size: int, value_size: int, fits: bool, kernel: Kernel) -> None:
    """The flash kernel takes heads of a multiple of 8 up to 256, and values of the same size."""
    inputs = row(2, 2, size, value_size=value_size)
    assert_equal(attended(inputs, as_on_gpu=True), attended(inputs, as_on_gpu=False))
    assert len(kernel.windows) == fits


@pytest.mark.parametrize(("capability", "fits"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_old_gpus_have_no_such_kernel(capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """V100 and T4 compute in float16, response by response."""

    class OnGpu:
        is_cuda, device, shape = True, torch.device("cuda"), (1, 4, 9, 64)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert attention._has_varlen(OnGpu(), OnGpu(), None, as_on_gpu=False) == fits  # type: ignore[arg-type]


def test_dropout_and_soft_caps_stay_without_the_kernel(kernel: Kernel) -> None:
    inputs = row(4, 2, 16)
    for options in ({"softcap": 20.0}, {"s_aux": torch.zeros(4)}, {"dropout": 0.5}):
        attended(inputs, as_on_gpu=True, **options)
    assert kernel.windows == []
    attended(inputs, as_on_gpu=True)
    assert kernel.windows == [-1], "guard"


def test_the_installed_kernel_takes_these_arguments() -> None:
    """The fake of the operator behind it, which is all that a CPU has, accepts the call; one signature is that of this torch."""
    inputs = [tensor.detach() for tensor in row(4, 2, 16, torch.bfloat16)]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in inputs]
        out = attend(nn.Module(), *fakes, None, segments=replace(SEGMENTS, memo={}), as_on_gpu=True)[0]
    assert out.shape == (1, inputs[0].shape[2], 4, 16)
    options = attention._options(varlen_attn) & {"scale", "window_size", "enable_gqa", "is_causal"}
    signatures: list[Callable[..., Any]] = [getattr(Kernel, name) for name in SIGNATURES]
    assert options in [attention._options(signature) & options for signature in signatures], "guard: a known release"


@pytest.mark.parametrize("window", [None, 3, 7])
def test_encoders_take_the_kernel_both_ways(window: int | None, kernel: Kernel) -> None:
    """A token sees its own sequence, or as many tokens after it as before it; the output and gradients are those of the CPU's path."""
    lengths = tuple((length,) for lengths in SEGMENTS.responses for length in lengths)
    packed = Segments(prefixes=(0,) * len(lengths), responses=lengths, causal=False)
    tokens = sum(map(sum, lengths))
    query, key, value = (tensor.detach()[:, :, :tokens].requires_grad_() for tensor in row(4, 2, 16))
    on_cpu = attended((query, key, value), False, packed, sliding_window=window)
    assert_equal(attended((query, key, value), True, packed, sliding_window=window), on_cpu)
    assert kernel.windows == ([-1 if window is None else window - 1] if window is None or has_windows() else [])
    causal = attended((query, key, value), False, replace(packed, causal=True, memo={}), sliding_window=window)
    assert float((causal[0] - on_cpu[0]).abs().max()) > 0.1, "guard: both ways differ from one"
