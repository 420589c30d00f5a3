"""Timing for the peers: CUDA events, a cold L2 cache before each repetition, medians, a JSON file."""
import argparse
import json
import subprocess
import sys

import torch


def arguments(description):
    """The parser that every peer starts from."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--repetitions', type=int, default=31)
    parser.add_argument('--json', help='write the results to this file')
    return parser


def measure(work, repetitions, cold=True):
    """Milliseconds (median, min, max) of work(), after three warm-up calls."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device='cuda')
    for _ in range(3):
        work()
    times = []
    for i in range(repetitions):
        if cold:
            flush.fill_(i % 100)
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    times.sort()
    return times[len(times) // 2], times[0], times[-1]


class Report:
    def __init__(self, args):
        self.args, self.rows = args, []
        print(f'{"work":58} {"median ms":>10} {"min":>10} {"max":>10}')

    def add(self, name, times, **more):
        median, low, high = times
        print(f'{name:58} {median:10.4f} {low:10.4f} {high:10.4f} '
              + ' '.join(f'{key}={value:.4g}' for key, value in more.items()), flush=True)
        self.rows.append(dict(name=name, median_ms=median, min_ms=low, max_ms=high,
                              repetitions=self.args.repetitions, **more))

    def write(self):
        if not self.args.json:
            return
        commit = subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout
        with open(self.args.json, 'w') as f:
            json.dump(dict(device=torch.cuda.get_device_name(), torch=torch.__version__,
                           commit=commit.strip() or 'unknown', command=' '.join(sys.argv),
                           results=self.rows), f, indent=2)
