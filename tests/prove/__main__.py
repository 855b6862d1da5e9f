"""Run one proof, or all: `python -m tests.prove [machine|images|flips|fuzz|mutants|...|all] --seconds N --seed S`.

Each prints its seed, what it did in figures, and the line that repeats it. Exit status 1 when something was found.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import click

from tests.prove.flips import prove_flips
from tests.prove.fuzz import prove_fuzz
from tests.prove.images import prove_images
from tests.prove.kills import prove_kills
from tests.prove.machine import prove_machine
from tests.prove.mutants import prove_mutants
from tests.prove.soak import prove_soak
