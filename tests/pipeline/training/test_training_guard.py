"""The guard: its arithmetic against NumPy, and runs whose data and gradients are poisoned, in real processes."""

import importlib.util
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from model.llama import Llama
from pipeline.tokens.loader import Loader, _source_seed, _starts, ranges_of
from pipeline.tokens.shards import ShardFiles, Vocabulary, write_shard
from pipeline.training.checkpoint import latest, load_weights
from pipeline.training.engine import build_engine
from pipeline.training.guard import LEAST, WINDOW, Guard, judge, read_events
from pipeline.training.job import Job
from pipeline.training.metrics import read_metrics
from pipeline.training.schedule import learning_rate
from pipeline.training.settings import TrainConfig

spec = importlib.util.spec_from_file_location("poisoned_rank", Path(__file__).with_name("poisoned_rank.py"))
assert spec and spec.loader
poisoned_rank = importlib.util.module_from_spec(spec)
spec.loader.exec_module(poisoned_rank)
poisoned = poisoned_rank.poisoned

ROOT = Path(__file__).resolve().parents[3]
MakeJob = Callable[..., Path]
RunJob = Callable[..., list[dict[str, Any]]]

# The arithmetic

TINY = float(np.finfo(np.float32).tiny)


def slow(good: list[tuple[float, float]], seen: tuple[float, float], sigma: float) -> tuple[bool, list[float]]:
    """The rule in plain NumPy, with the good steps as a list."""
    scores = []
    for number in range(2):
        values = np.log(np.maximum([step[number] for step in good[-WINDOW:]], TINY))
        if len(values) < LEAST:
            scores.append(math.nan)
            continue
        middle = np.sort(values)[(len(values) - 1) // 2]
        deviations = np.sort(np.abs(values - middle))
        spread = max(1.4826 * deviations[(len(values) - 1) // 2], 0.005)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores.append(float((np.log(np.maximum(seen[number], TINY)) - middle) / spread))
    return not all(map(math.isfinite, seen)) or any(score > sigma for score in scores), scores


numbers = st.one_of(st.floats(1.0, 3.0), st.sampled_from([0.0, 1e6, math.inf, math.nan]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.tuples(numbers, numbers), min_size=10, max_size=40), st.floats(2, 10))
def test_scores_are_those_of_plain_numpy(seed: int, odd: list[tuple[float, float]], sigma: float) -> None:
    random = np.random.default_rng(seed)
    steps = [tuple(pair) for pair in random.lognormal(1, 0.1, (220, 2)).tolist()]
    for step in odd:
        steps[random.integers(len(steps))] = step
    window, good = torch.full((2, WINDOW), torch.nan, dtype=torch.float64), []
    for step in steps:
        bad, scores, window = judge(window, torch.tensor(step, dtype=torch.float64), sigma)
        expected, expected_scores = slow(good, step, sigma)
        assert bool(bad) == expected
        assert scores.tolist() == pytest.approx(expected_scores, rel=1e-9, abs=1e-9, nan_ok=True)
        if not expected:
            good.append(step)
    kept = window[:, ~window[0].isnan()]
    assert kept.T.exp().tolist() == pytest.approx(np.maximum(good[-WINDOW:], TINY), rel=1e-9)


def verdicts(losses: list[float], sigma: float = 6.0) -> list[bool]:
    window = torch.full((2, WINDOW), torch.nan, dtype=torch.float64)
    found = []
    for loss in losses:
        bad, _, window = judge(window, torch.tensor([loss, 1.0], dtype=torch.float64), sigma)
        found.append(bool(bad))
    return found


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 20), st.floats(0, 0.2), st.integers(1, 300))
def test_constant_and_falling_losses_are_no_spikes(first: float, rate: float, steps: int) -> None:
    assert not any(verdicts([first * math.exp(-rate * step) for step in range(steps)]))
    assert not any(verdicts([first] * steps))


def test_spikes_do_not_hide_each_other() -> None:
    random = np.random.default_rng(0)
    losses = (3 + 0.05 * random.standard_normal(600)).tolist()
    for step in range(300, 500):  # more than a window of them
        losses[step] = 6.0
    assert [step for step, bad in enumerate(verdicts(losses)) if bad] == list(range(300, 500))


def test_a_run_s_first_steps_are_only_checked_for_being_finite() -> None:
    found = verdicts([2.0] * (LEAST - 1) + [math.nan, 50.0, 50.0])
    assert found == [False] * (LEAST - 1) + [True, False, True], "50 is the 64th good step, then comes one that can be judged"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 15), max_size=8), st.integers(0, 60), st.integers(1, 40))
