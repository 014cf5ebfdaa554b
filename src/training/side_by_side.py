"""Jobs in processes of their own, several at once: on a CPU each with its share of the cores, on GPUs one a GPU.

A process that dies ends them all with one sentence; a parent that dies, however, leaves none behind.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import NamedTuple

import torch

from src.core.command import UserError
from src.training import job as jobs
from src.training.job import Job, Row, Setting

_GOES_ON = "what was finished is kept: run the same command again, and it goes on from there"


class _Running(NamedTuple):
    process: SpawnProcess
    job: Job
    answers: Connection
    place: int


def run(setting: Setting, todo: Sequence[Job], at_once: int) -> Iterator[tuple[Job, Row]]:
    """Yield each job with its result as it ends, so many running at once.

    Raises:
        UserError: a job failed or its process died; the others are ended.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()  # what the main run leaves on its GPU is another process's now
    waiting, places, running = deque(todo), list(range(at_once)), dict[int, _Running]()
    try:
        while waiting or running:
            while waiting and places:
                begun = _begin(setting, waiting.popleft(), places.pop(0))
                running[begun.process.sentinel] = begun
            for sentinel in wait(list(running)):
                assert isinstance(sentinel, int)
                ended = running.pop(sentinel)
                places.append(ended.place)
                yield ended.job, _result(ended)
    finally:
        for left in running.values():
            left.process.kill()
        for left in running.values():
            left.process.join()


def _begin(setting: Setting, job: Job, place: int) -> _Running:
    context = get_context("spawn")  # a fork would share CUDA, and threads that are not there
    answers, sender = context.Pipe(duplex=False)
    gpu = _gpu(place) if setting.params.device != "cpu" and torch.cuda.device_count() > 1 else None
    process = context.Process(target=_child, args=(setting, job, gpu, sender), name=job.name, daemon=True)
    with _without_interrupts():
        process.start()
    sender.close()
    return _Running(process, job, answers, place)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let what is started here ignore Ctrl-C from its first moment: the parent answers it, and ends the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _result(ended: _Running) -> Row:
    ended.process.join()
    name, code = ended.job.name, ended.process.exitcode
    answer = _answer(ended.answers)
    if isinstance(answer, str):
        raise UserError(f"{name}: {answer}")
    if answer is not None:
        return answer
    if code is not None and code < 0:
        why = " (the system does that when memory runs out)" if code == -signal.SIGKILL else ""
        raise UserError(f"{name} was ended by {signal.Signals(-code).name}{why}; {_GOES_ON}")
    raise UserError(f"{name} ended with status {code}; what it said is above, and {_GOES_ON}")


def _answer(answers: Connection) -> Row | str | None:
    """Return what a job came to, the sentence it ended with, or None of a process that died before it said anything."""
    with answers:
        try:
            answer: Row | str | None = answers.recv() if answers.poll() else None
        except (EOFError, OSError):
            return None
    return answer


def _child(setting: Setting, job: Job, gpu: str | None, sender: Connection) -> None:
    """Be one process: train, and say what a user can mend in one sentence."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA starts, which is later
    with sender:
        try:
            sender.send(jobs.train(setting, job))
        except (UserError, OSError) as error:
            sender.send(str(error))


def _gpu(place: int) -> str:
    """Name one of the GPUs that this process may see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[place] if visible else str(place)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
