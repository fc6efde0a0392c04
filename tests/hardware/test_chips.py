"""The catalogue of processors: figures against those they were made from, names however written, hostile user files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.errors import NotFoundError, RequestError
from freehold.hardware.chip_table import CONFIDENCE, FIELDS, FLOPS, KINDS, MAX_BYTES, parse_table
from freehold.hardware.chips import BITS, Chip, find_chip, load_chips, match_chips

DERIVED = Path(__file__).resolve().parents[1] / "golden" / "chips" / "derived.csv"
"""What the catalogue's source derives from its own figures: TPP, density, ridge and class of every part."""

CHIPS = load_chips()


def derived() -> list[dict[str, str]]:
    with DERIVED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def user_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "mine.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_every_part_is_there_in_order() -> None:
    assert list(CHIPS) == [row["name"] for row in derived()]
    assert len(CHIPS) == 122


def test_records_are_whole() -> None:
    for name, chip in CHIPS.items():
        assert chip.name == name
        assert chip.vendor
        assert chip.kind in KINDS
        assert chip.confidence in CONFIDENCE
        assert chip.sources
        assert chip.year is not None
        assert set(chip.flops) <= set(BITS)
        assert not chip.maker_tpp or chip.maker_source


@pytest.mark.parametrize("row", derived(), ids=lambda row: row["name"])
def test_derived_figures_agree_with_the_source(row: dict[str, str]) -> None:
    chip = CHIPS[row["name"]]
    figures = (chip.tpp, chip.performance_density, chip.ridge)
    for value, text, rounding in zip(
        figures, (row["tpp"], row["perf_density"], row["ridge"]), (0.5, 0.01, 0.5), strict=True
    ):
        assert (value is None) == (text == "")
        if value is not None:
            assert value == pytest.approx(float(text), abs=rounding * 1.0001)


def test_the_makers_own_tpp_is_near() -> None:
    stated = [chip for chip in CHIPS.values() if chip.maker_tpp and chip.name != "A100 40GB SXM"]  # a slip of theirs
    assert len(stated) == 18
    for chip in stated:
        assert chip.tpp == pytest.approx(chip.maker_tpp, rel=0.06), chip.name


def test_units() -> None:
    h100 = CHIPS["H100 SXM5"]
    assert h100.memory_bytes == 80e9
    assert h100.bandwidth == 3350e9
    assert h100.flops["bf16"] == 989.4e12
    assert h100.flops["fp8"] == 1978.9e12
    assert h100.interconnect == 900e9
    assert h100.tpp_format == "fp8"


def test_missing_figures_stay_missing() -> None:
    chip = CHIPS["P800"]
    assert (chip.memory_bytes, chip.bandwidth, chip.tpp, chip.performance_density, chip.ridge) == (None,) * 5
    assert dict(chip.flops) == {}


def test_what_is_doubtful_is_told_apart() -> None:
    assert CHIPS["B200 SXM"].confidence == "high"
    assert CHIPS["B200 SXM"].doubtful == ("die",)
    assert CHIPS["M5 Max (40)"].doubtful == ("compute",)


def test_a_makers_tpp_stands_in_for_missing_rates() -> None:
    chip = Chip(vendor="X", name="Y", kind="gpu", datacentre=True, maker_tpp=2000.0, die_mm2=500.0)
    assert chip.tpp == 2000
    assert chip.performance_density == 4
    assert chip.tpp_format is None