def test_ranges_without_what_is_skipped(steps: list[int], first: int, count: int) -> None:
    ends = np.cumsum(steps).tolist()
    skipped = [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=False) if a < b]
    left = [sample for sample in range(400) if not any(a <= sample < b for a, b in skipped)]
    parts = ranges_of(first, count, skipped)
    assert [sample for a, b in parts for sample in range(a, b)] == left[first : first + count]
    assert all(a < b for a, b in parts)


# Runs of one process


def whole_batches(loader: Loader, config: TrainConfig, skipped: list[tuple[int, int]]) -> list[torch.Tensor]:
    return [torch.from_numpy(loader.batch(n * config.batch, config.batch, skipped)) for n in range(config.steps)]


def plain(job: Job, folder: Path, bad_steps: tuple[int, ...] = (), skipped: tuple[tuple[int, int], ...] = ()) -> Any:
    """The run in plain PyTorch: {step: loss}, and the last weights; without an update in `bad_steps`."""
    config = job.train
    sources = {source: [folder / prefix for prefix in prefixes] for source, prefixes in job.train_shards.items()}
    loader = Loader(sources, job.mixture.shares, job.mixture.epochs, config.sequence, config.seed)
    model = Llama(job.model)
    model.init_weights(config.seed)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices}, {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.adam_eps, weight_decay=config.weight_decay)
    losses = {}
    for step, batch in enumerate(whole_batches(loader, config, list(skipped)), 1):
        loss_sum, count = model(batch[:, :-1], batch[:, 1:])
        losses[step] = float((loss_sum / count).detach())
        if step in bad_steps:
            continue
        adam.zero_grad()
        (loss_sum / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, config)
        adam.step()
    return losses, dict(model.named_parameters())


def weights_of(job: Path) -> dict[str, torch.Tensor]:
    path = latest(job.parent / "checkpoints")
    assert path is not None
    return load_weights(path)


def losses(rows: list[dict[str, Any]]) -> dict[int, float]:
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "each step once"
    return {row["step"]: row["loss"] for row in rows}


