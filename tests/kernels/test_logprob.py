"""Log-probabilities against a float64 oracle: both backends, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lodestar_kernels.logprob import LogProbOutput, kl_divergence, logprobs, logprobs_from_logits, op, token_loss
from lodestar_kernels.logprob.reference import dense_logprobs
from lodestar_kernels.logprob.sliced import Tiling
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BACKENDS = ("torch", "triton")
TOLERANCE = {torch.float32: (2e-5, 2e-4), torch.float16: (2e-2, 1e-2), torch.bfloat16: (1e-1, 5e-2)}


class LargestTensor(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor made inside the block."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.nbytes = max(self.nbytes, tensor.nbytes)
        return result


class ProductsOver(TorchDispatchMode):
    """Counts float32 matrix products in which the vocabulary is a side of a factor or of the result."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.count += any(x.dtype == torch.float32 and self.vocab in x.shape for x in args if isinstance(x, Tensor))
        return func(*args, **(kwargs or {}))


def problem(
    tokens: int, hidden: int, vocab: int, dtype: torch.dtype, device: str, bias: bool
) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(tokens * 7919 + hidden * 31 + vocab)
    inputs = [torch.randn(tokens, hidden), torch.randn(vocab, hidden) * hidden**-0.5 * 3]
    if bias:
        inputs.append(torch.randn(vocab))
    targets_T = torch.randint(vocab, (tokens,), device=device)
    return [x.to(device, dtype).requires_grad_() for x in inputs], targets_T


