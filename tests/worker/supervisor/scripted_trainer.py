"""A trainer that follows a script: `scripted_trainer.py ACT…` speaks the protocol and plays the acts in order.

It knows no torch, so that faults can be staged in milliseconds. An act is the name of a method, some with `=argument`.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

CONFIG = {
    "architecture": {"architecture": "mlp"},
    "input": {"channels": 1, "height": 8, "width": 8},
    "preprocessing": {"mean": [0.5], "std": [0.25]},
    "classes": 10,
}
TOTAL = 1000


class Trainer:
    """What it was told so far, and where it stands."""

    def __init__(self) -> None:
        self.folder = Path()
        self.step = 0

    def say(self, type: str, **fields: object) -> None:
        sys.stdout.write(json.dumps({"type": type, **fields}) + "\n")
        sys.stdout.flush()

    def hear(self) -> dict[str, object]:
        return json.loads(sys.stdin.readline() or sys.exit(1))

    # ---- acts

    def start(self) -> None:
        """Become ready and wait for `Start`; go on from the checkpoint, if there is one."""
        self.say("ready")
        command = self.hear()
        assert command["type"] == "start", command
        self.folder = Path(str(command["folder"]))
        assignment = json.loads((self.folder / "assignment.json").read_text())
        for path in assignment["inputs"].values():
            assert (self.folder / path).exists(), path
        if assignment["resume"]:
            self.step = json.loads((self.folder / assignment["resume"] / "state.json").read_text())["step"]

    def phase(self, name: str) -> None:
        self.say("phase", phase=name)

    def steps(self, count: str) -> None:
        """Take steps, each with a metric and progress."""
        for _ in range(int(count)):
            self.step += 1
            self.say("metrics", step=self.step, values={"train/loss": 1.0 / self.step})
            progress = {"total_steps": TOTAL, "epoch": self.step / 10, "samples_per_second": 5.0, "seconds_left": 1.0}
            self.say("progress", step=self.step, **progress)

    def nan(self) -> None:
        """A metric that is no number, beside one that is."""
        self.step += 1
        self.say("metrics", step=self.step, values={"train/loss": float("nan"), "train/lr": 0.5})

    def save(self) -> None:
        folder = self.folder / "checkpoints" / f"step-{self.step}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": self.step}))
        (folder / "weights.bin").write_bytes(os.urandom(1000))
        self.say("checkpoint", step=self.step, path=f"checkpoints/step-{self.step}")

    def log(self, message: str) -> None:
        self.say("log", message=message)

    def await_stop(self) -> None:
        command = self.hear()
        assert command["type"] == "stop", command

    def await_go(self) -> None:
        """Wait until the test puts a file named `go` into the attempt's folder; take it."""
        while not (self.folder / "go").exists():
            time.sleep(0.01)
        (self.folder / "go").unlink()

    def stopped(self) -> None:
        self.say("stopped", step=self.step)

    def work_until_stop(self) -> None:
        """A step now and then, until told to stop; then save and leave."""
        while not select.select([sys.stdin], [], [], 0.05)[0]:
            self.steps("1")
        self.await_stop()
        self.save()
        self.stopped()

    def measure(self, rates: str) -> None:
        """`measure=10x10x30`: ten reports a second of ten metrics each, for thirty seconds."""
        reports, values, seconds = map(int, rates.split("x"))
        begin = time.monotonic()
        for number in range(reports * seconds):
            time.sleep(max(0.0, begin + number / reports - time.monotonic()))
            self.step += 1
            self.say("metrics", step=self.step, values={f"train/{name}": 1.0 / self.step for name in range(values)})
            progress = {"total_steps": TOTAL, "epoch": self.step / 10, "samples_per_second": 5.0, "seconds_left": 1.0}
            self.say("progress", step=self.step, **progress)

    def finish(self) -> None:
        bundle = self.folder / "bundle"
        bundle.mkdir()
        (bundle / "model.safetensors").write_bytes(b"weights after step %d" % self.step)
        (bundle / "config.json").write_text(json.dumps(CONFIG))
        (bundle / "report.json").write_text(json.dumps({"student": {"parameters": 650}}))
        names = sorted(path.name for path in bundle.iterdir())
        media = "application/octet-stream"
        artifacts = [{"name": name, "path": f"bundle/{name}", "media_type": media} for name in names]
        self.say("finished", step=self.step, artifacts=artifacts)

    def finish_with_link(self) -> None:
        (self.folder / "secret").symlink_to("/etc/passwd")
        artifact = {"name": "secret", "path": "secret", "media_type": "text/plain"}
        self.say("finished", step=self.step, artifacts=[artifact])

    def finish_outside(self) -> None:
        artifact = {"name": "secret", "path": "../../../../../../etc/passwd", "media_type": "text/plain"}
        self.say("finished", step=self.step, artifacts=[artifact])

    def fail(self, fault: str) -> None:
        self.say("failed", fault=fault, code="nan_loss", message=f"the loss is NaN at step {self.step}", param="recipe")

    def fail_with(self, code: str) -> None:
        self.say("failed", fault="system", code=code, message="something happened")

    def environ(self) -> None:
        self.say("log", message=json.dumps(dict(os.environ)))

    def ignore_sigterm(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def grumble(self, message: str) -> None:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    def garble(self) -> None:
        sys.stdout.write("Loading weights: 100%\n")
        sys.stdout.flush()

    def shout(self) -> None:
        """A line longer than anyone should say."""
        self.say("log", message="x" * (1 << 21))

    def child(self) -> None:
        """Start a process that keeps the pipe open and would live on; tell its id."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.say("log", message=str(child.pid))

    def hang(self) -> None:
        while True:
            time.sleep(600)

    def read(self, name: str) -> None:
        """Begin to read a file of this name, and note that as trainers do; no end of it is noted."""
        note = {"name": name, "code": "invalid_teacher", "param": "teacher", "bytes": 1, "seconds": 60, "fault": "user"}
        (self.folder / f"reading-{os.getpid()}.json").write_text(json.dumps(note))

    def die(self, by: str) -> None:
        os.kill(os.getpid(), signal.Signals[by])
        time.sleep(600)

    def exit(self, status: str) -> None:
        os._exit(int(status))


def main(acts: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    trainer = Trainer()
    for act in acts:
        name, _, argument = act.partition("=")
        getattr(trainer, name)(*([argument] if argument else []))


if __name__ == "__main__":
    main(sys.argv[1:])
