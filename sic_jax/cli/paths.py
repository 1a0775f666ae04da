"""Which file the command `sic` makes of which: inputs, folders, OUT, and what it refuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

STD = "-"
SIC = frozenset((".sic",))


class UsageError(Exception):
    """The command line makes no sense: exit code 2, and nothing is written."""


@dataclass(frozen=True)
class Job:
    """One input and what to make of it.

    Attributes:
        source: File to read, or "-".
        targets: Files to write, or "-".
        derived: The targets are named after the source, not by the user, so that they may not
            replace a file unasked.
        problem: Why it cannot be done; empty if it can.
    """

    source: str
    targets: tuple[str, ...]
    derived: bool
    problem: str = ""


class Plan(NamedTuple):
    """What a command line makes of which file."""

    jobs: list[Job]
    left: list[tuple[str, str]]
    """Files in folders that no job takes, and why."""


def plan(
    paths: list[str],
    inputs_like: frozenset[str],
    outputs_like: frozenset[str],
    output_suffix: str,
    *,
    output: str | None = None,
    num_samples: int | None = None,
    why_not: Callable[[str], str] | None = None,
) -> Plan:
    """Decides which file is made of which.

    Without `output` the last of several paths is OUT, unless it is a file that is there and not
    named like an output, as in `sic compress *.webp`. Inputs that differ in their suffix alone keep
    it: `a.jpg` and `a.png` become `a.jpg.sic` and `a.png.sic`. Where names are still the same, the
    first input has it, and the others have a problem.

    Args:
        paths: IN... [OUT], or IN... if there is an `output`.
        inputs_like: Suffixes that inputs have; those that are taken from folders.
        outputs_like: Suffixes that outputs have.
        output_suffix: Suffix of derived names.
        output: OUT; None if it may be among the paths.
        num_samples: Number each target 0 to num_samples - 1; None for a single one.
        why_not: Says of a file with another suffix, in a folder, why it is no input; nothing if it
            is one. None: such files are passed over.

    Raises:
        UsageError: The paths contradict each other, or the file that OUT names would be lost.
    """
    if "" in paths:
        raise UsageError("the name of a file is empty")
    inputs, last = list(paths), paths[-1]
    like_output = Path(last).suffix.lower() in outputs_like
    if output is None:
        is_output = like_output or not os.path.isfile(last)
        output = inputs.pop() if len(inputs) > 1 and is_output else ""
    elif not output:
        raise UsageError("the name of OUT is empty")
    elif len(paths) > 1 and (like_output or last.endswith(os.sep)) and not os.path.exists(last):
        raise UsageError(f"OUT is named twice: {last} and -o {output}")
    output_suffix_given = Path(output).suffix.lower()
    to_folder = os.path.isdir(output) or output.endswith(os.sep)
    single = len(inputs) == 1 and not os.path.isdir(inputs[0])
    if STD in (*inputs, output):
        if not single or to_folder:
            raise UsageError("- stands for one file, so it needs a single IN and no folder")
        output = output or STD
    if single and output and not to_folder:
        if output_suffix_given in inputs_like:
            raise UsageError(f"OUT is named like an input: {output}")
        jobs = [Job(inputs[0], _sample_names(output, num_samples), derived=False)]
        left: list[tuple[str, str]] = []
    else:
        is_file = os.path.isfile(output) or output_suffix_given in inputs_like | outputs_like
        if is_file and not to_folder:
            raise UsageError(f"OUT must be a folder for several inputs, got {output}")
        left = []

        def takes(file: str) -> bool:
            suffix = Path(file).suffix.lower()
            if suffix in inputs_like or suffix in outputs_like or why_not is None:
                return suffix in inputs_like
            reason = why_not(file)
            if reason:
                left.append((file, reason))
            return not reason

        found: list[tuple[str, str]] = []
        for path in inputs:
            before = len(found) + len(left)
            found += _walk(path, takes)
            if len(found) + len(left) == before:
                known = " ".join(sorted(inputs_like))
                raise UsageError(f"{path}: the folder holds no {known} file")
        places = [Path(output, relative) if output else Path(file) for file, relative in found]
        names = _derived_names(places, output_suffix)
        jobs = [
            Job(file, _sample_names(name, num_samples), True, _misnamed(file, name, inputs_like))
            for (file, _), name in zip(found, names, strict=True)
        ]
    return Plan(check_targets(jobs), left)


def _derived_names(places: list[Path], suffix: str) -> list[str]:
    """Names of outputs for inputs at some places; those that would be the same keep more."""
    short = [place.with_suffix(suffix) for place in places]
    wanted: dict[Path, set[Path]] = {}
    for place, name in zip(places, short, strict=True):
        wanted.setdefault(name, set()).add(place)
    shared = {name for name, of in wanted.items() if len(of) > 1}
    return [
        str(place.with_name(place.name + suffix) if name in shared else name)
        for place, name in zip(places, short, strict=True)
    ]


def _misnamed(file: str, target: str, inputs_like: frozenset[str]) -> str:
    """What is wrong with an input that has the name of its own output; empty if nothing."""
    if os.path.realpath(file) != os.path.realpath(target):
        return ""
    return f"{file} is no {'.sic file' if inputs_like == SIC else 'picture'}, by its name"


def check_targets(jobs: list[Job]) -> list[Job]:
    """Finds outputs that are inputs, two outputs of one name, and bytes on a terminal.

    Returns:
        The jobs; those with derived names that cannot be done have their problem.

    Raises:
        UsageError: It is the user who named such an output.
    """
    sources = {os.path.realpath(job.source) for job in jobs if job.source != STD}
    origins: dict[str, str] = {}
    checked = []
    for job in jobs:
        problem = job.problem
        for target in job.targets:
            if target == STD:
                if sys.__stdout__ is None:
                    raise UsageError("stdout is closed, so OUT cannot be -")
                if sys.stdout.isatty():
                    raise UsageError("the output is binary, so redirect it or name a file")
                continue
            real = os.path.realpath(target)
            if real in sources:
                problem = problem or f"{target} is an input and would be overwritten"
            elif real in origins:
                problem = problem or f"{target} is made of {origins[real]} already"
        if problem and not job.derived:
            raise UsageError(problem)
        if not problem:
            origins |= {os.path.realpath(t): job.source for t in job.targets if t != STD}
        checked.append(replace(job, problem=problem))
    return checked


def _walk(path: str, takes: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """A file, or those below a folder that `takes` says yes to, each with its relative path."""
    if not os.path.isdir(path):
        yield path, os.path.basename(path)
        return
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            file = os.path.join(folder, name)
            if not name.startswith(".") and takes(file):
                yield file, os.path.relpath(file, path)


def _sample_names(target: str, num_samples: int | None) -> tuple[str, ...]:
    if num_samples is None:
        return (target,)
    if target == STD:
        raise UsageError("--samples writes several files, so OUT cannot be -")
    stem, suffix = os.path.splitext(target)
    return tuple(f"{stem}_{i}{suffix}" for i in range(num_samples))
