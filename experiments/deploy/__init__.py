"""Deployment: the fault campaign, serving under load, freshness, fan-out, catching up."""
