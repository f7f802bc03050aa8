"""Checkpoints: the fragments of weights and Adam's moments that each rank holds, in safetensors; no pickle.

`step-{step}/rank-{rank}.safetensors` has tensors `{kind}|{parameter}|{first element}`, kind weight, exp_avg or
exp_avg_sq, all fp32 and flat; `step-{step}/checkpoint.json` has the step, the number of samples trained on, Adam's step
count, the guard's state, the shapes of the parameters, the digest of every file, and the job. Loading reads the slices it
needs, so the world size and the ZeRO stage may be others than those that wrote. A checkpoint is a folder that was renamed
when all of its files were there and synced.
"""

import contextlib
import dataclasses
import errno
import functools
import itertools
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import xxhash
from safetensors import safe_open
from torch import Tensor

from model.llama import Llama
from pipeline.outputs import digest_file, read_json, sync_folder, write_json
from pipeline.progress import human_bytes
from pipeline.training.job import Job

if TYPE_CHECKING:  # reading needs no DeepSpeed
    from deepspeed import DeepSpeedEngine

KINDS = ("weight", "exp_avg", "exp_avg_sq")
MOMENTS = KINDS[1:]
SLOWEST = timedelta(hours=2)  # that a rank waits for the part of another
ORDER = ("tokens", "mixture", "train.sequence", "train.seed")  # of the job: what a sample index is the index of


@dataclass(frozen=True)
class Fragment:
    """A run of a flattened parameter that this rank owns; `tensors` (fp32) are the optimizer's own memory, by kind."""

    name: str
    start: int
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class State:
    """Where a run stands, beside weights and moments: the last step, the number of samples trained on (the index of the next
    one, where those in `guard["skipped"]` do not count), and the guard's state."""

    step: int = 0
    sample: int = 0
    guard: dict[str, Any] = field(default_factory=dict)


