"""Checkpoints: the fragments of weights and Adam's moments that each rank holds, in safetensors; no pickle.

`step-{step}/rank-{rank}.safetensors` has tensors `{kind}|{parameter}|{first element}`, kind weight, exp_avg or
exp_avg_sq, all fp32 and flat; `step-{step}/checkpoint.json` has the step, the number of samples trained on, Adam's step
count, the shapes of the parameters, the digest of every file, and the job. Loading reads the slices it needs, so the world
size and the ZeRO stage may be others than those that wrote. A checkpoint is a folder that was renamed when all of its files
were there and synced.
"""

import functools
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.llama import Llama
from pipeline.outputs import digest_file, read_json, sync_folder, write_json
from pipeline.training.job import Job

if TYPE_CHECKING:  # reading needs no DeepSpeed
    from deepspeed import DeepSpeedEngine

KINDS = ("weight", "exp_avg", "exp_avg_sq")
MOMENTS = KINDS[1:]
ORDER = ("tokens", "mixture", "train.sequence", "train.seed")  # of the job: what a sample index is the index of


@dataclass(frozen=True)
class Fragment:
    """A run of a flattened parameter that this rank owns; `tensors` (fp32) are the optimizer's own memory, by kind."""

    name: str
    start: int
    tensors: dict[str, Tensor]


def save(engine: "DeepSpeedEngine", folder: Path, step: int, sample: int, job: dict[str, Any], keep: int) -> None:
    """Writes `folder/step-{step}` (all ranks call this), then removes all but the newest `keep` checkpoints up to it.

    `sample` is the number of samples trained on: the index of the next one.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    temporary = folder / f".step-{step:08d}.tmp"
    if rank == 0:
        for left in folder.glob(".step-*.tmp"):
            shutil.rmtree(left)
        temporary.mkdir(parents=True)
    dist.barrier()
    path = temporary / f"rank-{rank:05d}.safetensors"
    tensors = {
        f"{kind}|{fragment.name}|{fragment.start}": tensor.detach().cpu().contiguous()
        for number, fragment in enumerate(_fragments(engine))
        if not _replicated(engine) or number % world == rank
        for kind, tensor in fragment.tensors.items()
    }
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    device = next(engine.module.parameters()).device  # NCCL gathers from there
    digest = torch.frombuffer(bytearray.fromhex(digest_file(path)), dtype=torch.uint8).to(device)
    digests = [torch.empty_like(digest) for _ in range(world)]
    dist.all_gather(digests, digest)
    if rank == 0:
        manifest = {
            "step": step,
            "sample": sample,
            "adam_step": _adam_step(engine),
            "parameters": _shapes(engine),
            "files": {f"rank-{r:05d}.safetensors": bytes(digests[r].tolist()).hex() for r in range(world)},
            "job": job,
        }
        write_json(temporary / "checkpoint.json", manifest)
        final = folder / f"step-{step:08d}"
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync_folder(folder)
        kept = [path for path in _all(folder) if path <= final][-keep:]
        for other in set(_all(folder)) - set(kept):  # one of a later step was broken and passed over
            shutil.rmtree(other)
    dist.barrier()


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there with their digests; others are passed over with a warning."""
    for path in reversed(_all(folder)):
        try:
            files = read_json(path / "checkpoint.json")["files"]
            if broken := next((name for name, digest in files.items() if digest_file(path / name) != digest), None):
                raise ValueError(f"{broken} has another digest")
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"warning: {path} is broken and passed over: {error}", file=sys.stderr, flush=True)
            continue
        return path
    return None


@torch.no_grad()
def load(engine: "DeepSpeedEngine", path: Path, job: dict[str, Any]) -> tuple[int, int]:
    """Puts weights, moments and Adam's step count of a checkpoint into the engine.

    Returns its step and the number of samples trained on. Raises ValueError where the parameters of the model are others, or
    where a sample index of `job` means another sample.
    """
    manifest = read_json(path / "checkpoint.json")
    for name in ORDER:
        then, now = (functools.reduce(dict.__getitem__, name.split("."), told) for told in (manifest["job"], job))
        if then != now:
            raise ValueError(f"{path}: {name} is {now} now and was {then}: the data has another order")
    shapes = _shapes(engine)
    if shapes != manifest["parameters"]:
        names = [name for name in {**shapes, **manifest["parameters"]} if shapes.get(name) != manifest["parameters"].get(name)]
        raise ValueError(f"{path}: made for another model: {names[0]} and {len(names) - 1} more parameters differ")
    _make_moments(engine, manifest["adam_step"])
    pieces = _Pieces(path)
    for fragment in _fragments(engine):
        for kind, tensor in fragment.tensors.items():
            tensor.copy_(pieces.read(kind, fragment.name, fragment.start, tensor.numel()))
    _weights_from_masters(engine)
    return manifest["step"], manifest["sample"]


