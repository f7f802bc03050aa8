import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.attention import attend, document_lengths, joined, rotary_tables, rotate

DOCUMENTS = {
    "none": None,
    "one a row": [[0] * 9, [0] * 9],
    "several": [[0, 0, 0, 1, 1, 1, 1, 2, 2], [5, 5, 6, 7, 8, 8, 8, 8, 8]],
    "of one token": [list(range(9)), [0] * 8 + [1]],
}


def reference(q_thk: Tensor, k_thk: Tensor, v_thk: Tensor, documents: list[int]) -> Tensor:
    """Attention of one row, token by token, in fp64."""
    q_thk, k_thk, v_thk = (x.double() for x in (q_thk, k_thk, v_thk))
    group = q_thk.shape[1] // k_thk.shape[1]
    result = torch.zeros_like(q_thk)
    for t, h in itertools.product(range(q_thk.shape[0]), range(q_thk.shape[1])):
        seen = [s for s in range(t + 1) if documents[s] == documents[t]]
        keys, values = k_thk[seen, h // group], v_thk[seen, h // group]
        result[t, h] = (keys @ q_thk[t, h] / math.sqrt(q_thk.shape[2])).softmax(0) @ values
    return result


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_against_float64(heads: int, kv_heads: int, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q_bthk, k_bthk, v_bthk = (torch.randn(2, 9, n, 8, generator=generator).to(dtype) for n in (heads, kv_heads, kv_heads))
    documents = DOCUMENTS[name]
    lengths = None if documents is None else document_lengths(torch.tensor(documents, dtype=torch.int32))
    found = joined(attend(q_bthk, k_bthk, v_bthk, lengths)).view(q_bthk.shape)
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for row in range(2):
        expected = reference(q_bthk[row], k_bthk[row], v_bthk[row], documents[row] if documents else [0] * 9)
        torch.testing.assert_close(found[row].double(), expected, rtol=tolerance, atol=tolerance)


def test_last_query_alone() -> None:
    q_bthk, k_bthk, v_bthk = torch.randn(3, 2, 9, 4, 8, generator=torch.Generator().manual_seed(0))
    whole = joined(attend(q_bthk, k_bthk, v_bthk)).view(2, 9, 32)
    torch.testing.assert_close(joined(attend(q_bthk[:, -1:], k_bthk, v_bthk)), whole[:, -1])


def test_scores_never_exist() -> None:
    """Neither whole nor masked, forward or backward: no tensor is larger than the queries."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            made = result if isinstance(result, (tuple, list)) else [result]
            self.numel = max([self.numel, *(tensor.untyped_storage().nbytes() // 4 for tensor in made)])
            return result

    length = 1024
    for lengths in (None, [300, 724]):
        q_bthk = torch.randn(1, length, 2, 4, requires_grad=True)
        with Largest() as seen:
            joined(attend(q_bthk, q_bthk, q_bthk, lengths)).sum().backward()
        assert seen.numel <= q_bthk.numel() < length**2 / 100


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4), st.sampled_from(["int32", "int64"])
)
def test_lengths_are_runs_inside_rows(rows: list[list[int]], dtype: str) -> None:
    expected = [len(list(run)) for row in rows for _, run in itertools.groupby(row)]
    assert document_lengths(torch.tensor(rows, dtype=getattr(torch, dtype))) == expected


@settings(deadline=None)
@given(st.sampled_from([2, 6, 64]), st.integers(1, 40), st.sampled_from([1e4, 5e5]))
def test_tables_against_float64(head_dim: int, length: int, theta: float) -> None:
    cos_tk, sin_tk = rotary_tables(head_dim, length, theta)
    for position, i in itertools.product(range(length), range(head_dim // 2)):
        angle = position * theta ** (-2 * i / head_dim)
        for table, value, sign in ((cos_tk, math.cos(angle), 1), (sin_tk, math.sin(angle), -1)):
            assert table[position, i].item() == pytest.approx(sign * value, abs=1e-5)
            assert table[position, i + head_dim // 2].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rotation_is_undone_by_its_inverse(dtype: torch.dtype) -> None:
    x_bthk = torch.randn(2, 7, 3, 8).to(dtype)
    cos_tk, sin_tk = rotary_tables(8, 7, 1e4)
    turned = rotate(x_bthk, cos_tk, sin_tk)
    assert turned.dtype == dtype
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(rotate(turned, cos_tk, -sin_tk), x_bthk, rtol=tolerance, atol=tolerance)


def test_rotation_at_positions_of_each_row() -> None:
    x_bthk = torch.randn(2, 5, 3, 8)
    cos_tk, sin_tk = rotary_tables(8, 9, 1e4)
    positions = torch.tensor([[0, 1, 0, 1, 2], [4, 5, 6, 7, 8]])
    found = rotate(x_bthk, cos_tk[positions], sin_tk[positions])
    for row, token in itertools.product(range(2), range(5)):
        at = positions[row, token]
        alone = rotate(x_bthk[row : row + 1, token : token + 1], cos_tk[at : at + 1], sin_tk[at : at + 1])
        torch.testing.assert_close(found[row, token], alone[0, 0])
