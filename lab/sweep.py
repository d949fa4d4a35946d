# SPDX-License-Identifier: MIT
"""Many jobs over many processes and GPUs, until they are done or time is up.

A jobs file is a JSON list of {"name", "model", "plan", "length", "n"} and, where wanted, "tasks", "first"
(the first index asked), "only" (settings of the plan), "chunk", "raw" and "generate" (greedy answers too, for
RULER's metric). "plan" is a file or the settings themselves. Every process takes each job in turn, its share of the prompts of it, and keeps the model as
long as the jobs name the same: so what matters most stands first, and a job may stand there again with a
greater n. What stands in the folder is not asked again, however many processes wrote it.
"""
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

from lab import prompts, results
from lab.engines import EngineError
from lab.table import DENSE

TASKS = ("niah_multikey_1", "niah_multikey_2", "vt", "code_parameters")


@dataclasses.dataclass(frozen=True)
class Job:
    name: str
    model: str
    plan: dict
    length: int
    n: int
    tasks: tuple = TASKS
    first: int = 0
    chunk: int = 0
    raw: bool = False
    generate: bool = False

    def prompts(self, part, parts):
        """(task, index) that this of so many processes asks: all tasks of an index, then the next.

        Every round begins with another process, or one of them would ask the longest task alone.
        """
        asked = [(task, index) for index in range(self.first, self.n) for task in self.tasks]
        return [asked[at] for at in range(len(asked)) if (at + at // parts) % parts == part]


def share_memory(share):
    """Leaves the other processes of a GPU theirs: this one frees what it kept before it takes more than its share."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(0.93, 0.93 * share))


def read(path, load_plan):
    """The jobs of a file. load_plan(file, only) reads a plan."""
    jobs = []
    for number, fields in enumerate(results.load(path), 1):
        only, plan = fields.pop("only", None), fields.pop("plan", None)
        try:
            plan = load_plan(plan, only) if isinstance(plan, str) else {DENSE: {}, **plan}
            jobs.append(Job(plan=plan, **{**fields, "tasks": tuple(fields.get("tasks", TASKS))}))
        except TypeError as error:
            raise EngineError(f"{path}: job {number}: {error}") from None
    return jobs


def work(jobs, folder, part, parts, make_engine, texts, ask, deadline):
    """One process's share. ask(engine, prompt, name, setting, generate) gives a row; deadline: time.monotonic()."""
    engine, of = None, None
    for job in jobs:
        if of != (job.model, job.chunk, job.raw):
            engine = None  # frees the memory before the next one takes its own
            engine, of = make_engine(job), (job.model, job.chunk, job.raw)
        store = results.Store(pathlib.Path(folder) / f"{job.name}-{part}.jsonl", engine.subject)
        answered = _answered(folder, job.name)
        for task, index in job.prompts(part, parts):
            made = None
            for name, setting in job.plan.items():
                key = f"{task}/{job.length}/{index}", name
                if key in answered or store.has(*key):
                    continue
                if time.monotonic() > deadline:
                    return False
                try:
                    made = made or prompts.make(
                        task, job.length, index, texts, engine.tokenizer, engine.limit
                    )
                except prompts.PromptError as error:
                    print(f"{key[0]} is left out: {error}", file=sys.stderr)
                    break
                store.add(ask(engine, made, name, setting, job.generate))
    return True


def _parts(folder, name):
    """The files of a job, one a process."""
    return sorted(pathlib.Path(folder).glob(f"{name}-[0-9]*.jsonl"))


def _answered(folder, name):
    """(prompt, setting) of all that stands in a job's files; one that was just begun may be empty."""
    files = [file for file in _parts(folder, name) if b"\n" in file.read_bytes()]
    return {(row["prompt"], row["setting"]) for file in files for row in results.read(file)[1]}


def merge(files, out):
    """One results file of many of one model, each answer once."""
    header, seen, rows = None, set(), []
    for file in files:
        first, more, _ = results.read(file)
        header = header or first
        if {**first, "date": 0} != {**header, "date": 0}:
            raise results.ResultsError(f"{file}: its first line is not that of {files[0]}")
        for row in more:
            if (row["prompt"], row["setting"]) not in seen:
                seen.add((row["prompt"], row["setting"]))
                rows.append(row)
    lines = "".join(json.dumps(row) + "\n" for row in [header, *rows])
    pathlib.Path(out).write_text(lines, encoding="utf-8")
    return len(rows)


def spread(arguments, jobs, folder, processes, gpus):
    """Starts the processes, waits for them, and merges what they wrote: {job: rows}."""
    parts = pathlib.Path(folder) / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    running = []
    for part in range(processes):
        gpu = {"CUDA_VISIBLE_DEVICES": str(gpus[part % len(gpus)])} if gpus else {}
        command = [sys.executable, "-m", "lab", *arguments, "--part", str(part)]
        log = (parts / f"log-{part}").open("a", encoding="utf-8")
        running.append(subprocess.Popen(command, env={**os.environ, **gpu}, stderr=log, stdout=log))
    failed = [part for part, process in enumerate(running) if process.wait()]
    counts = {}
    for name in dict.fromkeys(job.name for job in jobs):
        files = _parts(parts, name)
        counts[name] = merge(files, pathlib.Path(folder) / f"{name}.jsonl") if files else 0
    if failed:
        log = (parts / f"log-{failed[0]}").read_text(encoding="utf-8").strip().split("\n")[-1]
        raise EngineError(f"{len(failed)} of {processes} processes failed; the first: {log}")
    return counts