def load_weights(path: Path) -> dict[str, Tensor]:
    """The whole fp32 weights of a checkpoint, by name."""
    shapes = read_json(path / "checkpoint.json")["parameters"]
    pieces = _Pieces(path)
    return {name: pieces.read("weight", name, 0, torch.Size(shape).numel()).view(shape) for name, shape in shapes.items()}


def load_model(job: Job, path: Path | None) -> Llama:
    """The model of a job with the weights of a checkpoint, or with its first weights; fp32, in this process."""
    model = Llama(job.model)
    if path is None:
        model.init_weights(job.train.seed)
    else:
        model.load_state_dict(load_weights(path))
    return model.eval()


class _Pieces:
    """Slices of parameters, put together from the files of all ranks."""

    def __init__(self, path: Path) -> None:
        self._where: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        for file in sorted(path.glob("rank-*.safetensors")):
            handle = safe_open(file, "pt")
            for key in handle.keys():  # noqa: SIM118 (no mapping)
                kind, name, start = key.split("|")
                size = handle.get_slice(key).get_shape()[0]
                self._where.setdefault((kind, name), []).append((int(start), size, handle, key))

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        result = torch.empty(count)
        filled = 0
        for first, size, handle, key in self._where.get((kind, name), []):
            low, high = max(first, start), min(first + size, start + count)
            if low < high:
                result[low - start : high - start] = handle.get_slice(key)[low - first : high - first]
                filled += high - low
        if filled != count:
            raise ValueError(f"{kind} of {name}: the checkpoint has {filled} of the elements {start} to {start + count}")
        return result


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _shapes(engine: "DeepSpeedEngine") -> dict[str, list[int]]:
    return {name: list(_full_shape(parameter)) for name, parameter in engine.module.named_parameters()}


def _full_shape(parameter: Tensor) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _fragments(engine: "DeepSpeedEngine") -> Iterator[Fragment]:
    """What this rank holds. Without ZeRO that is everything, on every rank."""
    optimizer, rank = engine.optimizer, dist.get_rank()
    for name, parameter in engine.module.named_parameters():
        if _replicated(engine):
            state = optimizer.state[parameter]
            yield Fragment(name, 0, {"weight": parameter.data.view(-1), **{kind: state[kind].view(-1) for kind in MOMENTS}})
        elif engine.zero_optimization_stage() == 3:
            size = parameter.ds_tensor.numel()  # padded, so that all ranks hold as much
            count = min(size, parameter.ds_numel - rank * size)
            if count > 0:
                tensors = {"weight": optimizer.get_local_fp32_param(parameter)}
                tensors |= {kind: optimizer.get_local_fp32_param(parameter, kind) for kind in MOMENTS}
                yield Fragment(name, rank * size, {kind: tensor[:count] for kind, tensor in tensors.items()})
        elif (mapping := parameter._hp_mapping) is not None:
            flat = _flat_partitions(optimizer)[mapping.param_group_index]
            place = mapping.get_hp_fragment_address()
            held = {"weight": flat.data, **{kind: optimizer.optimizer.state[flat][kind] for kind in MOMENTS}}
            tensors = {kind: tensor.narrow(0, place.start, place.numel) for kind, tensor in held.items()}
            yield Fragment(name, mapping.lp_fragment_address.start, tensors)


def _replicated(engine: "DeepSpeedEngine") -> bool:
    return isinstance(engine.optimizer, torch.optim.Optimizer)


def _adam(engine: "DeepSpeedEngine") -> torch.optim.Optimizer:
    return engine.optimizer if _replicated(engine) else engine.optimizer.optimizer


def _adam_step(engine: "DeepSpeedEngine") -> int:
    return int(next(iter(_adam(engine).state.values()))["step"])


def _make_moments(engine: "DeepSpeedEngine", step: int) -> None:
    """Adam's state as it is after `step` steps, moments still zero: AdamW makes it in its first step only."""
    for tensor in engine.module.parameters() if _replicated(engine) else _flat_partitions(engine.optimizer):
        moments = {kind: torch.zeros_like(tensor, requires_grad=False) for kind in MOMENTS}
        _adam(engine).state[tensor] = {"step": torch.tensor(float(step), device=tensor.device), **moments}


def _flat_partitions(optimizer: Any) -> list[Tensor]:
    """This rank's fp32 partition of each parameter group; each of DeepSpeed's optimizers has its own name for it."""
    names = ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition")
    return next(getattr(optimizer, name) for name in names if hasattr(optimizer, name))


def _weights_from_masters(engine: "DeepSpeedEngine") -> None:
    """Gives the model the fp32 weights that the optimizer holds now."""
    optimizer = engine.optimizer
    if _replicated(engine):
        return
    if engine.zero_optimization_stage() == 3:
        for group in range(len(_flat_partitions(optimizer))):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
    else:
        optimizer.update_lp_params()
