"""A child that keeps the supervisor's protocol, or breaks it: ``python scripted_child.py MODE_FILE … --heartbeat-fd N``.

Its mode is what the file says when it starts, as a release is what lies on the disk: ``well``, ``dies`` (at once), ``mute`` (never ready),
``stubborn`` (does not leave), ``quits`` (says that it leaves, and goes on until it is told to).
"""

import os
import signal
import sys
import time
from pathlib import Path

BEATS_BEFORE_IT_QUITS = 10  # else nobody sees it serve: it would be followed at once, by another one that quits

mode = Path(sys.argv[1]).read_text()
heartbeat = int(sys.argv[sys.argv.index("--heartbeat-fd") + 1])
if mode == "dies":
    sys.exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else lambda *_: sys.exit(0))
beats = 0
while True:
    if mode != "mute":
        beats += 1
        os.write(heartbeat, b".-" if mode == "quits" and beats > BEATS_BEFORE_IT_QUITS else b".")
    time.sleep(0.05)
