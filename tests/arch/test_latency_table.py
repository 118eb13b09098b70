import pytest

from d2go_fbnetv5.arch import BlockCosts, Topology, build_family
from d2go_fbnetv5.arch.latency_table import read_latency_table, write_latency_table

FAMILY, SIZE = build_family("N"), (64, 96)
# As a phone's user would write it.
ROWS = [
    "name,milliseconds",
    *(f"stage0.path{path},{value}" for path, value in enumerate((0.5, 0.25, 2, 1e-1))),
    *(f"block.path{path},{value}" for path, value in enumerate((4, 3, 2, 1))),
]


@pytest.fixture
def table(tmp_path):
    def write(rows):
        path = tmp_path / "table.csv"
        path.write_text("\n".join(rows) + "\n")
        return path

    return write


def test_names_and_milliseconds_are_enough(table):
    costs = read_latency_table(table(ROWS), FAMILY, SIZE)
    assert costs == BlockCosts("latency", (0.5, 0.25, 2.0, 0.1), (4.0, 3.0, 2.0, 1.0))
    topology = Topology([[1, 0, 0, 0], [0, 0, 0, 1]])
    assert costs.network(topology) == pytest.approx(2.85 + 4 + 1)
    assert costs.relative(topology) == 5 / 20


def test_order_blanks_comments_and_a_spreadsheets_mark_do_not_matter(tmp_path):
    path = tmp_path / "table.csv"
    rows = ["# phone: a: b", "", *ROWS[:1], *reversed(ROWS[1:]), "  # later"]
    path.write_bytes("\ufeff".encode() + "\r\n".join(rows).encode())
    assert read_latency_table(path, FAMILY, SIZE).blocks == (4.0, 3.0, 2.0, 1.0)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "table.csv"
    costs = BlockCosts("latency", (0.1, 0.2, 0.3, 0.4), (1.5, 2.25, 1 / 3, 1e-4))
    write_latency_table(path, costs, FAMILY, SIZE, {"machine": "one\nof two"})
    read = read_latency_table(path, FAMILY, SIZE)
    assert read.stage0 == costs.stage0 and read.blocks == pytest.approx(costs.blocks, rel=1e-5)
    assert path.read_text().splitlines()[:5] == [
        "# written by d2go_fbnetv5",
        "# family: N",
        "# size: 64x96",
        "# machine: one of two",
        "name,milliseconds",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
    with pytest.raises(ValueError, match=r"table\.csv, line 2: the table is of family N, needed is A"):
        read_latency_table(path, build_family("A"), SIZE)
    with pytest.raises(ValueError, match=r"table\.csv, line 3: the table is of size 64x96, needed is 96x96"):
        read_latency_table(path, FAMILY, (96, 96))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[1:], "line 1: 'stage0.path0,0.5' found, the header 'name,milliseconds' expected"),
        ([], "stage0.path0, .*block.path3 missing"),
        (ROWS[:-1], "table.csv: block.path3 missing; needed are stage0.path0"),
        ([*ROWS, "block.path4,1"], "line 10: unknown name 'block.path4'; allowed are stage0.path0"),
        ([*ROWS, "block.path2,1"], "line 10: 'block.path2' stands in line 8 already"),
        ([*ROWS[:-1], "block.path3,-1"], "line 9: block.path3 takes '-1', allowed are milliseconds of 0 to"),
        ([*ROWS[:-1], "block.path3,nan"], "line 9: block.path3 takes 'nan'"),
        ([*ROWS[:-1], "block.path3,inf"], "line 9: block.path3 takes 'inf'"),
        ([*ROWS[:-1], "block.path3,fast"], "line 9: block.path3 takes 'fast'"),
        ([*ROWS[:-1], "block.path3"], "line 9: 1 columns found, the 2 of 'name,milliseconds' expected"),
        ([*ROWS[:-1], "block.path3,1,ms"], "line 9: 3 columns found"),
        ([*ROWS[:5], *(f"block.path{path},0" for path in range(4))], "all blocks take 0 milliseconds"),
    ],
)
def test_a_wrong_table_names_file_line_and_what_is_allowed(table, rows, message):
    with pytest.raises(ValueError, match=message) as error:
        read_latency_table(table(rows), FAMILY, SIZE)
    assert "table.csv" in str(error.value)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv does not exist; .*latency_table measures"):
        read_latency_table(tmp_path / "nowhere.csv", FAMILY, SIZE)
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="picture.csv: not a text file"):
        read_latency_table(tmp_path / "picture.csv", FAMILY, SIZE)