@pytest.mark.parametrize("name", CHIPS)
def test_every_part_answers_to_its_name_and_aliases(name: str) -> None:
    chip = CHIPS[name]
    for written in (name, name.lower(), name.replace(" ", ""), f"{chip.vendor} {name}", *chip.aliases):
        assert find_chip(written) is chip


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("h100", "H100 SXM5"),
        ("H100 SXM", "H100 SXM5"),
        ("h100-nvl", "H100 NVL"),
        ("H20", "H20"),
        ("H200", "H200 SXM"),
        ("nvidia h20", "H20"),
        ("L4", "L4"),
        ("910C", "Ascend 910C (Atlas A3 package)"),
        ("huawei ascend 910c", "Ascend 910C (Atlas A3 package)"),
        ("4090", "RTX 4090"),
        ("GeForce RTX 4090", "RTX 4090"),
        ("rtx4090d", "RTX 4090 D (China)"),
        ("5090 D V2", "RTX 5090 D V2 (China)"),
        ("mi300", "Instinct MI300X"),
        ("MI308X", "Instinct MI308X (China)"),
        ("m2 max", "M2 Max (38)"),
        ("apple m4", "M4 (10)"),
        ("TPU v5e", "TPU v5e"),
        ("v100", "V100 SXM2 32GB"),
        ("a100 80gb", "A100 80GB SXM"),
    ],
)
def test_names_are_forgiving(written: str, name: str) -> None:
    assert find_chip(written).name == name


def test_a_name_of_several_parts_lists_them() -> None:
    with pytest.raises(RequestError, match=r"'a100' is the name of 2 parts: A100 40GB SXM, A100 80GB SXM; write more"):
        find_chip("a100")
    assert [chip.name for chip in match_chips("910b")] == ["Ascend 910B2", "Ascend 910B3", "Ascend 910B4"]


@pytest.mark.parametrize(
    ("written", "near"), [("H1O0", "H100"), ("MI30OX", "MI300X"), ("RTX 5091", "RTX 5090"), ("asend 910c", "910C")]
)
def test_an_unknown_name_gets_the_nearest(written: str, near: str) -> None:
    with pytest.raises(NotFoundError, match=rf"no processor .* \(did you mean .*{near}.*freehold chips"):
        find_chip(written)


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_name_finds_or_is_refused(name: str) -> None:
    try:
        outcome = find_chip(name).name
    except (NotFoundError, RequestError) as error:
        outcome = str(error)
    assert outcome in CHIPS or ("freehold chips" in outcome or "is the name of" in outcome)
    assert len(outcome) < 600


def test_a_user_file_replaces_the_figures_it_gives(tmp_path: Path) -> None:
    text = '\ufeffname,bandwidth_gbps,bf16_tflops,die_mm2,notes\nh100 sxm5,3000,,unknown,"measured, here"\n'
    chips = load_chips(user_file(tmp_path, text))
    chip, before = chips["H100 SXM5"], CHIPS["H100 SXM5"]
    assert len(chips) == len(CHIPS)
    assert chip.bandwidth == 3000e9
    assert chip.flops == before.flops
    assert chip.die_mm2 is None
    assert chip.notes == "measured, here"
    assert chip.sources == (*before.sources, "user file mine.csv")
    assert load_chips() is CHIPS


def test_a_user_file_can_forget_a_rate(tmp_path: Path) -> None:
    chips = load_chips(user_file(tmp_path, "name,fp8_tflops,int8_tops\nH100 SXM5,unknown,1500\n"))
    assert dict(chips["H100 SXM5"].flops) == {"bf16": 989.4e12, "fp16": 989.4e12, "int8": 1500e12}


