"""A small share of every proof, so that none of them rots: the full runs are `make prove`."""

import math
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.prove import results
from tests.prove.__main__ import PROOFS, main, run
from tests.prove.cluster_mutants import CLUSTER_MUTANTS
from tests.prove.compaction import prove_compaction, prove_model
from tests.prove.flips import prove_flips
from tests.prove.fuzz import Watch, fuzz_by_chance, seeds_of
from tests.prove.fuzz_targets import TARGETS
from tests.prove.images import prove_images
from tests.prove.kills import prove_kills
from tests.prove.machine import EPISODE_STEPS, RULES, prove_machine
from tests.prove.mutant import Mutant
from tests.prove.mutants import FALSE, MUTANTS, NOT_LOADED, ROOT, try_all
from tests.prove.planted import prove_planted
from tests.prove.syscalls import prove_syscalls
from tests.storage.test_store_machine import StoreMachine


def test_a_second_of_images_holds_what_was_acknowledged() -> None:
    figures = prove_images(1, 1.0)
    assert isinstance(figures["images"], int)
    assert figures["images"] > 10


def test_a_second_of_turned_bits_serves_nothing_wrong() -> None:
    figures = prove_flips(1, 1.0)
    assert (figures["escaped"], figures["wrong_bytes"]) == ([], 0)
    assert isinstance(figures["bits_turned"], int)
    assert figures["bits_turned"] > 50


def test_noise_is_answered_by_every_decoder_and_every_parser() -> None:
    figures = fuzz_by_chance(random.randrange(2**32), 0.0, 5000)
    assert isinstance(figures["executions_of_a_target_min"], int)
    assert figures["executions_of_a_target_min"] >= 20


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzer_kept_is_answered(name: str) -> None:
    watch = Watch()
    for data in seeds_of(name):
        watch.run(name, data)
    assert watch.executions[name] == len(seeds_of(name)) > 0


def test_schedules_of_compaction_lose_nothing_and_reclaim_what_they_may() -> None:
    assert prove_compaction(random.randrange(2**32), 0.0, 100)["schedules"] == 100


def test_cases_of_the_model_of_compaction_are_clean() -> None:
    assert prove_model(random.randrange(2**32), 0.0, 20)["cases"] == 20


def test_two_seconds_of_the_machine_are_clean() -> None:
    figures = prove_machine(random.randrange(2**32), 2.0)
    assert isinstance(figures["steps"], int)
    assert figures["steps"] >= EPISODE_STEPS


def test_the_machine_takes_every_rule() -> None:
    rules = {name for name, method in vars(StoreMachine).items() if hasattr(method, "hypothesis_stateful_rule")}
    assert len(rules) > 10
    assert rules <= set(RULES)


def test_failing_calls_lose_nothing_acknowledged() -> None:
    figures = prove_syscalls(1, 4.0)
    assert figures["simulated runs"]
    assert figures["real runs: EIO"]


@pytest.mark.timeout(300)
def test_faults_planted_beside_a_served_store_are_found_by_scrub_and_repaired_from_the_peer() -> None:
    figures = prove_planted(random.randrange(2**32), 0.0, 20)
    assert figures["escaped"] == []
    assert figures["found"] == figures["faults"]


def test_two_kills_of_a_served_store_lose_nothing_acknowledged() -> None:
    figures = prove_kills(random.randrange(2**32), 0.0, 2)
    assert (figures["kills"], figures["escaped"]) == (2, [])


@pytest.mark.parametrize("mutant", [*MUTANTS, *CLUSTER_MUTANTS], ids=lambda mutant: mutant.name)
def test_every_mutant_still_has_its_place(mutant: Mutant) -> None:
    assert (ROOT / mutant.path).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.old != mutant.new


def test_what_fails_without_the_bug_catches_none_nor_does_what_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is run is not the tree, but a folder like one, and needs none of the plugins, which are slow to load.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "one.py").write_text("ONE = 1\n")
    (tmp_path / "test_one.py").write_text(
        "import logging\nfrom one import ONE\n\ndef test_one():\n    logging.error('x')\n    assert ONE == 1\n"
    )
    (tmp_path / "test_ways.py").write_text(
        "import pytest\nfrom one import ONE\n\n@pytest.mark.parametrize('way', ['one way', 'another - [way]'])\n"
        "def test_way(way):\n    assert ONE == 1 or way == 'one way', [' - ']\n"
    )
    (tmp_path / "test_never.py").write_text("def test_never():\n    assert False\n")
    mutants = [
        Mutant("caught", "one.py", "1", "2", ("test_one.py",)),
        Mutant("caught in one way of two", "one.py", "1", "2", ("test_ways.py",)),
        Mutant("no bug", "one.py", "1", "1 ", ("test_one.py",)),
        Mutant("caught by nothing", "one.py", "1", "2", ("test_never.py",)),
        Mutant("not loaded", "one.py", "1", "1 / 0", ("test_one.py",)),
    ]
    assert try_all(mutants, tmp_path, math.inf) == {
        "caught": "test_one.py::test_one",
        "caught in one way of two": "test_ways.py::test_way[another - [way]]",
        "no bug": "",
        "caught by nothing": f"{FALSE} test_never.py::test_never",
        "not loaded": f"{NOT_LOADED} test_one.py",
    }


def test_a_run_that_finds_something_is_kept_as_json_without_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loses(seed: int, seconds: float) -> dict[str, object]:
        raise AssertionError(f"lost in {tmp_path}/data: {seed} {seconds}")

    monkeypatch.setitem(PROOFS, "images", loses)
    result = CliRunner().invoke(main, ["images", "--seed", "7", "--seconds", "2", "--results", str(tmp_path)])
    assert result.exit_code == 1
    kept = results.read(tmp_path / "images-7.json")
    assert (kept.proof, kept.seed, kept.outcome) == ("images", 7, results.FOUND)
    assert kept.arguments == "images --seconds 2 --seed 7"
    assert kept.error == "AssertionError: lost in ...: 7 2.0"
    assert str(tmp_path) not in (tmp_path / "images-7.json").read_text()


def test_what_a_proof_counted_as_escaped_is_no_clean_result() -> None:
    assert run("kills", "kills", 1, lambda: {"escaped": ["a blob"]}).outcome == results.FOUND
    assert run("kills", "kills", 1, lambda: {"escaped": []}).outcome == results.CLEAN


@pytest.mark.parametrize("path", sorted(results.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_result_that_is_kept_can_be_repeated(path: Path) -> None:
    kept = results.read(path)
    assert path.name == f"{kept.proof}-{kept.seed}.json"
    assert kept.arguments.startswith(f"{kept.proof} --")
    assert f"--seed {kept.seed}" in kept.arguments
    # Of a commit that others have, not of a tree with changes that nobody knows.
    assert re.fullmatch("[0-9a-f]{12}", kept.commit)
