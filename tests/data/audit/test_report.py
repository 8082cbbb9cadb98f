"""The report as text: every part is there, every string is escaped, equal sets give equal bytes."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.pages import Page
from support.shard_sets import republished
from support.synthetic_sets import Sizes, write_synthetic_set

from medvar_data.audit.report import write_report
from medvar_data.audit.report.plots import Curves, cut_shares, distribution, histogram
from medvar_data.audit.report.terms import terms_of
from medvar_data.audit.report.thumbnails import TRAITS, choose_cases
from medvar_data.errors import ShardSetError, WorkspaceError

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}$\\frac{"
TEXTS = ("title", "license", "license_evidence", "license_conflict", "citation", "doi", "homepage", "detail")
PARTS = ("overview", "figure2", "splits", "licences", "overlaps", "rejects", "structures")


def written(root: Path, sizes: Sizes) -> str:
    write_synthetic_set(root / "set", sizes)
    return write_report(str(root / "set"), root / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    return written(tmp_path_factory.mktemp("report"), Sizes(sequences=("T1", "T2")))


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_every_part_is_there(page):
    for name in PARTS:
        assert page.by_id(name).tag == "section"
    tiles = dict(zip((e.text for e in page.all("dt")[:8]), (e.text for e in page.all("dd")[:8]), strict=True))
    assert tiles["cases found"].startswith("37 ")
    assert (tiles["patients"], tiles["slices"]) == ("36", "216")
    assert [e.text for e in page.all("h2") if e.text.startswith("Synthetic")] == [
        f"Synthetic collection {n}" for n in range(3)
    ]
    for place in (1, 2, 3):
        section = page.by_id(f"c{place}")
        assert [e.text for e in page.inside(section, "h3")][:2] == [
            f"{'CT' if place == 1 else 'MR'}, {name}" for name in ("T1", "T2")
        ]
        assert len(page.inside(section, "svg")) == 2 * 6  # all have one matrix
        assert len(page.inside(section, "img")) == 2 * 6  # four typical of six cases, and the two others
        assert {"liver", "spleen", "scaled"} <= {e.text for e in page.inside(section, "td")}
    assert "truncated" in page.by_id("rejects").text
    assert "the bytes end early" in page.by_id("c1").text


def test_headings_go_down_by_one(page):
    levels = [int(e.tag[1]) for e in page.elements if re.fullmatch("h[1-6]", e.tag)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_the_page_needs_nothing_else(page):
    for element in page.elements:
        assert element.tag not in ("iframe", "object", "embed", "base")
        assert element.attributes.get("src", "data:").startswith("data:")
        if element.tag == "link":
            assert element.attributes["href"] == "data:,"
    assert "default-src 'none'" in next(e for e in page.all("meta") if "content" in e.attributes and "http-equiv" in e.attributes).attributes["content"]  # fmt: skip


def test_ids_are_of_one_thing_and_links_lead_somewhere(page, html):
    ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r'(?:url\(|href=")#([^")]+)', html))
    assert wanted
    assert wanted <= set(ids)
    assert page.unclosed == []


def test_colours_of_plots_are_the_pages(page):
    for svg in page.all("svg"):
        for element in page.elements:
            if svg in element.parents:
                assert not re.search("#[0-9a-f]{6}", element.attributes.get("style", "")), element


def test_equal_sets_give_equal_bytes(html, tmp_path):
    assert written(tmp_path, Sizes(sequences=("T1", "T2"))) == html
    assert str(tmp_path) not in html


def test_hostile_texts_stay_texts(tmp_path):
    texts = {**dict.fromkeys(TEXTS, HOSTILE), "license_url": "javascript:alert(3)"}
    html = written(tmp_path, Sizes(collections=2, sequences=(HOSTILE,), texts=texts, label_names=(HOSTILE, "spleen")))
    page = Page(html)
    assert page.unclosed == []
    assert len(page.all("script")) == 1
    assert all(e.attributes["src"].startswith("data:image/webp;base64,") for e in page.all("img"))
    for element in page.elements:
        assert not [name for name in element.attributes if name.startswith("on")]
        assert not element.attributes.get("href", "#").startswith("javascript")
    assert [e.text for e in page.all("h2")].count(HOSTILE) == 2
    assert HOSTILE in [e.text for e in page.inside(page.by_id("c1"), "td")]
    assert "49" not in page.by_id("c1").text.split()


def test_licences_name_the_strictest(page):
    licences = page.by_id("licences")
    assert "No commercial use (because of collection-01 )" in licences.text
    assert "The strictest licence is that of collection-01" in licences.text
    assert "Not read at their source: collection-01" in licences.text


def test_the_overview_tells_which_licences_nobody_read_and_which_are_stricter_than_their_name(tmp_path):
    texts = {"license": "CC-BY-4.0"}
    page = Page(written(tmp_path, Sizes(collections=2, sequences=("T1",), texts=texts)))
    licences = [e.text for e in page.inside(page.by_id("overview"), "td") if e.text.startswith("CC-BY")]
    assert len(licences) == 2
    for place, licence in enumerate(licences, start=1):
        assert licence in page.by_id(f"c{place}").text
    assert [licence.endswith("(unconfirmed)") for licence in licences] == [False, True]
    assert "CC-BY-4.0, but commercial use: no" in licences[1]


def test_what_is_unknown_binds_more_than_what_is_allowed():
    row = {
        "n_kept": 1, "license": "x", "license_url": "", "license_confirmed": True, "license_read": "", "license_evidence": "",
        "license_conflict": "", "share_alike": "no", "derivatives": "yes", "redistribute": "yes",
    }  # fmt: skip
    found = terms_of(tuple({**row, "collection": answer, "commercial": answer} for answer in ("yes", "unknown")))
    assert (found.obligations[0].answer, found.obligations[0].collections) == ("unknown", ("unknown",))
    assert found.strictest == ("unknown",)


def test_splits_are_counted(tmp_path):
    assert (
        Page(written(tmp_path, Sizes()))
        .by_id("splits")
        .text.startswith("Splits Apart 0 of 36 patients and 0 of 1 pairs")
    )
    for name, columns in (("cases", ("split",)), ("edges", ("split_b",))):
        table = pq.read_table(tmp_path / "set" / f"{name}.parquet")
        for column in columns:
            values = ["test", *table[column].to_pylist()[1:]]
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
        if name == "cases":
            patient = table["patient"].to_pylist()
            table = table.set_column(
                table.schema.get_field_index("patient"), "patient", pa.array([patient[1], *patient[1:]])
            )
        pq.write_table(table, tmp_path / "set" / f"{name}.parquet")
    republished(tmp_path / "set")
    text = Page(write_report(str(tmp_path / "set"), tmp_path / "again.html").read_text()).by_id("splits").text
    assert text.startswith("Splits Not apart 1 of 35 patients and 1 of 1 pairs")


def test_structures_that_are_tiny_or_vanished_are_named(page):
    rows = page.inside(page.by_id("structures"), "tr")
    assert any("collection-00 liver 12 0 1 case-0001: 0.003 mL 2" in row.text for row in rows)
    assert not any("spleen" in row.text for row in rows)
    assert [row.text for row in rows if "appendix" in row.text] == [f"collection-0{n} appendix" for n in range(3)]


def test_overlaps_declared_and_found(page):
    matrix = page.inside(page.by_id("overlaps"), "table")[0]
    assert [e.text for e in page.inside(matrix, "td")][1:4] == ["·", "1 12 published", "·"]
    assert "Another archive" in page.by_id("overlaps").text


def test_an_outlying_case_is_shown_and_why(tmp_path):
    n = 40
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(10, 1, n) for name in TRAITS}
    columns["through_plane_mm"][7] = 90.0
    cases = pa.table({"case": [f"case{i}" for i in range(n)], "patient": [f"{i}" for i in range(n)], **columns})
    typical, outlying = choose_cases(cases)
    assert outlying[0].case == "case7"
    assert outlying[0].why.startswith("distance of slices 90 mm (median ")
    assert max(one.distance for one in typical) < min(one.distance for one in outlying)
    assert len({one.case for one in (*typical, *outlying)}) == 8


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_cases_are_all_shown_once(n):
    cases = pa.table(
        {
            "case": [f"case{i}" for i in range(n)],
            "patient": [f"{i}" for i in range(n)],
            **{name: np.arange(n) * 1.0 for name in TRAITS},
        }
    )
    typical, outlying = choose_cases(cases)
    assert len({one.case for one in (*typical, *outlying)}) == len(typical) + len(outlying) == n


def test_cases_that_are_all_alike_have_no_outliers():
    cases = pa.table(
        {
            "case": [f"case{i}" for i in range(9)],
            "patient": list("abcdefghi"),
            **{name: np.full(9, 2.0) for name in TRAITS},
        }
    )
    assert choose_cases(cases)[1] == []


def test_no_patient_is_shown_twice():
    cases = pa.table(
        {
            "case": [f"case{i}" for i in range(8)],
            "patient": list("aabbccdd"),
            **{name: np.arange(8) ** 2.0 for name in TRAITS},
        }
    )
    typical, outlying = choose_cases(cases)
    shown = [int(one.case.removeprefix("case")) // 2 for one in (*typical, *outlying)]
    assert sorted(shown) == [0, 1, 2, 3]


def test_a_bin_that_towers_above_the_others_is_cut_and_said():
    edges, counts = np.linspace(0.0, 64.0, 65), np.full(64, 10)
    even = Curves(edges, counts, counts, None, "grey level")
    assert cut_shares(even) == []
    counts = counts.copy()
    counts[0] = 64_000
    ((middle, share),) = cut_shares(Curves(edges, counts, np.zeros(64), None, "grey level"))
    assert middle == 0.5
    assert share == pytest.approx(0.99, abs=0.01)


def test_plots_keep_the_numbers_at_their_ticks():
    drawn = distribution("a", "spacing", np.array([0.1254, 0.1256]))
    ticks = [float(text) for text in re.findall(r">([\d.]+)</text>", drawn)]
    assert len(ticks) >= 2
    assert all(0.125 <= tick <= 0.126 for tick in ticks)


def test_a_histogram_without_annotation_has_no_second_curve():
    edges, counts = np.linspace(-1024.0, 3072.0, 129), np.arange(128)
    both = histogram("a", "x", Curves(edges, counts, counts, (-160.0, 240.0), "HU"))
    alone = histogram("a", "x", Curves(edges, counts, np.zeros(128), (-160.0, 240.0), "HU"))
    assert "plot-annotated" in both
    assert "plot-annotated" not in alone
    assert "plot-band" in alone


def test_an_empty_folder_is_neither(tmp_path):
    with pytest.raises(ShardSetError, match="holds no dataset"):
        write_report(str(tmp_path), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def both(pipeline, tmp_path_factory) -> dict[str, Page]:
    """The reports of a workspace and of the set made from it."""
    folder = tmp_path_factory.mktemp("both")
    places = {"workspace": str(pipeline.workspace.path), "set": str(pipeline.shards)}
    return {
        name: Page(write_report(place, folder / f"{name}.html", pipeline.recipe).read_text(encoding="utf-8"))
        for name, place in places.items()
    }


def test_a_workspace_is_reported_as_its_set_but_for_splits(both):
    ids = {name: {e.attributes["id"] for e in page.elements if "id" in e.attributes} for name, page in both.items()}
    assert ids["set"] - ids["workspace"] == {"splits", "splits-title"}
    assert ids["workspace"] <= ids["set"]
    figures = {name: [e.text for e in page.all("dd")[:7]] for name, page in both.items()}
    assert figures["workspace"] == figures["set"]
    for page in both.values():
        assert len(page.all("img")) > 10
    pictures = {name: {e.attributes["src"] for e in page.all("img")} for name, page in both.items()}
    assert pictures["workspace"] == pictures["set"]


def test_a_report_names_no_person_and_no_place(both, pipeline):
    secret = [
        str(pipeline.workspace.path.parent), pipeline.workspace.salt().hex(), "ann", "bob",
        *(reject.case for name in pipeline.workspace.collections() for reject in pipeline.workspace.ingest_rejects(name) if "." in reject.case),
    ]  # fmt: skip
    patients = pq.read_table(pipeline.shards / "cases.parquet", columns=["patient", "volume"])
    hashes = {value for column in patients.columns for value in column.to_pylist()}
    for page in both.values():
        words = {
            word for e in page.elements for word in re.findall(r"[\w./-]+", " ".join((e.text, *e.attributes.values())))
        }
        assert not words & ({*secret} | hashes)
        text = page.elements[0].text
        assert str(pipeline.workspace.path) not in text


def test_rejects_stand_with_their_reasons(both, pipeline):
    rejects = pq.read_table(pipeline.shards / "rejects.parquet").to_pylist()
    assert rejects
    for page in both.values():
        cells = {e.text for e in page.all("td")}
        for reject in rejects:
            assert {reject["case"], reject["reason"].replace("_", " "), " ".join(reject["detail"].split())} <= cells


def test_sequences_have_groups_of_their_own(both):
    titles = [e.text for e in both["set"].all("h3")]
    assert {"MR, T1", "MR, T2", "CT, portal venous"} <= set(titles)


def test_cases_of_another_recipe_are_counted_as_missing(pipeline, tmp_path):
    with pytest.raises(WorkspaceError, match="no case that recipe"):
        write_report(str(pipeline.workspace.path), tmp_path / "report.html")
