"""Read tensors of a safetensors file in the store without loading the file.

    python docs/examples/stream_safetensors.py default/default/digits@latest/model.safetensors

Shows what the file has (one request), then reads the first rows of its largest tensor (one more), then everything, by
several connections at a time.
"""

import argparse
import math

from ambry.client import Client
from ambry.client.safetensors import load_file, remote_open


def main() -> None:
    """Show the tensors, read a few rows, then all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ref")
    parser.add_argument("--url", default=None)
    options = parser.parse_args()
    with Client(options.url) as client:
        with remote_open(options.ref, client) as file:
            for name in file.offset_keys():
                part = file.get_slice(name)
                print(f"{name}: {part.get_dtype()} {part.get_shape()}")
            largest = max(file.keys(), key=lambda name: math.prod(file.get_slice(name).get_shape()))
            rows = file.get_slice(largest)[:2]
            print(f"{largest}[:2]: {rows.shape}, mean {rows.mean():.4f}")
        tensors = load_file(options.ref, client)
        print(f"{len(tensors)} tensors, {sum(tensor.nbytes for tensor in tensors.values())} bytes")


if __name__ == "__main__":
    main()
