"""The long proofs of the engine, each a command with a budget: `python -m tests.prove NAME --seconds N --seed S`."""
