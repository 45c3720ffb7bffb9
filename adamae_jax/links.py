"""Connections between the processes of one job, over which a lost one is noticed.

A process that is killed closes its connections at once, and a host that stands still says nothing
more. JAX notices too, but ends the others with pages of stacks, and after minutes where a process
stands still. So each process has a connection to process 0, over which both say all few seconds
that they are there; process 0 tells the others whom it has lost.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from adamae_jax import agreement

BEAT_S = 2.0
SILENT_S = 60.0  # a busy host may be silent for a while
CONNECT_S = 5.0  # for each address of process 0
THERE, DONE = -1, -2  # what is said, but for the number of a process that is lost

Links = dict[int, socket.socket]  # by the number of the process at the other end


def watch(lost: Callable[[int], None]) -> Callable[[], None]:
    """Connects all processes, and watches; all of them call it.

    Args:
      lost: is called with the number of a process that is lost, in a thread, once or more often.

    Returns:
      What tells the others that this process ends on its own: they need not miss it.
    """
    mark = secrets.token_bytes(16)
    with socket.create_server(("", 0), backlog=jax.process_count()) as server:
        own = {"port": server.getsockname()[1], "mark": mark.hex(), "addresses": _addresses()}
        first = agreement.gathered(own)[0]
        links = _connect(first) if jax.process_index() else _accept(server, mark)
    connected = agreement.gathered(jax.process_index() == 0 or 0 in links)
    if not all(connected):
        apart = ", ".join(str(index) for index, has in enumerate(connected) if not has)
        logging.warning(
            "process(es) %s cannot be connected to process 0 at %s: should one be lost, it is only "
            "JAX that notices",
            *(apart, " or ".join(first["addresses"])),
        )
    done = threading.Event()

    def missed(index: int) -> None:
        if not done.is_set():
            if jax.process_index() == 0:
                _tell(links, index)
            lost(index)

    def say_done() -> None:
        done.set()
        _tell(links, DONE)

    for index, link in links.items():
        threading.Thread(target=_hear, args=(index, link, missed), daemon=True).start()
    threading.Thread(target=_beat, args=(links, done), daemon=True).start()
    return say_done


def _tell(links: Links, said: int) -> None:
    """Says something to all that this process is connected to."""
    for link in links.values():
        with contextlib.suppress(OSError):
            link.sendall(said.to_bytes(4, "big", signed=True))


def _addresses() -> list[str]:
    """Returns what this host may be reached at: its name, and the address of its way out."""
    found = [socket.gethostname()]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect(("10.255.255.255", 9))  # sends nothing
        found.append(way.getsockname()[0])
    return [*found, "localhost"]


def _connect(first: Mapping[str, Any]) -> Links:
    mark = bytes.fromhex(first["mark"])
    for address in first["addresses"]:
        with contextlib.suppress(OSError):
            link = socket.create_connection((address, first["port"]), CONNECT_S)
            link.sendall(mark + jax.process_index().to_bytes(4, "big"))
            if link.recv(len(mark), socket.MSG_WAITALL) == mark[::-1]:  # it is process 0 indeed
                return {0: link}
            link.close()
    return {}


def _accept(server: socket.socket, mark: bytes) -> Links:
    links: Links = {}
    end = time.monotonic() + 4 * CONNECT_S
    while len(links) < jax.process_count() - 1 and time.monotonic() < end:
        with contextlib.suppress(OSError):
            server.settimeout(max(0.1, end - time.monotonic()))
            link, _ = server.accept()
            link.settimeout(CONNECT_S)
            said = link.recv(len(mark) + 4, socket.MSG_WAITALL)
            if said[: len(mark)] == mark:
                link.sendall(mark[::-1])
                links[int.from_bytes(said[len(mark) :], "big")] = link
    return links


def _beat(links: Links, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        _tell(links, THERE)


def _hear(index: int, link: socket.socket, missed: Callable[[int], None]) -> None:
    """Listens to a process until it ends."""
    link.settimeout(SILENT_S)
    said = THERE
    while said == THERE:
        try:
            heard = link.recv(4, socket.MSG_WAITALL)
            said = int.from_bytes(heard, "big", signed=True) if len(heard) == 4 else index
        except OSError:
            said = index
    if said != DONE:
        missed(said)
