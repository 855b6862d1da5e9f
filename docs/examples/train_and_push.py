"""Train a small model with numpy and push it as a version of `default/default/digits`; the best one becomes `prod`.

    python docs/examples/train_and_push.py --url http://127.0.0.1:1174 --steps 300

Needs `ambry[models]` and safetensors. Run it again with more steps: what did not change is not sent again, and `prod`
moves only if the new version is better than the one that it stands for.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ambry.client import Client
from ambry.errors import NameNotFound, PreconditionFailed

MODEL = "default/default/digits"
CLASSES, PIXELS = 10, 64


def made_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of 8 x 8 pixels: one pattern for each digit, with noise."""
    patterns = np.random.default_rng(0).random((CLASSES, PIXELS))
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, CLASSES, count)
    return (patterns[labels] + chance.normal(0, 0.4, (count, PIXELS))).astype(np.float32), labels


def scores_of(tensors: dict[str, np.ndarray], pictures: np.ndarray) -> np.ndarray:
    """What a model says of pictures: a number for each digit."""
    return pictures @ tensors["weight"].T + tensors["bias"]


def train(steps: int, seed: int) -> dict[str, np.ndarray]:
    """Softmax regression by gradient descent."""
    pictures, labels = made_digits(4000, seed)
    wanted = np.eye(CLASSES, dtype=np.float32)[labels]
    tensors = {"weight": np.zeros((CLASSES, PIXELS), np.float32), "bias": np.zeros(CLASSES, np.float32)}
    for _ in range(steps):
        scores = scores_of(tensors, pictures)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = (odds / odds.sum(axis=1, keepdims=True) - wanted) / len(labels)
        tensors["weight"] -= 0.5 * error.T @ pictures
        tensors["bias"] -= 0.5 * error.sum(axis=0)
    return tensors


def main() -> None:
    """Train, push, compare, and let `prod` stand for the better one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=None)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    tensors = train(options.steps, options.seed)
    pictures, labels = made_digits(2000, seed=99)
    accuracy = float((scores_of(tensors, pictures).argmax(axis=1) == labels).mean())

    with tempfile.TemporaryDirectory() as name, Client(options.url) as client:
        folder = Path(name)
        save_file(tensors, folder / "model.safetensors", {"format": "np"})
        (folder / "config.json").write_text(json.dumps({"classes": CLASSES, "pixels": PIXELS}))
        pushed = client.push_model(
            folder,
            MODEL,
            metadata={"accuracy": accuracy, "steps": options.steps},
            lineage={"dataset": f"made digits, seed {options.seed}"},
            progress=True,
        )
        print(f"pushed {pushed.ref}: accuracy {accuracy:.3f}, {pushed.sent_bytes} bytes sent")

        current = {alias: one.version for one in client.list_versions(MODEL) for alias in one.aliases}.get("prod")
        try:
            best = float(client.read_manifest(f"{MODEL}@{current}").metadata["accuracy"]) if current else 0.0
            if accuracy > best:
                client.set_alias(pushed.ref, "prod", expected=current)
                print(f"prod is {pushed.version} now")
            else:
                print(f"prod stays {current}: accuracy {best:.3f}")
        except (PreconditionFailed, NameNotFound):
            print("somebody else has moved prod meanwhile")


if __name__ == "__main__":
    main()
