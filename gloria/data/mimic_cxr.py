"""MIMIC-CXR-JPG with the reports of MIMIC-CXR."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gloria.checks import check_names
from gloria.data.chexpert import UNCERTAIN, read_labels, uncertain_mapping
from gloria.data.radiographs import Radiographs, Record, skipping
from gloria.data.reports import FULL_REPORT, ReportPolicy, check_policy, read_report
from gloria.data.rows import read_rows, rows_by
from gloria.errors import DataError, reason


class MIMICCXR(Radiographs):
    """MIMIC-CXR-JPG: its CSV files and JPEG files, with the reports of MIMIC-CXR.

    Args:
        root: the release's folder, with ``mimic-cxr-...-split.csv.gz``,
            ``mimic-cxr-...-metadata.csv.gz`` and ``files/`` (CSV files may be unpacked).
        split: ``"train"``, ``"validate"`` or ``"test"``; None = all.
        size, channels: as in :class:`~gloria.data.Radiographs`.
        reports: the sectioned reports, a CSV file with the columns ``study``, ``findings`` and
            ``impression`` as MIMIC-CXR's own script writes it, or the folder that holds
            ``p10/p10000032/s50414267.txt``. None = ``mimic_cxr_sectioned.csv`` under ``root`` if it
            is there, else ``root/files``.
        policy: what of the reports is read. The whole of a sectioned report is its findings and
            impression.
        classes: which labels to read, of :data:`gloria.data.chexpert.CLASSES`, from
            ``mimic-cxr-...-chexpert.csv.gz``.
        uncertain: as in :class:`~gloria.data.chexpert.CheXpert`.
        views: which of ``ViewPosition`` to take; frontal ones by default.
        skip_incomplete: leave out images whose report has no word under the policy, or whose study
            has no labels; they are listed in ``skipped``. Otherwise they are an error.

    Raises:
        UnknownNameError: there is no such class.
        DtypeError: ``views`` is one string.
        DataError: a file, a column or the first images are missing; a report has no word; a label
            is none; two rows of one study or image contradict each other; no image has the split.

    Source: Johnson et al., MIMIC-CXR-JPG, 2019.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        size: tuple[int, int],
        channels: int = 1,
        reports: str | Path | None = None,
        policy: ReportPolicy = FULL_REPORT,
        classes: Sequence[str] = (),
        uncertain: Mapping[str, int] | int = UNCERTAIN,
        views: Collection[str] = ("AP", "PA"),
        skip_incomplete: bool = False,
    ) -> None:
        check_policy(policy)
        check_names("views", views)  # in a string, the empty name of a view would be found, too
        root = Path(root)
        mapping = uncertain_mapping(classes, uncertain)
        metadata = rows_by(_find(root, "metadata"), "dicom_id", ["ViewPosition"])
        view_of = {image: cells["ViewPosition"] for image, (_, cells) in metadata.items()}
        sections = policy.sections or ("findings", "impression")
        texts = _Reports(root, None if reports is None else Path(reports), sections)
        rows = rows_by(_find(root, "chexpert"), "study_id", classes) if classes else {}
        labels = {
            study: read_labels(where, cells, classes, mapping)
            for study, (where, cells) in rows.items()
        }
        records: list[Record] = []
        skipped: list[str] = []
        table = _find(root, "split")
        for where, cells in read_rows(table, ["dicom_id", "study_id", "subject_id", "split"]):
            image, study, subject = cells["dicom_id"], cells["study_id"], cells["subject_id"]
            if split not in (None, cells["split"]):
                continue
            if image not in view_of:
                raise DataError(f"{where}: the metadata have no image {image}.")
            if view_of[image] not in views:
                continue
            folder = f"p{subject[:2]}/p{subject}/s{study}"
            with skipping(skipped if skip_incomplete else None):
                report = read_report(*texts.of(study, folder, where), policy)
                if classes and study not in labels:
                    raise DataError(f"{where}: study {study} has no labels.")
                file = root / "files" / folder / f"{image}.jpg"
                marks = labels.get(study, ())
                records.append(Record(image, file, where, subject, report, marks))
        if not records and not skipped:
            raise DataError(f"{table} has no image with split {split!r} and views {list(views)}.")
        super().__init__(records, classes=classes, size=size, channels=channels, skipped=skipped)


class _Reports:
    """Reports by study: the sections of a CSV file, or text files in a folder."""

    def __init__(self, root: Path, given: Path | None, columns: Sequence[str]) -> None:
        sectioned = [root / "mimic_cxr_sectioned.csv", root / "mimic_cxr_sectioned.csv.gz"]
        found = [path for path in sectioned if path.is_file()]
        self.source = given or (found[0] if found else root / "files")
        folder = self.source.is_dir()
        self.sections = None if folder else rows_by(self.source, "study", columns)

    def of(self, study: str, folder: str, where: str) -> tuple[str, str | Mapping[str, str]]:
        """Where a study's report is, and its text or sections."""
        if self.sections is None:
            file = self.source / f"{folder}.txt"
            try:
                return str(file), file.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as cause:
                raise DataError(
                    f"{where}: report {file} can't be read: {reason(cause)}."
                ) from cause
        if f"s{study}" not in self.sections:
            raise DataError(f"{where}: {self.source} has no report of study s{study}.")
        place, cells = self.sections[f"s{study}"]
        return place, {name: text for name, text in cells.items() if name != "study"}


def _find(root: Path, table: str) -> Path:
    """The newest of the release's files for a table, such as ``mimic-cxr-2.0.0-split.csv.gz``."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder.")
    found = sorted(
        [*root.glob(f"mimic-cxr-*-{table}.csv"), *root.glob(f"mimic-cxr-*-{table}.csv.gz")]
    )
    if not found:
        raise DataError(f"{root} has no mimic-cxr-...-{table}.csv.gz.")
    return found[-1]
