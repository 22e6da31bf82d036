"""Our own drawing of the Grafana dashboards, with data of a real analysis from a real Prometheus.

Grafana is no part of it: this shows that the dashboards' JSON is whole, that each query answers, and roughly how the
panels look.
"""
