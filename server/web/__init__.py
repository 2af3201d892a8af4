"""The HTTP side: the dashboard and its JSON API, /metrics for Prometheus, /healthz for probes."""
