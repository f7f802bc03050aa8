"""A transformer block with its backward written by hand: what is expensive is kept, what is cheap is computed twice.

Source: arXiv 2302.13971 §2.4. `block` is the forward of `model.llama.Block`, its gradients are those of autograd. It keeps for
the backward, each once, in elements per token of the model's type (d dim, h heads, g kv_heads, k head_dim, f hidden):

| tensor            | elements  | why                                                                                    |
|-------------------|-----------|----------------------------------------------------------------------------------------|
| x                 | d         | the block's input, which its backward needs and its normed stream is computed from     |
| q, k              | (h + g)·k | outputs of wq and wk, rotated: attention needs them so, a rotation's backward no input |
| v                 | g·k       | output of wv                                                                           |
| attention output  | h·k       | for attention's backward and for the gradient of wo, in the same memory                |
| x after attention | d         | as x; to compute it again takes the matrix product with wo                             |
| w1, w3 outputs    | 2·f       | silu(w1) · w3 and its gradients come from them                                         |

and in fp32 h for the log-sum-exp of the scores, so that these can be computed again, and 2 for the norms' 1 / rms. Computed
again, element by element: the two normed streams (d each), silu(w1) and silu(w1) · w3 (f each). Autograd keeps these four
too, and the x / rms of each norm. `model.config.LlamaConfig.activation_bytes_per_token` has the sums.

Letters of shapes: n tokens of the whole batch, d dim, f hidden.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.attention import attend, joined, rotate


class BlockWeights(NamedTuple):
    """The weights of a block."""

    attention_norm: Tensor
    wq: Tensor
    wk: Tensor
    wv: Tensor
    wo: Tensor
    feed_forward_norm: Tensor
    w1: Tensor
    w3: Tensor
    w2: Tensor


def block(
    x_btd: Tensor,
    weights: BlockWeights,
    cos_tk: Tensor,
    sin_tk: Tensor,
    lengths: Sequence[int] | None,
    head_dim: int,
    eps: float,
) -> Tensor:
    """The block's output for x_btd; tables as for `rotate`, `lengths` as for `attend`.

    Under autocast the matrix products and attention are of its type, the rest of x's, as with autograd. The gradient of
    a gradient is not defined.
    """
    device = x_btd.device.type
    product_type = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_btd.dtype
    result: Tensor = _Block.apply(x_btd, *weights, cos_tk, sin_tk, lengths, head_dim, eps, product_type)
    return result


def rms_scale(x_nd: Tensor, eps: float) -> Tensor:
    """1 / rms(x) [n, 1], fp32 (fp64 where x is)."""
    precision = torch.promote_types(x_nd.dtype, torch.float32)
    length_n1 = torch.linalg.vector_norm(x_nd, dim=-1, keepdim=True, dtype=precision)
    return torch.rsqrt_(length_n1.square_().div_(x_nd.shape[-1]).add_(eps))


def rms_norm(x_nd: Tensor, scale_n1: Tensor, weight_d: Tensor) -> Tensor:
    """x / rms(x), cast to the type of x, times the weight (arXiv 1910.07467)."""
    return (x_nd * scale_n1).to(x_nd.dtype).mul_(weight_d)


def rms_norm_backward(grad_nd: Tensor, x_nd: Tensor, scale_n1: Tensor, weight_d: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight, in the precision of the scale; `grad_nd` may be overwritten."""
    grad_nd = grad_nd.to(scale_n1.dtype)
    weight_d = weight_d.to(scale_n1.dtype)
    product_nd = grad_nd * x_nd
    grad_weight_d = scale_n1[:, 0] @ product_nd
    along_n1 = (product_nd @ weight_d).unsqueeze(1) * scale_n1**3 / x_nd.shape[-1]
    return grad_nd.mul_(weight_d).mul_(scale_n1).addcmul_(x_nd, along_n1, value=-1), grad_weight_d


