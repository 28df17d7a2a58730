"""Watching a governor: Prometheus metrics, OpenTelemetry spans, the socket of `concur watch`."""
