"""Slow jobs from Kafka, run through NSQ."""
