"""Output projection and cross-entropy in one: hidden states and labels in, the summed loss out.

The logits of a whole batch (tokens × vocabulary) are the largest tensor of a language model. Here they exist for one
chunk of tokens at a time: a chunk's logits give its loss and, while they are there, its gradients.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100
CHUNK_BYTES = 24 << 20  # malloc hands the memory of a chunk to the next one; from 32 MiB on, glibc gives it back each time


def cross_entropy(
    x_btd: Tensor, weight_vd: Tensor, labels_bt: Tensor, ignore: int = IGNORED, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(x · weightᵀ) against the labels, summed over the labels that are not `ignore`.

    x_btd [..., dim] and weight_vd [vocabulary, dim] are of one floating type, labels_bt [...] int64. Returns (sum fp32
    scalar, count int64 scalar), both on the device of x; softmax and sum are in fp32 (fp64 where the input is). A chunk's
    logits take at most `chunk_bytes` (or are those of one token). The gradient of the weight is summed in fp32 before it
    is cast to the weight's type. Backward goes through a result once; a second time is autograd's error of a change in place.
    """
    wants_grad = torch.is_grad_enabled()
    loss_sum: Tensor = _CrossEntropy.apply(
        x_btd.reshape(-1, x_btd.shape[-1]),
        weight_vd,
        labels_bt.reshape(-1),
        ignore,
        chunk_bytes,
        wants_grad and x_btd.requires_grad,
        wants_grad and weight_vd.requires_grad,
    )
    return loss_sum, (labels_bt != ignore).sum()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_nd: Tensor,
        weight_vd: Tensor,
        labels_n: Tensor,
        ignore: int,
        chunk_bytes: int,
        grad_x: bool,
        grad_weight: bool,
    ) -> Tensor:
        precision = torch.promote_types(x_nd.dtype, torch.float32)
        loss_sum = torch.zeros((), dtype=precision, device=x_nd.device)
        grad_x_nd = torch.empty_like(x_nd) if grad_x else None
        grad_weight_vd = torch.zeros_like(weight_vd, dtype=precision) if grad_weight else None

        tokens = x_nd.shape[0]
        chunk = max(1, chunk_bytes // (weight_vd.shape[0] * precision.itemsize))
        for start in range(0, tokens, chunk):
            here = slice(start, start + chunk)
            ignored_c1 = (labels_n[here] == ignore).unsqueeze(1)
            # The row of an ignored token is zeroed where it is short: in x and in the gradient of x.
            x_cd = x_nd[here].masked_fill(ignored_c1, 0)
            labels_c1 = labels_n[here].unsqueeze(1).masked_fill(ignored_c1, 0)
            logits_cv = x_cd @ weight_vd.T
            below_c1 = logits_cv.amax(1, keepdim=True).to(precision) - logits_cv.gather(1, labels_c1)
            shares_cv = torch.softmax(logits_cv, -1, dtype=precision)
            # -log softmax of the label, by way of the largest share, which is no less than 1 / vocabulary: exact like
            # log_softmax, without a second exponential of every logit.
            loss_sum += (below_c1 - shares_cv.amax(1, keepdim=True).log()).masked_fill(ignored_c1, 0).sum()
            if grad_x_nd is None and grad_weight_vd is None:
                continue
            grad_logits_cv = shares_cv.scatter_add_(1, labels_c1, shares_cv.new_full((), -1).expand_as(labels_c1))
            grad_logits_cv = grad_logits_cv.to(x_nd.dtype)
            if grad_x_nd is not None:
                grad_x_nd[here] = (grad_logits_cv @ weight_vd).masked_fill_(ignored_c1, 0)
            if grad_weight_vd is not None:
                if x_cd.dtype == precision:
                    grad_weight_vd.addmm_(grad_logits_cv.T, x_cd)
                else:
                    grad_weight_vd += grad_logits_cv.T @ x_cd

        ctx.save_for_backward(grad_x_nd, grad_weight_vd)
        ctx.weight_dtype = weight_vd.dtype
        return loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled where they are: the weight's is the largest gradient of a model. Autograd refuses a second backward then.
        grad_x_nd, grad_weight_vd = (None if grad is None else grad.mul_(grad_loss) for grad in ctx.saved_tensors)
        return grad_x_nd, None if grad_weight_vd is None else grad_weight_vd.to(ctx.weight_dtype), *(None,) * 5
