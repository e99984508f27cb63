"""Record runs and report on them: sinks, report.json, verdicts, comparisons, pictures, pages."""
