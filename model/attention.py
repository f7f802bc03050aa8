"""Rotary positions and causal attention inside documents: queries, keys and values in, what each token attends to out.

Letters of shapes: b batch, t tokens, h heads, k head_dim.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def rotary_tables(head_dim: int, length: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position · theta^(-2i / head_dim), each fp32 [length, head_dim] (arXiv 2104.09864 §3.4).

    i counts to head_dim / 2, twice; the first half of sin is negative, as `rotate` needs it.
    """
    exponents = torch.arange(0, head_dim, 2, device="cpu").float() / head_dim
    angles_tk = torch.outer(torch.arange(length, device="cpu").float(), 1.0 / theta**exponents)
    cos_tk, sin_tk = angles_tk.cos(), angles_tk.sin()
    return torch.cat((cos_tk, cos_tk), -1), torch.cat((-sin_tk, sin_tk), -1)


def rotate(x_bthk: Tensor, cos_tk: Tensor, sin_tk: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim / 2) of each head by the position's angles (Hugging Face's layout).

    The tables are [t, k] or [b, t, k]. Computed in fp32 (fp64 where x is); with -sin it is the inverse, and the gradient.
    """
    swapped_bthk = x_bthk.roll(x_bthk.shape[-1] // 2, -1)
    return torch.addcmul(x_bthk * cos_tk.unsqueeze(-2), swapped_bthk, sin_tk.unsqueeze(-2)).to(x_bthk.dtype)


def document_lengths(documents_bt: Tensor) -> list[int]:
    """Lengths of the documents of a batch, row after row: runs of one number; the end of a row ends a document."""
    starts_bt = torch.ones_like(documents_bt, dtype=torch.bool)
    starts_bt[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
    starts = starts_bt.flatten().nonzero().flatten().tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], documents_bt.numel()], strict=True)]


def attend(q_bthk: Tensor, k_bthk: Tensor, v_bthk: Tensor, lengths: Sequence[int] | None = None) -> list[Tensor]:
    """Causal attention in which groups of query heads share one key and value head.

    One query may stand alone: it is the last token. Returns one output like q, or with `lengths` (see `document_lengths`)
    one [1, length, h, k] per document, in which attention stays.
    """
    if lengths is None:
        pieces = [(q_bthk, k_bthk, v_bthk)]
    else:  # no scores between documents are computed, which a mask would need
        tokens = (x_bthk.flatten(0, 1).unsqueeze(0).split(lengths, 1) for x_bthk in (q_bthk, k_bthk, v_bthk))
        pieces = list(zip(*tokens, strict=True))
    return [_causal(*(x_bthk.transpose(1, 2) for x_bthk in piece)).transpose(1, 2) for piece in pieces]


def joined(attended: Sequence[Tensor]) -> Tensor:
    """The outputs of `attend` as [b · t, h · k], documents one after another."""
    whole_bthk = attended[0] if len(attended) == 1 else torch.cat(tuple(attended), 1)
    return whole_bthk.flatten(2).flatten(0, 1)


def _causal(q_bhtk: Tensor, k_bhtk: Tensor, v_bhtk: Tensor) -> Tensor:
    # The fused kernels store no attention weights and skip masked scores (arXiv 2302.13971 §2.4).
    several = q_bhtk.shape[2] > 1
    grouped = q_bhtk.shape[1] > k_bhtk.shape[1]
    return F.scaled_dot_product_attention(q_bhtk, k_bhtk, v_bhtk, is_causal=several, enable_gqa=grouped)
