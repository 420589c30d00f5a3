"""Where a training step's time goes: the operations of a few steps, longest first."""
from pathlib import Path

import torch

LINES = 60


class StepProfile:
    """Watches `steps` steps from step `first` on and writes their operations into a file. `step` is called before each step."""

    def __init__(self, path, first=300, steps=5):
        self.path, self.first, self.last, self.watching = path, first, first + steps, None

    def step(self, number):
        try:
            if self.path and number == self.first:
                self._begin()
            if self.watching and number == self.last:
                self._end()
        except Exception as error:                               # whatever it is: a run is worth more than its profile
            print(f'no profile: {error}', flush=True)
            self.watching = None

    def _begin(self):
        kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * torch.cuda.is_available()
        watching = torch.profiler.profile(activities=kinds)
        watching.__enter__()
        self.watching = watching

    def _end(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.watching.__exit__(None, None, None)
        order = 'self_cuda_time_total' if torch.cuda.is_available() else 'self_cpu_time_total'
        table = self.watching.key_averages().table(sort_by=order, row_limit=LINES, max_name_column_width=90)
        Path(self.path).write_text(f'{self.last - self.first} steps from step {self.first}\n{table}\n')
        self.watching = None