class Saver:
    """Saves checkpoints to `folder` beside training, one at a time. All ranks have one and call its methods together.

    A rank copies its fragments to host memory (from a GPU to pinned memory, on a stream of its own, for which only Adam's next
    step waits), and a thread writes, digests and syncs the copy. The copy is made if all ranks of this machine together need no
    more than half of the memory that is available for it; it is kept for the next save. Otherwise the rank saves in the
    foreground, straight from the optimizer's memory. Ranks need not do the same: they tell each other their digests in a gloo
    group of the threads' own, so that no collective of the training comes between. Rank 0 renames when it has all of them.

    `keep`: so many of the newest stay; `every`: and those of steps that are multiples of it (0: none).
    """

    def __init__(self, engine: "DeepSpeedEngine", folder: Path, keep: int, every: int = 0) -> None:
        self._engine, self._folder, self._keep, self._every = engine, folder, keep, every
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=SLOWEST)
        self._copies: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        _adam(engine).register_step_pre_hook(lambda *_: self._let_copy())
        if self._rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".step-*.tmp"):
                shutil.rmtree(left)
        dist.barrier()

    def save(self, state: State, job: dict[str, Any], ends: bool = False) -> None:
        """Begins to save `step-{state.step}`, or saves it where training `ends`, which needs no copy. Raises as `check`, for
        the save before too, which it waits for."""
        self.finish()
        engine = self._engine
        if not _adam(engine).state:  # before the first step
            _make_moments(engine, 0)
        tensors = {
            f"{kind}|{fragment.name}|{fragment.start}": tensor.detach()
            for number, fragment in enumerate(_fragments(engine))
            if not _replicated(engine) or number % self._world == self._rank
            for kind, tensor in fragment.tensors.items()
        }
        manifest = {**dataclasses.asdict(state), "adam_step": _adam_step(engine), "parameters": _shapes(engine), "job": job}
        if not ends and (self._copies or _fits(tensors)):
            self._copy(tensors)
            self._thread = threading.Thread(target=self._write, args=(self._copies, manifest), name="saver", daemon=True)
            self._thread.start()
        else:
            self._write(tensors, manifest)
            self.check()

    def check(self) -> None:
        """Raises ValueError, in one line, if a save has failed because a file could not be written."""
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Waits for this rank's part of the save, rank 0 for the whole. Raises as `check`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def go_back(self, step: int, margin: int) -> Path | None:
        """The newest good checkpoint of `margin` (from 1) or more steps before `step`, or else the newest before it; those
        after it are removed. Rank 0's answer counts. Raises ValueError where there is none."""
        self.finish()
        if self._rank != 0:
            return None
        path = latest(self._folder, before=step - margin + 1) or latest(self._folder, before=step)
        if path is None:
            raise ValueError(f"{self._folder}: no good checkpoint before step {step} to go back to")
        for other in [other for other in _all(self._folder) if other > path]:
            shutil.rmtree(other)
        sync_folder(self._folder)
        return path

    def _copy(self, tensors: dict[str, Tensor]) -> None:
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        for name, tensor in tensors.items():
            if name not in self._copies:
                self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        if on_gpu:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream) if on_gpu else contextlib.nullcontext():
            for name, tensor in tensors.items():
                self._copies[name].copy_(tensor, non_blocking=True)
        if on_gpu:
            self._copied = stream.record_event()

    def _let_copy(self) -> None:
        """Before Adam's step, which changes what is copied."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def _write(self, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
        try:
            self._write_all(tensors, manifest)
        except Exception as error:
            self._error = error

    def _write_all(self, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
        final = self._folder / f"step-{manifest['step']:08d}"
        temporary = self._folder / f".{final.name}.tmp"
        told = torch.zeros(17, dtype=torch.uint8)  # errno, digest
        try:
            if self._copied is not None:
                self._copied.synchronize()
            temporary.mkdir(exist_ok=True)
            digest = _write_file(temporary / f"rank-{self._rank:05d}.safetensors", tensors)
            told[1:] = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8)
        except OSError as error:
            told[0] = error.errno or errno.EIO
        everyone = [torch.empty_like(told) for _ in range(self._world)]
        dist.all_gather(everyone, told, group=self._group)
        try:
            for rank, (code, *_) in enumerate(part.tolist() for part in everyone):
                if code:
                    raise OSError(code, f"{os.strerror(code)} (rank {rank})")
            if self._rank == 0:
                files = {f"rank-{rank:05d}.safetensors": bytes(part.tolist()[1:]).hex() for rank, part in enumerate(everyone)}
                write_json(temporary / "checkpoint.json", manifest | {"files": files})
                shutil.rmtree(final, ignore_errors=True)
                temporary.rename(final)
                sync_folder(self._folder)
                self._remove_old(final)
        except OSError as error:
            if self._rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            size = 12 * sum(torch.Size(shape).numel() for shape in manifest["parameters"].values())
            raise ValueError(
                f"{final} could not be saved: {error.strerror}. Make room there (a checkpoint takes {human_bytes(size)}); the"
                " same command goes on from the checkpoint before it"
            ) from error

    def _remove_old(self, final: Path) -> None:
        paths = _all(self._folder)
        kept = [path for path in paths if path <= final][-self._keep :]
        if self._every:
            kept += [path for path in paths if path <= final and (step := _step(path)) and step % self._every == 0]
        for path in set(paths) - set(kept):  # one of a later step was broken and passed over
            shutil.rmtree(path)


def latest(folder: Path, before: int | None = None) -> Path | None:
    """The newest checkpoint, of those saved before step `before` if given, whose files are all there with their digests;
    others are passed over with a warning."""
    for path in reversed(_all(folder)):
        if before is not None and _step(path) >= before:
            continue
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
def load(engine: "DeepSpeedEngine", path: Path, job: dict[str, Any]) -> State:
    """Puts weights, moments and Adam's step count of a checkpoint into the engine; returns the rest.

    Raises ValueError where the parameters of the model are others, or
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
    return State(manifest["step"], manifest["sample"], manifest["guard"])


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
    return sorted(folder.glob("step-" + 8 * "[0-9]"))


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _write_file(path: Path, tensors: dict[str, Tensor]) -> str:
    """Writes fp32 tensors as a safetensors file and syncs it; returns its digest.

    Tensor by tensor: the library's `save_file` needs all of them in host memory, and gives its files mode 0600.
    """
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        parts: Iterator[Any] = (tensor.cpu().numpy().data.cast("B") for tensor in tensors.values())
        for part in itertools.chain([len(text).to_bytes(8, "little"), text], parts):
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _available_memory() -> int:
    """Bytes that this process and the others of its control groups can still have."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    available = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    root = Path("/sys/fs/cgroup")
    own = next((line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "/")
    for group in [root / own.lstrip("/"), *(root / own.lstrip("/")).parents]:
        if (limit := group / "memory.max").exists() and (most := limit.read_text().strip()) != "max":
            cached = next(
                line for line in (group / "memory.stat").read_text().splitlines() if line.startswith("inactive_file ")
            )
            used = int((group / "memory.current").read_text()) - int(cached.split()[1])
            available = min(available, int(most) - used)
    return available


def _fits(tensors: dict[str, Tensor]) -> bool:
    """Whether a copy of so much by every rank of this machine takes at most half of the memory that is available."""
    needed = sum(tensor.nbytes for tensor in tensors.values()) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return needed <= _available_memory() // 2


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