def test_a_user_file_adds_a_part(tmp_path: Path) -> None:
    text = (
        "name,vendor,kind,datacentre,memory_gb,bandwidth_gbps,bf16_tflops,aliases\n"
        "\n"
        "Board 9,Us,gpu,no,48,900,200,b9; nine\n"
    )
    chips = load_chips(user_file(tmp_path, text))
    chip = find_chip("nine", chips)
    assert (chip.name, chip.memory_bytes, chip.tpp) == ("Board 9", 48e9, 3200)
    assert chip.confidence == "medium"
    assert chip.sources == ("user file mine.csv",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,memory_gb\nBoard 9,48\n",
            r"line 2: Board 9 is not in .* missing: vendor, kind, datacentre, bandwidth_gbps",
        ),
        ("name,memory_gb\nH100 SMX5,48\n", r"did you mean H100 SXM5"),
        (
            "name,vendor,kind,datacentre,memory_gb,bandwidth_gbps\nB,Us,gpu,no,4,9\n",
            r"missing: a rate such as bf16_tflops",
        ),
        ("name,memory_gb\nH20,96\nH200 SXM,lots\n", r"line 3, column `memory_gb`: is 'lots'; expected a number of GB"),
        ("name,memory_gb\nH20,96e9\n", r"line 2, column `memory_gb`: is '96e9'.* from 0.01 to 100000"),
        ("name,memory_gb\nH20,nan\n", r"column `memory_gb`: is 'nan'"),
        ("name,bandwidth_gbps\nH20,-1\n", r"column `bandwidth_gbps`: is '-1'"),
        ("name,bandwidth_gbps\nH20,inf\n", r"column `bandwidth_gbps`: is 'inf'"),
        ("name,bandwidth_gbps\nH20,4_000\n", r"column `bandwidth_gbps`: is '4_000'"),
        ("name,bandwidth_gbps\nH20,٤٠٠٠\n", r"column `bandwidth_gbps`"),
        ("name,year\nH20,23\n", r"column `year`: is '23'; expected a year such as 2025"),
        ("name,kind\nH20,toaster\n", r"column `kind`: is 'toaster'; expected gpu,"),
        ("name,kind\nH20,unknown\n", r"column `kind`: is 'unknown'"),
        ("name,datacentre\nH20,maybe\n", r"column `datacentre`: is 'maybe'; expected yes or no"),
        ("name,confidence\nH20,total\n", r"column `confidence`: is 'total'; expected high, medium or low"),
        ("name,doubtful\nH20,die; price\n", r"column `doubtful`: is 'price'"),
        ("name,notes\nH20,\x1b[2Jgone\n", r"column `notes`: has control characters"),
        ("name,notes\nH20," + "x" * 601 + "\n", r"column `notes`: has 601 characters; expected at most 600"),
        ("name,memory_gb\n,96\n", r"line 2, column `name`: is ''"),
        ("name,memory_gb\n--,96\n", r"line 2, column `name`: is '--'"),
        ("name,memory_gb\nH20,96\nh 20,90\n", r"line 3: H20 was there before, at .*line 2"),
        ("name,memory_gb\nH20\n", r"line 2: 1 cells, where the first line names 2 columns"),
        ("name,notes\nH20,a,b\n", r"line 2: 3 cells.* quotes around text"),
        ("name,memory\nH20,96\n", r"line 1: unknown column 'memory'; did you mean memory_gb\?"),
        ("name,name\nH20,H20\n", r"line 1: column `name` is there 2 times"),
        ("memory_gb\n96\n", r"line 1: no column `name`"),
        ("name;memory_gb\nH20;96\n", r"not separated by commas"),
        ('name,notes\nH20,"open\n', r"line 2: unexpected end of data"),
        ("name,memory_gb\n", r"no rows"),
        ("", r"no column `name`"),
        ("name\0,memory_gb\n", r"holds NUL bytes"),
        (b"name,notes\nH20,\xff\n", r"not UTF-8 at byte 15"),
        (b"x" * (MAX_BYTES + 1), r"more than 1 MiB"),
    ],
)
def test_a_wrong_user_file_is_refused_by_line_and_column(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        load_chips(user_file(tmp_path, text))
    assert "mine.csv" in str(caught.value)
    assert len(str(caught.value)) < 800
    assert "\x1b" not in str(caught.value)


def test_a_user_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.csv: no such file"):
        load_chips(tmp_path / "none.csv")
    with pytest.raises(RequestError, match="cannot be read"):
        load_chips(tmp_path)


CELLS = st.text(alphabet='H20,"\n\r;xyz 19.-e\x1b\u20ac', max_size=12)
COLUMNS = st.sampled_from(["name", *FIELDS, *FLOPS, "nonsense"])


@given(st.lists(COLUMNS, min_size=1, max_size=5), st.lists(st.lists(CELLS, max_size=5), max_size=4))
@settings(max_examples=80, deadline=None)
def test_any_table_is_read_or_refused(columns: list[str], rows: list[list[str]]) -> None:
    text = "\n".join([",".join(columns), *(",".join(row) for row in rows)])
    try:
        outcome = [row.where for row in parse_table(text, "x.csv")]
    except RequestError as error:
        outcome = [str(error)]
    assert outcome
    assert all(where.startswith("x.csv") for where in outcome)
