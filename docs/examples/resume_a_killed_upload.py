"""Kill an upload with SIGKILL in the middle, start it again, and see that only the rest is sent.

    python docs/examples/resume_a_killed_upload.py --url http://127.0.0.1:1174 --mib 64

The upload runs in a process of its own, which is killed when half of the bytes are on their way. The store keeps the
parts that it has, `.NAME.ambry-upload` beside the file says which upload they belong to; whoever uploads the same file
under the same name next compares them with the file and sends the others. What is sent is counted by the store itself
(`/metrics`), so nothing else should be busy with it.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from ambry.client import Client

NAME = "default/default/examples/resumed.bin"
PART_BYTES = 1 << 20
"""Small, so that many parts are whole when the process is killed. The default, 16 MiB, suits files of gigabytes."""


def upload_until_killed(url: str, path: Path) -> None:
    """The child: upload, and stop in the middle until somebody ends this process."""

    def told(done: int, total: int) -> None:
        if done >= total // 2:
            print("half", flush=True)
            sys.stdin.read()

    with Client(url) as client:
        client.upload_file(path, NAME, part_bytes=PART_BYTES, upsert=True, progress=told)


def start_and_kill(url: str, path: Path) -> None:
    """Run the child, and kill it when it says that half of the file is on its way."""
    command = [sys.executable, __file__, "--url", url, "--child", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        child.kill()
    if line != "half\n":
        raise SystemExit("the upload failed before it was killed")


def received_bytes(url: str) -> int:
    """Bytes of bodies that the store has taken since its start."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("ambry_request_body_bytes_total "))))


def main() -> None:
    """Make a file, upload half of it, kill, upload the rest, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:1174")
    parser.add_argument("--mib", type=int, default=64, help="size of the file; at least 40, or few parts are whole")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        upload_until_killed(options.url, options.child)
        return

    with tempfile.TemporaryDirectory() as folder, Client(options.url) as client:
        path = Path(folder, "large.bin")
        with path.open("wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        size = path.stat().st_size
        if client.exists(NAME):
            client.delete(NAME)

        start_and_kill(options.url, path)
        files = sorted(one.name for one in Path(folder).iterdir())
        print(f"killed: {'a blob' if client.exists(NAME) else 'nothing'} is under the name, {files} in the folder")

        before = received_bytes(options.url)
        client.upload_file(path, NAME, part_bytes=PART_BYTES, upsert=True, progress=True)
        sent = received_bytes(options.url) - before
        print(f"started again: {sent / 2**20:.1f} of {size / 2**20:.1f} MiB were sent")

        with path.open("rb") as file, client.open(NAME) as blob:
            here, there = (hashlib.file_digest(one, "sha256").hexdigest() for one in (file, blob))
        print(f"SHA-256 of the file {here}, of the blob {there}")
        if here != there or sent >= size:
            raise SystemExit("this should not be")


if __name__ == "__main__":
    main()
