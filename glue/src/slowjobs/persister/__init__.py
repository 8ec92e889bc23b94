"""The persisters: requests and results from Kafka to PostgreSQL."""
