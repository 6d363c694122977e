"""How many CPU threads help: where other programs run too, two threads may be many times slower than one."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import functional

SECONDS = 2.0
"""About how long the measurement takes, in all."""
ROUNDS = 4
ENOUGH = 0.9
"""Of the highest rate: fewer threads that reach it are better, as they leave the others to other programs."""


def available_threads() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows do not say
        return os.cpu_count() or 1


@contextmanager
def threads(number: int) -> Iterator[None]:
    """While open, torch uses so many threads on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_rates(most: int) -> dict[int, float]:
    """How often a second a small piece of a block runs on the CPU, by the number of threads: 1, 2, 4, ... `most`.

    Each number has its turn several times, for a twentieth of a second or more. Threads wait for each other after
    every operation, so one that another program holds up stops all.
    """
    numbers = sorted({min(2**power, most) for power in range(most.bit_length() + 1)})
    done, spent = dict.fromkeys(numbers, 0), dict.fromkeys(numbers, 0.0)
    stream, weight = torch.ones(128, 512), torch.full((512, 512), 1 / 512)
    turn = min(0.1, SECONDS / ROUNDS / len(numbers))
    for _ in range(ROUNDS):
        for number in numbers:
            with threads(number):
                functional.silu(stream @ weight)  # starts the threads
                begin = time.perf_counter()
                while (elapsed := time.perf_counter() - begin) < turn:
                    functional.silu(stream @ weight)
                    done[number] += 1
                spent[number] += elapsed
    return {number: done[number] / spent[number] for number in numbers}


def best_number(rates: dict[int, float]) -> int:
    """The fewest threads that do about as well as any number does."""
    return min(number for number, rate in rates.items() if rate >= ENOUGH * max(rates.values()))


def best_threads() -> int:
    """How many threads help on this machine now; at most as many as torch uses, so OMP_NUM_THREADS is a limit."""
    return best_number(thread_rates(torch.get_num_threads()))
