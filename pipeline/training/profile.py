"""A profile of a few steps: their numbers in; a trace and a table for each rank, in `train/profile/`, out.

`train.profile=[100,103]` profiles the steps 100 to 103 with PyTorch's profiler. `steps-100-103.rank-0.json.gz` is a trace
for chrome://tracing or https://ui.perfetto.dev, the `.txt` file beside it has the operators by their own time.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

ROWS = 40  # of the table


class StepProfile:
    """Profiles the steps `steps` = [first, last], counted from 1; [] profiles none."""

    def __init__(self, folder: Path, steps: list[int]) -> None:
        self._folder, self._steps = folder / "profile", steps
        self._profile: profile | None = None

    def after(self, step: int) -> None:
        """Starts or ends the profile where the time for it has come; called before the first step and after each."""
        if not self._steps:
            return
        first, last = self._steps
        if self._profile is None and first <= step + 1 <= last:
            gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *gpu], profile_memory=True)
            self._profile.start()
        elif self._profile is not None and step == last:
            self._profile.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"steps-{first}-{last}.rank-{dist.get_rank()}"
            self._profile.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
            sort = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            table = self._profile.key_averages().table(sort_by=sort, row_limit=ROWS)
            (self._folder / f"{name}.txt").write_text(table, encoding="utf-8")
            self._profile = None
            if dist.get_rank() == 0:
                print(f"train: profile of the steps {first} to {last}: {self._folder}", flush=True)
