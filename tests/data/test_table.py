"""A CSV of images and reports; every fault is named with its row and column."""

import csv
import gzip
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from gloria.data import ImageReportTable, Radiographs, read_splits
from gloria.data.leaks import read_split_files
from gloria.errors import BrokenItemError, DataError, DtypeError, OptionError

ROWS = [
    {"image": "a.png", "report": "Small effusion.", "split": "train"},
    {"image": "b.png", "report": 'Quotes "and",\ncommas and lines.', "split": "train"},
    {"image": "c.png", "report": "Clear.", "split": "val"},
]


@pytest.fixture
def write(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        pixels = rng.integers(0, 256, (20, 10), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")

    def write_csv(rows, header=("image", "report", "split")):
        path = tmp_path / "my.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, header, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write_csv


def test_reads_a_split(write):
    table = ImageReportTable(write(ROWS), "train", size=(16, 16))
    assert len(table) == 2
    assert table.reports == ["Small effusion.", 'Quotes "and",\ncommas and lines.']
    assert table[0].image.shape == (1, 16, 16)
    assert table[1].report == table.reports[1]
    assert ImageReportTable(write(ROWS), size=(8, 8), channels=3)[2].image.shape == (3, 8, 8)


def test_other_column_names(write):
    rows = [{"path": row["image"], "text": row["report"]} for row in ROWS]
    table = ImageReportTable(
        write(rows, ("path", "text")), size=(8, 8), image_column="path", report_column="text"
    )
    assert len(table) == 3


def test_of_many_columns_those_like_the_missing_one_are_named(write):
    wide = write([], [*(f"radiomics_{number}" for number in range(400)), "images"])
    with pytest.raises(DataError, match=r"no column 'image'; it has images, .* and 381 more\. Did"):
        ImageReportTable(wide, size=(8, 8))
    with pytest.raises(DataError, match=r"or patientId; it has images, .* and 381 more\. image-co"):
        read_split_files([wide])


def test_a_spreadsheets_byte_order_mark_is_no_part_of_a_name(write):
    path = write(ROWS)
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert len(ImageReportTable(path, size=(8, 8))) == 3


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (1, "report", "  ", "row 3, column 'report': empty report"),
        (1, "report", " .-_! ", r"row 3, column 'report': empty report, '\.-_!' has no word"),
        (0, "image", "", "row 2, column 'image': no image path"),
        (1, "image", "z.png", r"row 3, column 'image': .*z\.png does not exist"),
        (1, "image", ".", r"row 3, column 'image': .* must be a file; it is a folder\.$"),
    ],
)
def test_a_faulty_row_is_named(write, row, column, value, message):
    rows = [dict(each) for each in ROWS]
    rows[row][column] = value
    with pytest.raises(DataError, match=message):
        ImageReportTable(write(rows), "train", size=(8, 8))


def test_a_missing_column_is_named(write):
    with pytest.raises(DataError, match=r"no column 'report'; it has image, split\.$"):
        ImageReportTable(write(ROWS, ("image", "split")), size=(8, 8))
    near = r"no column 'reports'; it has image, report, split\. Did you mean 'report'\?"
    with pytest.raises(DataError, match=near):
        ImageReportTable(write(ROWS), report_column="reports", size=(8, 8))


def test_a_short_row_is_named(write):
    path = write(ROWS[:1])
    path.write_text(path.read_text() + "b.png\n")
    with pytest.raises(DataError, match="row 3, column 'report': the row is too short"):
        ImageReportTable(path, size=(8, 8))


def test_a_split_that_is_not_there(write):
    with pytest.raises(DataError, match="no row with split 'test'; its splits are train, val"):
        ImageReportTable(write(ROWS), "test", size=(8, 8))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        ImageReportTable(tmp_path / "none.csv", size=(8, 8))


def test_rows_are_those_of_a_spreadsheet(write):
    rows = [dict(each) for each in ROWS]
    rows[2]["image"] = "z.png"  # after a blank line and a report of two lines
    path = write(rows)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "\n", *lines[2:]]))
    with pytest.raises(DataError, match="row 5, column 'image'"):
        ImageReportTable(path, size=(8, 8))
    assert len(ImageReportTable(path, "train", size=(8, 8))) == 2


