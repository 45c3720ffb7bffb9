"""Checked reads of single records, from anywhere in a dataset."""

import os
import threading
from collections import OrderedDict
from typing import Any

from adamae_jax.data import storage
from adamae_jax.data.storage import RangedFile
from adamae_jax.data.tfrecord import CHECKSUM_BYTES, BadRecordError, ShardIndex, masked_checksum

MAX_OPEN_SHARDS = 128  # well below the usual limit of 1,024 open files


class RecordReader:
    """Reads payloads by number, from any number of threads; survives pickling and forking."""

    def __init__(self, index: ShardIndex):
        """Opens nothing yet."""
        self.index = index
        self._start_process()

    def _start_process(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, RangedFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files and lock, which belong to this process."""
        return {"index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Starts afresh with the same index."""
        self.index = state["index"]
        self._start_process()

    def read(self, record: int) -> bytes:
        """The payload of one record.

        Raises:
            BadRecordError: the payload fails its checksum, or the shard has become shorter.
            OSError: reading failed again and again (a passing failure is retried for seconds).
        """
        shard = self.index.shard_of(record)
        offset, length = int(self.index.offsets[record]), int(self.index.lengths[record])
        data = storage.retried(
            lambda: self._shard(shard).read(offset, length + CHECKSUM_BYTES),
            self.index.paths[shard],
            lambda: self._forget(shard),  # a stale handle of a network file system stays stale
        )
        if len(data) < length + CHECKSUM_BYTES:
            raise BadRecordError("the shard ends inside the record")
        payload = data[:length]
        if int.from_bytes(data[length:], "little") != masked_checksum(payload):
            raise BadRecordError("its checksum does not match its content")
        return payload

    def _shard(self, shard: int) -> RangedFile:
        if self._process != os.getpid():  # forked: the lock may be held by a thread left behind
            self._start_process()
        with self._lock:
            file = self._open.pop(shard, None) or storage.open_file(self.index.paths[shard])
            self._open[shard] = file
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            return file

    def _forget(self, shard: int) -> None:
        with self._lock:
            self._open.pop(shard, None)
