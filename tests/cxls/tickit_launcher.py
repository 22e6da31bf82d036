"""Runs in .venv-tickit: DLS's Eiger simulator with a PUSH socket that binds only, as a detector's does.

The stock simulator binds and connects to itself too, and so loses half of its messages.
tickit_launcher.py CONFIG.yaml
"""

import sys

import aiozmq
import zmq
from tickit.adapters.io.zeromq_push_io import ZeroMqPushIo
from tickit.cli import main


async def bind_only(host: str, port: int) -> aiozmq.ZmqStream:
    return await aiozmq.create_zmq_stream(zmq.PUSH, bind=f"tcp://{host}:{port}")


ZeroMqPushIo.__init__.__defaults__ = ("127.0.0.1", 5555, bind_only)
sys.argv = ["tickit", "all", sys.argv[1]]
main()