def swiglu_backward(grad_nf: Tensor, gate_nf: Tensor, up_nf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gate) · up (arXiv 2002.05202), and the gradients of gate and of up; `grad_nf` may be overwritten."""
    silu_nf = F.silu(gate_nf)
    product_nf = silu_nf * up_nf
    grad_up_nf = silu_nf.mul_(grad_nf)
    return product_nf, torch.ops.aten.silu_backward(grad_nf.mul_(up_nf), gate_nf), grad_up_nf


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_btd: Tensor, *arguments: Any) -> Tensor:
        weights = BlockWeights(*arguments[:9])
        cos_tk, sin_tk, lengths, head_dim, eps, product_type = arguments[9:]
        with _no_autocast(x_btd):
            w = BlockWeights(*(weight.to(product_type) if weight.ndim > 1 else weight for weight in weights))
            x_nd = x_btd.reshape(-1, x_btd.shape[-1])
            scale_n1 = rms_scale(x_nd, eps)
            normed_nd = rms_norm(x_nd, scale_n1, w.attention_norm).to(product_type)
            q_bthk, k_bthk, v_bthk = (
                (normed_nd @ weight.T).view(*x_btd.shape[:2], -1, head_dim) for weight in (w.wq, w.wk, w.wv)
            )
            q_bthk, k_bthk = rotate(q_bthk, cos_tk, sin_tk), rotate(k_bthk, cos_tk, sin_tk)
            with torch.enable_grad():  # a graph of attention alone: its kernel, whichever it is, keeps its log-sum-exp there
                attended = attend(q_bthk.requires_grad_(), k_bthk.requires_grad_(), v_bthk.requires_grad_(), lengths)
            middle_nd = _plus_product(x_nd, joined(attended).detach(), w.wo)
            middle_scale_n1 = rms_scale(middle_nd, eps)
            normed_nd = rms_norm(middle_nd, middle_scale_n1, w.feed_forward_norm).to(product_type)
            gate_nf, up_nf = normed_nd @ w.w1.T, normed_nd @ w.w3.T
            y_nd = _plus_product(middle_nd, F.silu(gate_nf).mul_(up_nf), w.w2)
        kept = (x_nd, scale_n1, q_bthk, k_bthk, v_bthk, middle_nd, middle_scale_n1, gate_nf, up_nf)
        ctx.save_for_backward(*weights, cos_tk, sin_tk, *kept, *attended)
        ctx.lengths, ctx.product_type = lengths, product_type
        return y_nd.view_as(x_btd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_btd: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        weights = BlockWeights(*saved[:9])
        cos_tk, sin_tk, x_nd, scale_n1, q_bthk, k_bthk, v_bthk, middle_nd, middle_scale_n1, gate_nf, up_nf = saved[9:20]
        attended = saved[20:]
        wanted_x, wanted = ctx.needs_input_grad[0], BlockWeights(*ctx.needs_input_grad[1:10])
        grads: dict[str, Tensor] = {}

        def result(grad_x_nd: Tensor | None = None) -> tuple[Tensor | None, ...]:
            grad_x_btd = None if grad_x_nd is None else grad_x_nd.to(x_nd.dtype).view_as(grad_btd)
            cast = (grads[name].to(weight.dtype) if name in grads else None for name, weight in weights._asdict().items())
            return grad_x_btd, *cast, *(None,) * 6

        def weight_grad(name: str, grad: Tensor, input_nd: Tensor) -> None:
            if getattr(wanted, name):
                grads[name] = grad.T @ input_nd

        with _no_autocast(x_nd):
            w = BlockWeights(*(weight.to(ctx.product_type) if weight.ndim > 1 else weight for weight in weights))

            # Feed-forward: y = middle + w2(silu(gate) · up)
            grad_nd = grad_btd.reshape(x_nd.shape)
            product_grad_nd = grad_nd.to(ctx.product_type)
            product_nf, grad_gate_nf, grad_up_nf = swiglu_backward(product_grad_nd @ w.w2, gate_nf, up_nf)
            weight_grad("w2", product_grad_nd, product_nf)
            del product_nf
            normed_nd = rms_norm(middle_nd, middle_scale_n1, w.feed_forward_norm).to(ctx.product_type)
            weight_grad("w1", grad_gate_nf, normed_nd)
            weight_grad("w3", grad_up_nf, normed_nd)
            if not (wanted_x or any(wanted[:6])):
                return result()
            grad_normed_nd = (grad_gate_nf @ w.w1).addmm_(grad_up_nf, w.w3)
            del grad_gate_nf, grad_up_nf
            grad_middle_nd, grads["feed_forward_norm"] = rms_norm_backward(
                grad_normed_nd, middle_nd, middle_scale_n1, w.feed_forward_norm
            )
            grad_middle_nd += grad_nd

            # Attention: middle = x + wo(attended)
            product_grad_nd = grad_middle_nd.to(ctx.product_type)
            weight_grad("wo", product_grad_nd, joined(attended).detach())
            if not (wanted_x or any(wanted[:4])):
                return result()
            grad_attended = _like(attended, product_grad_nd @ w.wo)
            # The kept tensors hold that graph: it goes when they go, so nothing has to be freed here.
            grad_q_bthk, grad_k_bthk, grad_v_bthk = torch.autograd.grad(
                attended, (q_bthk, k_bthk, v_bthk), grad_attended, retain_graph=True
            )
            grad_q_nd, grad_k_nd = (rotate(grad, cos_tk, -sin_tk).reshape(len(x_nd), -1) for grad in (grad_q_bthk, grad_k_bthk))
            grad_v_nd = grad_v_bthk.reshape(len(x_nd), -1)
            normed_nd = rms_norm(x_nd, scale_n1, w.attention_norm).to(ctx.product_type)
            weight_grad("wq", grad_q_nd, normed_nd)
            weight_grad("wk", grad_k_nd, normed_nd)
            weight_grad("wv", grad_v_nd, normed_nd)
            if not (wanted_x or wanted.attention_norm):
                return result()
            grad_normed_nd = (grad_q_nd @ w.wq).addmm_(grad_k_nd, w.wk).addmm_(grad_v_nd, w.wv)
            grad_x_nd, grads["attention_norm"] = rms_norm_backward(grad_normed_nd, x_nd, scale_n1, w.attention_norm)
            return result(grad_x_nd.add_(grad_middle_nd))


def _no_autocast(x: Tensor) -> Any:
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _plus_product(x_nd: Tensor, h_nd: Tensor, weight: Tensor) -> Tensor:
    if x_nd.dtype == h_nd.dtype:
        return torch.addmm(x_nd, h_nd, weight.T)
    return x_nd + h_nd @ weight.T


def _like(attended: Sequence[Tensor], grad_nd: Tensor) -> list[Tensor]:
    """Gradients of the outputs of `attend`, from those of what `joined` makes of them."""
    if len(attended) == 1:
        return [grad_nd.view_as(attended[0])]
    pieces = grad_nd.split([output.shape[1] for output in attended])
    return [piece.view_as(output) for piece, output in zip(pieces, attended, strict=True)]
