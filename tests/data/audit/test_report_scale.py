"""The report of twenty collections with more than 438,905 slices: how long it takes to write, how much memory, how fast it opens."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from support.synthetic_sets import Sizes, write_synthetic_set

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = Sizes(
    collections=20, cases=415, slices=53, sequences=("T1", "T2", "FLAIR"), label_names=tuple(f"organ {n}" for n in range(16))
)  # fmt: skip
WRITE = """
import sys, time
from pathlib import Path
from medvar_data.audit.report import write_report
write_report(sys.argv[1], Path(sys.argv[2]))
status = Path("/proc/self/status")
print("cpu", time.process_time(), status.read_text() if status.exists() else "")
"""
LOADED = """async () => {
  const [shown] = performance.getEntriesByType("navigation");
  const painted = performance.getEntriesByName("first-contentful-paint")[0];
  return Math.max(shown.loadEventEnd, painted.startTime) / 1000;
}"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, str]:
    """The page, and what the process that wrote it said of itself."""
    folder = tmp_path_factory.mktemp("large")
    write_synthetic_set(folder / "set", SIZES)
    command = [sys.executable, "-c", WRITE, str(folder / "set"), str(folder / "report.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder / "report.html", done.stdout


def test_it_is_written_in_bounded_time_and_memory(large):
    page, said = large
    found = re.search(r"cpu ([\d.]+)", said)
    assert found
    assert float(found[1]) < 60
    if peak := re.search(r"VmHWM:\s+(\d+) kB", said):
        assert int(peak[1]) < 1_000_000
    assert page.stat().st_size < 15_000_000


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_it_opens_within_two_seconds(large):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    seconds = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for _ in range(5):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(large[0].as_uri())
            seconds.append(page.evaluate(LOADED))
            page.close()
        browser.close()
    assert median(seconds) < 2, seconds
