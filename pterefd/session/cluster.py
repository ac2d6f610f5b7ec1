"""Combinations on a Dask cluster: the extra `pterefd[distributed]`.

Workers have the same pterefd installed and read the traces by the same paths. A scheduler must be trusted, and so must
whoever can reach it: Dask unpickles what it is sent, which can run anything. Use it in a closed network or with tls://,
whose certificates come from Dask's own configuration (distributed.comm.tls).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from pterefd.errors import BadInput, Missing, PterefdError
from pterefd.session.sweep import Runner, Task, work

CONNECT_SECONDS = 10


def on(scheduler: str) -> Runner:
    """A runner on the cluster of that scheduler (tcp://HOST:PORT, tls://HOST:PORT)."""
    if not scheduler.startswith(("tcp://", "tls://")):
        raise BadInput(f"--scheduler {scheduler!r}: not tcp://HOST:PORT or tls://HOST:PORT")

    def run(tasks: Sequence[Task]) -> Iterator[tuple[int, str]]:
        distributed, client = _connected(scheduler)
        with client:
            # Dask runs again what a worker that died was doing; `retries` is for what it calls an error, too.
            futures = client.map(
                work, [task.text for task in tasks], key=[f"pterefd-{task.digest}" for task in tasks], retries=3
            )
            places = {future.key: index for index, future in enumerate(futures)}
            for future in distributed.as_completed(futures, loop=client.loop):
                if future.status == "finished":
                    yield places[future.key], future.result()
                else:
                    raise PterefdError(f"{scheduler}: a run failed there: {_reason(future)}")

    return run


def _connected(scheduler: str) -> tuple[Any, Any]:
    try:
        import distributed
    except ImportError:
        raise Missing("--scheduler needs Dask: install pterefd[distributed]") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is said here, in one line
    try:
        return distributed, distributed.Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise Missing(f"{scheduler}: no Dask scheduler answers there: {why}") from None


def _reason(future: Any) -> str:
    error = future.exception()
    return " ".join(f"{type(error).__name__}: {error}".split())
