"""The annotator as `tk annotate` runs it, with its own clocks read out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tk.benchmarks.reference_chain import STAGES
from tk.benchmarks.timing import PeakMemory, Run
from tk.runtime.annotate.annotator import AnnotateOptions, Chain, make_stages, run_stages
from tk.runtime.annotate.groups import Item, make_groups
from tk.runtime.annotate.output import Output
from tk.runtime.annotate.stages import free_pictures
from tk.runtime.images import relative_name

DECODERS = min(4, os.cpu_count() or 1)
"""Files decoded at once, as in `tk annotate`."""


def run_tk(
    chain: Chain, options: AnnotateOptions, files: Sequence[Path], folder: Path, out: Path
) -> Run:
    """Annotate pictures with the stages of `tk annotate`, drawing none.

    A picture's seconds are its equal share of its group's: groups go through a stage together.

    Args:
        chain: opened; its sessions are warm or not as the caller left them.
        options: those that `chain` was opened with.
        files: pictures under `folder`.
        folder: record names are relative to it.
        out: gets `predictions.json`.
    """
    items = [Item(file, relative_name(file, folder)) for file in files]
    stages = dict.fromkeys(STAGES, 0.0)
    per_image: list[float] = []
    memory = PeakMemory()
    memory.reset()
    engine, engine_cpu = _inside_engines(chain)
    cpu, started = time.process_time(), time.perf_counter()
    output = Output(out, {}, options.picture_size, {})
    with ThreadPoolExecutor(max_workers=DECODERS) as threads:
        steps = make_stages(chain, options, threads, output)
        for group in run_stages(make_groups(items, options.batch_size), steps):
            output.add_timings(group)
            for item in group.items:
                per_image.append(sum(item.seconds.values()))
                for name, seconds in item.seconds.items():
                    # With no pictures drawn, saving is run lengths, JSON and the journal.
                    stages["encode" if name == "save" else name] += seconds
            free_pictures(group)
    finishing = time.perf_counter()
    output.finish()
    now, cpu = time.perf_counter(), time.process_time() - cpu
    stages["encode"] += now - finishing
    after, cpu_after = _inside_engines(chain)
    peak = memory.above_start()
    return Run(
        *(now - started, stages, per_image, after - engine, peak),
        cpu=cpu,
        engine_cpu=cpu_after - engine_cpu,
    )


def _inside_engines(chain: Chain) -> tuple[float, float]:
    """Wall and CPU seconds that the sessions of a chain have run so far."""
    sessions = chain.sessions
    return sum(s.seconds for s in sessions), sum(s.cpu_seconds for s in sessions)