def test_spaces_around_a_split_do_not_count(write):
    rows = [{**row, "split": f" {row['split']} "} for row in ROWS]
    assert read_splits(write(rows)) == ["train", "val"]
    assert len(ImageReportTable(write(rows), "train", size=(8, 8))) == 2


def test_a_file_of_another_encoding_is_named_with_its_line(write):
    path = write([{**ROWS[0], "report": "Small effusion."}, {**ROWS[2], "report": "Épanchement."}])
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    for read in (read_splits, lambda path: ImageReportTable(path, size=(8, 8))):
        with pytest.raises(
            DataError, match=r"my\.csv, line 3: not UTF-8 .* Save the file as UTF-8"
        ):
            read(path)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_table_is_never_in_memory_as_a_whole(tmp_path, suffix):
    """A few short columns of a table of long reports."""
    path = tmp_path / f"my{suffix}"
    with (gzip.open if suffix.endswith("gz") else open)(path, "wt") as file:
        file.write("image,report,split\n")
        file.writelines(f"{row}.png,{'Clear. ' * 10_000},train\n" for row in range(200))
    tracemalloc.start()
    assert read_splits(path) == ["train"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 70_000 / 4


@pytest.mark.parametrize("rest", ["", "a.png,Clear.,train\n" * 10_000, 'a.png,"Clear.",train\n'])
def test_a_quote_that_is_never_closed_takes_no_row_into_its_cell(write, rest):
    path = write(ROWS[1:2])  # lines 2 and 3
    path.write_text(path.read_text() + 'b.png,"Clear,train\nc.png,Clear.,val\n' + rest)
    with pytest.raises(DataError, match=r"my\.csv, line 4: .* not CSV .*Is a quote never closed"):
        ImageReportTable(path, size=(8, 8))


def test_a_quote_inside_a_quoted_text_that_is_not_written_twice(write):
    path = write(ROWS[:1])
    path.write_text(path.read_text() + 'b.png,"A "small" effusion.",train\n')
    with pytest.raises(DataError, match=r"my\.csv, line 3: .* one inside a quoted text not writ"):
        ImageReportTable(path, size=(8, 8))


@pytest.mark.parametrize(
    "row",
    [
        '  "Edema, with ""large"" effusion.", train\n',
        '"Edema, with ""large"" effusion."  ,"train" \n',
        '"Edema, with ""large"" effusion." ,"train" ',
    ],
)
def test_spaces_around_a_quoted_text(write, row):
    path = write(ROWS[:1])
    path.write_text(path.read_text() + "b.png," + row)
    reports = ImageReportTable(path, "train", size=(8, 8)).reports
    assert reports[1] == 'Edema, with "large" effusion.'


def test_a_fingerprint_changes_with_paths_reports_and_order_only(write):
    first = ImageReportTable(write(ROWS), size=(8, 8)).fingerprint()
    assert ImageReportTable(write(ROWS), size=(16, 16)).fingerprint() == first
    changed = [
        [{**ROWS[0], "report": "Small effusions."}, *ROWS[1:]],
        [{**ROWS[0], "image": "b.png"}, *ROWS[1:]],
        ROWS[::-1],
        ROWS[:2],
    ]
    others = {ImageReportTable(write(rows), size=(8, 8)).fingerprint() for rows in changed}
    assert len(others | {first}) == 5


def test_a_size_without_pixels_is_refused_at_once(write):
    with pytest.raises(OptionError, match=r"size must be .*, above 0; got \(0, 8\)"):
        ImageReportTable(write(ROWS), size=(0, 8))
    for size in (8, (1, 8, 8)):
        with pytest.raises(
            OptionError, match=r"size must be \(height, width\) in pixels, above 0; got "
        ):
            ImageReportTable(write(ROWS), size=size)


def test_one_string_is_no_list_of_classes(write):
    fault = r"classes must be a sequence of names; got one string\. Wrap it: \['Edema'\]"
    with pytest.raises(DtypeError, match=fault):
        ImageReportTable(write(ROWS), size=(8, 8), classes="Edema")
    records = ImageReportTable(write(ROWS), size=(8, 8)).records
    with pytest.raises(DtypeError, match=fault):
        Radiographs(records, size=(8, 8), classes="Edema")


def test_a_slice_is_no_item(write):
    table = ImageReportTable(write(ROWS), size=(8, 8))
    with pytest.raises(DtypeError, match=r"index must be .* one image; got slice\(0, 2, None\)"):
        table[0:2]
    assert len(table.select(table.ids[0:2])) == 2  # as the message says
    assert torch.equal(table[torch.tensor(1)].image, table[1].image)


def test_a_column_that_holds_no_paths(write):
    long = [{"image": "a.png", "report": "Clear. " * 1000}]
    with pytest.raises(BrokenItemError, match=r"row 2, column 'report': .*Clear\. does not exist"):
        ImageReportTable(write(long), size=(8, 8), image_column="report")


def test_bits_of_the_pixels(write, tmp_path):
    path = write(ROWS)
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(OptionError, match=r"row 2, column 'image': .*uses 12"):
        ImageReportTable(path, size=(8, 8))[0]
    assert ImageReportTable(path, size=(8, 8), bits=12)[0].image.min() == 1


def test_an_unquoted_comma_is_named(write):
    path = write(ROWS[:1])
    path.write_text(path.read_text() + "b.png,Edema, with effusion.,train\n")
    with pytest.raises(DataError, match="row 3: 4 cells for 3 columns; is a comma"):
        ImageReportTable(path, "train", size=(8, 8))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_what_separates_columns_is_told_by_the_header(write, separator):
    path = write(ROWS)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(ROWS[0])
        writer.writerows(row.values() for row in ROWS)
    table = ImageReportTable(path, "train", size=(8, 8))
    assert table.reports == ["Small effusion.", 'Quotes "and",\ncommas and lines.']


def test_a_column_that_is_there_twice_is_not_guessed(write):
    path = write(ROWS)
    path.write_text("image,report,split,report\na.png,Clear.,train,Edema.\n")
    with pytest.raises(DataError, match="has 2 columns 'report'; which one"):
        ImageReportTable(path, size=(8, 8))
    assert read_splits(path) == ["train"]  # the others can be read


@pytest.mark.parametrize("nothing", ["nan", "NaN", "None", "NULL", "<NA>"])
def test_a_report_that_a_program_did_not_have_is_none(write, nothing):
    rows = [ROWS[0], {**ROWS[1], "report": nothing}]
    with pytest.raises(DataError, match="row 3, column 'report': empty report"):
        ImageReportTable(write(rows), size=(8, 8))
    table = ImageReportTable(write(rows), size=(8, 8), skip_incomplete=True)
    assert table.ids == ["a.png"]
    assert len(table.skipped) == 1


def test_a_path_of_another_system_is_told(write):
    rows = [{**ROWS[0], "image": "films\\a.png"}]
    with pytest.raises(DataError, match=r"does not exist\. Folders end in /, not in a backslash"):
        ImageReportTable(write(rows), size=(8, 8))


def test_missing_images_can_be_left_out_the_first_one_too(write, tmp_path):
    path = write(ROWS)
    for name in "ac":
        (tmp_path / f"{name}.png").unlink()
    table = ImageReportTable(path, size=(8, 8), check_files=False).without_broken()
    assert table.ids == ["b.png"]
    assert [fault.partition(": ")[0].partition(", ")[2] for fault in table.skipped] == [
        "row 2, column 'image'",
        "row 4, column 'image'",
    ]
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match=r"a\.png does not exist. Is it the right folder"):
        ImageReportTable(path, size=(8, 8), check_files=False)


def test_a_path_longer_than_any_can_be_left_out_too(write):
    long = {**ROWS[0], "image": "a" * 300 + ".png"}
    table = ImageReportTable(write([long, *ROWS[1:]]), size=(8, 8), check_files=False)
    assert table.without_broken().ids == ["b.png", "c.png"]


def test_a_table_that_is_no_file_is_sent_to_the_records():
    with pytest.raises(
        DtypeError, match=r"path must be .* CSV file; got dict\. .* gloria\.data\.Rec"
    ):
        ImageReportTable({"image": ["a.png"], "report": ["Clear."]}, size=(8, 8))