def same_weights(job: Path, expected: dict[str, torch.Tensor], tolerance: float = 2e-5) -> None:
    for name, weight in weights_of(job).items():
        torch.testing.assert_close(weight, expected[name].detach(), rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("zero", range(4))
def test_a_step_that_is_not_finite_updates_nothing(
    make_job: MakeJob, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int
) -> None:
    """Accumulation 2: the fault is in the first, then in the second micro-batch of a step."""
    monkeypatch.setattr(
        "pipeline.training.engine.Llama", poisoned({2 * 4 + 1: "gradient", 2 * 7 + 2: "loss", 2 * 8 + 1: "loss"})
    )
    path = make_job(tmp_path, zero, micro_batch=8, steps=14)
    rows = run_job(path)
    expected, weights = plain(Job.read(path), tmp_path, bad_steps=(5, 8, 9))
    found = losses(rows)
    assert all(found[step] is None for step in (8, 9))
    good = [step for step in expected if step not in (8, 9)]
    assert [found[step] for step in good] == pytest.approx([expected[step] for step in good], rel=1e-5)
    same_weights(path, weights)
    manifest = json.loads((tmp_path / "checkpoints" / "step-00000014" / "checkpoint.json").read_text())
    assert (manifest["adam_step"], manifest["sample"]) == (11, 14 * 16)
    assert len(manifest["guard"]["window"][0]) == 11
    events = read_events(tmp_path)
    assert [(event["step"], event["samples"]) for event in events] == [(s, [[16 * (s - 1), 16 * s]]) for s in (5, 8, 9)]
    assert all(event["seen"] == "not finite" and event["action"] == "skip" for event in events)
    assert (events[0]["loss"], events[0]["grad_norm"]) == (pytest.approx(expected[5], rel=1e-5), "inf" if zero else "nan")
    assert events[1]["loss"] == "nan" and events[0]["loss_score"] is None


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_bf16_s_masters_are_left_alone_too(
    make_job: MakeJob, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int
) -> None:
    """Two runs with the same good steps: the last step of one is bad."""
    train = {"micro_batch": 16, "steps": 6, "dtype": "bf16", "warmup_steps": 0, "min_lr_ratio": 1.0}
    five = make_job(tmp_path / "five", zero, **train | {"steps": 5})
    run_job(five)
    monkeypatch.setattr("pipeline.training.engine.Llama", poisoned({6: "gradient"}))
    six = make_job(tmp_path / "six", zero, **train)
    run_job(six)
    assert [event["step"] for event in read_events(six.parent)] == [6]
    folders = (five.parent / "checkpoints" / "step-00000005", six.parent / "checkpoints" / "step-00000006")
    of_five, of_six = (json.loads((folder / "checkpoint.json").read_text()) for folder in folders)
    assert of_five["files"] == of_six["files"] and of_five["adam_step"] == of_six["adam_step"]


class Waits(TorchDispatchMode):
    """Counts how often the host asks for a number of a tensor, for which it would have to wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("zero", "dtype"), [*((stage, "fp32") for stage in range(4)), (1, "bf16"), (2, "bf16"), (3, "bf16")])
def test_the_host_waits_for_no_step(make_job: MakeJob, one_rank: None, tmp_path: Path, zero: int, dtype: str) -> None:
    job = Job.read(make_job(tmp_path, zero, dtype=dtype, micro_batch=16))
    model = Llama(job.model)
    model.init_weights(1)
    engine = build_engine(model, job.train, job.zero, 1)
    guard = Guard(engine, tmp_path, job.train)
    guard.go_on(0, {})
    tokens = torch.randint(0, 100, (16, 33), generator=torch.Generator().manual_seed(0))
    for step in range(1, 4):
        loss = torch.zeros(())
        guard.watch(step, 16 * (step - 1), 16, loss)
        loss_sum, count = engine(tokens[:, :-1], tokens[:, 1:])
        loss += loss_sum.detach() / count
        with Waits() as waits:
            engine.backward(loss_sum / count)
            engine.step()
        assert waits.count == 0, step
    guard.found(all_of_them=True)
    assert len(guard.state()["window"][0]) == 3


def test_too_many_in_a_row(make_job: MakeJob, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.engine.Llama", poisoned(dict.fromkeys((3, 4, 6, 7, 8, 9), "gradient")))
    path = make_job(tmp_path, micro_batch=16, guard_limit=3)
    with pytest.raises(ValueError, match=r"^train.guard=skip: 3 steps skipped in a row .* step 8, samples 112 to 127: "):
        run_job(path)
    assert [event["step"] for event in read_events(tmp_path)] == [3, 4, 6, 7, 8]


def test_stop(make_job: MakeJob, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.engine.Llama", poisoned({11: "loss"}))
    path = make_job(tmp_path, micro_batch=16, guard="stop")
    with pytest.raises(ValueError, match=r"^train.guard=stop: step 11, samples 160 to 175: loss nan, gradient norm \w+; it "):
        run_job(path)
    assert latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000008"
    monkeypatch.undo()  # another machine
    run_job(path)
    assert read_events(tmp_path) == []
    same_weights(path, plain(Job.read(path), tmp_path)[1])


# Poisoned data: the samples of one step, in a run of more steps than the guard needs to know what is usual

SPIKE, STEPS = 88, 100  # steps
LONG = {"sequence": 16, "batch_tokens": 128, "micro_batch": 8, "steps": STEPS, "warmup_steps": 10, "lr": 3e-3, "adam_eps": 1e-5}


@pytest.fixture(scope="module")
def garbage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards in which the samples of step SPIKE are tokens that are rare elsewhere."""
    folder = tmp_path_factory.mktemp("garbage")
    random = np.random.default_rng(1)
    ids = np.minimum(random.zipf(1.5, 60_000), 99).astype(np.int64)
    batch = LONG["batch_tokens"] // LONG["sequence"]
    numbers = np.arange((SPIKE - 1) * batch, SPIKE * batch)
    for start in _starts(numbers, len(ids), LONG["sequence"], _source_seed(1, "crawl")):
        ids[start : start + LONG["sequence"] + 1] = random.integers(60, 99, len(ids[start : start + LONG["sequence"] + 1]))
    files = ShardFiles.of(folder / "train")
    write_shard([ids], files.bin, files.idx, np.dtype("<u2"))
    Vocabulary("a" * 64, 100, 2).write(files.meta)
    return folder / "train"


def test_a_loader_passes_over_what_was_taken_out(garbage: Path) -> None:
    loader = Loader({"crawl": [garbage]}, {"crawl": 1}, {}, 16, 1)
    parts = [loader.batch(0, 3), loader.batch(7, 10), loader.batch(20, 7)]
    assert np.array_equal(loader.batch(0, 20, [(3, 7), (17, 20)]), np.concatenate(parts))
    batches = loader.batches(((first, 1) for first in itertools.count(2, 4)), [(3, 7)])
    assert all(np.array_equal(next(batches), loader.batch(first, 1)) for first in (2, 10, 14))
    batches.close()


@pytest.fixture
def long_job(make_job: MakeJob, garbage: Path) -> MakeJob:
    def make(folder: Path, zero: int = 1, **train: Any) -> Path:
        path = make_job(folder, zero, **LONG | train)
        job = json.loads(path.read_text())
        job["train_shards"] = {"crawl": [str(garbage)]}
        path.write_text(json.dumps(job))
        return path

    return make


def test_a_spike_is_skipped_and_a_resumed_run_knows_what_is_usual(long_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    path = long_job(tmp_path / "whole")
    rows = run_job(path)
    expected, weights = plain(Job.read(path), path.parent, bad_steps=(SPIKE,))
    assert losses(rows) == pytest.approx(expected, rel=1e-4)
    same_weights(path, weights, 1e-3)
    [event] = read_events(path.parent)
    assert (event["step"], event["seen"], event["action"]) == (SPIKE, "spike", "skip")
    assert event["loss"] == pytest.approx(expected[SPIKE], rel=1e-4) and event["loss_score"] > 6
    assert event["samples"] == [[(SPIKE - 1) * 8, SPIKE * 8]]
    assert expected[SPIKE] > 1.3 * expected[SPIKE - 1]

    resumed = long_job(tmp_path / "resumed")
    for stop_after in (SPIKE - 2, 4):  # before the spike, and behind it
        run_job(resumed, stop_after=stop_after)
    assert losses(run_job(resumed)) == losses(rows)
    assert read_events(resumed.parent) == [event]
    last = f"checkpoints/step-{STEPS:08d}/checkpoint.json"
    whole, parts = (json.loads((job.parent / last).read_text()) for job in (path, resumed))
    assert whole["guard"] == parts["guard"] and whole["files"] == parts["files"]
    assert len(whole["guard"]["window"][0]) == STEPS - 1


@pytest.mark.parametrize("zero", [0, 3])
def test_a_rollback_takes_the_samples_out(long_job: MakeJob, run_job: RunJob, tmp_path: Path, zero: int) -> None:
    path = long_job(tmp_path, zero, guard="rollback", checkpoint_every=20)
    rows = run_job(path)
    [event] = read_events(tmp_path)
    assert (event["step"], event["seen"], event["to"]) == (SPIKE, "spike", 80)
    assert event["taken_out"] == [[80 * 8, SPIKE * 8]]
    expected, weights = plain(Job.read(path), tmp_path, skipped=((80 * 8, SPIKE * 8),))
    assert losses(rows) == pytest.approx(expected, rel=1e-4)
    same_weights(path, weights, 1e-3)
    manifest = json.loads((tmp_path / "checkpoints" / f"step-{STEPS:08d}" / "checkpoint.json").read_text())
    assert manifest["guard"]["skipped"] == [[80 * 8, SPIKE * 8]]
    assert (manifest["step"], manifest["sample"], manifest["adam_step"]) == (STEPS, STEPS * 8, STEPS)


def test_a_rollback_goes_a_hundred_steps_back(long_job: MakeJob, run_job: RunJob, tmp_path: Path) -> None:
    """There is always a checkpoint: of the first weights, if no other. And again, by a run that was stopped in between."""
    path = long_job(tmp_path, guard="rollback", checkpoint_every=1000)
    run_job(path, stop_after=STEPS - 5)  # the spike is at its 88th step; these are the steps after it was rolled back
    [event] = read_events(tmp_path)
    assert (event["to"], event["taken_out"]) == (0, [[0, SPIKE * 8]])
    rows = run_job(path)
    expected, _ = plain(Job.read(path), tmp_path, skipped=((0, SPIKE * 8),))
    assert losses(rows) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("zero", "dtype"), [(2, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")])
def test_a_checkpoint_of_the_first_weights_changes_nothing(
    make_job: MakeJob, run_job: RunJob, tmp_path: Path, zero: int, dtype: str
) -> None:
    train = {"micro_batch": 16, "steps": 4, "dtype": dtype}
    paths = [make_job(tmp_path / guard, zero, guard=guard, **train) for guard in ("skip", "rollback")]
    expected, rows = (losses(run_job(path)) for path in paths)
    assert rows == expected
    weights = weights_of(paths[0])
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(paths[1]).items())
    shutil.rmtree(paths[1].parent / "checkpoints" / "step-00000004")
    assert losses(run_job(paths[1])) == expected, "from the first weights"


def test_rollbacks_come_to_an_end(make_job: MakeJob, run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that does not go away with the samples. What was taken out stays out, however often the run is started."""
    monkeypatch.setattr("pipeline.training.engine.Llama", poisoned(dict.fromkeys((9, 11, 14, 16), "gradient")))
    path = make_job(tmp_path, micro_batch=16, guard="rollback", guard_limit=2, checkpoint_every=6)
    with pytest.raises(ValueError, match=r"^train.guard=rollback: 2 steps rolled back to the checkpoint of step 6 \("):
        run_job(path)
    assert [(event["step"], event["to"], event["taken_out"]) for event in read_events(tmp_path)] == [
        (9, 6, [[128, 144]]),
        (7, 6, [[96, 112]]),
    ]
    monkeypatch.undo()
    rows = run_job(path)
    expected, _ = plain(Job.read(path), tmp_path, skipped=((96, 112), (128, 144)))
    assert losses(rows) == pytest.approx(expected, rel=1e-4)


# With two real processes


def run_poisoned(job: Path, rank: int, faults: str) -> str:
    """Two ranks of torchrun, one with faults; what they printed."""
    environment = os.environ | {"LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment.pop("LAUNCHER", None)
    if not Path("/dev/nvidiactl").exists():
        environment["DS_ACCELERATOR"] = "cpu"
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # of the process group in this process
        environment.pop(name, None)
    script = Path(__file__).with_name("poisoned_rank.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(script), str(job), str(rank), faults],
        env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("zero", range(4))
def test_a_gradient_of_one_rank_is_skipped_by_both(make_job: MakeJob, tmp_path: Path, zero: int) -> None:
    path = make_job(tmp_path, zero, micro_batch=4, steps=14)
    printed = run_poisoned(path, 1, f"{2 * 4 + 1}:gradient,{2 * 7 + 2}:loss")
    _, weights = plain(Job.read(path), tmp_path, bad_steps=(5, 8))
    same_weights(path, weights, 1e-3)
    assert [event["step"] for event in read_events(tmp_path)] == [5, 8]
    assert printed.count("warning: step 5, samples 64 to 79: loss ") == 1


@pytest.mark.slow
def test_two_ranks_roll_back_together(long_job: MakeJob, tmp_path: Path) -> None:
    """A spike in the data, and later a fault of one rank."""
    path = long_job(tmp_path, 1, micro_batch=4, guard="rollback", checkpoint_every=20)
    run_poisoned(path, 0, f"{SPIKE + 1 + 15}:gradient")  # 14 steps after the rollback to step 80; the spike's next one was done
    taken_out = [part for event in read_events(tmp_path) for part in event["taken_out"]]
    assert [(event["step"], event["seen"], event["to"]) for event in read_events(tmp_path)] == [
        (SPIKE, "spike", 80),
        (95, "not finite", 80),
    ]
    expected, weights = plain(Job.read(path), tmp_path, skipped=tuple((a, b) for a, b in taken_out))
    assert losses(read_metrics(tmp_path)) == pytest.approx(expected, rel=1e-4)
    same_weights(path, weights, 1e-3)
