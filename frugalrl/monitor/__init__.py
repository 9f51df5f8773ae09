"""How a run goes and what it cost: progress, rows, receipt, dashboards and report."""
