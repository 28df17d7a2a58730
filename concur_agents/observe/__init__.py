"""Watching a governor: Prometheus metrics, OpenTelemetry spans, and the `concur watch` socket."""
