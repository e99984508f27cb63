"""What becomes of a run: records to sinks, a report, its verdict, curves and a page."""
