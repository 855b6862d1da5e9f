"""Serve whatever `default/default/digits@prod` stands for, and follow it when it moves.

    python docs/examples/serve_by_alias.py --url http://127.0.0.1:1174 --port 8080
    curl -s http://127.0.0.1:8080/ -d '[[0.1, 0.9, ...64 numbers]]'

Push a model first (train_and_push.py). Looking after the alias costs one small request; a version that is in the cache
is not loaded again, and with AMBRY_OFFLINE=1 the server starts without a store.
"""

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from ambry.client import Client

MODEL = "default/default/digits@prod"


class Served:
    """The version that is served. It is replaced as a whole, so that no request sees half of two."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.version = ""
        self.tensors: dict[str, np.ndarray] = {}

    def follow(self) -> None:
        """Look what the alias stands for, and load it if it is another one."""
        pulled = self._client.pull_model(MODEL)
        if pulled.version != self.version:
            tensors = self._client.load_tensors(f"default/default/digits@{pulled.version}/model.safetensors")
            self.version, self.tensors = pulled.version, tensors
            print(f"serving {pulled.version} from {pulled.folder}", flush=True)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=None)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between looks at the alias")
    options = parser.parse_args()
    served = Served(Client(options.url))
    served.follow()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            pictures = np.array(json.loads(self.rfile.read(int(self.headers["Content-Length"]))), np.float32)
            scores = pictures @ served.tensors["weight"].T + served.tensors["bias"]
            body = json.dumps({"version": served.version, "digits": scores.argmax(axis=1).tolist()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(options.every):
            served.follow()

    threading.Thread(target=follow, daemon=True).start()
    with ThreadingHTTPServer(("127.0.0.1", options.port), Answer) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            stop.set()


if __name__ == "__main__":
    main()
