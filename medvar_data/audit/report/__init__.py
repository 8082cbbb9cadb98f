"""The report that an auditor reads: what a shard set or a workspace holds, on one page that needs no network."""

from medvar_data.audit.report.write import write_report

__all__ = ["write_report"]
