"""The HTTP side: a page for people, /metrics for Prometheus, /healthz for probes. Read-only."""
