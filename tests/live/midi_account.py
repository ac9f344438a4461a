"""A program that listens for MIDI on a TCP port and keeps the account of what sounds.

`python midi_account.py` prints its port, then answers each line of its input with one of JSON:
`report`, or `drop`, which closes all connections from this side. It shares no code with what it
judges.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
from typing import Any


class Connection:
    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.waiting = b""
        self.sounding: set[tuple[int, int]] = set()

    def read(self, data: bytes, totals: dict[str, Any]) -> None:
        self.waiting += data
        while len(self.waiting) >= 3:
            (status, number, value), self.waiting = self.waiting[:3], self.waiting[3:]
            kind, channel = status & 0xF0, status & 0x0F
            key = channel, number
            if kind == 0x90 and value:
                totals["twice"] += key in self.sounding
                totals["on"] += 1
                self.sounding.add(key)
            elif kind in (0x80, 0x90):
                totals["off"] += 1
                self.sounding.discard(key)
            elif kind == 0xB0 and number in (120, 123):
                self.sounding = {held for held in self.sounding if held[0] != channel}
            elif (kind, number) != (0xB0, 64):
                totals["strange"].append([status, number, value])


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    chooser = selectors.DefaultSelector()
    chooser.register(listener, selectors.EVENT_READ)
    chooser.register(sys.stdin, selectors.EVENT_READ)
    totals: dict[str, Any] = dict.fromkeys(("accepted", "on", "off", "twice", "hanging"), 0)
    totals["strange"] = []
    open_now: dict[socket.socket, Connection] = {}

    def leave(connection: Connection) -> None:
        chooser.unregister(connection.peer)
        connection.peer.close()
        del open_now[connection.peer]

    while True:
        for key, _ in chooser.select():
            if key.fileobj is listener:
                peer, _ = listener.accept()
                totals["accepted"] += 1
                open_now[peer] = Connection(peer)
                chooser.register(peer, selectors.EVENT_READ)
            elif key.fileobj is sys.stdin:
                line = sys.stdin.readline()
                if not line:
                    return
                if line.strip() == "drop":
                    for connection in list(open_now.values()):
                        leave(connection)
                sounding = sum(len(connection.sounding) for connection in open_now.values())
                print(json.dumps({**totals, "open": len(open_now), "sounding": sounding}))
                sys.stdout.flush()
            elif key.fileobj in open_now:
                connection = open_now[key.fileobj]  # type: ignore[index]
                try:
                    data = connection.peer.recv(4096)
                except OSError:
                    data = b""
                connection.read(data, totals)
                if not data:
                    # the other side said good-bye: nothing may sound now
                    totals["hanging"] += len(connection.sounding)
                    leave(connection)


if __name__ == "__main__":
    main()
