"""Write the golden files of cases that have none yet. Never touches one that is there."""

from tests.golden import FOLDER, described
from tests.golden.cases import CASES

for case in CASES:
    data_path = FOLDER / f"{case.stem}.bin"
    if data_path.exists():
        print(f"{data_path.name} is there and stays as it is")
        continue
    data = case.write()
    data_path.write_bytes(data)
    (FOLDER / f"{case.stem}.json").write_text(described(case.read(data)), encoding="utf-8")
    print(f"{data_path.name}: {len(data)} bytes")
