"""A reader of the files that W&B writes offline."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def payloads(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: after 7 bytes of file header, LevelDB's log format, in blocks of 32 KiB.

    A record is one FULL chunk or FIRST, MIDDLE…, LAST ones; a chunk is CRC (4 bytes), length (2), kind (1), data.
    """
    full, first, last = 1, 2, 4
    assert content[:4] == b":W&B"
    record = b""
    for block_start in range(0, len(content), 32768):
        block = content[block_start : block_start + 32768]
        position = 7 if block_start == 0 else 0
        while position + 7 <= len(block):
            _, length, kind = struct.unpack_from("<IHB", block, position)
            if kind == 0:
                break  # the block's padding
            data = block[position + 7 : position + 7 + length]
            position += 7 + length
            record = data if kind in (full, first) else record + data
            if kind in (full, last):
                yield record


def read_run(folder: Path) -> dict[str, Any]:
    """What a W&B run folder holds: identity, config, history, summary, exit code."""
    from wandb.proto.wandb_internal_pb2 import Record

    def items(updates: Any) -> dict[str, Any]:
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}

    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "exit_code": None}
    [path] = folder.glob("*.wandb")
    for payload in payloads(path.read_bytes()):
        record = Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            names = {"id": "run_id", "project": "project", "name": "display_name", "group": "run_group"}
            run |= {key: getattr(record.run, name) for key, name in names.items()}
            run["config"] |= items(record.run.config.update)
        elif kind == "config":
            run["config"] |= items(record.config.update)
        elif kind == "history":
            run["history"].append({"_step": record.history.step.num} | items(record.history.item))
        elif kind == "summary":
            run["summary"] |= items(record.summary.update)
        elif kind == "exit":
            run["exit_code"] = record.exit.exit_code
    return run