def assert_matches_oracle(
    inputs: list[Tensor], targets_T: Tensor, backend: str, temperature: float | Tensor = 1.0, **options: Any
) -> None:
    """Values and gradients of all three results together, weighted at random, against float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    logits_TV = exact[0] @ exact[1].T + (exact[2] if len(exact) > 2 else 0)
    expected = dense_logprobs(logits_TV, targets_T, temperature, options.get("softcap"))
    actual = logprobs(
        inputs[0], inputs[1], targets_T, bias=inputs[2] if len(inputs) > 2 else None, temperature=temperature,
        entropy=True, lse=True, backend=backend, **options,
    )  # fmt: skip
    atol, rtol = TOLERANCE[inputs[0].dtype]
    weights = [torch.randn(len(targets_T), device=targets_T.device) for _ in range(3)]
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, atol=atol, rtol=rtol)
    gradients = torch.autograd.grad(weighted(actual, weights), inputs)
    wanted_gradients = torch.autograd.grad(weighted(expected, weights), exact)
    for got, wanted in zip(gradients, wanted_gradients, strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(got.double() / scale, wanted / scale, atol=atol, rtol=rtol)


def weighted(output: LogProbOutput, weights: list[Tensor]) -> Tensor:
    return sum((result * w.to(result.dtype)).sum() for result, w in zip(output, weights, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(5, 123, 123), (7, 3, 1), (3, 16, 4097), (2, 8, 50257), (1, 1, 2)], ids=str)
def test_values_and_gradients_equal_the_oracle(backend: str, shape: tuple[int, int, int], device: str) -> None:
    inputs, targets_T = problem(*shape, torch.float32, device, bias=False)
    assert_matches_oracle(inputs, targets_T, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_token", [False, True])
def test_bias_and_temperature_enter_values_and_gradients(backend: str, per_token: bool, device: str) -> None:
    inputs, targets_T = problem(9, 12, 70, torch.float32, device, bias=True)
    temperature = torch.linspace(0.3, 2.0, 9, device=device) if per_token else 0.7
    assert_matches_oracle(inputs, targets_T, backend, temperature)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(9, 12, 70), (3, 16, 4097), (70, 8, 4200)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_soft_cap_enters_values_and_gradients(
    backend: str, shape: tuple[int, int, int], temperature: float, device: str
) -> None:
    inputs, targets_T = problem(*shape, torch.float32, device, bias=True)
    assert_matches_oracle(inputs, targets_T, backend, temperature, softcap=2.5, chunk_bytes=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("softcap", [None, 2.5])
def test_a_bias_of_minus_infinity_takes_a_token_out(backend: str, softcap: float | None, device: str) -> None:
    inputs, targets_T = problem(6, 12, 70, torch.float32, device, bias=False)
    targets_T %= 69
    bias_V = torch.zeros(70, device=device)
    bias_V[69] = -torch.inf
    whole, less = ([x.detach().clone().requires_grad_() for x in inputs] for _ in range(2))
    output = logprobs(*whole, targets_T, bias=bias_V, softcap=softcap, entropy=True, backend=backend)
    expected = logprobs(less[0], less[1][:69], targets_T, softcap=softcap, entropy=True, backend=backend)
    for got, wanted in zip(output[:2], expected[:2], strict=True):
        torch.testing.assert_close(got, wanted)
    gradients = torch.autograd.grad(output.logprobs_T.sum() + output.entropy_T.sum(), whole)
    wanted_gradients = torch.autograd.grad(expected.logprobs_T.sum() + expected.entropy_T.sum(), less)
    for got, wanted in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_soft_caps_pass_gradcheck_in_float64() -> None:
    inputs, targets_T = problem(4, 3, 6, torch.float64, "cpu", bias=True)
    reference_TH, reference_VH = (x.detach().clone() + 0.3 for x in inputs[:2])

    def results(hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> tuple[Tensor, ...]:
        output = logprobs(hidden_TH, weight_VH, targets_T, bias=bias_V, temperature=0.8, softcap=1.5, entropy=True)
        loss, _ = token_loss(
            hidden_TH, weight_VH, targets_T, lambda _, logp, entropy: (logp * 2 - entropy).sum(),
            bias=bias_V, temperature=0.8, softcap=1.5, entropy=True,
        )  # fmt: skip
        kl_T = kl_divergence(
            hidden_TH, weight_VH, reference_TH, reference_VH, bias=bias_V, temperature=0.8,
            reference_temperature=1.3, softcap=1.5, reference_softcap=4.0,
        )  # fmt: skip
        return *output[:2], loss, kl_T

    torch.autograd.gradcheck(results, inputs)


@pytest.mark.parametrize("name", ["softcap", "reference_softcap"])
def test_a_soft_cap_that_is_not_positive_is_refused(name: str) -> None:
    inputs, _ = problem(2, 3, 6, torch.float32, "cpu", bias=False)
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        kl_divergence(*inputs, *inputs, **{name: -1.0})


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_small_chunks_give_what_one_chunk_gives(backend: str, device: str) -> None:
    inputs, targets_T = problem(70, 8, 4200 if backend == "triton" else 33, torch.float32, device, bias=True)
    assert_matches_oracle(inputs, targets_T, backend, chunk_bytes=1)


def test_half_precision_inputs_give_float32_results_under_triton(device: str) -> None:
    inputs, targets_T = problem(6, 32, 300, torch.float16, device, bias=True)
    assert_matches_oracle(inputs, targets_T, "triton")
    assert logprobs(*inputs[:2], targets_T, backend="triton").logprobs_T.dtype == torch.float32


def test_gradients_pass_gradcheck_in_float64() -> None:
    inputs, targets_T = problem(4, 3, 6, torch.float64, "cpu", bias=True)
    targets_T[1] = -100

    def results(hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> tuple[Tensor, ...]:
        output = logprobs(hidden_TH, weight_VH, targets_T, bias=bias_V, temperature=0.8, entropy=True, lse=True)
        return tuple(output)

    torch.autograd.gradcheck(results, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_extreme_logits_keep_probabilities_exact(backend: str, magnitude: float, device: str) -> None:
    torch.manual_seed(0)
    logits_TV = (torch.randn(4, 50, device=device) + magnitude).requires_grad_()
    logits_TV.data[1, 7] = 3 * abs(magnitude)
    targets_T = torch.tensor([0, 7, 8, 49], device=device)
    exact_TV = logits_TV.detach().double().requires_grad_()
    actual = logprobs_from_logits(logits_TV, targets_T, entropy=True, lse=True, backend=backend)
    expected = dense_logprobs(exact_TV, targets_T)
    torch.testing.assert_close(actual.logprobs_T.double(), expected.logprobs_T, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(actual.entropy_T.double(), expected.entropy_T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.lse_T.double(), expected.lse_T, atol=0, rtol=1e-6)
    got = torch.autograd.grad(actual.logprobs_T.sum() + actual.entropy_T.sum(), logits_TV)[0]
    wanted = torch.autograd.grad(expected.logprobs_T.sum() + expected.entropy_T.sum(), exact_TV)[0]
    torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_of_minus_infinity_mean_probability_zero(backend: str, device: str) -> None:
    logits_TV = torch.randn(3, 40, device=device)
    logits_TV[:, 10:] = float("-inf")
    logits_TV.requires_grad_()
    targets_T = torch.tensor([0, 9, 20], device=device)
    output = logprobs_from_logits(logits_TV, targets_T, entropy=True, backend=backend)
    short = dense_logprobs(logits_TV.detach()[:, :10].double(), torch.tensor([0, 9, 0], device=device))
    torch.testing.assert_close(output.logprobs_T[:2].double(), short.logprobs_T[:2], atol=1e-5, rtol=1e-5)
    assert output.logprobs_T[2] == float("-inf")
    torch.testing.assert_close(output.entropy_T.double(), short.entropy_T, atol=1e-5, rtol=1e-5)
    gradient = torch.autograd.grad(output.logprobs_T[:2].sum() + output.entropy_T.sum(), logits_TV)[0]
    assert gradient.isfinite().all()
    assert (gradient[:, 10:] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_tokens_give_zero_and_let_nothing_through(backend: str, device: str) -> None:
    inputs, targets_T = problem(6, 5, 20, torch.float32, device, bias=False)
    hidden_TH, weight_VH = inputs
    hidden_TH.data[2] = float("nan")
    targets_T[2] = targets_T[5] = -1
    output = logprobs(hidden_TH, weight_VH, targets_T, entropy=True, lse=True, ignore_index=-1, backend=backend)
    for result in output:
        assert (result[[2, 5]] == 0).all()
        assert (result[[0, 1, 3, 4]] != 0).all()
    gradients = torch.autograd.grad(sum(result.sum() for result in output), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][[2, 5]] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_the_vocabulary_can_be_the_ignored_one(backend: str, device: str) -> None:
    inputs, _ = problem(4, 5, 20, torch.float32, device, bias=False)
    targets_T = torch.tensor([3, 0, 7, 0], device=device)
    every = logprobs(*inputs, targets_T, backend=backend).logprobs_T
    some = logprobs(*inputs, targets_T, ignore_index=0, backend=backend).logprobs_T
    torch.testing.assert_close(some[[0, 2]], every[[0, 2]])
    assert (some[[1, 3]] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_give_empty_results_and_zero_gradients(backend: str, device: str) -> None:
    inputs, targets_T = problem(0, 5, 20, torch.float32, device, bias=False)
    for targets in (targets_T, torch.full((4,), -100, device=device)):
        hidden_TH = torch.randn(len(targets), 5, device=device, requires_grad=True)
        output = logprobs(hidden_TH, inputs[1], targets, entropy=True, backend=backend)
        assert output.logprobs_T.shape == targets.shape
        gradient = torch.autograd.grad(output.logprobs_T.sum(), inputs[1])[0]
        assert (gradient == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_wanted_gradients_and_results_are_computed(backend: str, device: str) -> None:
    inputs, targets_T = problem(6, 5, 20, torch.float32, device, bias=False)
    hidden_TH, weight_VH = inputs[0], inputs[1].detach()
    output = logprobs(hidden_TH, weight_VH, targets_T, backend=backend)
    assert output.entropy_T is None
    assert output.lse_T is None
    (gradient,) = torch.autograd.grad(output.logprobs_T.sum(), hidden_TH)
    exact = hidden_TH.detach().double().requires_grad_()
    expected = dense_logprobs(exact @ weight_VH.double().T, targets_T).logprobs_T.sum()
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(expected, exact)[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backward_runs_twice_over_a_retained_graph(backend: str, device: str) -> None:
    inputs, targets_T = problem(6, 5, 20, torch.float32, device, bias=False)
    total = logprobs(*inputs, targets_T, entropy=True, backend=backend).entropy_T.sum()
    first = torch.autograd.grad(total, inputs, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, inputs)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tensor_is_as_large_as_the_logits(backend: str, device: str) -> None:
    tokens, vocab = 256, 500
    inputs, targets_T = problem(tokens, 4, vocab, torch.float32, device, bias=False)
    with LargestTensor() as made:
        total = logprobs(*inputs, targets_T, chunk_bytes=64 * vocab * 8, backend=backend).logprobs_T.sum()
        torch.autograd.grad(total, inputs)
    assert made.nbytes <= 128 * vocab * 4


def clipped_loss(tokens: int, device: str) -> Any:
    """PPO's clipped surrogate with an entropy bonus, over any part of the tokens."""
    advantages_T = torch.randn(tokens, device=device)

    def loss(chunk: slice, logprobs_C: Tensor, entropy_C: Tensor | None) -> Tensor:
        ratio_C = (logprobs_C + 3.0).exp()
        gains_C = advantages_T[chunk].to(ratio_C.dtype)
        surrogate = torch.maximum(-gains_C * ratio_C, -gains_C * ratio_C.clamp(0.8, 1.2)).sum()
        return surrogate if entropy_C is None else surrogate - 0.1 * entropy_C.sum()

    return loss


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("entropy", [False, True])
def test_a_token_loss_has_the_gradient_of_the_loss_of_all_tokens(backend: str, entropy: bool, device: str) -> None:
    tokens = 150
    inputs, targets_T = problem(tokens, 8, 33, torch.float32, device, bias=True)
    loss = clipped_loss(tokens, device)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = dense_logprobs(exact[0] @ exact[1].T + exact[2], targets_T, 0.7)
    wanted = loss(slice(None), expected.logprobs_T, expected.entropy_T if entropy else None)
    total, output = token_loss(
        *inputs[:2], targets_T, loss, bias=inputs[2], temperature=0.7, entropy=entropy, chunk_bytes=1, backend=backend
    )
    torch.testing.assert_close(total.double(), wanted, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(output.logprobs_T.double(), expected.logprobs_T, atol=2e-5, rtol=1e-4)
    assert not output.logprobs_T.requires_grad
    assert (output.entropy_T is not None) == entropy
    for got, want in zip(torch.autograd.grad(3 * total, inputs), torch.autograd.grad(3 * wanted, exact), strict=True):
        scale = float(want.abs().max())
        torch.testing.assert_close(got.double() / scale, want / scale, atol=2e-5, rtol=2e-4)


def test_a_token_loss_passes_gradcheck_in_float64() -> None:
    inputs, targets_T = problem(5, 3, 6, torch.float64, "cpu", bias=True)

    def loss(_: slice, logprobs_C: Tensor, entropy_C: Tensor | None) -> Tensor:
        assert entropy_C is not None
        return (logprobs_C.exp() * entropy_C).sum()

    def total(hidden_TH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Tensor:
        return token_loss(hidden_TH, weight_VH, targets_T, loss, bias=bias_V, temperature=0.8, entropy=True)[0]

    torch.autograd.gradcheck(total, inputs)


def test_a_token_loss_keeps_one_chunk_of_scores_and_computes_none_twice() -> None:
    tokens, vocab = 640, 500
    inputs, targets_T = problem(tokens, 4, vocab, torch.float32, "cpu", bias=False)
    with LargestTensor() as made, ProductsOver(vocab) as products:
        total, _ = token_loss(
            *inputs, targets_T, lambda _, logprobs_C, __: -logprobs_C.sum(), chunk_bytes=64 * vocab * 4
        )
        total.backward()
    assert made.nbytes <= 64 * vocab * 4
    assert products.count == 3 * tokens // 64


@pytest.mark.parametrize("kept", [0, 1, 2, 9])
def test_kept_probabilities_change_nothing_but_the_products(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "KEPT_CHUNKS", kept)
    inputs, targets_T = problem(200, 8, 33, torch.float32, "cpu", bias=True)
    with ProductsOver(33) as products:
        assert_matches_oracle(inputs, targets_T, "torch", chunk_bytes=1)
    assert products.count == 4 * 4 - min(kept, 4)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("forward", [False, True])
def test_the_divergence_of_two_heads_equals_the_dense_one(
    temperature: float, bias: bool, forward: bool, device: str
) -> None:
    inputs, _ = problem(150, 8, 33, torch.float32, device, bias=bias)
    reference = [torch.randn(150, 5, device=device), torch.randn(33, 5, device=device)]
    kl_T = kl_divergence(
        *inputs[:2], *reference, bias=inputs[2] if bias else None, temperature=temperature, forward=forward,
        chunk_bytes=1,
    )  # fmt: skip
    exact = [x.detach().double().requires_grad_() for x in inputs]
    scores_TV = (exact[0] @ exact[1].T + (exact[2] if bias else 0)) / temperature
    logq_TV = ((reference[0] @ reference[1].T).double() / temperature).log_softmax(-1)
    logp_TV = scores_TV.log_softmax(-1)
    above_TV, below_TV = (logq_TV, logp_TV) if forward else (logp_TV, logq_TV)
    wanted_T = (above_TV.exp() * (above_TV - below_TV)).sum(-1)
    torch.testing.assert_close(kl_T.double(), wanted_T, atol=2e-5, rtol=1e-4)
    upstream_T = torch.randn(150, device=device)
    got = torch.autograd.grad(kl_T, inputs, upstream_T)
    for ours, theirs in zip(got, torch.autograd.grad(wanted_T, exact, upstream_T.double()), strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours.double() / scale, theirs / scale, atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("forward", [False, True])
def test_the_divergence_passes_gradcheck_in_float64(forward: bool) -> None:
    inputs, _ = problem(4, 3, 6, torch.float64, "cpu", bias=True)
    reference = [torch.randn(4, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)]
    torch.autograd.gradcheck(
        lambda h, w, b: kl_divergence(h, w, *reference, bias=b, temperature=0.7, forward=forward), inputs
    )


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 90), hidden=st.integers(1, 20), vocab=st.integers(1, 300), bias=st.booleans(),
    temperature=st.floats(0.2, 3.0), chunk_bytes=st.sampled_from([1, 100_000, None]), backend=st.sampled_from(BACKENDS),
)  # fmt: skip
def test_random_shapes_equal_the_oracle(
    tokens: int, hidden: int, vocab: int, bias: bool, temperature: float, chunk_bytes: int | None, backend: str
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs, targets_T = problem(min(tokens, 12) if backend == "triton" else tokens, hidden, vocab, torch.float32,
                                device, bias)  # fmt: skip
    assert_matches_oracle(inputs, targets_T, backend, temperature, chunk_bytes=chunk_bytes)


@given(tokens=st.integers(1, 5000), vocab=st.integers(1, 200_000), chunk_bytes=st.integers(1, 1 << 30))
def test_tiles_cover_the_scores_once_within_the_budget_and_with_aligned_rows(
    tokens: int, vocab: int, chunk_bytes: int
) -> None:
    tiling = Tiling.within(tokens, vocab, chunk_bytes, 2)
    assert sum(columns.stop - columns.start for columns in tiling.slices) == vocab
    assert sum(rows.stop - rows.start for rows in tiling.blocks) == tokens
    assert tiling.pitch % 256 == 0
    assert tiling.width <= tiling.pitch
    assert tiling.rows * tiling.pitch * 6 <= max(chunk_bytes, 64 * max(4096, tiling.pitch) * 6)


def test_the_goal_of_a_gibibyte_holds_for_its_shape() -> None:
    tokens, hidden, vocab = 16384, 4096, 131072
    tiling = Tiling.within(tokens, vocab, op.GPU_CHUNK_BYTES, 2)
    assert tiling.rows == tokens  # no float32 [V, H], not even of a slice
    assert tiling.rows * tiling.pitch * 6 + tokens * hidden * 4 + 8 * tokens * 4 <= 1 << 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_TH": torch.zeros(3, 5)}, "weight_VH"),
        ({"weight_VH": torch.zeros(0, 4)}, "vocabulary is empty"),
        ({"weight_VH": torch.zeros(9, 4, dtype=torch.float64)}, "weight_VH is torch.float64"),
        ({"targets_T": torch.zeros(2, dtype=torch.int64)}, "targets_T"),
        ({"targets_T": torch.zeros(3, dtype=torch.int32)}, "targets_T"),
        ({"targets_T": torch.tensor([0, 9, 1])}, "holds 9"),
        ({"targets_T": torch.tensor([0, -1, 1])}, "holds -1"),
        ({"bias": torch.zeros(8)}, "bias"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": torch.tensor([1.0, -1.0, 1.0])}, "temperature"),
        ({"temperature": torch.ones(2)}, "temperature"),
        ({"temperature": torch.ones(3, requires_grad=True)}, "detach"),
        ({"backend": "cuda"}, "backend"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    arguments = {
        "hidden_TH": torch.zeros(3, 4),
        "weight_VH": torch.zeros(9, 4),
        "targets_T": torch.zeros(3, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=message):
        logprobs(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(257, 512, 32000), (64, 768, 50257), (1000, 123, 4097), (33, 64, 7)], ids=str)
def test_gpu_dtypes_equal_the_oracle(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    inputs, targets_T = problem(*shape, dtype, "cuda", bias=True)
    assert_matches_oracle(inputs, targets_T, "triton", chunk_bytes=8 << 20)


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_thousand_random_shapes_equal_the_oracle_on_a_gpu() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    for _ in range(1000):
        inputs, targets_T = problem(draw(1, 400), draw(1, 200), draw(1, 9000), torch.float32, "cuda", draw(0, 2) == 1)
        assert_matches_oracle(inputs, targets_T, "triton", chunk_bytes=draw(1, 1 << 22))


@pytest.mark.gpu
def test_peak_memory_stays_within_the_budget_on_a_gpu() -> None:
    hidden_TH = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight_VH = torch.randn(65536, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets_T = torch.randint(65536, (4096,), device="cuda")
    budget = 64 << 20
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    logprobs(hidden_TH, weight_VH, targets_T, chunk_bytes=budget).logprobs_T.sum().backward()
    gradients = hidden_TH.numel() * (2 + 4) + weight_VH.numel() * 2
    assert torch.cuda.max_memory_allocated() - before <= gradients + 2 * budget


@pytest.mark.gpu
def test_logits_beyond_32_bit_offsets_are_read_and_written_in_place() -> None:
    tokens, vocab = 16_500, 131_072
    assert tokens * vocab > 2**31
    logits_TV = torch.empty(tokens, vocab, device="cuda", dtype=torch.bfloat16).normal_().requires_grad_()
    targets_T = torch.randint(vocab, (tokens,), device="cuda")
    output = logprobs_from_logits(logits_TV, targets_T, entropy=True)
    gradient = torch.autograd.grad(output.logprobs_T.sum(), logits_TV)[0]
    for row in (0, tokens - 1):
        exact_1V = logits_TV[row : row + 1].detach().double().requires_grad_()
        expected = dense_logprobs(exact_1V, targets_T[row : row + 1])
        torch.testing.assert_close(output.logprobs_T[row].double(), expected.logprobs_T[0], atol=1e-4, rtol=1e-5)
        wanted = torch.autograd.grad(expected.logprobs_T.sum(), exact_1V)[0][0]
        torch.testing.assert_close(gradient[row].double(), wanted, atol=1e-6, rtol=1e-2)
